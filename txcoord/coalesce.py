"""A gate that coalesces: while one flush is in flight the next batch fills; an idle gate flushes at once.

No timer delays what is urgent. What is lazy rides on the next flush; if none comes, a tick flushes it.
It stands outside the engine because adapters, which may not import the engine, need it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

Flush = Callable[[list[T], bool], Awaitable[list[T]]]
"""Write a batch in order; the flag says whether anything in it is urgent. It gives back the lazy items that
it could not write, answers all others itself, and never raises."""


class Gate(Generic[T]):
    """One gate, one flush at a time."""

    def __init__(self, flush: Flush[T], *, tick: Callable[[], Awaitable[None]], limit: int = 1000) -> None:
        self._flush = flush
        self._tick = tick
        self._limit = limit
        self._pending: deque[tuple[T, bool]] = deque()
        self._urgent = 0
        self._pushed = False
        self._lazy_added = 0
        self._lazy_written = 0
        self._settling: list[tuple[int, asyncio.Future[bool]]] = []
        self._drainer: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self.before_flush: Callable[[], Awaitable[None]] | None = None
        """For tests: awaited before each flush takes its batch from what is pending."""
        self.in_flush: Callable[[], Awaitable[None]] | None = None
        """For tests: awaited once a flush has taken its batch, so that holding it holds one flush."""

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, item: T, *, urgent: bool) -> None:
        """Take an item; the flush that takes it answers it."""
        self._pending.append((item, urgent))
        if urgent:
            self._urgent += 1
            self._start()
        else:
            self._lazy_added += 1
            self._arm()

    async def settle(self) -> bool:
        """Wait until the lazy items added so far are written, without waiting for a tick. False: they
        could not be."""
        if self._lazy_written >= self._lazy_added:
            return True
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._settling.append((self._lazy_added, waiter))
        self._pushed = True
        self._start()
        return await waiter

    async def close(self) -> list[T]:
        """Flush everything that can be, stop, and give back what is left."""
        await self.settle()
        while self._drainer is not None:
            await asyncio.wait([self._drainer])
        return self.abandon()

    def abandon(self) -> list[T]:
        """Stop at once, as a crash would; give back what was not taken yet."""
        for task in (self._drainer, self._ticker):
            if task is not None:
                task.cancel()
        left = [item for item, _ in self._pending]
        self._pending.clear()
        self._urgent = 0
        self._tell(None, failed=True)
        return left

    def _start(self) -> None:
        if self._drainer is None:
            self._drainer = asyncio.get_running_loop().create_task(self._drain(), name="gate.drain")

    async def _drain(self) -> None:
        try:
            while self._pending and (self._urgent or self._pushed):
                if self.before_flush is not None:
                    await self.before_flush()
                taken = [self._pending.popleft() for _ in range(min(len(self._pending), self._limit))]
                urgent = sum(urgent for _, urgent in taken)
                self._urgent -= urgent
                if self.in_flush is not None:
                    await self.in_flush()
                left: list[T] = []
                try:
                    left = await self._flush([item for item, _ in taken], urgent > 0)
                except BaseException:
                    self._tell(None, failed=True)
                    raise
                finally:
                    # What a flush that raises has taken is gone: nobody may wait for it.
                    self._lazy_written += len(taken) - urgent - len(left)
                if left:
                    self._pending.extendleft((item, False) for item in reversed(left))
                    self._pushed = False
                self._tell(self._lazy_written, failed=bool(left))
            if not self._pending:
                self._pushed = False
        finally:
            self._drainer = None
            if self._pending:
                self._arm()

    def _tell(self, written: int | None, *, failed: bool) -> None:
        waiting, self._settling = self._settling, []
        for target, waiter in waiting:
            if written is not None and written >= target:
                answer = True
            elif failed:
                answer = False
            else:
                self._settling.append((target, waiter))
                continue
            if not waiter.done():
                waiter.set_result(answer)

    def _arm(self) -> None:
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().create_task(self._wait_and_push(), name="gate.tick")

    async def _wait_and_push(self) -> None:
        try:
            await self._tick()
            while self._drainer is not None and self._pending:
                await self._tick()
        finally:
            self._ticker = None
        if self._pending:
            self._pushed = True
            self._start()
