"""What nodes keep beside their log in memory: outbox and leases."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from txcoord.outgoing import Outgoing

from .memory_log import Storage


class MemoryOutbox:
    """``ports.Outbox`` beside the storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def take(self, published: Sequence[tuple[str, int, int]], limit: int) -> list[Outgoing]:
        await asyncio.sleep(0)
        s = self._storage
        s.check()
        for key in published:
            s.outbox.pop(key, None)
            s.held.pop(key[0], None)
        s.sync()
        now_us = s.clock()
        free = [key for key in sorted(s.outbox) if s.held.get(key[0], 0) <= now_us]
        return [s.outbox[key] for key in free[:limit]]

    async def hold(self, tx_ids: Collection[str], hold_us: int) -> None:
        await asyncio.sleep(0)
        self._storage.check()
        until_us = self._storage.clock() + hold_us
        self._storage.held.update((tx_id, until_us) for tx_id in tx_ids)


class MemoryLeases:
    """``ports.Leases`` beside the storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def acquire(self, duty: str, owner: str, ttl_us: int) -> int | None:
        now_us = self._storage.clock()
        holder, token, until_us = self._storage.leases.get(duty, ("", 0, 0))
        if holder not in ("", owner) and until_us > now_us:
            return None
        self._storage.leases[duty] = (owner, token + 1, now_us + ttl_us)
        return token + 1

    async def release(self, duty: str, owner: str) -> None:
        holder, token, _ = self._storage.leases.get(duty, ("", 0, 0))
        if holder == owner:
            self._storage.leases[duty] = ("", token, 0)
