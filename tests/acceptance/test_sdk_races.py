"""Blocks that begin while others fail, or while their transaction ends: none may be left behind or forgotten."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy import text

from tests.support.acceptance import INSERT, Client, Site, eventually, new_gid
from txcoord_client import Aborted, NoTransaction, Transaction


@pytest.fixture
async def narrow(site: Site, client: Client) -> AsyncIterator[asyncpg.Pool]:
    """A pool of one connection."""
    pool = await asyncpg.create_pool(site.accounts.dsn, min_size=1, max_size=1)
    yield pool
    await asyncio.wait_for(pool.close(), 10)


async def write(g: Transaction, pool: asyncpg.Pool, body: str) -> None:
    async with g.xa(pool, resource="accounts") as db:
        await db.execute(f"INSERT INTO note (body) VALUES ('{body}')")


async def queued(client: Client, count: int) -> None:
    """Wait until so many wait for room in a pool."""
    admission = client.coord._runtime().admission
    await eventually(lambda: sum(len(p.waiting) for p in admission._pools.values()) == count)


async def test_a_block_whose_opener_was_cancelled_takes_part_all_the_same(
    client: Client, site: Site, narrow: asyncpg.Pool
) -> None:
    """Two blocks on one pool: the first waits for room and is cancelled, the second goes on. What it wrote is in
    the transaction."""
    body = new_gid()
    room = asyncio.Event()

    async def hog() -> None:
        async with client.coord.begin("hog") as g:
            await write(g, narrow, f"{body}-hog")
            await room.wait()

    hogging = asyncio.create_task(hog())
    await eventually(lambda: narrow.get_idle_size() == 0)
    async with client.coord.begin("two") as g:
        first = asyncio.create_task(write(g, narrow, f"{body}-first"))
        await queued(client, 1)
        second = asyncio.create_task(write(g, narrow, body))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        room.set()
        await second
    await hogging
    assert g.outcome is not None
    assert (g.outcome.state, site.accounts.count(body)) == ("COMMITTED", 1)
    assert narrow.get_idle_size() == 1
    await write_alone(client, narrow, f"{body}-after")


async def write_alone(client: Client, pool: asyncpg.Pool, body: str) -> None:
    """There is room in the pool: nothing was left behind."""
    async with client.coord.begin("after", timeout=5) as g:
        await write(g, pool, body)


@pytest.mark.parametrize("fails", [True, False])
async def test_a_block_that_begins_while_its_transaction_ends_leaves_nothing_behind(
    client: Client, site: Site, narrow: asyncpg.Pool, fails: bool
) -> None:
    """As with ``asyncio.gather``, of which one part raises while another still waits for a connection."""
    body = new_gid()
    room = asyncio.Event()

    async def hog() -> None:
        async with client.coord.begin("hog") as g:
            await write(g, narrow, f"{body}-hog")
            await room.wait()

    hogging = asyncio.create_task(hog())
    await eventually(lambda: narrow.get_idle_size() == 0)
    straggler: asyncio.Task[None] | None = None
    with pytest.raises(
        ZeroDivisionError if fails else Aborted, match="division" if fails else "about to begin"
    ):
        async with client.coord.begin("early") as g:
            straggler = asyncio.create_task(write(g, narrow, body))
            await queued(client, 1)
            if fails:
                raise ZeroDivisionError("division")
    assert straggler is not None
    room.set()
    await hogging
    with pytest.raises(NoTransaction):
        await straggler
    assert narrow.get_idle_size() == 1
    await write_alone(client, narrow, f"{body}-after")
    assert site.accounts.count(body) == 0
    assert client.coord._runtime().admission._held == {}


async def test_who_still_works_on_a_connection_of_his_own_after_the_end_writes_nothing(
    client: Client, site: Site
) -> None:
    """Without a transaction a driver's connection commits every statement by itself."""
    body = new_gid()
    conn = await asyncpg.connect(site.accounts.dsn)
    inside, ended = asyncio.Event(), asyncio.Event()

    async def straggle(g: Transaction) -> None:
        async with g.xa(conn, resource="accounts") as db:
            inside.set()
            await ended.wait()
            await db.execute(f"INSERT INTO note (body) VALUES ('{body}')")

    with pytest.raises(Aborted, match="still open"):
        async with client.coord.begin("early") as g:
            straggler = asyncio.create_task(straggle(g))
            await inside.wait()
    ended.set()
    with pytest.raises(asyncpg.InterfaceError):
        await straggler
    assert site.accounts.count(body) == 0


async def test_statements_after_the_end_on_an_engine_are_refused(client: Client, site: Site) -> None:
    body = new_gid()
    async with client.coord.begin("short") as g, g.xa(client.accounts) as db:
        kept = db
        await db.execute(text(INSERT), {"body": body})
    with pytest.raises(Exception, match="closed"):
        await kept.execute(text(INSERT), {"body": body})
    assert site.accounts.count(body) == 1
