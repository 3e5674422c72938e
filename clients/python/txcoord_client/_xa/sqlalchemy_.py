"""Branches on SQLAlchemy's async engines, connections and sessions, over asyncpg.

The branch is begun in one message on the driver's connection, and SQLAlchemy's adapter is told that a
transaction is open. Its place is taken by a sentinel that refuses ``commit()`` and ``rollback()``: those would end
the branch. Once the branch is prepared, the adapter is told that nothing is open any more, so that closing the
connection sends nothing.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from ..errors import NotIdle, Rejected
from ..protocol import postgresql as pg
from ..protocol import reasons
from .held import RefusedEnd

_WRITES = ("INSERT", "UPDATE", "DELETE", "MERGE")
_writers: dict[int, _SqlAlchemyHeld] = {}
"""The branches that are open, by the id of their (synchronous) connection."""


def watch(engine: Any) -> None:
    """Notice statements that write on this synchronous engine: their branch needs not be asked."""
    if not event.contains(engine, "before_cursor_execute", _before_cursor_execute):
        event.listen(engine, "before_cursor_execute", _before_cursor_execute)


def _before_cursor_execute(
    conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
) -> None:
    held = _writers.get(id(conn))
    if held is not None and not held.wrote and statement.lstrip()[:6].upper().startswith(_WRITES):
        held.wrote = True


class _Sentinel:
    """Stands in for the driver's transaction while the branch is open."""

    def __init__(self, refused: RefusedEnd) -> None:
        self._refused = refused

    async def commit(self) -> None:
        raise self._refused("commit")

    async def rollback(self) -> None:
        raise self._refused("rollback")


class _SqlAlchemyHeld:
    """What connections and sessions have in common."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.wrote = False
        self._adapter: Any = None
        self._raw: Any = None
        self._sync: Any = None

    async def open(self) -> None:
        raise NotImplementedError  # pragma: no cover

    async def _hold(self, connection: AsyncConnection) -> None:
        fairy = await connection.get_raw_connection()
        self._adapter = fairy.dbapi_connection
        self._raw = fairy.driver_connection
        self._sync = connection.sync_connection
        if connection.dialect.driver != "asyncpg":
            raise Rejected(
                f"XA branches need the driver asyncpg here, not {connection.dialect.driver!r}",
                reason=reasons.NOT_SUPPORTED,
            )
        if self._raw.is_in_transaction():
            raise NotIdle("this connection is in a transaction already")

    async def start(self, refused: RefusedEnd) -> None:
        adapter = self._adapter
        await self._raw.execute(f"{_begin(adapter)}; {pg.START_GUARD}")
        adapter._transaction = _Sentinel(refused)
        if hasattr(adapter, "_started"):  # SQLAlchemy 2.0
            adapter._started = True
        _writers[id(self._sync)] = self

    async def flush(self) -> None:
        pass

    async def execute(self, sql: str) -> str:
        return str(await self._raw.execute(sql))

    async def fetch_value(self, sql: str) -> Any:
        return await self._raw.fetchval(sql)

    @property
    def in_transaction(self) -> bool:
        return bool(self._raw.is_in_transaction())

    def forget_transaction(self) -> None:
        _writers.pop(id(self._sync), None)
        self._adapter._transaction = None
        if hasattr(self._adapter, "_started"):
            self._adapter._started = False

    async def release(self, committed: bool) -> None:
        raise NotImplementedError  # pragma: no cover

    async def discard(self) -> None:
        raise NotImplementedError  # pragma: no cover

    async def _invalidate(self, connection: AsyncConnection | None) -> None:
        self.forget_transaction()
        self._raw.terminate()
        if connection is not None and not connection.closed:
            await connection.invalidate()


class EngineHeld(_SqlAlchemyHeld):
    """A connection that the SDK takes from the caller's engine."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(None)
        self._engine = engine

    async def open(self) -> None:
        connection = await self._engine.connect()
        self.value = connection
        try:
            await self._hold(connection)
        except BaseException:
            await connection.close()
            raise

    async def release(self, committed: bool) -> None:
        await self.value.close()

    async def discard(self) -> None:
        await self._invalidate(self.value)
        await self.value.close()


class ConnectionHeld(_SqlAlchemyHeld):
    """A connection that the caller opened: never committed behind its back, and idle again when all has ended."""

    async def open(self) -> None:
        if self.value.in_transaction():
            raise NotIdle(
                "this connection is in a transaction already: give it to g.xa before its first statement"
            )
        await self._hold(self.value)

    async def release(self, committed: bool) -> None:
        if not self.value.closed and self.value.in_transaction():
            await (self.value.commit() if committed else self.value.rollback())

    async def discard(self) -> None:
        await self._invalidate(self.value)
        await self.value.rollback()


class SessionHeld(_SqlAlchemyHeld):
    """A session that the caller opened. Flushed before PREPARE; afterwards its objects are as after a commit or
    a rollback."""

    async def open(self) -> None:
        if self.value.in_transaction():
            raise NotIdle(
                "this session is in a transaction already: give it to g.xa before its first statement"
            )
        try:
            await self._hold(await self.value.connection())
        except BaseException:
            await self.value.rollback()
            raise

    async def flush(self) -> None:
        await self.value.flush()

    async def release(self, committed: bool) -> None:
        # The driver has nothing open any more: these only tell the session. What was changed in it since the
        # PREPARE belongs to nothing: a commit would write it in a local transaction.
        clean = not (self.value.new or self.value.dirty or self.value.deleted)
        await (self.value.commit() if committed and clean else self.value.rollback())

    async def discard(self) -> None:
        self.forget_transaction()
        self._raw.terminate()
        await self.value.invalidate()


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


def engine_of(target: AsyncEngine | AsyncConnection | AsyncSession) -> Any:
    """The synchronous engine behind a target, without execution options."""
    if isinstance(target, AsyncEngine):
        engine: Any = target.sync_engine
    elif isinstance(target, AsyncConnection):
        engine = target.engine.sync_engine
    else:
        bind = target.sync_session.get_bind()
        engine = getattr(bind, "engine", bind)
    return getattr(engine, "_proxied", engine)


def pool_size(engine: AsyncEngine) -> int:
    """How many connections the engine's pool may give at once; 0: no limit that is known."""
    pool: Any = engine.pool
    size = getattr(pool, "size", None)
    overflow = getattr(pool, "_max_overflow", None)
    if size is None or overflow is None or overflow < 0 or size() <= 0:
        return 0
    return int(size()) + int(overflow)


def make_held(target: AsyncEngine | AsyncConnection | AsyncSession) -> _SqlAlchemyHeld:
    """A holder for a target."""
    if isinstance(target, AsyncEngine):
        return EngineHeld(target)
    if isinstance(target, AsyncConnection):
        return ConnectionHeld(target)
    return SessionHeld(target)


__all__ = ["engine_of", "make_held", "pool_size", "watch"]
