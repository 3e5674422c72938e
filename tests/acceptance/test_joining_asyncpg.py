"""asyncpg pools of unchanged code, inside a global transaction."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from tests.support.acceptance import Client, Site, new_gid
from txcoord_client import Aborted, Coordinator, NoTransaction, OverlappingUnits, Rejected

INSERT = "INSERT INTO note (body) VALUES ($1)"


class App:
    def __init__(self, site: Site, coord: Coordinator, pool: Any) -> None:
        self.site, self.coord, self.pool = site, coord, pool
        self.body = new_gid()

    def notes(self) -> list[str]:
        sql = f"SELECT body FROM note WHERE body LIKE '{self.body}%' ORDER BY body"
        return [body.removeprefix(f"{self.body}-") for body in self.site.accounts.sql(sql).split()]


@pytest.fixture
async def app(client: Client, site: Site) -> AsyncIterator[App]:
    async with asyncpg.create_pool(site.accounts.dsn, min_size=1, max_size=3) as pool:
        assert client.coord.instrument(pool, resource="accounts") is pool
        yield App(site, client.coord, pool)
        assert pool.get_idle_size() == pool.get_size()
    assert site.prepared() == []


async def test_statements_and_blocks(app: App) -> None:
    async with app.coord.begin("t") as g:
        await app.pool.execute(INSERT, f"{app.body}-1")
        async with app.pool.acquire() as conn:
            assert isinstance(conn, asyncpg.Connection)
            await conn.executemany(INSERT, [(f"{app.body}-2",), (f"{app.body}-3",)])
            with pytest.raises(asyncpg.DivisionByZeroError):
                await conn.execute("SELECT 1/0")
            async with conn.transaction():
                assert conn.is_in_transaction()
                await conn.execute(INSERT, f"{app.body}-4")
                with pytest.raises(ZeroDivisionError):
                    async with conn.transaction():
                        await conn.execute(INSERT, f"{app.body}-5")
                        raise ZeroDivisionError
                async with conn.transaction():
                    await conn.copy_records_to_table("note", records=[(f"{app.body}-6",)])
                rows = [
                    r async for r in conn.cursor("SELECT body FROM note WHERE body LIKE $1", f"{app.body}%")
                ]
                assert len(rows) == 5
            with pytest.raises(asyncpg.DivisionByZeroError):
                async with conn.transaction():
                    await conn.execute(INSERT, f"{app.body}-7")
                    await conn.execute("SELECT 1/0")
            statement = await conn.prepare(INSERT)
            await statement.fetch(f"{app.body}-8")
            block = conn.transaction()
            await block.start()
            await conn.execute(INSERT, f"{app.body}-9")
            await block.rollback()
        assert await app.pool.fetchval("SELECT count(*) FROM note WHERE body LIKE $1", f"{app.body}%") == 6
        assert app.notes() == []
        assert len(g._branches) == 1
    assert app.notes() == ["1", "2", "3", "4", "6", "8"]


async def test_an_exception_undoes_all(app: App) -> None:
    with pytest.raises(ZeroDivisionError):
        async with app.coord.begin("t"):
            await app.pool.execute(INSERT, f"{app.body}-1")
            raise ZeroDivisionError
    assert app.notes() == []


async def test_side_by_side(app: App) -> None:
    """On one connection statements wait for each other."""
    async with app.coord.begin("t"):
        await asyncio.gather(*(app.pool.execute(INSERT, f"{app.body}-{n}") for n in range(9)))
    assert len(app.notes()) == 9


async def test_overlapping_blocks(app: App) -> None:
    with pytest.raises((Aborted, OverlappingUnits)) as caught:
        async with app.coord.begin("t"):
            older, younger = await app.pool.acquire(), await app.pool.acquire()
            block = older.transaction()
            await block.start()
            await older.execute(INSERT, f"{app.body}-1")
            async with younger.transaction():
                await younger.execute(INSERT, f"{app.body}-2")
                await block.commit()
    assert caught.value.reason == "OVERLAPPING_UNITS"
    assert app.notes() == []


async def test_a_block_that_is_not_ended_dooms_it(app: App) -> None:
    conn: Any = None
    with pytest.raises(Aborted) as caught:
        async with app.coord.begin("t"):
            conn = await app.pool.acquire()
            await conn.transaction().start()
            await conn.execute(INSERT, f"{app.body}-1")
    assert caught.value.reason == "UNIT_OPEN"
    with pytest.raises(NoTransaction):
        await conn.execute("SELECT 1")
    await app.pool.release(conn)
    assert app.notes() == []


async def test_a_lost_connection_dooms_it(app: App) -> None:
    with pytest.raises(Aborted) as caught:
        async with app.coord.begin("t"):
            await app.pool.execute(INSERT, f"{app.body}-1")
            pid = await app.pool.fetchval("SELECT pg_backend_pid()")
            app.site.accounts.sql(f"SELECT pg_terminate_backend({pid})")
            with pytest.raises(Rejected):
                await app.pool.execute("SELECT 1")
            with pytest.raises(Rejected):
                await app.pool.execute("SELECT 1")
    assert caught.value.reason == "CONNECTION_LOST"
    assert app.notes() == []


async def test_what_is_refused(app: App) -> None:
    async with app.coord.begin("t"):
        async with app.pool.acquire() as conn:
            with pytest.raises(Rejected):
                await conn.execute("COMMIT")
            with pytest.raises(Rejected):
                conn.transaction(isolation="serializable")
            with pytest.raises(Rejected):
                await conn.reset()
            with pytest.raises(asyncpg.NoActiveSQLTransactionError):
                conn.cursor("SELECT 1")
        await app.pool.execute(INSERT, f"{app.body}-1")
    assert app.notes() == ["1"]


async def test_outside(app: App) -> None:
    for _ in range(2):
        assert await app.pool.fetchval("SELECT 1") == 1
        with pytest.raises(NoTransaction):
            await app.pool.execute(INSERT, f"{app.body}-1")
        with pytest.raises(NoTransaction):
            async with app.pool.acquire() as conn, conn.transaction():
                await conn.fetch("WITH x AS (INSERT INTO note VALUES ($1)) SELECT 1", f"{app.body}-1")
    with app.coord.outside():
        await app.pool.execute(INSERT, f"{app.body}-2")
    async with app.coord.begin("t") as g, g.xa(app.pool) as db:
        await db.execute(INSERT, f"{app.body}-3")
        await app.pool.execute(INSERT, f"{app.body}-4")
    assert app.notes() == ["2", "3", "4"]
