"""Branches on SQLAlchemy's async engines, connections and sessions, over asyncpg.

The branch is begun in one message on the driver's connection, and SQLAlchemy's adapter is told that a
transaction is open. Its place is taken by a sentinel that refuses ``commit()`` and ``rollback()``: those would end
the branch. Once the branch is prepared, the adapter is told that nothing is open any more, so that closing the
connection sends nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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
    if held is None:
        return
    if held.ended:
        # It would run in a local transaction: an event handler of the session's commit, say.
        raise Rejected(
            "the branch of this connection has been prepared or rolled back: nothing can be added to it",
            reason=reasons.NO_TRANSACTION,
        )
    if not held.wrote and statement.lstrip()[:6].upper().startswith(_WRITES):
        held.wrote = True


class _Sentinel:
    """Stands in for the driver's transaction while the branch is open. SQLAlchemy calls each method once, and
    believes then that nothing is open any more: the connection is ended, or it would go back to its pool with the
    branch's transaction."""

    def __init__(self, held: _SqlAlchemyHeld, refused: RefusedEnd) -> None:
        self._held = held
        self._refused = refused

    async def commit(self) -> None:
        await self._held.cut()
        raise self._refused("commit")

    async def rollback(self) -> None:
        # Asked first: afterwards it knows no better.
        flush_failed = self._held.flush_failed()
        await self._held.cut()
        if not flush_failed:
            raise self._refused("rollback")


class _SqlAlchemyHeld(ABC):
    """What connections and sessions have in common."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.wrote = False
        self.ended = False
        """Has the branch ended, and its connection not been given back yet?"""
        self._connection: AsyncConnection | None = None
        self._adapter: Any = None
        self._raw: Any = None
        self._sync: Any = None

    @abstractmethod
    async def open(self) -> None: ...

    async def _hold(self, connection: AsyncConnection) -> None:
        fairy = await connection.get_raw_connection()
        self._adapter = fairy.dbapi_connection
        self._raw = fairy.driver_connection
        self._connection = connection
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
        adapter._transaction = _Sentinel(self, refused)
        if hasattr(adapter, "_started"):  # SQLAlchemy 2.0
            adapter._started = True
        _writers[id(self._sync)] = self

    async def flush(self) -> None:  # noqa: B027 - only a session holds something back
        pass

    def flush_failed(self) -> bool:
        """Is it a failed flush that rolls back? Its error says more than a refusal."""
        return False

    async def cut(self) -> None:
        """End the connection."""
        self._raw.terminate()
        if self._connection is not None and not self._connection.closed:
            await self._connection.invalidate()

    async def execute(self, sql: str) -> str:
        return str(await self._raw.execute(sql))

    async def fetch_value(self, sql: str) -> Any:
        return await self._raw.fetchval(sql)

    @property
    def in_transaction(self) -> bool:
        return bool(self._raw.is_in_transaction())

    def forget_transaction(self) -> None:
        self.ended = True
        self._adapter._transaction = None
        if hasattr(self._adapter, "_started"):
            self._adapter._started = False

    async def release(self, committed: bool) -> None:
        try:
            await self._release(committed)
        finally:
            self._let_go()

    async def discard(self) -> None:
        self._let_go()
        if self._connection is None:
            return
        self.forget_transaction()
        await self.cut()
        await self._discard()

    def _let_go(self) -> None:
        _writers.pop(id(self._sync), None)

    @abstractmethod
    async def _release(self, committed: bool) -> None: ...

    @abstractmethod
    async def _discard(self) -> None: ...


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

    async def _release(self, committed: bool) -> None:
        await self.value.close()

    async def _discard(self) -> None:
        await self.value.close()


class ConnectionHeld(_SqlAlchemyHeld):
    """A connection that the caller opened: never committed behind its back, and idle again when all has ended."""

    async def open(self) -> None:
        if self.value.in_transaction():
            raise NotIdle(
                "this connection is in a transaction already: give it to g.xa before its first statement"
            )
        await self._hold(self.value)

    async def _release(self, committed: bool) -> None:
        if not self.value.closed and self.value.in_transaction():
            committed = committed and not self.in_transaction
            await (self.value.commit() if committed else self.value.rollback())

    async def _discard(self) -> None:
        await self.value.rollback()


class SessionHeld(_SqlAlchemyHeld):
    """A session that the caller opened. Flushed before PREPARE; afterwards its objects are as after a commit or
    a rollback."""

    _failed = False
    """Has one of its flushes failed, outside of a savepoint?"""
    _elsewhere = ""
    """Another database that it has begun to work with."""

    async def open(self) -> None:
        if self.value.sync_session.twophase:
            raise Rejected(
                "a session with twophase=True prepares and commits by itself: it cannot take part",
                reason=reasons.NOT_SUPPORTED,
            )
        if self.value.in_transaction():
            raise NotIdle(
                "this session is in a transaction already: give it to g.xa before its first statement"
            )
        try:
            await self._hold(await self.value.connection())
        except BaseException:
            await self.value.rollback()
            raise

    async def start(self, refused: RefusedEnd) -> None:
        await super().start(refused)
        event.listen(self.value.sync_session, "after_begin", self._begun)

    def flush_failed(self) -> bool:
        # With it the session has rolled everything back: the error itself reaches the application.
        self._failed = bool(getattr(self.value.sync_session, "_flushing", False))
        return self._failed

    def _begun(self, session: Any, transaction: Any, connection: Any) -> None:
        if self._failed:
            raise self._lost()
        if connection is not self._sync:
            # Its commit would be a local one.
            self._elsewhere = str(connection.engine.url)
            raise self._refusal()

    def _refusal(self) -> Rejected:
        return Rejected(
            f"this session takes part with one database, but works with {self._elsewhere} too: use a session for each",
            reason=reasons.NOT_SUPPORTED,
        )

    def _let_go(self) -> None:
        super()._let_go()
        if event.contains(self.value.sync_session, "after_begin", self._begun):
            event.remove(self.value.sync_session, "after_begin", self._begun)

    @staticmethod
    def _lost() -> Rejected:
        return Rejected(
            "a flush of this session has failed, and all of its work was rolled back with it",
            reason=reasons.SILENT_ROLLBACK,
        )

    async def flush(self) -> None:
        if self._elsewhere:
            raise self._refusal()
        if self._failed:
            raise self._lost()
        await self.value.flush()

    async def _release(self, committed: bool) -> None:
        # The driver has nothing open any more: these only tell the session. What was changed in it since the
        # PREPARE belongs to nothing: a commit would write it in a local transaction.
        clean = not (self.value.new or self.value.dirty or self.value.deleted)
        clean = clean and not self._elsewhere and not self.in_transaction
        await (self.value.commit() if committed and clean else self.value.rollback())

    async def _discard(self) -> None:
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
