"""Contract of leases for singleton duties: kept in the log's database, and with Redis in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from tests.support.logs import LogContract, Place, S
from tests.support.redis_nodes import nodes_of
from tests.support.redis_server import RedisServer
from txcoord.adapters.embedded import InProcessLeases
from txcoord.adapters.redis.leases import RedisLeases
from txcoord.adapters.sql.leases import SqlLeases
from txcoord.adapters.sql.log import SqlLog
from txcoord.ports import Leases

Front = Callable[[Leases], Leases]
"""What a node uses, over the leases of its log."""


@pytest.fixture(params=["log", "redis"])
async def front(request: pytest.FixtureRequest) -> AsyncIterator[Front]:
    if request.param == "log":
        yield lambda leases: leases
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    with server.client() as client:
        client.flushall()
    async with nodes_of(server) as nodes:
        yield lambda leases: RedisLeases(nodes.link(), leases)


class TestLeases(LogContract):
    async def test_one_owner_at_a_time(self, log: SqlLog, front: Front) -> None:
        leases = front(SqlLeases(log))
        first = await leases.acquire("scan:a", "n1", 60 * S)
        assert first is not None
        assert await leases.acquire("scan:a", "n2", 60 * S) is None
        assert await leases.acquire("scan:b", "n2", 60 * S) is not None

    async def test_the_token_only_grows(self, log: SqlLog, front: Front) -> None:
        leases = front(SqlLeases(log))
        tokens = [await leases.acquire("d", "n1", 60 * S), await leases.acquire("d", "n1", 60 * S)]
        await leases.release("d", "n1")
        tokens.append(await leases.acquire("d", "n2", 0))
        tokens.append(await leases.acquire("d", "n3", 60 * S))  # n2's has run out at once
        numbers = [t for t in tokens if t is not None]
        assert len(numbers) == 4
        assert numbers == sorted(set(numbers))

    async def test_only_its_owner_gives_it_back(self, log: SqlLog, front: Front) -> None:
        leases = front(SqlLeases(log))
        await leases.acquire("d", "n1", 60 * S)
        await leases.release("d", "n2")
        await leases.release("none", "n2")
        assert await leases.acquire("d", "n2", 60 * S) is None

    async def test_many_at_once(self, place: Place, front: Front) -> None:
        nodes = [front(SqlLeases(await place.open())) for _ in range(4)]
        for duty in ("a", "b", "c"):
            tokens = await asyncio.gather(*(n.acquire(duty, f"n{i}", 60 * S) for i, n in enumerate(nodes)))
            assert [t for t in tokens if t is not None] == [1]


# ---- what is in front can be lost ----


class Counting(InProcessLeases):
    """Leases behind, that count who asks."""

    def __init__(self) -> None:
        self.now_us = 1
        super().__init__(lambda: self.now_us)
        self.asked = 0

    async def acquire(self, duty: str, owner: str, ttl_us: int) -> int | None:
        self.asked += 1
        return await super().acquire(duty, owner, ttl_us)


async def test_there_is_one_holder_whatever_redis_forgets(own_redis: RedisServer) -> None:
    async with nodes_of(own_redis) as nodes:
        behind = Counting()
        leases = RedisLeases(nodes.link(), behind)
        assert await leases.acquire("d", "n1", 60 * S) == 1
        assert await leases.acquire("d", "n2", 60 * S) is None
        assert behind.asked == 1, "the other one does not ask the log"
        with own_redis.client() as client:
            client.flushall()
        assert await leases.acquire("d", "n2", 60 * S) is None
        assert behind.asked == 2
        assert await leases.acquire("d", "n1", 60 * S) == 2
        own_redis.kill()
        assert await leases.acquire("d", "n2", 60 * S) is None
        await leases.release("d", "n1")
        assert await leases.acquire("d", "n2", 60 * S) == 3


async def test_who_is_late_to_say_it_and_what_was_not_written_here(redis_server: RedisServer) -> None:
    async with nodes_of(redis_server) as nodes:
        behind = Counting()
        leases = RedisLeases(nodes.link(prefix="late"), behind)
        with redis_server.client() as client:
            for value, ttl in ((b"nonsense", 1_000), (b"9 n9", None), (b"9 n9", 10_000)):
                client.flushall()
                client.set("late:lease:d", value, ex=ttl)
                assert await leases.acquire("d", "n1", 60 * S) is not None
            client.set("late:lease:d", b"99 n2", ex=10)  # n2 has it since, and a word of n1 comes only now.
            await leases._taken(["late:lease:d"], ["n1", 60_000, 4])
            assert client.get("late:lease:d") == b"99 n2"
