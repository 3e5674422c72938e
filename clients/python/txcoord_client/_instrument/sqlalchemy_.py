"""Instrumented SQLAlchemy engines.

Everything on an engine begins by a checkout from its pool: inside a global transaction that gives a unit's connection
instead of one of the pool's. The pool is the engine's own, with another ``connect`` and ``recreate``: so it survives
``engine.dispose()``, and whoever looks at it finds what he expects.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import AdaptedConnection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import Pool, PoolProxiedConnection

from .. import _scope as scope
from .._xa.drivers import sqlstate_of
from ..errors import NotIdle, Rejected
from ..protocol import reasons
from .dbapi import Control, UnitConnection, by_cursor
from .home import Home
from .units import Branch, Unit, Units

_READ_ONLY_ERRORS = ("25006",)
_MODE = "txcoord_mode"
_WRITABLE = "txcoord_writable"
"""In a connection's ``info``: may its local transaction write?"""


class InstrumentedEngine:
    """What an engine has after ``instrument``."""

    def __init__(self, home: Home, target: AsyncEngine | Engine) -> None:
        self._home = home
        self._target = target
        engine: Any = target.sync_engine if isinstance(target, AsyncEngine) else target
        self._engine: Engine = getattr(engine, "_proxied", engine)
        self._dialect: Any = self._engine.dialect
        self._family = "mysql" if self._dialect.name in ("mysql", "mariadb") else self._dialect.name

    def install(self) -> None:
        if self._family not in ("postgresql", "mysql"):
            raise Rejected(f"{self._family} has no XA: it cannot take part", reason=reasons.NOT_SUPPORTED)
        self._home.name(self._target, self._engine)
        self._adopt(self._engine.pool)
        event.listen(self._engine, "begin", self._on_begin)
        event.listen(self._engine, "begin_twophase", self._on_begin_twophase)
        event.listen(self._engine, "before_cursor_execute", self._on_statement)
        event.listen(self._engine, "handle_error", self._on_error, retval=True)

    # ---- the pool ----

    def _adopt(self, pool: Pool) -> Pool:
        connect, recreate = pool.connect, pool.recreate
        changed: Any = pool
        changed.connect = functools.partial(self._connect, connect)
        changed.recreate = lambda: self._adopt(recreate())
        return pool

    def _connect(self, connect: Callable[[], PoolProxiedConnection]) -> PoolProxiedConnection:
        if scope.is_opening_a_branch():
            return self._in_mode(connect(), writable=True)
        units = self._home.units(self._target, self._family, self._may_join)
        if units is None:
            fairy = connect()
            if self._home.refuses:
                fairy.info[scope.READY] = self._ready
                self._in_mode(fairy, writable=scope.is_outside_on_purpose())
            return fairy
        return _join(units)

    def _in_mode(self, fairy: PoolProxiedConnection, *, writable: bool) -> PoolProxiedConnection:
        try:
            self._set_mode(fairy, writable=writable)
        except BaseException as error:
            fairy.invalidate(error)
            raise
        return fairy

    def _may_join(self, branch: Branch) -> None:
        fairy = _fairy_of(branch)
        dbapi: Any = fairy.dbapi_connection
        autocommit = getattr(dbapi, "autocommit", False)
        if callable(autocommit):  # A setter; SQLAlchemy's adapters do not always have its other half.
            driver: Any = dbapi if hasattr(dbapi, "get_autocommit") else fairy.driver_connection
            autocommit = driver.get_autocommit()
        if autocommit is True:
            raise Rejected(
                f"the engine of {branch.resource!r} has the isolation level AUTOCOMMIT, which a global transaction "
                "cannot have: use another engine for it",
                reason=reasons.NOT_SUPPORTED,
            )

    # ---- outside of a transaction ----

    def _set_mode(self, fairy: PoolProxiedConnection, *, writable: bool) -> None:
        """Let the database itself refuse writes, whatever brings them about; the connection must be idle."""
        dbapi: Any = fairy.dbapi_connection
        info = fairy.info
        if self._family == "mysql":
            if info.get(_MODE, "rw") != ("rw" if writable else "ro"):
                by_cursor(dbapi)([f"SET SESSION TRANSACTION READ {'WRITE' if writable else 'ONLY'}"])
                info[_MODE] = "rw" if writable else "ro"
            return
        session = "rw" if writable else "ro"
        on_session = getattr(dbapi, "autocommit", False) is True or info.get(_MODE) == "ro"
        if on_session and info.get(_MODE, "rw") != session:
            # No BEGIN could say it: the session has to, as long as it is there.
            by_cursor(dbapi)([f"SET default_transaction_read_only TO {'off' if writable else 'on'}"])
            dbapi.commit()  # Without AUTOCOMMIT the setting would go with the transaction.
            info[_MODE] = session
        if _MODE + "_own" not in info:
            info[_MODE + "_own"] = self._dialect.get_readonly(dbapi)
        wanted = info[_MODE + "_own"] if writable else True
        if self._dialect.get_readonly(dbapi) != wanted:
            self._dialect.set_readonly(dbapi, wanted)  # Its driver says so in BEGIN: no message of its own.

    def _ready(self, fairy: PoolProxiedConnection) -> None:
        self._set_mode(fairy, writable=True)

    def _on_begin(self, conn: Any) -> None:
        fairy = conn.connection
        if isinstance(fairy, UnitFairy) or scope.is_opening_a_branch() or self._home.is_held(conn):
            return
        if self._home.refuses:
            fairy.info[_WRITABLE] = scope.is_outside_on_purpose() and self._home.current() is None
            self._set_mode(fairy, writable=fairy.info[_WRITABLE])
        else:
            self._on_statement(conn)

    def _on_statement(self, conn: Any, *args: Any) -> None:
        """A connection that was taken before the transaction began, or outside of it, is not part of it. Where the
        database refuses what it writes it may be used."""
        fairy = conn._dbapi_connection
        if fairy is None or isinstance(fairy, UnitFairy) or scope.is_opening_a_branch():
            return
        if self._home.refuses and not fairy.info.get(_WRITABLE):
            return
        if self._home.current() is not None and not self._home.is_held(conn):
            raise NotIdle(
                f"this session or connection to {self._home.resource!r} was opened before the global transaction "
                "began, or outside of it: what it does would not be part of it. Commit or close it first"
            )

    @staticmethod
    def _on_begin_twophase(conn: Any, xid: Any) -> None:
        if isinstance(conn.connection, UnitFairy):
            raise Rejected(
                "twophase=True prepares and commits by itself: it cannot take part in a global transaction",
                reason=reasons.NOT_SUPPORTED,
            )

    def _on_error(self, context: Any) -> BaseException | None:
        error = context.original_exception
        conn = context.connection
        if conn is None or not self._home.refuses or isinstance(conn._dbapi_connection, UnitFairy):
            return None
        if sqlstate_of(error) not in _READ_ONLY_ERRORS and not _is_mysql_read_only(error):
            return None
        return self._home.no_transaction(error)


