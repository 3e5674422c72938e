"""Leases for singleton duties, in the log's own database and by its clock."""

from __future__ import annotations

from . import upkeep
from .log import SqlLog


class SqlLeases:
    """``ports.Leases`` beside an open log."""

    def __init__(self, log: SqlLog) -> None:
        self._store = log.store

    async def acquire(self, duty: str, owner: str, ttl_us: int) -> int | None:
        """A fencing token that grows with each call, or None while another owner holds it."""
        clock = self._store.clock
        return await self._store.changing(lambda c: upkeep.acquire(c, clock(c), duty, owner, ttl_us))

    async def holder(self, duty: str) -> tuple[str, int] | None:
        """Who has it or had it last, and by which token."""
        return await self._store.reading(lambda c: upkeep.holder(c, duty))

    async def release(self, duty: str, owner: str) -> None:
        """Give it back, if it is this owner's."""
        await self._store.changing(lambda c: upkeep.release(c, duty, owner))
