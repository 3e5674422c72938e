"""Phase two: branch by branch, each resource in a lane of its own: a dead database delays only its own.

A lane has a few workers; what failed waits for its due time outside the lane and blocks nobody.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..core.backoff import Backoff
from ..core.events import BranchFailed, BranchFinished, Event, Finish, HeuristicSeen
from ..core.model import Branch
from ..observe import logs
from ..ports import Clock, Failpoints, Finished, Finisher, Randomness, Spawn, Task

log = logs.get("txcoord.phase_two")


@dataclass(frozen=True, slots=True)
class Job:
    """Finish this branch of that transaction."""

    tx_id: str
    branch: Branch
    commit: bool


class Lane:
    """The branches of one resource that are due."""

    def __init__(
        self, finisher: Finisher, width: int, spawn: Spawn, run: Callable[[Job, Finisher], object]
    ) -> None:
        self.finisher = finisher
        self._width = width
        self._spawn = spawn
        self._run = run
        self._due: deque[Job] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._workers: list[Task] = []

    def put(self, job: Job) -> None:
        """It is due."""
        self._due.append(job)
        while self._idle:
            waiting = self._idle.pop()
            if not waiting.done():
                waiting.set_result(None)
                return
        if len(self._workers) < self._width:
            self._workers.append(self._spawn(self._work(), f"finish:{self.finisher.name}"))

    @property
    def depth(self) -> int:
        """How many are due and not begun."""
        return len(self._due)

    async def _work(self) -> None:
        while True:
            while self._due:
                result = self._run(self._due.popleft(), self.finisher)
                if asyncio.iscoroutine(result):
                    await result
            waiting = asyncio.get_running_loop().create_future()
            self._idle.append(waiting)
            await waiting

    def stop(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.cancel()


class PhaseTwo:
    """Carries ``Finish`` effects out and says what became of them."""

    def __init__(
        self,
        finishers: Mapping[str, Finisher],
        *,
        clock: Clock,
        randomness: Randomness,
        spawn: Spawn,
        failpoints: Failpoints,
        backoff: Backoff,
        tell: Callable[[str, Event], None],
        width: int = 8,
    ) -> None:
        self._clock = clock
        self._random = randomness
        self._spawn = spawn
        self._failpoints = failpoints
        self._backoff = backoff
        self._tell = tell
        self._lanes = {
            name: Lane(finisher, width, spawn, self._finish) for name, finisher in finishers.items()
        }
        self._later: list[tuple[int, int, Job]] = []
        self._ticket = itertools.count()
        self._alarm: asyncio.Event | None = None
        self._timer: Task | None = None
        self._inflight: set[tuple[str, str]] = set()

    def carry_out(self, tx_id: str, effect: Finish) -> None:
        """Do it now, or when it is due. Asking again while it is on its way changes nothing."""
        job = Job(tx_id, effect.branch, effect.commit)
        if effect.at_us > self._clock.now_us():
            self._postpone(effect.at_us, job)
            return
        key = (tx_id, effect.branch.id)
        if key in self._inflight:
            return
        self._inflight.add(key)
        lane = self._lanes.get(effect.branch.resource)
        if lane is None:
            self._inflight.discard(key)
            self._failed(job, f"UNKNOWN_RESOURCE: {effect.branch.resource!r} is not configured here")
            return
        lane.put(job)

    def depth(self) -> Mapping[str, int]:
        """How many branches are due, by resource."""
        return {name: lane.depth for name, lane in self._lanes.items()}

    def stop(self) -> None:
        """End all workers."""
        for lane in self._lanes.values():
            lane.stop()
        if self._timer is not None:
            self._timer.cancel()

    async def _finish(self, job: Job, finisher: Finisher) -> None:
        try:
            await self._failpoints.reach("finish.before")
            result = await finisher.finish(job.branch.xid, job.commit)
            await self._failpoints.reach("finish.after")
        except Exception as error:
            # One bad branch never stops the lane: it is tried again, and seen.
            log.exception("branch.finish_crashed", tx_id=job.tx_id, branch=job.branch.id)
            self._inflight.discard((job.tx_id, job.branch.id))
            self._failed(job, f"OTHER: {type(error).__name__}: {error}")
            return
        self._inflight.discard((job.tx_id, job.branch.id))
        if result.finished is Finished.DONE:
            self._tell(job.tx_id, BranchFinished(job.branch.id))
        elif result.finished is Finished.HEURISTIC:
            self._tell(job.tx_id, HeuristicSeen(job.branch.id, result.reason))
        else:
            self._failed(job, result.reason)

    def _failed(self, job: Job, reason: str) -> None:
        delay = self._backoff.delay_us(job.branch.attempts + 1, self._random.random())
        log.warning(
            "branch.retry",
            tx_id=job.tx_id,
            branch=job.branch.id,
            resource=job.branch.resource,
            reason=reason,
            in_ms=delay // 1000,
        )
        self._tell(job.tx_id, BranchFailed(job.branch.id, reason, self._clock.now_us() + delay))

    def _postpone(self, at_us: int, job: Job) -> None:
        heapq.heappush(self._later, (at_us, next(self._ticket), job))
        if self._timer is None or self._timer.done():
            self._timer = self._spawn(self._timer_loop(), "finish:later")
        elif self._alarm is not None and self._later[0][2] is job:
            self._alarm.set()

    async def _timer_loop(self) -> None:
        while self._later:
            at_us = self._later[0][0]
            wait = (at_us - self._clock.now_us()) / 1_000_000
            if wait > 0:
                self._alarm = asyncio.Event()
                sleeper = asyncio.ensure_future(self._clock.sleep(wait))
                ring = asyncio.ensure_future(self._alarm.wait())
                await asyncio.wait({sleeper, ring}, return_when=asyncio.FIRST_COMPLETED)
                sleeper.cancel()
                ring.cancel()
                continue
            _, _, job = heapq.heappop(self._later)
            self.carry_out(job.tx_id, Finish(job.branch, job.commit))
