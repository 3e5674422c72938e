"""The contenders on an event loop: the asynchronous SDK, and the same by hand with the same drivers."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from txcoord_client import Coordinator

from .match import ACCOUNTS, BARE, UPDATE, XA, Match, Row, Turn

Once = Callable[[int], Awaitable[None]]


async def compare(
    urls: Sequence[str], names: Sequence[str], address: str, callers: int, seconds: float
) -> list[Row]:
    """``callers`` at once, for ``seconds`` each contender."""
    async with AsyncExitStack() as stack:
        engines: list[AsyncEngine] = []
        for url in urls:
            # One more than callers: the SDK keeps one connection of each pool free.
            engines.append(create_async_engine(url, pool_size=callers + 1, max_overflow=0))
            stack.push_async_callback(engines[-1].dispose)
        resources = dict(zip(names, engines, strict=True))
        coord = await stack.enter_async_context(Coordinator(address, resources=resources))
        bench = _Bench(engines, coord)
        once = {XA: bench.txcoord, BARE: bench.bare}
        match = Match(seconds)
        for turn in match.turns():
            await measure(once[turn.kind], callers, turn)
        return match.rows(callers)


class _Bench:
    """The two contenders on the same databases."""

    def __init__(self, engines: Sequence[AsyncEngine], coord: Coordinator) -> None:
        self._first, self._second = engines
        self._coord = coord
        self._numbers = itertools.count()
        self._run = f"bare{os.getpid()}"

    async def txcoord(self, number: int) -> None:
        """One global transaction over both databases."""
        async with self._coord.begin("bench") as g:
            async with g.xa(self._first) as db:
                await db.execute(UPDATE, {"cents": -1, "id": number % ACCOUNTS})
            async with g.xa(self._second) as db:
                await db.execute(UPDATE, {"cents": 1, "id": number % ACCOUNTS})

    async def bare(self, number: int) -> None:
        """The same by hand."""
        gid = f"{self._run}-{next(self._numbers)}"
        async with self._first.connect() as one, self._second.connect() as other:
            first, second = await _branch(one, gid), await _branch(other, gid)
            await first.begin()
            await one.execute(UPDATE, {"cents": -1, "id": number % ACCOUNTS})
            await second.begin()
            await other.execute(UPDATE, {"cents": 1, "id": number % ACCOUNTS})
            await asyncio.gather(first.prepare(), second.prepare())
            await asyncio.gather(first.commit(), second.commit())


async def measure(once: Once, callers: int, turn: Turn) -> None:
    """So many callers at once do it again and again, as long as the turn lasts."""
    clock = time.perf_counter
    begun = clock()
    until = begun + turn.seconds
    numbers = itertools.count(turn.seed)

    async def caller() -> None:
        while True:
            start = clock()
            if start >= until:
                return
            try:
                await once(next(numbers) * 7919)
            except Exception as error:
                turn.sample.failed(error)
                continue
            turn.sample.durations.append(clock() - start)

    await asyncio.gather(*(caller() for _ in range(callers)))
    turn.sample.seconds += clock() - begun


class _Asyncpg:
    def __init__(self, connection: AsyncConnection, driver: Any, gid: str) -> None:
        self._driver = driver
        self._gid = gid

    async def begin(self) -> None:
        pass  # SQLAlchemy does, before the first statement

    async def prepare(self) -> None:
        await self._driver.execute(f"PREPARE TRANSACTION '{self._gid}'")

    async def commit(self) -> None:
        await self._driver.execute(f"COMMIT PREPARED '{self._gid}'")


class _Psycopg:
    def __init__(self, connection: AsyncConnection, driver: Any, gid: str) -> None:
        self._driver = driver
        self._gid = gid

    async def begin(self) -> None:
        await self._driver.tpc_begin(self._gid)

    async def prepare(self) -> None:
        await self._driver.tpc_prepare()

    async def commit(self) -> None:
        await self._driver.tpc_commit()


class _MySQL:
    def __init__(self, connection: AsyncConnection, driver: Any, gid: str) -> None:
        self._connection = connection
        self._gid = gid

    async def begin(self) -> None:
        await self._connection.exec_driver_sql(f"XA START '{self._gid}'")

    async def prepare(self) -> None:
        await self._connection.exec_driver_sql(f"XA END '{self._gid}'")
        await self._connection.exec_driver_sql(f"XA PREPARE '{self._gid}'")

    async def commit(self) -> None:
        await self._connection.exec_driver_sql(f"XA COMMIT '{self._gid}'")


_KINDS: dict[str, type[_Asyncpg] | type[_Psycopg] | type[_MySQL]] = {
    "asyncpg": _Asyncpg,
    "psycopg": _Psycopg,
    "psycopg_async": _Psycopg,
    "asyncmy": _MySQL,
    "aiomysql": _MySQL,
}


async def _branch(connection: AsyncConnection, gid: str) -> _Asyncpg | _Psycopg | _MySQL:
    driver = (await connection.get_raw_connection()).driver_connection
    return _KINDS[connection.dialect.driver](connection, driver, gid)