def _is_mysql_read_only(error: BaseException) -> bool:
    return bool(error.args) and error.args[0] == 1792


def _fairy_of(branch: Branch) -> PoolProxiedConnection:
    value: Any = branch.held.value
    connection = getattr(value, "sync_connection", value)
    fairy: PoolProxiedConnection = connection.connection
    return fairy


def _join(units: Units) -> UnitFairy:
    fairy = _fairy_of(units.branch)
    dbapi: Any = fairy.dbapi_connection
    unit = units.unit()
    is_async = isinstance(dbapi, AdaptedConnection)
    control = _by_adapter(dbapi, units.family) if is_async else by_cursor(dbapi)
    connection = UnitConnection(dbapi, unit, control, is_lost=lambda: _is_lost(dbapi), threads=not is_async)
    return UnitFairy(connection, unit, fairy, is_async)


def _by_adapter(adapter: AdaptedConnection, family: str) -> Control:
    """Sends on an asyncio driver's connection, in its turn."""
    turn: Any = getattr(adapter, "_execute_mutex", None) or contextlib.nullcontext()

    def control(statements: Iterable[str]) -> None:
        async def send(raw: Any) -> None:
            async with turn:
                if family == "postgresql":
                    await raw.execute("; ".join(statements))
                    return
                async with raw.cursor() as cursor:
                    for statement in statements:
                        await cursor.execute(statement)

        adapter.run_async(send)

    return control


def _in_greenlet() -> bool:
    from greenlet import getcurrent  # type: ignore[import-untyped]

    return getattr(getcurrent(), "__sqlalchemy_greenlet_provider__", False) is True


def _is_lost(dbapi: Any) -> bool:
    raw = getattr(dbapi, "driver_connection", dbapi)
    closed = getattr(raw, "is_closed", None)
    if closed is not None:
        return bool(closed())
    if hasattr(raw, "closed"):
        return bool(raw.closed)
    return not getattr(raw, "open", True)


class UnitFairy(PoolProxiedConnection):
    """A unit's connection, as a pool gives connections."""

    is_unit = True

    __slots__ = ("__weakref__", "_connection_record", "_fairy", "_is_async", "_unit", "dbapi_connection")

    def __init__(
        self, connection: UnitConnection, unit: Unit, fairy: PoolProxiedConnection, is_async: bool
    ) -> None:
        self._is_async = is_async
        self.dbapi_connection: Any = connection
        self._unit = unit
        self._fairy = fairy
        self._connection_record = types.SimpleNamespace(
            finalize_callback=[], starttime=float("inf"), info=fairy.info, record_info=fairy.record_info
        )

    @property
    def driver_connection(self) -> Any:  # type: ignore[override]
        """The driver's own. What is done with it is not looked at: only kept inside the unit."""
        connection: UnitConnection | None = self.dbapi_connection
        if connection is None:
            return None
        if self._is_async and not _in_greenlet():
            self._unit.work_unseen()  # Nothing can be sent from here.
        else:
            connection.work_unseen()
        return self._fairy.driver_connection

    @property
    def is_valid(self) -> bool:
        return self.dbapi_connection is not None

    @property
    def is_detached(self) -> bool:
        return False

    @property
    def info(self) -> Any:
        return self._fairy.info

    @property
    def record_info(self) -> Any:
        return self._fairy.record_info

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        if self.dbapi_connection is not None:
            self.dbapi_connection = None
            self._unit.broken(e or RuntimeError("it was invalidated"))

    def detach(self) -> None:
        raise Rejected(
            "a connection of a global transaction's branch cannot be detached", reason=reasons.NOT_SUPPORTED
        )

    def cursor(self, *args: Any, **options: Any) -> Any:
        return self.dbapi_connection.cursor(*args, **options)

    def commit(self) -> None:
        self.dbapi_connection.commit()

    def rollback(self) -> None:
        self.dbapi_connection.rollback()

    def close(self) -> None:
        connection, self.dbapi_connection = self.dbapi_connection, None
        if connection is not None:
            connection.close()

    def _close_special(self, transaction_reset: bool = False) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dbapi_connection, name)
