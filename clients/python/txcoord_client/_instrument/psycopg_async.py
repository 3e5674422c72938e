"""Instrumented ``psycopg_pool.AsyncConnectionPool``: what ``psycopg_`` does for threads."""

from __future__ import annotations

import asyncio
import functools
import itertools
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from .. import _scope as scope
from ..errors import Rejected
from ..protocol import reasons
from .dbapi import MODE_METHODS, statement_text
from .home import Home
from .psycopg_ import told
from .units import Unit, Units

_TURNS: weakref.WeakKeyDictionary[Units, asyncio.Lock] = weakref.WeakKeyDictionary()
_REFUSED = MODE_METHODS - {"transaction", "set_autocommit"} | {"set_isolation_level", "set_deferrable"}


class AsyncPsycopgUnit:
    """A unit's connection, as psycopg's asynchronous ones are used."""

    def __init__(self, raw: Any, unit: Unit, *, autocommit: bool) -> None:
        self._raw = raw
        self._unit = unit
        self._autocommit = autocommit
        self._blocks = itertools.count(1)
        self._in_block = 0
        self._closed = False
        self.row_factory: Any = raw.row_factory

    # ---- as psycopg.AsyncConnection ----

    @property
    def closed(self) -> bool:
        return self._closed or bool(self._raw.closed)

    @property
    def autocommit(self) -> bool:
        return self._autocommit

    async def set_autocommit(self, value: bool) -> None:
        if self._unit.open:
            raise psycopg.ProgrammingError("can't change 'autocommit' now: a transaction is open")
        self._autocommit = value

    def __getattr__(self, name: str) -> Any:
        if name in _REFUSED:
            raise Rejected(
                f"{name}() inside a global transaction: the connection belongs to its branch, and keeps its mode",
                reason=reasons.NOT_SUPPORTED,
            )
        return getattr(self._raw, name)

    def cursor(self, *args: Any, **options: Any) -> AsyncUnitCursor:
        if self._closed:
            raise psycopg.OperationalError("the connection is closed")
        self._unit.units.check()
        if options.get("withhold"):
            raise Rejected(
                "a cursor WITH HOLD outlives its transaction: a branch that has one cannot be prepared",
                reason=reasons.NOT_SUPPORTED,
            )
        options.setdefault("row_factory", self.row_factory)
        return AsyncUnitCursor(self._raw.cursor(*args, **options), self)

    async def execute(self, query: Any, *args: Any, binary: bool = False, **options: Any) -> AsyncUnitCursor:
        cursor = self.cursor(**({"binary": True} if binary else {}))
        return await cursor.execute(query, *args, **options)

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[AsyncPsycopgUnit]:
        """A unit, or inside one a savepoint."""
        outer = not self._unit.open
        name = savepoint_name or f"txc_block_{next(self._blocks)}"
        if outer:
            async with self._turn():
                await self._send(self._unit.begin())
        else:
            await self.execute(f"SAVEPOINT {name}")
        self._in_block += 1
        commit = False
        try:
            yield self
            commit = not force_rollback
        except psycopg.Rollback as error:
            if error.transaction is not None:
                raise
        finally:
            if outer:
                self._in_block -= 1
                await self._end(commit)
            else:
                try:
                    await self.execute(f"{'RELEASE' if commit else 'ROLLBACK TO'} SAVEPOINT {name}")
                finally:
                    self._in_block -= 1

    async def commit(self) -> None:
        self._no_block("commit")
        await self._end(True)

    async def rollback(self) -> None:
        self._no_block("rollback")
        await self._end(False)

    async def close(self) -> None:
        self._closed = True
        await self._end(False)

    async def __aenter__(self) -> AsyncPsycopgUnit:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if not self._closed:
            await self._end(kind is None)

    # ---- inside ----

    def _no_block(self, what: str) -> None:
        if self._in_block:
            raise psycopg.ProgrammingError(f"Explicit {what}() forbidden within a Transaction context.")

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        turn = _TURNS.get(self._unit.units)
        if turn is None:
            turn = _TURNS[self._unit.units] = asyncio.Lock()
        async with turn:
            with self._unit.units.at_work():
                yield

    @asynccontextmanager
    async def _sending(self, statement: Any) -> AsyncIterator[Any]:
        alone = self._autocommit and not self._in_block
        async with self._turn():
            text = statement_text(statement, self._raw)
            if text is None:
                first, sent = self._unit.begin(), statement
            else:
                first, changed = self._unit.before(text)
                sent = statement if changed == text else changed
            await self._send(first)
            try:
                yield sent
            except BaseException as error:
                if not isinstance(error, Exception) or self._raw.closed:
                    self._unit.broken(error)
                else:
                    self._unit.on_error(error)
                if alone:
                    await self._finish(False)
                raise
            if alone:
                await self._finish(True)

    async def _end(self, commit: bool) -> None:
        async with self._turn():
            await self._finish(commit)

    async def _finish(self, commit: bool) -> None:
        statements, error = self._unit.end(commit)
        await self._send(statements)
        if error is not None:
            raise error

    async def _send(self, statements: Sequence[str]) -> None:
        if not statements:
            return
        try:
            await self._raw.cursor().execute("; ".join(statements))
        except BaseException as error:
            lost = self._unit.broken(error)
            if isinstance(error, Exception):
                raise lost from error
            raise


