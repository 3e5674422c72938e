"""Phase two: branch by branch, each resource in a lane of its own: a dead database delays only its own.

A lane has a few workers; what failed waits for its due time outside the lane and blocks nobody.

A branch with a holder (the session that prepared it, which finishes it by itself) is given some time first. The holder
reports to whichever node it knows, so the branch is also looked at now and then meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from ..core.backoff import Backoff
from ..core.events import BranchFailed, BranchFinished, Event, Finish, HeuristicSeen
from ..core.model import Branch
from ..observe import logs
from ..observe.metrics import Timed, untimed
from ..ports import (
    Clock,
    Failpoints,
    Finished,
    Finisher,
    FinishResult,
    Randomness,
    ResourceTrouble,
    Spawn,
    Task,
)
from .later import Key, Later

log = logs.get("txcoord.phase_two")


@dataclass(frozen=True, slots=True)
class Job:
    """Finish this branch of that transaction."""

    tx_id: str
    branch: Branch
    commit: bool
    held_until_us: int = 0
    """Until then its holder has it: it is looked at only."""
    look_us: int = 0
    """How long after this look the next one is."""


_LOOKS = 20
"""The first look at a held branch is after this part of the holder's time, the next ones are further apart."""


class Lane:
    """The branches of one resource that are due."""

    def __init__(
        self, finisher: Finisher, width: int, spawn: Spawn, run: Callable[[Job, Finisher], Awaitable[None]]
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
        if len(self._workers) >= self._width:
            self._workers = [worker for worker in self._workers if not worker.done()]
        if len(self._workers) < self._width:
            self._workers.append(self._spawn(self._work(), f"finish:{self.finisher.name}"))

    @property
    def depth(self) -> int:
        """How many are due and not begun."""
        return len(self._due)

    async def _work(self) -> None:
        while True:
            while self._due:
                job = self._due.popleft()
                try:
                    await self._run(job, self.finisher)
                except Exception:
                    # Whatever one branch brings about: the lane goes on.
                    log.exception("lane.crashed", tx_id=job.tx_id, branch=job.branch.id)
            waiting = asyncio.get_running_loop().create_future()
            self._idle.append(waiting)
            await waiting

    def stop(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.cancel()


def _always(_tx_id: str, _branch_id: str) -> bool:
    return True


class PhaseTwo:
    """Carries ``Finish`` effects out and says what became of them.

    ``wanted`` says whether a branch is still to be finished when its turn has come: an operator may have
    taken it, or another node its transaction.
    """

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
        wanted: Callable[[str, str], bool] = _always,
        width: int = 8,
        hold_us: int = 0,
        finished: Timed = untimed,
    ) -> None:
        self._clock = clock
        self._finished = finished
        self._hold_us = hold_us
        self._random = randomness
        self._spawn = spawn
        self._failpoints = failpoints
        self._backoff = backoff
        self._tell = tell
        self._wanted = wanted
        self._lanes = {
            name: Lane(finisher, width, spawn, self._finish) for name, finisher in finishers.items()
        }
        self._later: Later[Job] = Later(clock, spawn, "finish:later", self._due)
        self._inflight: set[Key] = set()
        self._hurried: set[Key] = set()
        """Asked for at once while they were on their way: a look at them must not put them off."""

    def carry_out(self, tx_id: str, effect: Finish) -> None:
        """Do it now, or when it is due. Asking again while it is on its way changes nothing."""
        key = (tx_id, effect.branch.id)
        job = Job(tx_id, effect.branch, effect.commit)
        now_us = self._clock.now_us()
        if effect.held and self._hold_us and effect.branch.resource in self._lanes:
            if key in self._later or key in self._inflight:
                return
            look_us = self._hold_us // _LOOKS
            held = replace(job, held_until_us=now_us + self._hold_us, look_us=look_us * 2)
            self._later.put(now_us + look_us, key, held)
        elif effect.at_us > now_us:
            if key not in self._inflight:
                self._later.put(effect.at_us, key, job)
        else:
            self._do(key, job)

    def _do(self, key: Key, job: Job) -> None:
        if key in self._inflight:
            self._hurried.add(key)
            return
        self._later.drop(key)
        lane = self._lanes.get(job.branch.resource)
        if lane is None:
            self._failed(job, f"UNKNOWN_RESOURCE: {job.branch.resource!r} is not configured here")
            return
        self._inflight.add(key)
        lane.put(job)

    def depth(self) -> Mapping[str, int]:
        """How many branches are due, by resource."""
        return {name: lane.depth for name, lane in self._lanes.items()}

    def busy(self, key: Key) -> bool:
        """Is this branch due, or on its way?"""
        return key in self._inflight

    def forget(self, key: Key) -> None:
        """What waits for its time here does so elsewhere from now on."""
        self._later.drop(key)

    @property
    def later(self) -> int:
        """How many branches wait for their next attempt."""
        return len(self._later)

    def stop(self) -> None:
        """End all workers."""
        for lane in self._lanes.values():
            lane.stop()
        self._later.stop()

    async def _finish(self, job: Job, finisher: Finisher) -> None:
        key = (job.tx_id, job.branch.id)
        if not self._wanted(*key):
            self._inflight.discard(key)
            self._hurried.discard(key)
            return
        if job.held_until_us > self._clock.now_us() and key not in self._hurried:
            await self._look(key, job, finisher)
            return
        begun = self._clock.monotonic()
        try:
            await self._failpoints.reach("finish.before")
            result = await finisher.finish(job.branch.xid, job.commit)
            await self._failpoints.reach("finish.after")
        except Exception as error:
            # One bad branch never stops the lane: it is tried again, and seen.
            log.exception("branch.finish_crashed", tx_id=job.tx_id, branch=job.branch.id)
            result = FinishResult(Finished.RETRY, f"OTHER: {type(error).__name__}: {error}")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancels this worker: something below has cancelled itself.
            result = FinishResult(Finished.RETRY, "OTHER: the attempt was cancelled")
        finally:
            # Also when this worker ends: whoever asks again must not be told "on its way".
            self._inflight.discard(key)
            self._hurried.discard(key)
        self._finished(job.branch.resource, str(result.finished.value), self._clock.monotonic() - begun)
        if result.finished is Finished.DONE:
            self._tell(job.tx_id, BranchFinished(job.branch.id))
        elif result.finished is Finished.HEURISTIC:
            self._tell(job.tx_id, HeuristicSeen(job.branch.id, result.reason))
        else:
            self._failed(job, result.reason)

    async def _look(self, key: Key, job: Job, finisher: Finisher) -> None:
        """Has its holder finished it? If not, look again later, and finish it when the holder's time is over."""
        try:
            ended = await finisher.has_ended(job.branch.xid, job.commit)
        except ResourceTrouble:
            ended = False
        except Exception:
            log.exception("branch.look_crashed", tx_id=job.tx_id, branch=job.branch.id)
            ended = False
        finally:
            self._inflight.discard(key)
        hurried = key in self._hurried
        self._hurried.discard(key)
        if ended:
            self._tell(job.tx_id, BranchFinished(job.branch.id))
        elif hurried:
            self._do(key, replace(job, held_until_us=0))
        elif self._wanted(*key):
            now_us = self._clock.now_us()
            self._later.put(
                min(now_us + job.look_us, max(now_us, job.held_until_us)),
                key,
                replace(job, look_us=job.look_us * 2),
            )

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

    def _due(self, key: Key, job: Job) -> None:
        if self._wanted(*key):
            self._do(key, job)
