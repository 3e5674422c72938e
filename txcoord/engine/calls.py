"""Calls of participants, each namespace's calls of a target in a lane of their own.

So one that hangs delays only its own branches, and one tenant's slow calls delay no other tenant's.

Calls of one lane that are due together travel together, and each answer counts as soon as it is there. A lane has
room for some such calls at a time; while all are on their way the next one fills.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..core import plans
from ..core.action import Answer, AnswerKind, Op, Retry
from ..core.calling import op_of
from ..core.events import Answered, Call, Event
from ..core.model import Tx
from ..observe import logs
from ..observe.metrics import Timed, untimed
from ..ports import Caller, CallRequest, Clock, Failpoints, Randomness, Spawn, Task
from .later import Key, Later

log = logs.get("txcoord.calls")

Lane = tuple[str, str]
"""Namespace and target."""
_MOST = 200
"""Branches in one call."""
_TURNS = 3
"""Turns of the loop before a call is made: what is ready in them travels along."""


@dataclass(frozen=True, slots=True)
class Job:
    """Call the participant of this branch."""

    key: Key
    lane: Lane
    op: Op
    attempt: int
    timeout_us: int


_AT_ONCE = 8
_BREATH_S = 0.005
"""Failures are told so many at a time, with a pause: when a thousand calls time out in one moment, what goes well does
not wait for all of them. A backlog is told faster, the longer it is."""


class Calls:
    """Carries ``Call`` effects out and says what was answered.

    ``look`` gives the transaction as it stands when the turn of a call has come: it may not be wanted any more.
    """

    def __init__(
        self,
        caller: Caller | None,
        *,
        clock: Clock,
        randomness: Randomness,
        spawn: Spawn,
        failpoints: Failpoints,
        defaults: Retry,
        tell: Callable[[str, Event], None],
        look: Callable[[str], Tx | None],
        width: int = 16,
        called: Timed = untimed,
    ) -> None:
        self._called = called
        self._caller = caller
        self._clock = clock
        self._random = randomness
        self._spawn = spawn
        self._failpoints = failpoints
        self._defaults = defaults
        self._tell = tell
        self._look = look
        self._width = width
        self._due: dict[Lane, deque[Job]] = {}
        self._workers: dict[Lane, set[Task]] = {}
        self._coming: set[Lane] = set()
        """Where a worker is about to take what is due."""
        self._later: Later[Job] = Later(clock, spawn, "call:later", lambda _, job: self._do(job))
        self._under_way: dict[Key, Job] = {}
        self._failed: deque[tuple[Job, Answer]] = deque()
        self._failing: Task | None = None
        self._after: dict[Key, Job] = {}
        """What else is to be done for a branch once the call that is on its way has ended."""

    def carry_out(self, tx: Tx, call: Call) -> None:
        """Call now, or when it is due. Asking again while it is on its way changes nothing."""
        own = call.branch.action.retry if call.branch.action is not None else Retry()
        job = Job(
            (tx.tx_id, call.branch.id),
            (tx.namespace, call.branch.resource),
            call.op,
            call.attempt,
            own.call_timeout_us or self._defaults.call_timeout_us,
        )
        under_way = self._under_way.get(job.key)
        if under_way is not None:
            if (under_way.op, under_way.attempt) != (job.op, job.attempt):
                self._after[job.key] = job
        elif call.at_us > self._clock.now_us():
            self._later.put(call.at_us, job.key, job)
        else:
            self._do(job)

    def depth(self) -> Mapping[str, int]:
        """How many calls are due and not made, by target."""
        found: dict[str, int] = {}
        for (_, target), due in self._due.items():
            found[target] = found.get(target, 0) + len(due)
        return found

    def busy(self, key: Key) -> bool:
        """Is a call for this branch due or on its way, or is another one to follow?"""
        return key in self._under_way or key in self._after

    def forget(self, key: Key) -> None:
        """What waits for its time here does so elsewhere from now on."""
        self._later.drop(key)

    @property
    def later(self) -> int:
        """How many branches wait for their next attempt."""
        return len(self._later)

    def stop(self) -> None:
        """End all calls."""
        self._later.stop()
        if self._failing is not None:
            self._failing.cancel()
        for workers in self._workers.values():
            for worker in workers:
                worker.cancel()

    # ---- lanes ----

    def _do(self, job: Job) -> None:
        if job.key in self._under_way:
            return
        self._later.drop(job.key)
        self._under_way[job.key] = job
        due = self._due.setdefault(job.lane, deque())
        due.append(job)
        self._come(job.lane, due)

    def _come(self, lane: Lane, due: deque[Job]) -> None:
        """Somebody comes for what is due, if there is room and nobody does yet."""
        workers = self._workers.setdefault(lane, set())
        if lane not in self._coming and len(workers) < self._width:
            self._coming.add(lane)
            workers.add(self._spawn(self._work(lane, due, workers), f"call:{lane[1]}"))

    async def _work(self, lane: Lane, due: deque[Job], workers: set[Task]) -> None:
        try:
            while True:
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
                self._coming.discard(lane)
                jobs: list[Job] = []
                while due and len(jobs) < _MOST and due[0].timeout_us == (jobs or due)[0].timeout_us:
                    jobs.append(due.popleft())
                if due:
                    self._come(lane, due)  # It need not wait for these.
                if jobs:
                    await self._call(lane[1], jobs, jobs[0].timeout_us)
                if not due or lane in self._coming:
                    break
                self._coming.add(lane)
        finally:
            workers.discard(asyncio.current_task())
            if not workers and self._workers.get(lane) is workers:
                del self._workers[lane]  # Targets come and go.
                if not due:
                    self._due.pop(lane, None)

    async def _call(self, target: str, jobs: list[Job], timeout_us: int) -> None:
        open_ = {job.key: job for job in jobs}
        why = "NO_ANSWER: the call ended without an answer"
        begun = self._clock.monotonic()
        try:
            requests = [r for job in jobs if (r := self._request(job)) is not None]
            wanted = {(r.tx.tx_id, r.branch.id) for r in requests}
            for key in [key for key in open_ if key not in wanted]:
                self._over(open_.pop(key))
            if not requests:
                return
            await self._failpoints.reach("call.before")
            if self._caller is None:
                raise NotImplementedError("this node calls no participants")
            timeout_s = timeout_us / 1_000_000
            async with asyncio.timeout(timeout_s):
                async for request, answer in self._caller.call(target, requests, timeout_s):
                    await self._failpoints.reach("call.after")
                    job = open_.pop((request.tx.tx_id, request.branch.id), None)
                    self._called(target, answer.kind.value, self._clock.monotonic() - begun)
                    if job is not None and answer.kind is AnswerKind.FAILED:
                        self._fail(job, answer)
                    elif job is not None:
                        self._answered(job, answer)
        except TimeoutError:
            why = f"TIMED_OUT: no answer within {timeout_us / 1_000_000:g} s"
        except Exception as error:
            # Whatever one call brings about: its branches are tried again, and seen.
            log.exception("call.crashed", target=target)
            why = f"OTHER: {type(error).__name__}: {error}"
        except BaseException:
            # This worker ends: whoever asks again must not be told "on its way".
            for job in open_.values():
                self._under_way.pop(job.key, None)
            raise
        for job in open_.values():
            self._called(target, AnswerKind.FAILED.value, self._clock.monotonic() - begun)
            self._fail(job, Answer(AnswerKind.FAILED, reason=why))

    def _fail(self, job: Job, answer: Answer) -> None:
        """It has failed, and is under way until that is told."""
        self._failed.append((job, answer))
        if self._failing is None:
            self._failing = self._spawn(self._tell_failed(), "call:failed")

    async def _tell_failed(self) -> None:
        try:
            while self._failed:
                for _ in range(max(_AT_ONCE, len(self._failed) // 100)):
                    if not self._failed:
                        break
                    job, answer = self._failed.popleft()
                    try:
                        self._answered(job, answer)
                    except Exception:
                        # That of the others is told all the same.
                        log.exception("call.crashed", target=job.lane[1])
                await self._clock.sleep(_BREATH_S)
        finally:
            self._failing = None

    def _request(self, job: Job) -> CallRequest | None:
        tx = self._look(job.key[0])
        branch = tx.branch(job.key[1]) if tx is not None else None
        if tx is None or branch is None or op_of(branch) is not job.op or not tx.may_go(branch):
            return None
        return CallRequest(
            plans.as_asked(tx), branch, job.op, job.attempt, self._clock.now_us() + job.timeout_us
        )

    def _answered(self, job: Job, answer: Answer) -> None:
        self._under_way.pop(job.key, None)
        answer = answer.storable()
        if answer.kind is not AnswerKind.DONE:
            log.warning(
                f"branch.{answer.kind}",
                tx_id=job.key[0],
                branch=job.key[1],
                target=job.lane[1],
                op=str(job.op),
                attempt=job.attempt,
                reason=answer.reason,
            )
        draw = 0.0 if answer.kind is AnswerKind.DONE else self._random.random()
        try:
            self._tell(job.key[0], Answered(job.key[1], job.op, job.attempt, answer, draw, self._defaults))
        finally:
            # What was told may have begun its next call already: that one is under way.
            self._next(job)

    def _over(self, job: Job) -> None:
        self._under_way.pop(job.key, None)
        self._next(job)

    def _next(self, job: Job) -> None:
        after = self._after.pop(job.key, None)
        # Another attempt was asked for by whoever had forgotten this one; if this one's answer counted, it is seen to.
        seen_to = job.key in self._under_way or job.key in self._later
        if after is not None and (after.op is not job.op or not seen_to):
            self._do(after)


__all__ = ["Calls"]
