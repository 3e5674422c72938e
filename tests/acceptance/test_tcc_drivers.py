"""TCC in one transaction over participants that keep their data in different ways: asyncpg, psycopg and Redis alone."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import grpc
import psycopg_pool
import pytest
import redis.asyncio

from tests.support.acceptance import Site, eventually, new_gid
from tests.support.redis_server import RedisServer
from tests.support.resource import plain
from txcoord_client import Coordinator, Participant, Refused

NOTE = "INSERT INTO note (body) VALUES ('{}')"
TAKE = """
local free = tonumber(redis.call('GET', KEYS[1]))
if free < 1 then return {refused = 'SOLD_OUT'} end
redis.call('DECR', KEYS[1])
"""


@dataclass
class Shop:
    """Three services on one server, and who calls them."""

    site: Site
    coord: Coordinator
    client: Any
    operations: tuple[Any, Any, Any]

    def notes(self, body: str) -> tuple[list[str], ...]:
        return tuple(
            [op for op in ("try", "confirm", "cancel") for _ in range(db.count(f"{op} {body}"))]
            for db in self.site.databases
        )

    async def free(self, body: str) -> int:
        return int(await self.client.get(f"free:{body}"))


def noting(participant: Participant) -> Any:
    """An operation on a connection that has ``execute``."""

    @participant.tcc
    class Reserve:
        async def attempt(self, db: Any, *, body: str) -> dict[str, str]:
            await db.execute(NOTE.format(f"try {body}"))
            return {"body": body}

        async def confirm(self, db: Any, hold: dict[str, str]) -> None:
            await db.execute(NOTE.format(f"confirm {hold['body']}"))

        async def cancel(self, db: Any, hold: dict[str, str]) -> None:
            await db.execute(NOTE.format(f"cancel {hold['body']}"))

    return Reserve


def counting(participant: Participant) -> Any:
    """The same in Redis."""

    @participant.tcc
    class Seat:
        async def attempt(self, db: Any, *, body: str) -> dict[str, str]:
            db.run(TAKE, keys=[f"free:{body}"])
            return {"body": body}

        async def confirm(self, db: Any, hold: dict[str, str]) -> None:
            db.run("redis.call('INCRBY', KEYS[1], 100)", keys=[f"free:{hold['body']}"])

        async def cancel(self, db: Any, hold: dict[str, str]) -> None:
            db.run("redis.call('INCR', KEYS[1])", keys=[f"free:{hold['body']}"])

    return Seat


@pytest.fixture
async def shop(site: Site, redis_server: RedisServer) -> AsyncIterator[Shop]:
    accounts, ledger = (plain(db.url) for db in site.databases)
    client = redis.asyncio.Redis.from_url(redis_server.url)
    async with (
        asyncpg.create_pool(accounts, min_size=0, max_size=4) as one,
        psycopg_pool.AsyncConnectionPool(ledger, min_size=0, max_size=4, open=False) as two,
    ):
        served = [Participant(name, db=db) for name, db in (("one", one), ("two", two), ("seats", client))]
        operations = noting(served[0]), noting(served[1]), counting(served[2])
        server = grpc.aio.server()
        served[0].add_to(server, *served[1:])
        address = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        participants = {participant.name: address for participant in served}
        async with Coordinator(site.address, participants=participants) as coord:
            yield Shop(site, coord, client, operations)
        await server.stop(0)
    await client.aclose()


async def test_confirmed(shop: Shop) -> None:
    body = new_gid("drivers")
    await shop.client.set(f"free:{body}", 5)
    async with shop.coord.begin("order", gid=body) as g:
        for operation in shop.operations:
            assert await g.tcc(operation, body=body) == {"body": body}
    assert shop.notes(body) == (["try", "confirm"], ["try", "confirm"])
    assert await shop.free(body) == 104


async def test_cancelled(shop: Shop) -> None:
    body = new_gid("drivers")
    await shop.client.set(f"free:{body}", 1)
    with pytest.raises(Refused, match="SOLD_OUT"):
        async with shop.coord.begin("order", gid=body) as g:
            for operation in (*shop.operations, shop.operations[2]):
                await g.tcc(operation, body=body)

    async def given_back() -> bool:
        return shop.notes(body) == (["try", "cancel"], ["try", "cancel"]) and await shop.free(body) == 1

    await eventually(given_back)
