"""Instrumented psycopg: a pool, or a function that connects."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from .. import _scope as scope
from .._xa.drivers import sqlstate_of
from ..errors import Rejected, ResourceMismatch
from ..protocol import reasons
from ..sync._xa.direct import DriverHeld
from ..sync._xa.held import Source
from ..sync._xa.raw import PsycopgRaw
from .dbapi import AutocommitUnit, UnitCursor, by_cursor
from .home import Home
from .units import Unit

_READ_ONLY = "25006"


class PsycopgUnit(AutocommitUnit):
    """A unit's connection, as psycopg's are used: with blocks that commit, ``transaction()``, and autocommit, where
    each statement outside of such a block is a unit of its own."""

    __slots__ = ("_blocks", "_closed", "_options", "_pooled")

    def __init__(
        self,
        raw: Any,
        unit: Unit,
        *,
        autocommit: bool = False,
        pooled: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(raw, unit, lambda: bool(raw.closed), autocommit=autocommit)
        self._set("_blocks", itertools.count(1))
        self._set("_closed", False)
        self._set("_options", dict(options or {}))
        self._set("_pooled", pooled)

    # ---- as psycopg.Connection ----

    @property
    def closed(self) -> bool:
        return self._closed or bool(self._raw.closed)

    @property
    def autocommit(self) -> bool:
        return bool(self._autocommit)

    def set_autocommit(self, value: bool) -> None:
        if self._unit.open:
            raise psycopg.ProgrammingError("can't change 'autocommit' now: a transaction is open")
        self._set("_autocommit", value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "autocommit":
            self.set_autocommit(value)
        elif name in ("row_factory", "cursor_factory"):
            self._options[name] = value  # Others have the same connection.
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in ("row_factory", "cursor_factory") and name in self._options:
            return self._options[name]
        return super().__getattr__(name)

    def cursor(self, *args: Any, **options: Any) -> UnitCursor:
        if self._closed:
            raise psycopg.OperationalError("the connection is closed")
        self._unit.units.check()
        if options.get("withhold"):
            raise Rejected(
                "a cursor WITH HOLD outlives its transaction: a branch that has one cannot be prepared",
                reason=reasons.NOT_SUPPORTED,
            )
        with self._as_configured():
            cursor = self._raw.cursor(*args, **options)
        if "row_factory" in self._options and "row_factory" not in options:
            cursor.row_factory = self._options["row_factory"]
        return UnitCursor(cursor, self)

    @contextmanager
    def _as_configured(self) -> Iterator[None]:
        factory = self._options.get("cursor_factory")
        if factory is None:
            yield
            return
        before = self._raw.cursor_factory
        self._raw.cursor_factory = factory
        try:
            yield
        finally:
            self._raw.cursor_factory = before

    def execute(self, statement: Any, *args: Any, binary: bool = False, **options: Any) -> Any:
        return self.cursor(**({"binary": True} if binary else {})).execute(statement, *args, **options)

    @contextmanager
    def transaction(self, savepoint_name: str | None = None, force_rollback: bool = False) -> Iterator[Any]:
        """A unit, or inside one a savepoint."""
        outer = not self._unit.open
        name = savepoint_name or f"txc_block_{next(self._blocks)}"
        block = _Block(self, name)
        if outer:
            self.work_unseen()
        else:
            self._control_by_unit(f"SAVEPOINT {name}")
        self._set("_in_block", self._in_block + 1)
        commit = False
        try:
            yield block
            commit = not force_rollback
        except psycopg.Rollback as error:
            meant: Any = error.transaction
            if meant is not None and meant is not block:
                raise
        finally:
            self._set("_in_block", self._in_block - 1)
            if outer:
                self._end(commit)
            elif commit:
                self._control_by_unit(f"RELEASE SAVEPOINT {name}")
            else:
                self._control_by_unit(f"ROLLBACK TO SAVEPOINT {name}")

    def _control_by_unit(self, statement: str) -> None:
        with contextlib.closing(UnitCursor(self._raw.cursor(), self)) as cursor:
            cursor.execute(statement)

    def commit(self) -> None:
        self._no_block("commit")
        super().commit()

    def rollback(self) -> None:
        self._no_block("rollback")
        super().rollback()

    def _no_block(self, what: str) -> None:
        if self._in_block:
            raise psycopg.ProgrammingError(f"Explicit {what}() forbidden within a Transaction context.")

    def close(self) -> None:
        self._set("_closed", True)
        self._end(False)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._closed:
            return
        if kind is None:
            self.commit()
        else:
            self.rollback()
        if not self._pooled:
            self.close()


class _Block:
    """What ``with conn.transaction() as tx`` gives."""

    def __init__(self, connection: PsycopgUnit, name: str) -> None:
        self.connection = connection
        self.savepoint_name = name


# ---- a pool ----


class InstrumentedPool:
    """A ``psycopg_pool.ConnectionPool`` after ``instrument``."""

    def __init__(self, home: Home, pool: Any) -> None:
        self._home = home
        self._pool = pool

    def install(self) -> Any:
        pool = self._pool
        self._home.name(pool, pool)
        self._getconn, self._putconn = pool.getconn, pool.putconn
        pool.getconn, pool.putconn = self.getconn, self.putconn
        return pool

    def getconn(self, timeout: float | None = None) -> Any:
        if not scope.is_opening_a_branch():
            units = self._home.units(self._pool, "postgresql")
            if units is not None:
                raw = units.branch.held.value
                return PsycopgUnit(raw, units.unit(), autocommit=raw.autocommit, pooled=True)
        connection = self._getconn(timeout=timeout)
        if self._home.refuses:
            writable = scope.is_opening_a_branch() or scope.is_outside_on_purpose()
            guard(self._home, connection, writable=writable)
        return connection

    def putconn(self, connection: Any) -> None:
        if isinstance(connection, PsycopgUnit):
            connection.close()
        else:
            self._putconn(connection)


# ---- a function that connects ----


class InstrumentedConnect:
    """``psycopg.connect``, or what is called like it."""

    def __init__(self, home: Home, connect: Callable[..., Any]) -> None:
        self._home = home
        self._connect = connect
        self._targets: dict[tuple[tuple[str, str], ...], _Target] = {}

    def install(self) -> Callable[..., Any]:
        @functools.wraps(self._connect)
        def connect(conninfo: str = "", **options: Any) -> Any:
            return self.connect(conninfo, **options)

        return connect

    def connect(self, conninfo: str, **options: Any) -> Any:
        target = self._target(conninfo, options)
        units = self._home.units(target, "postgresql")
        if units is None:
            connection = self._connect(conninfo, **options)
            if self._home.refuses:
                guard(self._home, connection, writable=scope.is_outside_on_purpose())
            return connection
        if target.key != units.branch.held.key:
            raise ResourceMismatch(
                f"this connects to another database, or as another user, than the branch on {self._home.resource!r}"
            )
        own: dict[str, Any] = {
            name: options[name] for name in ("row_factory", "cursor_factory") if name in options
        }
        return PsycopgUnit(
            units.branch.held.value, units.unit(), autocommit=bool(options.get("autocommit")), options=own
        )

    def _target(self, conninfo: str, options: Mapping[str, Any]) -> _Target:
        plain = {k: v for k, v in options.items() if k not in _NOT_CONNINFO}
        words = conninfo_to_dict(conninfo, **plain)
        key = tuple(sorted((str(k), str(v)) for k, v in words.items()))
        target = self._targets.get(key)
        if target is None:
            target = self._targets[key] = _Target(self._connect, conninfo, plain, key)
            self._home.add(
                target,
                Source(
                    key=id(self),
                    resource=self._home.resource,
                    family="postgresql",
                    make=lambda: ConnectHeld(target),
                    identity_of=target,
                ),
            )
        return target


_NOT_CONNINFO = frozenset({"autocommit", "row_factory", "cursor_factory", "context", "prepare_threshold"})


class _Target:
    """One way to connect."""

    def __init__(
        self,
        connect: Callable[..., Any],
        conninfo: str,
        options: Mapping[str, Any],
        key: tuple[tuple[str, str], ...],
    ) -> None:
        self.connect: Callable[[], Any] = lambda: connect(conninfo, **options)
        self.key = key


class ConnectHeld(DriverHeld):
    """A connection that is made for the branch, and closed with it."""

    def __init__(self, target: _Target) -> None:
        super().__init__(None, PsycopgRaw)
        self._target = target
        self.key = target.key

    def open(self) -> None:
        self.value = self._target.connect()
        super().open()

    def release(self, committed: bool) -> None:
        super().release(committed)
        self.value.close()


# ---- outside of a transaction ----


def guard(home: Home, connection: Any, *, writable: bool) -> None:
    """Let the server refuse writes on an idle connection, in whatever way they are made."""
    known = getattr(connection, "_txcoord_mode", "")
    wanted = "rw" if writable else "ro"
    if known == wanted or (not known and writable):
        return
    by_cursor(connection)([f"SET default_transaction_read_only TO {'off' if writable else 'on'}"])
    if not connection.autocommit:
        connection.commit()
    if not known:
        connection.cursor_factory = _telling(home, connection.cursor_factory)
    connection._txcoord_mode = wanted


@functools.lru_cache(maxsize=64)
def _telling(home: Home, factory: type[Any]) -> type[Any]:
    """Cursors whose error says what is wrong."""

    class Cursor(factory):  # type: ignore[misc]
        def execute(self, *args: Any, **options: Any) -> Any:
            with told(home):
                return super().execute(*args, **options)

        def executemany(self, *args: Any, **options: Any) -> Any:
            with told(home):
                return super().executemany(*args, **options)

    return Cursor


@contextmanager
def told(home: Home) -> Iterator[None]:
    """A refused write is NoTransaction."""
    try:
        yield
    except psycopg.Error as error:
        if sqlstate_of(error) != _READ_ONLY:
            raise
        raise home.no_transaction(error) from error


__all__ = ["InstrumentedConnect", "InstrumentedPool", "PsycopgUnit", "guard", "told"]
