"""Contract of leases for singleton duties, kept in the log's database."""

from __future__ import annotations

import asyncio

from tests.support.logs import LogContract, Place, S
from txcoord.adapters.sql.leases import SqlLeases
from txcoord.adapters.sql.log import SqlLog


class TestLeases(LogContract):
    async def test_one_owner_at_a_time(self, log: SqlLog) -> None:
        leases = SqlLeases(log)
        first = await leases.acquire("scan:a", "n1", 60 * S)
        assert first is not None
        assert await leases.acquire("scan:a", "n2", 60 * S) is None
        assert await leases.acquire("scan:b", "n2", 60 * S) is not None

    async def test_the_token_only_grows(self, log: SqlLog) -> None:
        leases = SqlLeases(log)
        tokens = [await leases.acquire("d", "n1", 60 * S), await leases.acquire("d", "n1", 60 * S)]
        await leases.release("d", "n1")
        tokens.append(await leases.acquire("d", "n2", 0))
        tokens.append(await leases.acquire("d", "n3", 60 * S))  # n2's has run out at once
        numbers = [t for t in tokens if t is not None]
        assert len(numbers) == 4
        assert numbers == sorted(set(numbers))

    async def test_only_its_owner_gives_it_back(self, log: SqlLog) -> None:
        leases = SqlLeases(log)
        await leases.acquire("d", "n1", 60 * S)
        await leases.release("d", "n2")
        await leases.release("none", "n2")
        assert await leases.acquire("d", "n2", 60 * S) is None

    async def test_many_at_once(self, place: Place) -> None:
        nodes = [SqlLeases(await place.open()) for _ in range(4)]
        for duty in ("a", "b", "c"):
            tokens = await asyncio.gather(*(n.acquire(duty, f"n{i}", 60 * S) for i, n in enumerate(nodes)))
            assert [t for t in tokens if t is not None] == [1]
