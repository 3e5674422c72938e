"""`txcoord worker` and `txcoord queue`, as users have them: processes, a log on PostgreSQL, a real Kafka."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.integration.cli_support import clean_environment
from tests.support.acceptance import new_gid
from tests.support.databases import Databases
from tests.support.http_api import api_of, plain_service
from tests.support.kafka_queue import connection_to, new_settings, queue_node, until, until_committed
from tests.support.kafka_server import KafkaServer
from txcoord.adapters.sql.migrate import migrate
from txcoord.cli import app
from txcoord.config import Settings
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import TXCOORD, Managed
from txcoord.wiring import Node

TX = "/v1/transactions"
# Longer than what a node waits for by itself.
BACKOFF = {"first": "4s", "factor": 1.0, "cap": "4s"}


def variables(kafka: KafkaServer, prefix: str, log_url: str) -> dict[str, str]:
    return {
        "TXCOORD_LOG__URL": log_url,
        "TXCOORD_KAFKA__BOOTSTRAP_SERVERS": kafka.address,
        "TXCOORD_KAFKA__PREFIX": prefix,
        "TXCOORD_KAFKA__CONSUME": "false",
        "TXCOORD_KAFKA__PARTITIONS": "2",
        "TXCOORD_KAFKA__TIERS": "200ms, 500ms, 1s, 2s",
        "TXCOORD_BACKOFF__FIRST": BACKOFF["first"],
        "TXCOORD_BACKOFF__FACTOR": "1",
        "TXCOORD_BACKOFF__CAP": BACKOFF["cap"],
        "TXCOORD_LOG_FORMAT": "json",
        "TXCOORD_TARGETS__ALLOW": "loopback",
    }


def settings(kafka: KafkaServer, log_url: str, name: str) -> Settings:
    """Of a node in this process."""
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "http_address": "127.0.0.1:0",
        "node": {"name": name, "drain_timeout": "1s"},
        "log": {"url": log_url},
        "backoff": BACKOFF,
        "kafka": {
            "bootstrap_servers": kafka.address,
            "prefix": "worker",
            "consume": name == "three",
            "partitions": 2,
            "tiers": "200ms, 500ms, 1s, 2s",
        },
    }
    return Settings.model_validate(values)


async def until_said(process: Managed, event: str) -> None:
    async with asyncio.timeout(45):
        while event not in process.tail(100_000):
            assert process.running, process.tail()
            await asyncio.sleep(0.05)


def say(env: dict[str, str], *arguments: str) -> Result:
    """Run a command in this process: that is quicker."""
    return CliRunner().invoke(app, arguments, env={**dict.fromkeys(os.environ), **clean_environment(env)})


def objects(said: Result) -> list[Any]:
    """What a command printed as JSON. Nodes of this process may log between its lines."""
    return [json.loads(line) for line in said.stdout.splitlines() if line.startswith("{")]


@pytest.mark.timeout(120)
async def test_a_worker_carries_out_what_was_handed_off_and_nothing_is_lost_with_the_topics(
    kafka: KafkaServer, pg18: PostgresServer, new_database: Databases, tmp_path: Path
) -> None:
    log_url = new_database(pg18)
    await migrate(log_url)
    env = variables(kafka, "worker", log_url)
    one = Managed(
        "one", [*TXCOORD, "worker", "--name", "one"], log=tmp_path / "log", env=env, address="", cwd=tmp_path
    )
    one.start(wait_s=0)  # before the coordinator: the order is free
    try:
        async with (
            plain_service() as shop,
            Node(settings(kafka, log_url, "two")) as node,
            api_of(node) as api,
        ):
            shop.fail = {"/confirm"}
            gids = [new_gid() for _ in range(5)]
            for gid in gids:
                await api.post(TX, {"gid": gid}, expect=201)
                await api.post(f"{TX}/{gid}/branches", {"branches": [shop.tcc("1")]})
                await api.post(f"{TX}/{gid}/votes", {"votes": [{"branch": "1", "vote": "VOTE_PREPARED"}]})
                await api.post(f"{TX}/{gid}/commit", expect=202, prefer="respond-async")
            await until_committed(kafka, new_settings(group="worker.retry"), 1)
            admin = connection_to(kafka).admin()
            await admin.start()
            await admin.delete_topics([f"worker.retry.{tier}" for tier in ("200ms", "500ms", "1s", "2s")])
            await admin.close()
            async with Node(settings(kafka, log_url, "three"), role="worker"):
                shop.fail = set()
                for gid in gids:
                    outcome = await api.get(f"{TX}/{gid}/wait?timeout=45s")
                    assert outcome["outcome"]["state"] == "STATE_COMMITTED"
            there = ("--address", node.address)
            listed = await asyncio.to_thread(say, {}, "node", "list", "--json", *there)
            roles = {n["name"]: n["role"] for n in objects(listed)}
            assert roles == {"two": "coordinator", "one": "worker"}
            order = ("node", "drain", "one", "--reason", "new disk", "--yes", *there)
            assert "one: takes nothing new" in (await asyncio.to_thread(say, {}, *order)).stdout
            await until_said(one, "node.drained")
            last = ("node", "drain", "two", "--reason", "new disk", "--yes", *there)
            assert (
                "would wait until one does" in (await asyncio.to_thread(say, {}, *last, "--dry-run")).stderr
            )
            for command in (last, ("node", "list", *there)):
                assert "No node of this log takes work" in (await asyncio.to_thread(say, {}, *command)).stderr
            assert await asyncio.to_thread(one.stop) == 0
            assert "worker.started" in one.tail(100_000)
            assert "node.stopped" in one.tail()
    finally:
        one.kill9()


async def test_poison_is_shown(kafka: KafkaServer) -> None:
    env = variables(kafka, "shown", "sqlite:///txcoord.db")
    nothing = await asyncio.to_thread(say, env, "queue", "poison")
    assert nothing.stderr == "no record was poison\n"  # nor is its topic there
    settings = new_settings(prefix="shown", group="shown.retry")
    async with queue_node(kafka, settings) as node:
        await node.queue._topics.there.wait()
        producer = connection_to(kafka).producer()
        await producer.start()
        await producer.send_and_wait("shown.retry.200ms", b"\xffgarbage", key=b"k")
        await producer.stop()
        await until(lambda: node.queue.poisoned == 1)
        await until(lambda: node.queue.depth()["sending"] == 0)

    (found,) = objects(await asyncio.to_thread(say, env, "queue", "poison", "--json"))
    assert (found["topic"], found["reason"]) == ("shown.retry.200ms", "no JSON")
    assert base64.b64decode(found["value_base64"]) == b"\xffgarbage"
    shown = (await asyncio.to_thread(say, env, "queue", "poison")).stdout
    assert "shown.retry.200ms:" in shown
    assert r"b'\xffgarbage'" in shown
    status = await asyncio.to_thread(say, env, "queue", "status")
    lines = [line.split() for line in status.stdout.splitlines()]
    assert ["shown.poison", "1", "1", "-"] in lines


@pytest.mark.parametrize(
    ("change", "command", "code", "said"),
    [
        ({"TXCOORD_KAFKA__BOOTSTRAP_SERVERS": ""}, ("worker",), 3, "no Kafka is set"),
        ({"TXCOORD_LOG__URL": "sqlite:///x.db"}, ("worker",), 3, "one node"),
        ({"TXCOORD_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}, ("queue", "status"), 4, "QUEUE_UNAVAILABLE"),
        ({"TXCOORD_KAFKA__SECURITY_PROTOCOL": "SASL_SSL"}, ("queue", "status"), 3, "sasl_username"),
        ({"TXCOORD_KAFKA__TIERS": "2s, 1s"}, ("queue", "status"), 3, "longer than the one before"),
    ],
)
def test_what_cannot_work_is_said(
    change: dict[str, str], command: tuple[str, ...], code: int, said: str
) -> None:
    env = {
        "TXCOORD_KAFKA__BOOTSTRAP_SERVERS": "localhost:9092",
        "TXCOORD_LOG__URL": "postgresql://x@localhost:1/x",
    }
    answer = say({**env, **change}, *command)
    assert answer.exit_code == code
    assert said in answer.stderr
