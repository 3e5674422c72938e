"""The queue of a node by itself: timers in its process. What it loses when it ends, the log's sweep finds."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...observe import logs
from ...ports import Clock, Due, Spawn

log = logs.get("txcoord.queue")

Carry = Callable[[Sequence[Due]], Awaitable[None]]

_GATHER_S = 0.02
"""What comes due within that time goes together."""


@dataclass(slots=True)
class _Lane:
    """What is due for one target in one namespace: one that hangs holds up nobody else's."""

    due: deque[Due] = field(default_factory=deque)
    carried: int = 0
    """How many of it are being carried out."""


class EmbeddedQueue:
    """``ports.Queue`` on timers. At most ``keep`` wait here: what comes beyond that is left to the log's sweep.

    What is due for one target in one namespace is given out ``batch`` at a time, and no more of it than ``width`` at
    once.
    """

    def __init__(
        self,
        clock: Clock,
        spawn: Spawn,
        *,
        batch: int = 100,
        width: int = 2_000,
        keep: int = 200_000,
    ) -> None:
        self._clock = clock
        self._spawn = spawn
        self._batch = batch
        self._width = width
        self._keep = keep
        self._carry: Carry | None = None
        self._waiting: list[tuple[int, int, Due]] = []
        self._ticket = itertools.count()
        self._lanes: dict[tuple[str, str], _Lane] = {}
        self._sooner = asyncio.Event()
        self._tasks: set[asyncio.Future[None]] = set()
        self._full = False
        self._stopped = False

    async def start(self, carry: Carry) -> None:
        """Begin."""
        self._carry = carry
        self._begin(self._tell_time(), "queue:timer")

    def put(self, due: Due) -> None:
        """Take it, if there is room."""
        if self._stopped:
            return
        if len(self._waiting) >= self._keep:
            if not self._full:
                self._full = True
                log.warning("queue.full", waiting=len(self._waiting))
            return
        self._full = False
        heapq.heappush(self._waiting, (due.due_us, next(self._ticket), due))
        if self._waiting[0][2] is due:
            self._sooner.set()

    def hold(self, yes: bool) -> None:
        """What waits here is nobody else's: it goes on to wait, in ``carry`` when it is due."""

    def depth(self) -> Mapping[str, int]:
        """How many wait for their time, and how many are due and not carried out yet."""
        return {
            "waiting": len(self._waiting),
            "due": sum(len(lane.due) + lane.carried for lane in self._lanes.values()),
        }

    async def stop(self) -> None:
        """End; what is being carried out is left as it is."""
        self._stopped = True
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # ---- time ----

    async def _tell_time(self) -> None:
        while True:
            self._sooner.clear()
            now_us = self._clock.now_us()
            while self._waiting and self._waiting[0][0] <= now_us:
                due = heapq.heappop(self._waiting)[2]
                self._lanes.setdefault((due.namespace, due.target), _Lane()).due.append(due)
            for key in list(self._lanes):
                self._give_out(key)
            if self._waiting:
                await self._sleep(max(_GATHER_S, (self._waiting[0][0] - now_us) / 1_000_000))
            else:
                await self._sooner.wait()

    async def _sleep(self, seconds: float) -> None:
        """Until then, or until something is due earlier."""
        if seconds <= _GATHER_S:
            await self._clock.sleep(seconds)
            return
        sleeper = asyncio.ensure_future(self._clock.sleep(seconds))
        ring = asyncio.ensure_future(self._sooner.wait())
        try:
            await asyncio.wait({sleeper, ring}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeper.cancel()
            ring.cancel()

    # ---- lanes ----

    def _give_out(self, key: tuple[str, str]) -> None:
        lane = self._lanes[key]
        while lane.due and lane.carried < self._width:
            most = min(self._batch, self._width - lane.carried, len(lane.due))
            batch = [lane.due.popleft() for _ in range(most)]
            lane.carried += len(batch)
            self._begin(self._carried(key, lane, batch), f"queue:{key[1]}")
        if not lane.due and not lane.carried:
            del self._lanes[key]  # Targets come and go.

    async def _carried(self, key: tuple[str, str], lane: _Lane, batch: list[Due]) -> None:
        assert self._carry is not None
        try:
            await self._carry(batch)
        except Exception:
            # They are the sweep's now.
            log.exception("queue.carry_failed", target=key[1], count=len(batch))
        finally:
            lane.carried -= len(batch)
            if not self._stopped and self._lanes.get(key) is lane:
                self._give_out(key)

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._spawn(work, name)
        assert isinstance(task, asyncio.Future)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
