"""Branches on asyncpg connections and pools."""

from __future__ import annotations

from typing import Any

from ..errors import NotIdle
from .held import RefusedEnd

_RELEASE_S = 2.0


class AsyncpgHeld:
    """A connection that the caller gave."""

    schema = ""
    wrote = False  # Nothing tells cheaply: the branch asks the database.

    def __init__(self, connection: Any) -> None:
        self.value = connection
        self._transaction: Any = None

    async def open(self) -> None:
        if self.value.is_in_transaction():
            raise NotIdle("this asyncpg connection is in a transaction already")

    async def start(self, first: str, refused: RefusedEnd) -> None:
        # Through asyncpg's own transaction, so that the application's nested blocks become savepoints.
        self._transaction = self.value.transaction()
        await self._transaction.start()
        await self.value.execute(first)

    async def flush(self) -> None:
        pass

    async def execute(self, sql: str) -> str:
        return str(await self.value.execute(sql))

    async def fetch_row(self, sql: str) -> tuple[Any, ...] | None:
        row = await self.value.fetchrow(sql)
        return None if row is None else tuple(row)

    async def fetch_alone(self, sql: str) -> tuple[Any, ...] | None:
        return await self.fetch_row(sql)

    @property
    def in_transaction(self) -> bool:
        return bool(self.value.is_in_transaction())

    def forget_transaction(self) -> None:
        # asyncpg has no public way to say so but a COMMIT, which the server would complain of.
        real = getattr(self.value, "_con", self.value)
        real._top_xact = None
        self._transaction = None

    def abort(self) -> None:
        if self.value is not None:
            self.value.terminate()

    async def take_out(self) -> None:
        pass

    async def release(self, committed: bool) -> None:
        pass

    async def discard(self) -> None:
        self.value.terminate()


class AsyncpgPoolHeld(AsyncpgHeld):
    """A connection that the SDK takes from the caller's pool."""

    def __init__(self, pool: Any) -> None:
        super().__init__(None)
        self._pool = pool

    async def open(self) -> None:
        self.value = await self._pool.acquire()

    async def release(self, committed: bool) -> None:
        # The pool resets the connection: a database that does not answer must not hold the end up.
        await self._pool.release(self.value, timeout=_RELEASE_S)

    async def discard(self) -> None:
        self.value.terminate()
        await self._pool.release(self.value)
