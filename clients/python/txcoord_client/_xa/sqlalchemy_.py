"""Branches on SQLAlchemy's engines, connections and sessions.

The branch is begun on the driver's connection, below SQLAlchemy. An application that commits or rolls back would end
it: SQLAlchemy's events refuse that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from sqlalchemy import event

from ..errors import NotIdle, Rejected
from ..protocol import reasons
from .held import RefusedEnd, Source
from .raw import Raw
from .sa import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    fairy_of,
    raw_of,
    sync_connection,
    sync_engine,
    sync_session,
)

_WRITES = ("INSERT", "UPDATE", "DELETE", "MERGE", "REPLAC")
_writers: dict[int, _SqlAlchemyHeld] = {}
"""The branches that are open, by the id of their (synchronous) connection."""


def watch(engine: Any) -> None:
    """Notice statements that write on this synchronous engine, whose branch needs not be asked; and who ends a
    transaction."""
    if not event.contains(engine, "before_cursor_execute", _before_cursor_execute):
        event.listen(engine, "before_cursor_execute", _before_cursor_execute)
        event.listen(engine, "commit", _before_commit)
        event.listen(engine, "rollback", _before_rollback)


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


def _before_commit(conn: Any) -> None:
    held = _writers.get(id(conn))
    if held is not None and not held.ended:
        held.refuse("commit")


def _before_rollback(conn: Any) -> None:
    held = _writers.get(id(conn))
    if held is not None and not held.ended:
        held.refuse("rollback")


class _SqlAlchemyHeld(ABC):
    """What connections and sessions have in common."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.schema = ""
        self.wrote = False
        self.ended = False
        """Has the branch ended, and its connection not been given back yet?"""
        self._connection: AsyncConnection | None = None
        self._raw: Raw | None = None
        self._fairy: Any = None
        self._sync: Any = None
        self._refused: RefusedEnd | None = None
        self._taken_out = False

    @abstractmethod
    async def open(self) -> None: ...

    async def _hold(self, connection: AsyncConnection) -> None:
        self._fairy = await fairy_of(connection)
        self._connection = connection
        self._sync = sync_connection(connection)
        self._raw = raw_of(self._fairy, connection.dialect.driver, self._refusal_of)
        if self._raw.in_transaction:
            raise NotIdle("this connection is in a transaction already")

    def _refusal_of(self, what: str) -> Exception:
        assert self._refused is not None
        return self._refused(what)

    @property
    def _driver(self) -> Raw:
        assert self._raw is not None
        return self._raw

    async def start(self, first: str, refused: RefusedEnd) -> None:
        self._refused = refused
        await self._driver.begin(first)
        _writers[id(self._sync)] = self

    def refuse(self, what: str) -> None:
        """The application ends the transaction. SQLAlchemy believes then that nothing is open any more: the
        connection is ended, or it would go back to its pool with the branch's transaction."""
        flush_failed = what == "rollback" and self.flush_failed()
        self.abort()
        self._sync.invalidate()
        if not flush_failed:
            raise self._refusal_of(what)

    async def flush(self) -> None:  # noqa: B027 - only a session holds something back
        pass

    def flush_failed(self) -> bool:
        """Is it a failed flush that rolls back? Its error says more than a refusal."""
        return False

    async def execute(self, sql: str) -> str:
        return await self._driver.execute(sql)

    async def fetch_row(self, sql: str) -> tuple[Any, ...] | None:
        return await self._driver.fetch_row(sql)

    async def fetch_alone(self, sql: str) -> tuple[Any, ...] | None:
        return await self._driver.fetch_alone(sql)

    @property
    def in_transaction(self) -> bool:
        return self._driver.in_transaction

    def forget_transaction(self) -> None:
        self.ended = True
        forget = getattr(self._raw, "forget_transaction", None)
        if forget is not None:
            forget()

    def abort(self) -> None:
        if self._raw is not None:
            self._raw.cut()

    async def take_out(self) -> None:
        # The pool's record forgets the driver's connection without closing it, and opens another when it needs one.
        if self._taken_out or self._connection is None:
            return
        self._taken_out = True
        self._let_go()
        record = getattr(self._fairy, "_connection_record", None)
        if record is not None:
            record.dbapi_connection = None
        await self._connection.invalidate()
        await self.value.rollback()

    async def release(self, committed: bool) -> None:
        try:
            if self._taken_out:
                await self._driver.close()
            else:
                await self._release(committed)
        finally:
            self._let_go()

    async def discard(self) -> None:
        self._let_go()
        if self._connection is None:
            return
        self.forget_transaction()
        if self._taken_out:
            await self._driver.close()
            return
        self.abort()
        if not self._connection.closed:
            await self._connection.invalidate()
        await self._discard()

    def _let_go(self) -> None:
        # The caller's own connection may be in another branch by now.
        if _writers.get(id(self._sync)) is self:
            del _writers[id(self._sync)]

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
        if self._session.twophase:
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

    async def start(self, first: str, refused: RefusedEnd) -> None:
        await super().start(first, refused)
        event.listen(self._session, "after_begin", self._begun)

    @property
    def _session(self) -> Any:
        return sync_session(self.value)

    def flush_failed(self) -> bool:
        # With it the session has rolled everything back: the error itself reaches the application.
        self._failed = bool(getattr(self._session, "_flushing", False))
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
        if event.contains(self._session, "after_begin", self._begun):
            event.remove(self._session, "after_begin", self._begun)

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


def engine_of(target: AsyncEngine | AsyncConnection | AsyncSession) -> Any:
    """The synchronous engine behind a target, without execution options."""
    if isinstance(target, AsyncEngine):
        engine: Any = sync_engine(target)
    elif isinstance(target, AsyncConnection):
        engine = sync_connection(target).engine
    else:
        bind = sync_session(target).get_bind()
        engine = getattr(bind, "engine", bind)
    return getattr(engine, "_proxied", engine)


def family_of(engine: Any) -> str:
    """The kind of database that a synchronous engine speaks to."""
    return "mysql" if engine.dialect.name in ("mysql", "mariadb") else str(engine.dialect.name)


def pool_size(engine: AsyncEngine) -> int:
    """How many connections the engine's pool may give at once; 0: no limit that is known."""
    pool: Any = engine.pool
    size = getattr(pool, "size", None)
    overflow = getattr(pool, "_max_overflow", None)
    if size is None or overflow is None or overflow < 0 or size() <= 0:
        return 0
    return int(size()) + int(overflow)


def is_ours(target: Any) -> bool:
    """Is it one of SQLAlchemy's that may be given to ``g.xa``?"""
    return isinstance(target, AsyncEngine | AsyncConnection | AsyncSession)


def source_of(target: Any, name: str, engine: Any) -> Source:
    """Where its connections come from."""
    watch(engine)
    pooled = isinstance(target, AsyncEngine)
    return Source(
        key=id(engine) if pooled else id(target),
        resource=name,
        family=family_of(engine),
        make=lambda: make_held(target),
        pool=id(engine) if pooled else None,
        pool_size=pool_size(target) if pooled else 0,
        identity_of=engine,
    )


def make_held(target: AsyncEngine | AsyncConnection | AsyncSession) -> _SqlAlchemyHeld:
    """A holder for a target."""
    if isinstance(target, AsyncEngine):
        return EngineHeld(target)
    if isinstance(target, AsyncConnection):
        return ConnectionHeld(target)
    return SessionHeld(target)


__all__ = ["engine_of", "family_of", "is_ours", "make_held", "pool_size", "source_of", "watch"]
