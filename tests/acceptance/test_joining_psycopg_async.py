"""psycopg's asynchronous pool, unchanged, inside a global transaction."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from tests.support.acceptance import Client, Site, eventually, new_gid
from txcoord_client import Aborted, Coordinator, NoTransaction, OverlappingUnits, Rejected

INSERT = "INSERT INTO note (body) VALUES (%s)"


class App:
    def __init__(self, site: Site, coord: Coordinator, pool: AsyncConnectionPool) -> None:
        self.site, self.coord, self.pool = site, coord, pool
        self.body = new_gid()

    async def add(self, number: int) -> None:
        async with self.pool.connection() as conn:
            await conn.execute(INSERT, (f"{self.body}-{number}",))

    def notes(self) -> list[int]:
        sql = f"SELECT body FROM note WHERE body LIKE '{self.body}%' ORDER BY body"
        return [int(body.removeprefix(f"{self.body}-")) for body in self.site.accounts.sql(sql).split()]


@pytest.fixture
async def app(client: Client, site: Site) -> AsyncIterator[App]:
    async with AsyncConnectionPool(site.accounts.dsn, min_size=1, max_size=3, open=False) as pool:
        assert client.coord.instrument(pool, resource="accounts") is pool
        yield App(site, client.coord, pool)
        await eventually(lambda: pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"])
    assert site.prepared() == []


async def test_units(app: App) -> None:
    async with app.coord.begin("t") as g:
        await app.add(1)
        async with app.pool.connection() as conn, conn.cursor() as cur:
            await cur.execute(INSERT, (f"{app.body}-2",))
            await conn.commit()
            await cur.execute(INSERT, (f"{app.body}-3",))
            await conn.rollback()
            async with cur.copy("COPY note (body) FROM STDIN") as copy:
                await copy.write_row((f"{app.body}-4",))
            rows = [
                row async for row in cur.stream("SELECT body FROM note WHERE body LIKE %s", (f"{app.body}%",))
            ]
            assert len(rows) == 3
            await cur.executemany(INSERT, [(f"{app.body}-5",)])
        with pytest.raises(psycopg.errors.DivisionByZero):
            async with app.pool.connection() as conn:
                await conn.execute(INSERT, (f"{app.body}-6",))
                await conn.execute("SELECT 1/0")
        async with app.pool.connection() as conn:
            conn.row_factory = dict_row
            assert await (await conn.execute("SELECT 1 AS one")).fetchone() == {"one": 1}
        assert len(g._branches) == 1
        assert app.notes() == []
    assert app.notes() == [1, 2, 4, 5]


async def test_blocks_and_autocommit(app: App) -> None:
    async with app.coord.begin("t"), app.pool.connection() as conn:
        await conn.set_autocommit(True)
        await conn.execute(INSERT, (f"{app.body}-1",))
        with pytest.raises(psycopg.errors.DivisionByZero):
            await conn.execute("SELECT 1/0")
        async with conn.transaction():
            await conn.execute(INSERT, (f"{app.body}-2",))
            with pytest.raises(ZeroDivisionError):
                async with conn.transaction():
                    await conn.execute(INSERT, (f"{app.body}-3",))
                    raise ZeroDivisionError
            async with conn.transaction():
                await conn.execute(INSERT, (f"{app.body}-4",))
                raise psycopg.Rollback
            async with conn.transaction():
                await conn.execute(INSERT, (f"{app.body}-5",))
        with pytest.raises(ZeroDivisionError):
            async with conn.transaction():
                await conn.execute(INSERT, (f"{app.body}-6",))
                raise ZeroDivisionError
    assert app.notes() == [1, 2, 5]


async def test_an_exception_undoes_all(app: App) -> None:
    with pytest.raises(ZeroDivisionError):
        async with app.coord.begin("t"):
            await app.add(1)
            raise ZeroDivisionError
    assert app.notes() == []


async def test_overlapping_and_refused(app: App) -> None:
    with pytest.raises((Aborted, OverlappingUnits)) as caught:
        async with app.coord.begin("t"), app.pool.connection() as older:
            for statement in ("COMMIT", b"BEGIN"):
                with pytest.raises(Rejected):
                    await older.execute(statement)
            with pytest.raises(Rejected):
                await older.tpc_begin("x")
            with pytest.raises(Rejected):
                await older.set_read_only(True)
            await older.execute(INSERT, (f"{app.body}-1",))
            async with app.pool.connection() as younger:
                await younger.execute(INSERT, (f"{app.body}-2",))
                await older.commit()
    assert caught.value.reason == "OVERLAPPING_UNITS"
    assert app.notes() == []


async def test_side_by_side(app: App) -> None:
    """On one connection they wait for each other; what overlaps dooms all."""
    try:
        async with app.coord.begin("t"):
            await asyncio.gather(*(app.add(n) for n in range(5)))
    except (Aborted, OverlappingUnits):
        assert app.notes() == []
    else:
        assert len(app.notes()) == 5


async def test_outside(app: App) -> None:
    for _ in range(2):
        with pytest.raises(NoTransaction):
            await app.add(1)
    with app.coord.outside():
        await app.add(2)
    with pytest.raises(NoTransaction):
        await app.add(3)
    async with app.coord.begin("t"):
        await app.add(4)
    assert app.notes() == [2, 4]
