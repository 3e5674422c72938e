"""The asynchronous connections and pools that the barrier works on. ``sync/_db/kinds.py`` has the others."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from . import hands, redis_, sources
from .hands import Hand
from .sources import Source

NEEDED = (
    "a SQLAlchemy AsyncEngine or async_sessionmaker, a pool of asyncpg, psycopg, aiomysql or asyncmy, a function that "
    "opens a connection of one of them, or a client of redis.asyncio"
)
CONNECTION_NEEDED = (
    "a SQLAlchemy AsyncConnection or AsyncSession, or a connection of asyncpg, psycopg, aiomysql or asyncmy"
)


class _AsyncpgRaw:
    """An asyncpg connection."""

    family = "postgresql"

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def execute(self, sql: str) -> str:
        return str(await self._connection.execute(sql))

    async def fetch_row(self, sql: str) -> tuple[Any, ...] | None:
        row = await self._connection.fetchrow(sql)
        return None if row is None else tuple(row)


def _asyncpg(connection: Any) -> Hand:
    return hands.RawHand(connection, _AsyncpgRaw(connection))  # type: ignore[arg-type] # of Raw, two are needed


class _AsyncpgSource(Source):
    def __init__(self, pool: Any) -> None:
        self._pool = pool

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        async with self._pool.acquire() as connection, connection.transaction():
            yield connection


class _MySqlSource(Source):
    def __init__(self, pool: Any) -> None:
        self._pool = pool

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        async with self._pool.acquire() as connection, sources.plainly(connection):
            yield connection


class _OpenedSource(Source):
    """Connections of its own for each transaction."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        made = self._connect()
        connection = await made if inspect.isawaitable(made) else made
        try:
            hand_of(connection)
            own = getattr(connection, "transaction", None)
            async with own() if own is not None else sources.plainly(connection):
                yield connection
        finally:
            closed = connection.close()
            if inspect.isawaitable(closed):
                await closed


_HANDS: dict[tuple[str, str], Callable[[Any], Hand]] = {
    ("psycopg", "AsyncConnection"): hands.psycopg,
    ("asyncpg", "Connection"): _asyncpg,
    ("asyncpg", "PoolConnectionProxy"): _asyncpg,
    ("aiomysql", "Connection"): hands.mysql,
    ("asyncmy", "Connection"): hands.mysql,
    ("sqlalchemy", "AsyncConnection"): hands.SqlAlchemyHand,
    ("sqlalchemy", "AsyncSession"): hands.SqlAlchemyHand,
    ("sqlalchemy", "async_scoped_session"): hands.SqlAlchemyHand,
}
_SOURCES: dict[tuple[str, str], Callable[[Any], Source]] = {
    ("sqlalchemy", "AsyncEngine"): sources.SqlAlchemySource,
    ("sqlalchemy", "async_sessionmaker"): sources.SqlAlchemySource,
    ("psycopg_pool", "AsyncConnectionPool"): sources.PsycopgSource,
    ("psycopg_pool", "AsyncNullConnectionPool"): sources.PsycopgSource,
    ("asyncpg", "Pool"): _AsyncpgSource,
    ("aiomysql", "Pool"): _MySqlSource,
    ("asyncmy", "Pool"): _MySqlSource,
    ("redis.asyncio", "Redis"): redis_.RedisSource,
}


def hand_of(db: Any) -> Hand:
    """The connection, as the barrier uses it. Raises Rejected."""
    return db if isinstance(db, Hand) else hands.found(db, _HANDS, CONNECTION_NEEDED)(db)


def source_of(db: Any) -> Source:
    """Where transactions come from. Raises Rejected."""
    if isinstance(db, Source):
        return db
    if inspect.isfunction(db) or inspect.ismethod(db) or isinstance(db, functools.partial):
        return _OpenedSource(db)
    return hands.found(db, _SOURCES, NEEDED)(db)