class AsyncUnitCursor:
    """A cursor on it."""

    def __init__(self, cursor: Any, connection: AsyncPsycopgUnit) -> None:
        self._cursor = cursor
        self.connection = connection

    async def execute(self, query: Any, *args: Any, **options: Any) -> AsyncUnitCursor:
        async with self.connection._sending(query) as sent:
            await self._cursor.execute(sent, *args, **options)
        return self

    async def executemany(self, query: Any, *args: Any, **options: Any) -> None:
        async with self.connection._sending(query) as sent:
            await self._cursor.executemany(sent, *args, **options)

    @asynccontextmanager
    async def copy(self, statement: Any, *args: Any, **options: Any) -> AsyncIterator[Any]:
        async with (
            self.connection._sending(statement) as sent,
            self._cursor.copy(sent, *args, **options) as copy,
        ):
            yield copy

    async def stream(self, query: Any, *args: Any, **options: Any) -> AsyncIterator[Any]:
        async with self.connection._sending(query) as sent:
            async for row in self._cursor.stream(sent, *args, **options):
                yield row

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def __aiter__(self) -> Any:
        return self._cursor.__aiter__()

    async def __aenter__(self) -> AsyncUnitCursor:
        return self

    async def __aexit__(self, *args: object) -> None:
        await self._cursor.close()


class InstrumentedAsyncPool:
    """A ``psycopg_pool.AsyncConnectionPool`` after ``instrument``."""

    def __init__(self, home: Home, pool: Any) -> None:
        self._home = home
        self._pool = pool

    def install(self) -> Any:
        pool = self._pool
        self._home.name(pool, pool)
        self._getconn, self._putconn = pool.getconn, pool.putconn
        pool.getconn, pool.putconn = self.getconn, self.putconn
        return pool

    async def getconn(self, timeout: float | None = None) -> Any:
        if not scope.is_opening_a_branch():
            units = await self._home.units_in_loop(self._pool, "postgresql")
            if units is not None:
                raw = units.branch.held.value
                return AsyncPsycopgUnit(raw, units.unit(), autocommit=bool(raw.autocommit))
        connection = await self._getconn(timeout=timeout)
        if self._home.refuses:
            try:
                await self._guard(connection)
            except BaseException:
                await self._putconn(connection)
                raise
        return connection

    async def putconn(self, connection: Any) -> None:
        if isinstance(connection, AsyncPsycopgUnit):
            await connection.close()
        else:
            await self._putconn(connection)

    async def _guard(self, connection: Any) -> None:
        """Let the server refuse writes, in whatever way they are made."""
        writable = scope.is_opening_a_branch() or scope.is_outside_on_purpose()
        known, wanted = getattr(connection, "_txcoord_mode", ""), "rw" if writable else "ro"
        if known == wanted or (not known and writable):
            return
        await connection.execute(f"SET default_transaction_read_only TO {'off' if writable else 'on'}")
        if not connection.autocommit:
            await connection.commit()
        if not known:
            connection.cursor_factory = _telling(self._home, connection.cursor_factory)
        connection._txcoord_mode = wanted


@functools.lru_cache(maxsize=64)
def _telling(home: Home, factory: type[Any]) -> type[Any]:
    """Cursors whose error says what is wrong."""

    class AsyncCursor(factory):  # type: ignore[misc]
        async def execute(self, *args: Any, **options: Any) -> Any:
            with told(home):
                return await super().execute(*args, **options)

        async def executemany(self, *args: Any, **options: Any) -> Any:
            with told(home):
                return await super().executemany(*args, **options)

    return AsyncCursor


__all__ = ["AsyncPsycopgUnit", "InstrumentedAsyncPool"]
