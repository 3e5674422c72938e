"""Instrumented asyncpg pools.

asyncpg commits each statement outside of ``transaction()`` by itself: there each is a unit of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from asyncpg.connection import _ConnectionProxy

from .. import _scope as scope
from .._xa.drivers import sqlstate_of
from ..errors import Rejected
from ..protocol import reasons
from .home import MARK, Home
from .units import Unit, Units

_READ_ONLY = "25006"
_TURNS: weakref.WeakKeyDictionary[Units, asyncio.Lock] = weakref.WeakKeyDictionary()
_QUERIES = frozenset(
    {"execute", "executemany", "fetch", "fetchval", "fetchrow", "fetchmany", "copy_from_query"}
)
_OTHERS = frozenset({"copy_from_table", "copy_to_table", "copy_records_to_table"})
_NOT_INSIDE = frozenset({"reset", "add_listener", "remove_listener"})


def install(home: Home, pool: Any) -> Any:
    """Instrument a pool. It has no place for anything of ours: it becomes one of a class of its own."""
    usual: Any = type(pool)
    home.name(pool, _Marks(usual))

    class Pool(usual):  # type: ignore[misc]
        __slots__ = ()

        async def _acquire(self, timeout: float | None) -> Any:
            units = None if scope.is_opening_a_branch() else await home.units_in_loop(self, "postgresql")
            if units is not None:
                return UnitConnection(units.branch.held.value, units.unit())
            connection = await super()._acquire(timeout)
            if not home.refuses or scope.is_opening_a_branch() or scope.is_outside_on_purpose():
                return connection
            try:
                # Each time: the pool resets what it gets back.
                await connection.execute("SET default_transaction_read_only TO on")
            except BaseException:
                await super().release(connection)
                raise
            return OutsideConnection(connection, home)

        async def release(self, connection: Any, *, timeout: float | None = None) -> None:
            if isinstance(connection, UnitConnection):
                await connection.close()
            elif isinstance(connection, OutsideConnection):
                await super().release(connection.raw, timeout=timeout)
            else:
                await super().release(connection, timeout=timeout)

    setattr(Pool, MARK, True)
    Pool.__name__ = Pool.__qualname__ = usual.__name__
    Pool.__module__ = usual.__module__
    pool.__class__ = Pool
    return pool


class _Marks:
    """A pool takes no attributes, and its class may be that of others: the mark is on the class that it gets."""

    def __init__(self, kind: type[Any]) -> None:
        if hasattr(kind, MARK):
            setattr(self, MARK, True)


class UnitConnection(_ConnectionProxy):
    """What the application has instead of a connection of its own."""

    __slots__ = ("__weakref__", "_depth", "_names", "_raw", "_unit")

    def __init__(self, raw: Any, unit: Unit) -> None:
        self._raw = raw
        self._unit = unit
        self._depth = 0
        self._names = itertools.count(1)

    def __getattr__(self, name: str) -> Any:
        if name in _NOT_INSIDE:
            raise Rejected(f"{name}() inside a global transaction", reason=reasons.NOT_SUPPORTED)
        value = getattr(self._raw, name)
        if name not in _QUERIES and name not in _OTHERS:
            return value

        async def call(*args: Any, **options: Any) -> Any:
            text = args[0] if name in _QUERIES and args else None
            async with self._sending(text) as sent:
                return await (value(*args, **options) if text is None else value(sent, *args[1:], **options))

        return call

    async def prepare(self, query: str, **options: Any) -> Any:
        async with self._sending(query) as sent:
            return _Prepared(self, query, await self._raw.prepare(sent, **options))

    def cursor(self, query: str, *args: Any, **options: Any) -> Any:
        if not self._depth:
            raise asyncpg.NoActiveSQLTransactionError("cursor cannot be created outside of a transaction")
        first, sent = self._unit.before(query)
        if first:
            # Another unit would have to give way, which takes a message.
            raise self._unit.units.doom(
                Rejected(
                    "a cursor while another connection works: send a statement first",
                    reason=reasons.NOT_SUPPORTED,
                )
            )
        return self._raw.cursor(sent, *args, **options)

    def transaction(
        self, *, isolation: str | None = None, readonly: bool = False, deferrable: bool = False
    ) -> _Block:
        """A unit, or inside one a savepoint."""
        if isolation is not None or readonly or deferrable:
            raise Rejected(
                "transaction() with isolation, readonly or deferrable inside a global transaction: the branch has the "
                "connection's own",
                reason=reasons.NOT_SUPPORTED,
            )
        return _Block(self)

    def is_in_transaction(self) -> bool:
        return self._depth > 0

    async def close(self, *, timeout: float | None = None) -> None:
        """It ends its unit; the branch goes on."""
        self._depth = 0
        async with self._turn():
            await self._end(False)

    def terminate(self) -> None:
        self._unit.broken(ConnectionAbortedError("it was terminated"))

    # ---- inside ----

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """A connection can do one thing at a time; an application that has several waits unknowingly."""
        turn = _TURNS.get(self._unit.units)
        if turn is None:
            turn = _TURNS[self._unit.units] = asyncio.Lock()
        async with turn:
            with self._unit.units.at_work():
                yield

    @asynccontextmanager
    async def _sending(self, statement: str | None) -> AsyncIterator[str]:
        async with self._turn():
            if statement is None:
                first, sent = self._unit.begin(), ""
            else:
                first, sent = self._unit.before(statement)
            await self._send(first)
            try:
                yield sent
            except BaseException as error:
                if not isinstance(error, Exception) or self._raw.is_closed():
                    self._unit.broken(error)
                else:
                    self._unit.on_error(error)
                if not self._depth:
                    await self._end(False)
                raise
            if not self._depth:
                await self._end(True)

    async def _end(self, commit: bool) -> None:
        statements, error = self._unit.end(commit)
        await self._send(statements)
        if error is not None:
            raise error

    async def _send(self, statements: Sequence[str]) -> None:
        if not statements:
            return
        try:
            await self._raw.execute("; ".join(statements))
        except BaseException as error:
            told = self._unit.broken(error)
            if isinstance(error, Exception):
                raise told from error
            raise


class _Block:
    """What ``transaction()`` gives."""

    def __init__(self, connection: UnitConnection) -> None:
        self._connection = connection
        self._name = ""
        self._outer = False

    async def start(self) -> None:
        connection = self._connection
        self._outer = not connection._depth
        if self._outer:
            async with connection._turn():
                await connection._send(connection._unit.begin())
        else:
            self._name = f"txc_block_{next(connection._names)}"
            await connection.execute(f"SAVEPOINT {self._name}")
        connection._depth += 1

    async def commit(self) -> None:
        await self._end(True)

    async def rollback(self) -> None:
        await self._end(False)

    async def _end(self, commit: bool) -> None:
        connection = self._connection
        if self._outer:
            connection._depth = 0
            async with connection._turn():
                await connection._end(commit)
            return
        # Before it is ended its depth counts: it must not be taken for a statement that stands alone.
        what = "RELEASE SAVEPOINT" if commit else "ROLLBACK TO SAVEPOINT"
        try:
            await connection.execute(f"{what} {self._name}")
        finally:
            connection._depth = max(connection._depth - 1, 0)

    async def __aenter__(self) -> None:
        await self.start()

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self._end(kind is None)


class _Prepared:
    """A prepared statement of a unit's connection."""

    def __init__(self, connection: UnitConnection, query: str, prepared: Any) -> None:
        self._connection = connection
        self._query = query
        self._prepared = prepared

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._prepared, name)
        if name not in _QUERIES:
            return value

        async def call(*args: Any, **options: Any) -> Any:
            async with self._connection._sending(self._query):
                return await value(*args, **options)

        return call


class OutsideConnection(_ConnectionProxy):
    """A connection where writes are refused: their error says why."""

    __slots__ = ("_home", "raw")

    def __init__(self, raw: Any, home: Home) -> None:
        self.raw = raw
        self._home = home

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.raw, name)
        if name not in _QUERIES and name not in _OTHERS:
            return value

        async def call(*args: Any, **options: Any) -> Any:
            try:
                return await value(*args, **options)
            except asyncpg.PostgresError as error:
                if sqlstate_of(error) != _READ_ONLY:
                    raise
                raise self._home.no_transaction(error) from error

        return call


__all__ = ["UnitConnection", "install"]
