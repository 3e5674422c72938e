"""A Redis that dies, hangs, comes back empty: nothing waits for it, and it is said."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from tests.support.redis_server import RedisServer
from txcoord.adapters.redis import link as module
from txcoord.adapters.redis.gate import RedisGate
from txcoord.adapters.redis.link import RedisLink
from txcoord.config import Settings
from txcoord.observe import logs
from txcoord.ports import SharedLost
from txcoord.wiring import services

T = "grpc://stock:1"
S = 1_000_000


@pytest.fixture(autouse=True)
def _logging_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test before may have set it up to say less."""
    before = structlog.get_config()
    structlog.reset_defaults()
    monkeypatch.setattr(module, "log", logs.get("txcoord.redis"))
    yield
    structlog.configure(**before)


class Time:
    """In seconds, by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def _said(entries: Sequence[Any]) -> list[str]:
    return [entry["event"] for entry in entries if entry["event"].startswith("redis.")]


async def test_killed_and_back_empty(own_redis: RedisServer) -> None:
    clock = Time()
    link = RedisLink(own_redis.url, prefix="t", timeout_s=10.0, now=clock)
    gate = RedisGate(link)
    with capture_logs() as entries:
        await gate.opened(T, "away", 60 * S)
        own_redis.kill()
        for _ in range(2):
            with pytest.raises(SharedLost):
                await gate.dead()
        own_redis.start()
        with pytest.raises(SharedLost):
            await gate.dead()  # It is not looked at again so soon.
        clock.now += 1.0
        assert dict(await gate.dead()) == {}, "and the scripts are sent again"
        assert _said(entries) == ["redis.unavailable", "redis.back"]
        own_redis.kill()
        for _ in range(25):
            with pytest.raises(SharedLost):
                await gate.dead()
            clock.now += 1.0
        assert _said(entries)[2:] == ["redis.unavailable"] * 3
    await link.close()


async def test_one_that_hangs_costs_a_time_out_and_then_nothing(own_redis: RedisServer) -> None:
    clock = Time()
    link = RedisLink(own_redis.url, prefix="t", timeout_s=0.2, now=clock)
    gate = RedisGate(link)
    with own_redis.frozen():
        with pytest.raises(SharedLost):
            await gate.dead()
        begun = time.monotonic()
        for _ in range(1_000):
            with pytest.raises(SharedLost):
                await gate.admit(T, 1, rate_per_s=5, at_once=0, lease_us=S)
        assert time.monotonic() - begun < 30, "none of them asked it"
        clock.now += 1.0
        asked = await asyncio.gather(*(gate.dead() for _ in range(50)), return_exceptions=True)
        assert all(isinstance(answer, SharedLost) for answer in asked)
    while True:
        clock.now += 1.0
        try:
            assert dict(await gate.dead()) == {}
            break
        except SharedLost:
            await asyncio.sleep(0.02)
    await link.close()


async def test_a_wrong_password_is_an_outage(own_redis: RedisServer) -> None:
    with own_redis.client() as client:
        client.config_set("requirepass", "right")
    link = RedisLink(own_redis.url, prefix="t", timeout_s=10.0)
    with pytest.raises(SharedLost, match=r"(?i)auth"):
        await RedisGate(link).dead()
    await link.close()


async def test_doctor_looks_at_redis_and_at_a_kafka_that_is_away(redis_server: RedisServer) -> None:
    settings = Settings.model_validate(
        {"redis": {"url": redis_server.url}, "kafka": {"bootstrap_servers": "127.0.0.1:1"}}
    )
    kafka, redis = await services.look(settings)
    assert [f.severity for f in redis.findings] == ["ok"]
    assert [(f.reason, f.severity) for f in kafka.findings] == [("KAFKA_UNAVAILABLE", "error")]
    [away] = await services.look(Settings.model_validate({"redis": {"url": "redis://127.0.0.1:1"}}))
    assert [(f.reason, f.severity) for f in away.findings] == [("REDIS_UNAVAILABLE", "error")]
    assert await services.look(Settings()) == []
