"""SQLAlchemy's asynchronous classes, and what of them is not called the same in the synchronous ones.

``sync/_xa/sa.py`` says the same of those.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from .._scope import made_ready
from ..errors import Rejected
from ..protocol import reasons
from .held import RefusedEnd
from .raw import MySqlRaw, PsycopgRaw, Raw

__all__ = [
    "AsyncConnection",
    "AsyncEngine",
    "AsyncSession",
    "fairy_of",
    "raw_of",
    "sync_connection",
    "sync_engine",
    "sync_session",
]

DRIVERS = "asyncpg, psycopg, aiomysql or asyncmy"


def sync_engine(engine: AsyncEngine) -> Any:
    """The synchronous engine."""
    return engine.sync_engine


def sync_connection(connection: AsyncConnection) -> Any:
    """The synchronous connection."""
    return connection.sync_connection


def sync_session(session: AsyncSession) -> Any:
    """The synchronous session."""
    return session.sync_session


async def fairy_of(connection: AsyncConnection) -> Any:
    """The pool's proxy of the driver's connection."""
    return await connection.run_sync(lambda sync: made_ready(sync.connection))


def raw_of(fairy: Any, driver: str, refused: RefusedEnd) -> Raw:
    """The driver's connection. Raises Rejected for a driver that cannot take part."""
    if driver == "asyncpg":
        return _AsyncpgRaw(fairy.dbapi_connection, fairy.driver_connection, refused)
    if driver in ("psycopg", "psycopg_async"):
        return PsycopgRaw(fairy.driver_connection)
    if driver in ("aiomysql", "asyncmy"):
        return MySqlRaw(fairy.driver_connection)
    raise Rejected(
        f"the driver {driver!r} cannot take part in a global transaction: use {DRIVERS}",
        reason=reasons.NOT_SUPPORTED,
    )


class _AsyncpgRaw:
    """asyncpg below SQLAlchemy's adapter, which believes that it begins and ends transactions itself. It is told
    that one is open; once the branch is prepared, that nothing is open any more, so that closing the connection
    sends nothing."""

    family = "postgresql"

    def __init__(self, adapter: Any, connection: Any, refused: RefusedEnd) -> None:
        self._adapter = adapter
        self._connection = connection
        self._refused = refused

    async def execute(self, sql: str) -> str:
        return str(await self._connection.execute(sql))

    async def fetch_row(self, sql: str) -> tuple[Any, ...] | None:
        row = await self._connection.fetchrow(sql)
        return None if row is None else tuple(row)

    fetch_alone = fetch_row

    async def begin(self, first: str) -> None:
        await self._connection.execute(f"{_begin(self._adapter)}; {first}")
        self._adapter._transaction = _Sentinel(self)
        # asyncpg before 0.32 gives a cursor only inside a transaction that it has begun itself.
        self._connection._top_xact = self._connection.transaction()
        if hasattr(self._adapter, "_started"):  # SQLAlchemy 2.0
            self._adapter._started = True

    @property
    def in_transaction(self) -> bool:
        return bool(self._connection.is_in_transaction())

    def forget_transaction(self) -> None:
        self._connection._top_xact = None
        self._adapter._transaction = None
        if hasattr(self._adapter, "_started"):
            self._adapter._started = False

    def refused(self, what: str) -> Exception:
        self.cut()
        return self._refused(what)

    def cut(self) -> None:
        self._connection.terminate()

    async def close(self) -> None:
        self.cut()


class _Sentinel:
    """Stands in for the driver's transaction while the branch is open. Who commits the connection below SQLAlchemy
    is refused; who does it above is refused before."""

    def __init__(self, raw: _AsyncpgRaw) -> None:
        self._raw = raw

    async def commit(self) -> None:
        raise self._raw.refused("commit")

    async def rollback(self) -> None:
        raise self._raw.refused("rollback")


def _begin(adapter: Any) -> str:
    """BEGIN as SQLAlchemy's adapter would send it."""
    out = "BEGIN"
    isolation = getattr(adapter, "isolation_level", None)
    if isolation and isolation != "autocommit":
        out += f" ISOLATION LEVEL {isolation.replace('_', ' ').upper()}"
    if getattr(adapter, "readonly", False):
        out += " READ ONLY"
    if getattr(adapter, "deferrable", False):
        out += " DEFERRABLE"
    return out
