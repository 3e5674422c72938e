"""Branches on the pools of aiomysql and asyncmy."""

from __future__ import annotations

from typing import Any

from .direct import DriverHeld
from .raw import MySqlRaw


class MySqlPoolHeld(DriverHeld):
    """A connection that the SDK takes from the caller's pool."""

    def __init__(self, pool: Any) -> None:
        super().__init__(None, MySqlRaw)
        self._pool = pool

    async def open(self) -> None:
        self.value = await self._pool.acquire()
        await super().open()

    async def release(self, committed: bool) -> None:
        await super().release(committed)
        await self._pool.release(self.value)

    async def discard(self) -> None:
        if self.value is None:
            return
        await super().discard()
        # A closed one is dropped.
        await self._pool.release(self.value)
