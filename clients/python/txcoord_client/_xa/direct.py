"""Branches on drivers' own connections and pools: psycopg, aiomysql, asyncmy, PyMySQL."""

from __future__ import annotations

import contextlib
from typing import Any

from ..errors import NotIdle
from .held import RefusedEnd
from .raw import MySqlRaw, PsycopgRaw, Raw


class DriverHeld:
    """A connection that the caller gave."""

    schema = ""
    wrote = False  # Nothing tells cheaply: the branch asks the database.

    def __init__(self, connection: Any, raw: type[PsycopgRaw] | type[MySqlRaw]) -> None:
        self.value = connection
        self._make_raw = raw
        self._raw: Raw | None = None

    @property
    def _driver(self) -> Raw:
        if self._raw is None:
            self._raw = self._make_raw(self.value)
        return self._raw

    async def open(self) -> None:
        if self._driver.in_transaction:
            raise NotIdle("this connection is in a transaction already")

    async def start(self, first: str, refused: RefusedEnd) -> None:
        await self._driver.begin(first)
        for what in ("commit", "rollback"):
            self._shadow(what, refused)

    def _shadow(self, what: str, refused: RefusedEnd) -> None:
        async def refuse(*args: Any, **kwargs: Any) -> None:
            raise refused(what)

        # A class that takes no attributes (asyncmy's) is one whose server refuses it.
        with contextlib.suppress(AttributeError):
            setattr(self.value, what, refuse)

    async def flush(self) -> None:
        pass

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
        pass

    def abort(self) -> None:
        if self.value is not None:
            self._driver.cut()

    async def take_out(self) -> None:
        # The caller has it in his hands, or in a pool of his own, and there is no other to give him.
        raise RuntimeError("a connection of a driver, given by the caller, is closed instead")

    async def release(self, committed: bool) -> None:
        self._let_go()

    async def discard(self) -> None:
        if self.value is not None:
            self._let_go()
            await self._driver.close()

    def _let_go(self) -> None:
        for what in ("commit", "rollback"):
            with contextlib.suppress(AttributeError):
                delattr(self.value, what)


class PsycopgPoolHeld(DriverHeld):
    """A connection that the SDK takes from the caller's pool of psycopg_pool."""

    def __init__(self, pool: Any) -> None:
        super().__init__(None, PsycopgRaw)
        self._pool = pool

    async def open(self) -> None:
        self.value = await self._pool.getconn()
        await super().open()

    async def release(self, committed: bool) -> None:
        await super().release(committed)
        await self._pool.putconn(self.value)

    async def discard(self) -> None:
        if self.value is None:
            return
        await super().discard()
        # A closed one is replaced.
        await self._pool.putconn(self.value)


def psycopg(connection: Any) -> DriverHeld:
    """A holder for a psycopg connection."""
    return DriverHeld(connection, PsycopgRaw)


def mysql(connection: Any) -> DriverHeld:
    """A holder for a connection of a MySQL driver."""
    return DriverHeld(connection, MySqlRaw)
