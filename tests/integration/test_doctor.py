"""`txcoord doctor`: the whole in one look."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli_support import Desk, resource
from tests.integration.doctor_support import desk
from tests.integration.test_serve import new_node
from tests.support.databases import Databases
from txcoord import __version__
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer

__all__ = ["desk"]  # a fixture

# Every look is a process, beside servers: on a busy machine that takes its time.
pytestmark = pytest.mark.timeout(300)


def sections(desk: Desk, *arguments: str, code: int = 0, **env: str) -> dict[str, dict[str, Any]]:
    """What the doctor said, by section."""
    return {d["name"]: d for d in desk.json("doctor", *arguments, code=code, **env)}


def wrong(section: dict[str, Any]) -> list[str]:
    return [f["reason"] for f in section["findings"] if f["severity"] != "ok"]


def test_all_is_well(
    pg18: PostgresServer, mariadb: MariaDBServer, new_database: Databases, tmp_path: Path
) -> None:
    urls = {"accounts": new_database(pg18), "ledger": new_database(mariadb)}
    node = new_node(tmp_path, urls)
    node.start()
    desk = Desk(tmp_path, {**node.env, "TXCOORD_ADDRESS": node.address})
    found = sections(desk)
    assert list(found) == ["settings", "log", "accounts", "ledger", "coordinator"]
    assert [wrong(section) for section in found.values()] == [[], [], [], [], []]
    assert all(section["good"] for section in found.values())
    assert found["coordinator"]["version"] == __version__
    assert found["coordinator"]["identity"] == found["log"]["identity"]
    shown = desk.run("doctor")
    assert "this machine's clock is " in shown.stdout
    assert "PROBLEM" not in shown.stdout
    assert shown.stderr.endswith("0 problems, 0 warnings\n")
    # The coordinator looks itself, with its settings: none are needed here.
    elsewhere = Desk(tmp_path, {"TXCOORD_ADDRESS": node.address})
    seen = {d["name"]: d for d in elsewhere.json("resource", "check", "--there")}
    assert {name: (d["good"], d["identity"]) for name, d in seen.items()} == {
        name: (True, found[name]["identity"]) for name in urls
    }
    assert "UNKNOWN_RESOURCE" in elsewhere.run("resource", "check", "nowhere", "--there", code=6).stderr
    # Another log and other resources in the settings than the coordinator has.
    other = Desk(tmp_path, {"TXCOORD_ADDRESS": node.address, "TXCOORD_LOG__URL": "sqlite:///other.db"})
    other.run("migrate")
    differs = sections(other, code=7, **resource("accounts", urls["accounts"]))["coordinator"]
    assert wrong(differs) == ["COORDINATOR_DIFFERS", "COORDINATOR_DIFFERS"]
    assert "it works on the log" in differs["findings"][1]["fact"]
    assert (
        "it has the resources accounts, ledger; the settings have accounts" in differs["findings"][2]["fact"]
    )
    assert node.stop() == 0


def test_nothing_is_there_yet(tmp_path: Path) -> None:
    desk = Desk(tmp_path, {"TXCOORD_ADDRESS": "127.0.0.1:1"})
    found = sections(desk, code=7)
    assert {name: wrong(section) for name, section in found.items()} == {
        "settings": ["UNKNOWN_RESOURCE"],
        "log": ["SCHEMA_MISMATCH"],
        "coordinator": ["UNAVAILABLE"],
    }
    assert "txcoord migrate" in found["log"]["findings"][0]["remedy"]
    assert "coordinator" not in sections(desk, "--no-coordinator", code=7)
    assert "3 problems, 0 warnings" in desk.run("doctor", code=7).stderr


def test_wrong_settings_end_it_as_they_end_every_command(tmp_path: Path) -> None:
    done = Desk(tmp_path, {"TXCOORD_LISTN": "x"}).run("doctor", code=3)
    assert "TXCOORD_LISTN: there is no such setting; did you mean TXCOORD_LISTEN?" in done.stderr
    assert "No such option" in Desk(tmp_path).run("doctor", "--nonsense", code=2).stderr


def test_a_coordinator_that_all_can_reach(desk: Desk) -> None:
    env = {"TXCOORD_LISTEN": "0.0.0.0:7070", "TXCOORD_INSECURE_LISTEN": "true"}
    found = sections(desk, "--no-coordinator", code=7, **env)
    assert wrong(found["settings"]) == ["UNKNOWN_RESOURCE", "OPEN_TO_ALL"]


def test_a_log_that_does_not_keep_what_it_confirms(
    pg_server: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    server = pg_server(settings={"fsync": "off"})
    desk = Desk(tmp_path, {"TXCOORD_LOG__URL": server.url()})
    desk.run("migrate")
    found = sections(desk, "--no-coordinator", code=7)["log"]
    assert wrong(found) == ["DURABILITY"]
    assert "decisions may be gone" in found["findings"][1]["means"]
    server.stop()
    assert wrong(sections(desk, "--no-coordinator", code=7)["log"]) == ["LOG_UNAVAILABLE"]


def test_a_log_on_mariadb_that_does_not_keep_what_it_confirms(
    mariadb_server: Callable[..., MariaDBServer], tmp_path: Path
) -> None:
    server = mariadb_server()
    server.create_database("log")
    desk = Desk(tmp_path, {"TXCOORD_LOG__URL": f"mariadb://root@127.0.0.1:{server.port}/log"})
    desk.run("migrate")
    assert wrong(sections(desk, "--no-coordinator", code=7)["log"]) == []
    server.sql("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
    found = sections(desk, "--no-coordinator", code=7)["log"]
    assert wrong(found) == ["DURABILITY"]
    assert "decisions may be gone" in found["findings"][1]["means"]


def test_what_the_coordinator_does_not_use_is_told(
    pg18: PostgresServer, new_database: Databases, tmp_path: Path
) -> None:
    urls = {"accounts": new_database(pg18)}
    node = new_node(tmp_path, urls)
    node.env |= resource("bare", new_database(pg18))
    node.start()
    desk = Desk(tmp_path, {**node.env, "TXCOORD_ADDRESS": node.address})
    found = sections(desk, code=7)
    assert wrong(found["bare"]) == ["RESOURCE_NOT_PREPARED"]
    assert wrong(found["coordinator"]) == ["RESOURCE_NOT_PREPARED"]
    told = found["coordinator"]["findings"][1]
    assert "it does not use resource 'bare'" in told["fact"]
    assert told["remedy"] == ["txcoord resource check bare"]
    assert node.stop() == 0


def test_one_object_a_line(desk: Desk) -> None:
    lines = desk.run("doctor", "--no-coordinator", "--json", code=7).stdout.splitlines()
    for line in lines:
        finding = json.loads(line)["findings"][0]
        assert finding.keys() >= {"reason", "severity", "fact", "means", "remedy", "refused", "fixed"}
