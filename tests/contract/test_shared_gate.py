"""Contract of what nodes tell each other of targets. Each kind of it is a ``House`` below."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

import pytest

from tests.support.redis_nodes import Nodes, nodes_of
from txcoord.adapters.embedded import InProcessGate
from txcoord.adapters.redis.gate import RedisGate
from txcoord.ports import SharedGate

MS = 1_000
S = 1_000_000
T = "grpc://127.0.0.1:9999"


class House(Protocol):
    """Nodes that share, and their time."""

    def node(self) -> SharedGate:
        """What one of them uses: another one for each call, over the same state."""
        ...

    async def pass_(self, us: int) -> None:
        """So much time passes."""
        ...


class InProcess:
    """One process: its nodes are one."""

    def __init__(self) -> None:
        self.now_us = 1_800_000_000 * S
        self._gate = InProcessGate(lambda: self.now_us)

    def node(self) -> SharedGate:
        return self._gate

    async def pass_(self, us: int) -> None:
        self.now_us += us


class OnRedis:
    """Nodes that share a Redis; its clock is the machine's."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    def node(self) -> SharedGate:
        return RedisGate(self._nodes.link())

    async def pass_(self, us: int) -> None:
        await asyncio.sleep(us / 1_000_000)


@pytest.fixture(params=["in-process", "redis", "valkey"])
async def house(request: pytest.FixtureRequest) -> AsyncIterator[House]:
    if request.param == "in-process":
        yield InProcess()
        return
    server = request.getfixturevalue("redis_server" if request.param == "redis" else "valkey_server")
    with server.client() as client:
        client.flushall()
    async with nodes_of(server) as nodes:
        yield OnRedis(nodes)


async def test_what_one_finds_dead_all_know(house: House) -> None:
    one, other = house.node(), house.node()
    assert dict(await other.dead()) == {}
    await one.opened(T, "UNAVAILABLE: refused", 60 * S)
    await one.opened("grpc://other:1", "TIMED_OUT", 60 * S)
    assert dict(await other.dead()) == {T: "UNAVAILABLE: refused", "grpc://other:1": "TIMED_OUT"}
    await one.opened(T, "NO_ANSWER", 60 * S)
    assert (await other.dead())[T] == "NO_ANSWER"
    await other.closed(T)
    await other.closed(T)
    assert dict(await one.dead()) == {"grpc://other:1": "TIMED_OUT"}


async def test_that_it_is_dead_is_forgotten_unless_said_again(house: House) -> None:
    one = house.node()
    await one.opened(T, "x", 50 * MS)
    await house.pass_(60 * MS)
    assert dict(await one.dead()) == {}
    await one.opened(T, "x", 50 * MS)
    await one.opened(T, "x", 60 * S)
    await house.pass_(60 * MS)
    assert dict(await one.dead()) == {T: "x"}


async def test_one_probe_at_a_time_for_all(house: House) -> None:
    nodes = [house.node() for _ in range(4)]
    assert sum([await node.probe(T, 60 * S) for node in nodes]) == 1
    assert await nodes[0].probe("grpc://other:1", 60 * S)
    assert await nodes[1].probe("grpc://third:1", 50 * MS)
    await house.pass_(60 * MS)
    assert await nodes[2].probe("grpc://third:1", 50 * MS)


async def test_without_limits_all_is_granted(house: House) -> None:
    room = await house.node().admit(T, 500, rate_per_s=0, at_once=0, lease_us=S)
    assert (room.granted, room.again_us, room.ticket) == (500, 0, "")


async def test_calls_at_one_time(house: House) -> None:
    one, other = house.node(), house.node()
    first = await one.admit(T, 2, rate_per_s=0, at_once=3, lease_us=60 * S)
    second = await other.admit(T, 5, rate_per_s=0, at_once=3, lease_us=60 * S)
    assert (first.granted, second.granted) == (2, 1)
    assert first.again_us == 0 < second.again_us
    full = await one.admit(T, 1, rate_per_s=0, at_once=3, lease_us=60 * S)
    assert (full.granted, full.ticket) == (0, "")
    assert 0 < full.again_us <= S
    await one.leave(T, first.ticket, 1)
    assert (await other.admit(T, 5, rate_per_s=0, at_once=3, lease_us=60 * S)).granted == 1
    await one.leave(T, first.ticket, 1)
    await one.leave(T, first.ticket, 1)  # There is no more of it.
    await one.leave(T, "unknown", 7)
    assert (await other.admit(T, 5, rate_per_s=0, at_once=3, lease_us=60 * S)).granted == 1
    # A smaller limit throws nobody out.
    assert (await other.admit(T, 1, rate_per_s=0, at_once=1, lease_us=60 * S)).granted == 0
    assert (await other.admit("grpc://other:1", 1, rate_per_s=0, at_once=1, lease_us=60 * S)).granted == 1


async def test_a_place_that_is_not_given_back_is_free_after_its_lease(house: House) -> None:
    one = house.node()
    dead = await one.admit(T, 1, rate_per_s=0, at_once=1, lease_us=50 * MS)
    await house.pass_(60 * MS)
    assert (await one.admit(T, 1, rate_per_s=0, at_once=1, lease_us=60 * S)).granted == 1
    await one.leave(T, dead.ticket, 1)
    assert (await one.admit(T, 1, rate_per_s=0, at_once=1, lease_us=60 * S)).granted == 0


async def test_so_many_a_second(house: House) -> None:
    one, other = house.node(), house.node()
    slow, quick = 0.001, 5.0
    assert (await one.admit(T, 9, rate_per_s=slow, at_once=0, lease_us=S)).granted == 1
    none = await other.admit(T, 9, rate_per_s=slow, at_once=0, lease_us=S)
    assert none.granted == 0
    assert 0 < none.again_us <= 1_000 * S + 2
    # Waiting for as long as it says is enough, and nothing more is saved up meanwhile than a tenth of a second's worth.
    again = "grpc://other:1"
    for node in (one, other, one):
        room = await node.admit(again, 9, rate_per_s=quick, at_once=0, lease_us=S)
        if not room.granted:
            assert room.again_us <= S // 5 + 2
            await house.pass_(room.again_us)
            room = await node.admit(again, 9, rate_per_s=quick, at_once=0, lease_us=S)
        assert room.granted == 1
        assert room.again_us > 0
        await house.pass_(S // 2)


async def test_a_tenth_of_a_second_is_saved_up(house: House) -> None:
    assert (await house.node().admit(T, 9_999, rate_per_s=1000, at_once=0, lease_us=S)).granted == 100


async def test_both_limits(house: House) -> None:
    one = house.node()
    room = await one.admit(T, 50, rate_per_s=100, at_once=4, lease_us=60 * S)
    assert room.granted == 4  # of ten tokens
    assert (await one.admit(T, 50, rate_per_s=100, at_once=4, lease_us=60 * S)).granted == 0
    await one.leave(T, room.ticket, 4)
    # The places that were refused for want of places took no token.
    assert (await one.admit(T, 50, rate_per_s=100, at_once=4, lease_us=60 * S)).granted == 4
