"""A real PostgreSQL database as a resource, and what a service does in it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from tests.support.node import tx_id_at
from txcoord.adapters.xa.postgresql import PostgresFinisher
from txcoord.core.model import Windows
from txcoord.testing.memory_log import LOG_ID
from txcoord_client.protocol import marker
from txcoord_client.protocol import postgresql as pg
from txcoord_client.protocol.xid import Xid

IDENTITY = "0123456789abcdef" * 2
WINDOWS = Windows()


def now_us() -> int:
    return time.time_ns() // 1000


def new_xid(branch: str = "1", *, deadline_s: float = 30.0, log_id: str = LOG_ID) -> Xid:
    return Xid(log_id, now_us() + round(deadline_s * 1e6), tx_id_at(now_us()), branch)


def plain(url: str) -> str:
    return url.replace("postgresql+asyncpg://", "postgresql://")


@asynccontextmanager
async def session(url: str, user: str | None = None) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the service."""
    conn = await asyncpg.connect(plain(url), user=user, statement_cache_size=0)
    try:
        yield conn
    finally:
        conn.terminate()


class Resource:
    """One database with its finisher; close() it in the end."""

    def __init__(
        self, url: str, *, name: str = "a", windows: Windows = WINDOWS, timeout_s: float = 5.0
    ) -> None:
        self.url = url
        self.name = name
        self.windows = windows
        self.finisher = PostgresFinisher(
            name, url, windows=windows, expected_identity=IDENTITY, timeout_s=timeout_s
        )

    async def make(self) -> None:
        """The tables of txcoord, and one of the service's own."""
        assert await self.finisher.prepare_database(IDENTITY) == IDENTITY
        async with session(self.url) as conn:
            await conn.execute("CREATE TABLE IF NOT EXISTS work (i int PRIMARY KEY)")
            await conn.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC")
            await conn.execute("GRANT ALL ON SCHEMA public TO PUBLIC")

    async def prepare(self, x: Xid, value: int = 1, *, user: str | None = None) -> None:
        """Do some work in a branch, and prepare it."""
        async with session(self.url, user) as conn:
            await conn.execute(f"BEGIN; {pg.START_GUARD}")
            await conn.execute(f"INSERT INTO work VALUES ({value})")
            until_us = self.windows.marker_until(x.deadline_us)
            tag = await conn.execute(pg.prepare(x.tx_id, x.branch, str(x), until_us))
            assert tag == pg.PREPARED_TAG

    async def commit_one_phase(self, x: Xid, value: int = 1) -> None:
        async with session(self.url) as conn:
            await conn.execute(f"BEGIN; {pg.START_GUARD}; INSERT INTO work VALUES ({value})")
            until_us = self.windows.marker_until(x.deadline_us)
            assert await conn.execute(pg.commit_one_phase(x.tx_id, until_us)) == pg.COMMITTED_TAG

    async def sql(self, statement: str) -> str:
        async with session(self.url) as conn:
            return str(await conn.execute(statement))

    async def work(self) -> list[int]:
        async with session(self.url) as conn:
            return [row[0] for row in await conn.fetch("SELECT i FROM work ORDER BY i")]

    async def prepared(self) -> list[str]:
        async with session(self.url) as conn:
            rows = await conn.fetch(
                "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY gid"
            )
            return [row[0] for row in rows]

    async def marker(self, x: Xid, op: str = marker.XA) -> int | None:
        branch = marker.ONE_BRANCH if op == marker.ONE else x.branch
        async with session(self.url) as conn:
            state: int | None = await conn.fetchval(pg.read_marker(x.tx_id, branch, op))
            return state
