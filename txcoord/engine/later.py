"""Branches that wait for their time: one of each, whoever asks again."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ..observe import logs
from ..ports import Clock, Spawn, Task

log = logs.get("txcoord.later")

Key = tuple[str, str]
"""Tx id and branch."""
T = TypeVar("T")


class Later(Generic[T]):
    """What is put here comes out, by ``due``, when its time has come and not before."""

    def __init__(self, clock: Clock, spawn: Spawn, name: str, due: Callable[[Key, T], None]) -> None:
        self._clock = clock
        self._spawn = spawn
        self._name = name
        self._due = due
        self._waiting: list[tuple[int, int, Key, T]] = []
        self._valid: dict[Key, int] = {}
        """The one ticket of a branch that counts: asking again must not make two chains of attempts."""
        self._ticket = itertools.count()
        self._alarm: asyncio.Event | None = None
        self._timer: Task | None = None
        self._timing = False

    def __contains__(self, key: Key) -> bool:
        return key in self._valid

    def __len__(self) -> int:
        return len(self._valid)

    def put(self, at_us: int, key: Key, item: T) -> None:
        """It is due then; whatever waited for this branch does so no more."""
        ticket = next(self._ticket)
        self._valid[key] = ticket
        heapq.heappush(self._waiting, (at_us, ticket, key, item))
        if not self._timing:
            self._timing = True
            self._timer = self._spawn(self._run(), self._name)
        elif self._alarm is not None and self._waiting[0][1] == ticket:
            self._alarm.set()

    def drop(self, key: Key) -> None:
        """Nothing waits for this branch any more."""
        self._valid.pop(key, None)

    def pop(self, key: Key) -> T | None:
        """What waits for this branch: now it does so no more."""
        valid = self._valid.pop(key, None)
        return next((item for _, ticket, _, item in self._waiting if ticket == valid), None)

    def take(self, most: int, wanted: Callable[[Key, T], bool]) -> list[T]:
        """At most so many of those that are wanted, and that wait for their time, in the order of that: now they do so
        no more."""
        found: list[T] = []
        for _, ticket, key, item in sorted(self._waiting, key=lambda one: one[:2]):
            if len(found) >= most:
                break
            if self._valid.get(key) == ticket and wanted(key, item):
                del self._valid[key]
                found.append(item)
        return found

    def all(self) -> Iterator[tuple[int, T]]:
        """What waits, with its time."""
        return ((at_us, item) for at_us, ticket, key, item in self._waiting if self._valid.get(key) == ticket)

    def stop(self) -> None:
        """Nothing comes out any more."""
        if self._timer is not None:
            self._timer.cancel()

    async def _run(self) -> None:
        try:
            while self._waiting:
                wait = (self._waiting[0][0] - self._clock.now_us()) / 1_000_000
                if wait > 0:
                    await self._sleep(wait)
                    continue
                _, ticket, key, item = heapq.heappop(self._waiting)
                if self._valid.get(key) != ticket:
                    continue
                del self._valid[key]
                try:
                    self._due(key, item)
                except Exception:
                    log.exception("timer.crashed", tx_id=key[0], branch=key[1])
        finally:
            self._timing = False

    async def _sleep(self, seconds: float) -> None:
        """Until then, or until something is due earlier."""
        self._alarm = asyncio.Event()
        sleeper = asyncio.ensure_future(self._clock.sleep(seconds))
        ring = asyncio.ensure_future(self._alarm.wait())
        try:
            await asyncio.wait({sleeper, ring}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeper.cancel()
            ring.cancel()
            self._alarm = None
