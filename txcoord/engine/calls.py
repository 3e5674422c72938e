"""Calls of participants, each namespace's calls of a target in a lane of their own.

So one that hangs delays only its own branches, and one tenant's slow calls delay no other tenant's.

Calls of one lane that are due together travel together, and each answer counts as soon as it is there. A lane has
room for some such calls at a time; while all are on their way the next one fills. Where a target takes each by itself
(``alone``) what waits for room has no time running: it has not been tried.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from ..core import plans
from ..core.action import Answer, AnswerKind, Op, Retry
from ..core.calling import op_of, waits_for_target
from ..core.events import Answered, Call, Deferred, Event, NotSent
from ..core.model import Tx
from ..core.ordering import line_of
from ..observe import logs
from ..observe.metrics import Timed, untimed
from ..ports import Backlog, Caller, CallRequest, Clock, Failpoints, Randomness, Spawn, Task
from .gate import Admission, Gate
from .later import Key, Later
from .ordering import Ordering, Waiting

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
    sent: bytes
    """The payload; once the call is made, that of the call."""
    line: str = ""
    """Of a message that leaves only when those before it have ended."""
    chosen_us: int = 0
    """When its sender wants it to leave."""


_AT_ONCE = 8
_BREATH_S = 0.005
"""Failures, and what is put off, are told so many at a time, with a pause: when a thousand calls time out in one
moment, what goes well does not wait for all of them. A backlog is told faster, the longer it is."""


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
        gate: Gate,
        ordering: Ordering,
        width: int = 16,
        alone: Mapping[str, int] | None = None,
        called: Timed = untimed,
        notified: Callable[[str, Answer], None] = lambda _target, _answer: None,
    ) -> None:
        self._notified = notified
        self._called = called
        self._caller = caller
        self._gate = gate
        self._ordering = ordering
        self._clock = clock
        self._random = randomness
        self._spawn = spawn
        self._failpoints = failpoints
        self._defaults = defaults
        self._tell = tell
        self._look = look
        self._width = width
        self._alone = alone or {}
        self._due: dict[Lane, deque[Job]] = {}
        self._workers: dict[Lane, set[Task]] = {}
        self._coming: set[Lane] = set()
        """Where a worker is about to take what is due."""
        self._later: Later[Job] = Later(clock, spawn, "call:later", lambda _, job: self._do(job))
        self._under_way: dict[Key, Job] = {}
        self._failed: deque[tuple[Job, Answer | str | NotSent]] = deque()
        """A failure, or why the call is put off, or is not made at all."""
        self._failing: Task | None = None
        self._after: dict[Key, tuple[int, Job]] = {}
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
            call.branch.sent,
            line_of(tx.namespace, call.branch),
            call.branch.action.delivery.deliver_at_us if call.branch.action is not None else 0,
        )
        under_way = self._under_way.get(job.key)
        if under_way is not None:
            if under_way != job:
                self._after[job.key] = call.at_us, job
        else:
            self._at(call.at_us, job)

    def _at(self, at_us: int, job: Job) -> None:
        if at_us > self._clock.now_us():
            self._later.put(at_us, job.key, job)
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

    def hurry(self, target: str, most: int) -> int:
        """Call at most so many of the branches that wait here, for a target that is back, now. How many they were.

        Those that their participant has asked to be called later are left alone.
        """

        def waits(key: Key, job: Job) -> bool:
            tx = self._look(key[0]) if job.lane[1] == target else None
            branch = tx.branch(key[1]) if tx is not None else None
            return branch is not None and waits_for_target(branch)

        jobs = self._later.take(most, waits)
        for job in jobs:
            self._do(job)
        return len(jobs)

    def call_now(self, key: Key) -> None:
        """Call for this branch, if it waits here."""
        job = self._later.pop(key)
        if job is not None:
            self._do(job)

    def undecided(self) -> Mapping[str, Backlog]:
        """What plans that run here wait with, by target: the log does not say it of them."""
        found: dict[str, list[int]] = {}
        for at_us, job in self._later.all():
            tx = self._look(job.key[0])
            if tx is not None and tx.decision is None:
                found.setdefault(job.lane[1], []).append(at_us)
        return {target: Backlog(len(due), min(due)) for target, due in found.items()}

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
        called = self._gate.called(job.lane[1])
        if called != job.lane[1]:
            job = replace(job, lane=(job.lane[0], called))
        self._under_way[job.key] = job
        if job.op is Op.NOTIFY and (why := self._gate.disabled(job.lane[1])):
            self._later_told(job, NotSent(job.key[1], job.op, job.attempt, why))
            return
        if job.line:
            early = job.chosen_us > self._clock.now_us()
            waiting = Waiting(job.line, partial(self._line_up, job), partial(self._wait_for_turn, job), early)
            self._ordering.ask(job.key, waiting)
        else:
            self._line_up(job)

    def _wait_for_turn(self, job: Job, until_us: int, why: str) -> None:
        self._under_way.pop(job.key, None)
        try:
            self._tell(job.key[0], Deferred(job.key[1], job.op, job.attempt, until_us, why))
        finally:
            self._next(job)

    def _line_up(self, job: Job) -> None:
        due = self._due.setdefault(job.lane, deque())
        due.append(job)
        self._come(job.lane, due)

    def _come(self, lane: Lane, due: deque[Job]) -> None:
        """Somebody comes for what is due, if there is room and nobody does yet."""
        workers = self._workers.setdefault(lane, set())
        if lane not in self._coming and len(workers) < self._alone.get(lane[1], self._width):
            self._coming.add(lane)
            workers.add(self._spawn(self._work(lane, due, workers), f"call:{lane[1]}"))

    async def _work(self, lane: Lane, due: deque[Job], workers: set[Task]) -> None:
        try:
            while True:
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
                jobs, admission = await self._admitted(lane[1], due)
                self._coming.discard(lane)
                if due:
                    self._come(lane, due)  # It need not wait for these.
                if jobs:
                    await self._call(lane[1], jobs, jobs[0].timeout_us, admission)
                if not due or lane in self._coming:
                    break
                self._coming.add(lane)
        finally:
            workers.discard(asyncio.current_task())
            if not workers and self._workers.get(lane) is workers:
                del self._workers[lane]  # Targets come and go.
                if not due:
                    self._due.pop(lane, None)

    async def _admitted(self, target: str, due: deque[Job]) -> tuple[list[Job], Admission | None]:
        """Take what may be called now; what may not is put off, but for what may be soon."""
        most = 1 if target in self._alone else _MOST
        wanted = 0
        while due:
            wanted = 0
            for job in due:
                if wanted == most or job.timeout_us != due[0].timeout_us:
                    break
                wanted += 1
            if self._gate.free(target):
                break
            try:
                admission = await self._gate.admit(target, due[0].key, wanted, due[0].timeout_us)
            except Exception:
                log.exception("gate.crashed", target=target)
                break
            jobs = [due.popleft() for _ in range(admission.count)]
            if jobs:
                self._gate.began(target, [job.key for job in jobs])
            if admission.held:
                late = [due.pop() for _ in range(len(due) - admission.stay)]
                for job in reversed(late):
                    self._later_told(job, admission.held)
            if jobs:
                return jobs, admission
            if due:
                await self._gate.room_again(target, admission.again_us)
        jobs = [due.popleft() for _ in range(min(wanted, len(due)))]
        if jobs:
            self._gate.began(target, [job.key for job in jobs])
        return jobs, None

    def _put_off(self, job: Job, held: str) -> None:
        target = job.lane[1]
        self._under_way.pop(job.key, None)
        until_us = self._gate.put_off_until(target, held, job.key)
        why = self._gate.why(target, held)
        try:
            self._tell(job.key[0], Deferred(job.key[1], job.op, job.attempt, until_us, why))
        finally:
            # What was told makes it due again.
            self._next(job)

    def _not_sent(self, job: Job, what: NotSent) -> None:
        self._under_way.pop(job.key, None)
        try:
            self._tell(job.key[0], what)
        finally:
            self._next(job)

    async def _call(
        self, target: str, jobs: list[Job], timeout_us: int, admission: Admission | None = None
    ) -> None:
        open_ = {job.key: job for job in jobs}
        why = "NO_ANSWER: the call ended without an answer"
        begun = self._clock.monotonic()
        try:
            requests = [r for job in jobs if (r := self._request(job)) is not None]
            wanted = {(r.tx.tx_id, r.branch.id) for r in requests}
            for r in requests:
                key = r.tx.tx_id, r.branch.id
                if open_[key].sent != r.branch.sent:
                    # It was edited while it waited for its turn.
                    open_[key] = self._under_way[key] = replace(open_[key], sent=r.branch.sent)
            for key in [key for key in open_ if key not in wanted]:
                self._gate.dropped(target, key)
                self._gate.ended(target, admission)
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
                    if job is None:
                        continue
                    self._called(target, answer.kind.value, self._clock.monotonic() - begun)
                    self._gate.ended(target, admission)
                    if answer.kind is AnswerKind.FAILED:
                        self._fail(job, answer)
                    else:
                        self._gate.answered(target)
                        self._answered(job, answer)
        except TimeoutError:
            why = f"TIMED_OUT: no answer within {timeout_us / 1_000_000:g} s"
        except Exception as error:
            # Whatever one call brings about: its branches are tried again, and seen.
            log.exception("call.crashed", target=target)
            why = f"OTHER: {type(error).__name__}: {error}"
        except BaseException:
            # This worker ends: whoever asks again must not be told "on its way".
            self._gate.ended(target, admission, len(open_))
            for job in open_.values():
                self._under_way.pop(job.key, None)
            raise
        self._gate.ended(target, admission, len(open_))
        for job in open_.values():
            self._called(target, AnswerKind.FAILED.value, self._clock.monotonic() - begun)
            self._fail(job, Answer(AnswerKind.FAILED, reason=why))

    def _fail(self, job: Job, answer: Answer) -> None:
        """It has failed, and is under way until that is told."""
        self._gate.failed(job.lane[1], job.key, answer.reason)
        self._later_told(job, answer)

    def _later_told(self, job: Job, what: Answer | str | NotSent) -> None:
        self._failed.append((job, what))
        if self._failing is None:
            self._failing = self._spawn(self._tell_failed(), "call:failed")

    async def _tell_failed(self) -> None:
        try:
            while self._failed:
                for _ in range(max(_AT_ONCE, len(self._failed) // 100)):
                    if not self._failed:
                        break
                    job, what = self._failed.popleft()
                    try:
                        if isinstance(what, str):
                            self._put_off(job, what)
                        elif isinstance(what, NotSent):
                            self._not_sent(job, what)
                        else:
                            self._answered(job, what)
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
        if job.op is Op.NOTIFY:
            self._notified(job.lane[1], answer)
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
            what = Answered(job.key[1], job.op, job.attempt, answer, draw, self._defaults, job.sent)
            self._tell(job.key[0], what)
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
        if after is not None and (after[1].op is not job.op or not seen_to):
            self._at(*after)


__all__ = ["Calls"]
