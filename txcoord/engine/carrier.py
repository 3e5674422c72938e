"""What a coordinator carries out: branches of decided transactions, and news of them.

The commands are in :mod:`.coordinator`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..core import announcing, plans
from ..core.action import Retry
from ..core.backoff import Backoff
from ..core.events import (
    Alarm,
    Answered,
    BranchFailed,
    BranchFinished,
    Call,
    Decide,
    Deferred,
    Effect,
    Event,
    Finish,
    HeuristicSeen,
    HolderReported,
    NotSent,
)
from ..core.evolve import replace
from ..core.handing import first_due
from ..core.machine import decide, expired, resume
from ..core.model import BranchState, Change, ChangeKind, Tx, TxState, Windows, WriteResult, Written
from ..core.ordering import ended
from ..observe import logs
from ..observe.metrics import Metrics
from ..ports import (
    Answerer,
    Caller,
    Clock,
    Due,
    Failpoints,
    Finisher,
    Log,
    LogIdentity,
    LogUnavailable,
    Queue,
    Randomness,
    SharedGate,
    Spawn,
    Wakeups,
)
from .calls import Calls
from .disabling import Disabling
from .gate import Gate, GateSettings
from .handing import Writes
from .live import Live, LiveSet
from .one_phase import Prober
from .ordering import Ordering
from .phase_two import PhaseTwo
from .strays import Strays
from .waiting import Waiting

log = logs.get("txcoord.coordinator")


RETRY = Retry(5_000_000, 500_000, 2.0, 60_000_000, give_up_us=86_400_000_000)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the engine needs to know. Durations in microseconds."""

    node: str
    windows: Windows = field(default_factory=Windows)
    lease_us: int = 10_000_000
    backoff: Backoff = field(default_factory=Backoff)
    retry: Retry = RETRY
    """When participants are called again, and when that is given up, where a branch says nothing else."""
    call_width: int = 16
    """How many calls of one participant are on their way at a time, each for many branches."""
    call_alone: Mapping[str, int] = field(default_factory=dict)
    """By target: so many calls at a time, each for one branch."""
    finish_width: int = 8
    hold_us: int = 2_000_000
    """How long the session that prepared a branch has, from the decision on, before it is ended."""
    watch_interval_s: float = 0.15
    """Between two looks into the log for those who wait for what other nodes do."""
    shared: bool = True
    """May other nodes use this log?"""
    probe_interval_s: float = 0.2
    hand_off_us: int = 1_000_000
    """What is due no sooner than this is handed off to the queue."""
    overdue_us: int = 500_000
    """What was handed off is taken over by any node so long after it was due: the queue has lost it."""
    gate: GateSettings = field(default_factory=GateSettings)
    disable_after_us: int = 0
    """A target at which no notification has arrived for so long is disabled; 0: none is."""
    events: bool = False
    """Are decisions, ends, parkings and heuristic outcomes written to the outbox?"""
    dead_letters: bool = False
    """Are parkings?"""
    overdue_share: float = 0.0
    """And so much of the time that it was to wait: some queues may be that late."""
    overdue_most_us: int = 0
    """But no more than that for the time that it was to wait."""


@dataclass(slots=True)
class _Held:
    """News that wait."""

    by: int = 0
    news: list[Event] = field(default_factory=list)


class Carrier:
    """Carries out what is decided."""

    def __init__(
        self,
        log_: Log,
        finishers: Mapping[str, Finisher],
        *,
        settings: EngineSettings,
        clock: Clock,
        randomness: Randomness,
        spawn: Spawn,
        failpoints: Failpoints,
        caller: Caller | None = None,
        answerer: Answerer | None = None,
        queue: Queue | None = None,
        metrics: Metrics | None = None,
        shared_gate: SharedGate | None = None,
        wakeups: Wakeups | None = None,
    ) -> None:
        """Without a queue nothing is handed off: what waits does so here."""
        self.log = log_
        self.metrics = metrics = metrics or Metrics()
        self.finishers = dict(finishers)
        self.settings = settings
        self.clock = clock
        self.random = randomness
        self.live = LiveSet()
        self.writes = Writes()
        self.alarms: dict[str, int] = {}
        self.identity: LogIdentity | None = None
        self._queue = queue
        self._spawn = self.spawn = spawn
        self._failpoints = failpoints
        self._rows: OrderedDict[str, Tx] = OrderedDict()
        self._held_news: dict[str, _Held] = {}
        self._prober = Prober(
            self.finishers,
            windows=settings.windows,
            clock=clock,
            failpoints=failpoints,
            interval_s=settings.probe_interval_s,
            answerer=answerer,
            answer_s=settings.retry.call_timeout_us / 1e6,
        )
        self._strays = Strays(
            self.finishers, spawn=spawn, alarm=self.alarm, clock=clock, hold_us=settings.hold_us
        )
        self.waiting = Waiting(
            self,
            spawn=spawn,
            interval_s=settings.watch_interval_s,
            shared=settings.shared,
            wakeups=wakeups,
        )
        self.phase_two = PhaseTwo(
            finishers,
            clock=clock,
            randomness=randomness,
            spawn=spawn,
            failpoints=failpoints,
            backoff=settings.backoff,
            tell=self.tell,
            wanted=self._wanted,
            width=settings.finish_width,
            hold_us=settings.hold_us,
            finished=metrics.finished,
        )
        self.gate = Gate(
            clock=clock, randomness=randomness, spawn=spawn, settings=settings.gate, shared=shared_gate
        )
        self.disabling = Disabling(clock, settings.disable_after_us)
        self.ordering = Ordering(self, spawn=spawn, failpoints=failpoints)
        self.calls = Calls(
            caller,
            clock=clock,
            randomness=randomness,
            spawn=spawn,
            failpoints=failpoints,
            defaults=settings.retry,
            tell=self.tell,
            look=self._as_it_stands,
            gate=self.gate,
            ordering=self.ordering,
            width=settings.call_width,
            alone=settings.call_alone,
            called=metrics.called,
            notified=self.disabling.heard,
        )

    async def _pick_up(self, written: Tx) -> None:
        """Carry a decision out if it is in the log as this node has tried to write it."""
        # After that the row is taken over like any other.
        while self.clock.now_us() < written.lease_until_us:
            try:
                row = (await self.log.read([written.tx_id])).get(written.tx_id)
            except LogUnavailable:
                row = None
            if row is not None and row.decision is not None:
                ours = (row.owner, row.epoch, row.decided_us, row.decided_by)
                if ours == (written.owner, written.epoch, written.decided_us, written.decided_by):
                    self.adopt(row)
                return
            await self.clock.sleep(self.settings.watch_interval_s)

    async def get(self, tx_id: str) -> Tx | None:
        """A transaction as it stands: what this node carries out is ahead of the log by its lazy writes."""
        live = self.live.get(tx_id)
        if live is not None and live.logged and live.tx.state is not TxState.ACTIVE:
            return live.tx
        await self.log.settle()
        row = (await self.log.read([tx_id])).get(tx_id)
        live = self.live.get(tx_id)
        if live is None or not live.logged or live.tx.state is not TxState.ACTIVE:
            return row if live is None or not live.logged else live.tx
        if row is None or (row.decision is None and row.version == live.tx.version):
            return live.tx
        if row.decision is None:
            return plans.joined(row, live.tx)  # Other nodes have enlisted more.
        # Its client went to another node to decide it: that one has it from then on.
        self.live.drop(tx_id)
        return row

    def leased(self, tx: Tx) -> Tx:
        """As it is to be written: with a lease from now on. An old one would hand the row to another node."""
        return replace(tx, lease_until_us=self.clock.now_us() + self.settings.lease_us)

    def _mine(self, tx: Tx) -> Tx:
        """The same, of what is carried out here: it may have been about to be handed off."""
        return replace(self.leased(tx), owner=self.settings.node)

    def announced(self, old: Tx | None, change: Change) -> Change:
        """The change with what it has to tell the world outside, if anybody wants to hear it."""
        s = self.settings
        if not s.events and not s.dead_letters:
            return change
        if expired(change.tx, s.windows):
            return change  # A fence: what became of its transaction is not known.
        return announcing.announced(
            old, change, self.clock.now_us(), events=s.events, dead_letters=s.dead_letters
        )

    def call_now(self, key: tuple[str, str]) -> None:
        """Call for this branch, by tx id and its own, if it waits here."""
        self.calls.call_now(key)

    # ---- phase two ----

    def adopt(self, tx: Tx) -> None:
        """Carry on with a transaction that was read from the log and is ours now."""
        self._adopt(tx, resume(tx))

    def _adopt(self, tx: Tx, effects: tuple[Effect, ...], *, logged: bool = True) -> None:
        if tx.decision is not None:
            self.waiting.decided(tx, logged=logged)
        for line in ended(tx).values():
            self.ordering.ended(line)
        live = self.live.get(tx.tx_id)
        if live is not None and live.logged and (not logged or live.tx.epoch >= tx.epoch):
            return
        if tx.rests:
            # Nothing runs: the log alone knows it from now on.
            if live is not None:
                self.live.put(tx)
                self.live.drop(tx.tx_id)
            return
        live = self.live.put(tx, logged=logged)
        live.tells_all = logged and tx.decision is not None and any(b.next_attempt_us for b in tx.branches)
        self._carry_out(tx, effects)
        self._look_whether_it_waits(live)

    def _carry_out(self, tx: Tx, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, Finish):
                self.phase_two.carry_out(tx.tx_id, effect)
            elif isinstance(effect, Call):
                self.calls.carry_out(tx, effect)
            elif isinstance(effect, Decide):
                self._spawn(self._steps_settled(tx.tx_id), f"decide:{tx.tx_id}")

    async def _steps_settled(self, tx_id: str) -> None:
        raise NotImplementedError

    def _as_it_stands(self, tx_id: str) -> Tx | None:
        live = self.live.get(tx_id)
        return live.tx if live is not None else None

    def _wanted(self, tx_id: str, branch_id: str) -> bool:
        live = self.live.get(tx_id)
        branch = live.tx.branch(branch_id) if live is not None else None
        return branch is not None and branch.state in (BranchState.FINISHING, BranchState.UNDOING)

    @contextmanager
    def _holding_news(self, tx_id: str) -> Iterator[None]:
        """News of this transaction wait until this is over, and all others that hold them too."""
        held = self._held_news.setdefault(tx_id, _Held())
        held.by += 1
        try:
            yield
        finally:
            held.by -= 1
            if not held.by:
                del self._held_news[tx_id]
                for event in held.news:
                    self.tell(tx_id, event)

    def tell(self, tx_id: str, event: Event) -> None:
        """News of a branch from phase two. Nothing waits between reading and replacing the row: none is lost."""
        live = self.live.get(tx_id)
        if live is None:
            return
        if tx_id in self._held_news:
            self._held_news[tx_id].news.append(event)
            return
        assert isinstance(
            event,
            BranchFinished | BranchFailed | HeuristicSeen | HolderReported | Answered | Deferred | NotSent,
        )
        verdict = decide(live.tx, event, self.clock.now_us(), self.settings.windows)
        self._raise_alarms(verdict.tx, verdict.effects)
        tx, change = verdict.tx, verdict.change
        if live.tells_all and tx is not live.tx:
            if change is not None:
                change = replace(change, touched=tx.branches)
            elif not (isinstance(event, Deferred) and live.tx.owner):
                # What is put off once more need not be said of each branch: handing the whole off says it.
                change = _all_of(tx)
        before = live.tx if live.logged else None
        if tx.ended and not live.tx.ended:
            self.metrics.ended(tx)
        if change is not None and not live.logged and change.forced:
            # It was to stay unlogged, but this is for a person to see.
            tx = replace(self.leased(tx), owner=self.settings.node, version=1, created_us=tx.decided_us)
            limit = self.settings.windows.abort_until(tx.deadline_us)
            change = Change(ChangeKind.INSERT, tx, tx.branches, not_after_us=limit, history=change.history)
            live.logged = True
        elif change is not None and not tx.rests:
            handed = None if change.forced else self._handed_off(live, tx)
            if handed is not None:
                tx, change = handed, replace(change, touched=tx.branches)
            else:
                tx = self._mine(tx)
            change = replace(change, tx=tx)
        if change is not None and live.logged:
            change = self.announced(before, change)
        self.live.put(tx)
        if change is not None and live.logged:
            self._write_progress(change)
        if tx.ended and tx.rests:
            self.live.drop(tx_id)
        self._carry_out(tx, verdict.effects)
        if change is None:
            self._look_whether_it_waits(live)

    # ---- handing off what waits ----

    def _handed_off(self, live: Live, tx: Tx) -> Tx | None:
        """The row by which a transaction that only waits is handed off; None: it does not, or is still needed here."""
        if self._queue is None or not live.logged:
            return None
        now_us = self.clock.now_us()
        first = first_due(tx, now_us + self.settings.hand_off_us)
        if first is None or self.writes.any_forced(tx.tx_id) or self._busy(tx):
            return None
        live.tells_all = True
        late_us = int((first.at_us - now_us) * self.settings.overdue_share)
        spare_us = self.settings.overdue_us + min(late_us, self.settings.overdue_most_us)
        return replace(tx, owner="", lease_until_us=first.at_us + spare_us)

    def _busy(self, tx: Tx) -> bool:
        """Is any attempt for it under way, or told and not heard yet?"""
        held = self._held_news.get(tx.tx_id)
        if held is not None and held.news:
            return True
        keys = [(tx.tx_id, b.id) for b in tx.branches]
        return any(self.calls.busy(key) or self.phase_two.busy(key) for key in keys)

    def _look_whether_it_waits(self, live: Live) -> None:
        """Hand it off if it only waits. What is told hands it off by itself."""
        if self.live.get(live.tx.tx_id) is not live or not live.tx.owner:
            return
        tx = self._handed_off(live, live.tx)
        if tx is not None:
            self.live.put(tx)
            self._write_progress(_all_of(tx))

    def _let_go(self, live: Live) -> None:
        """That it is handed off is written."""
        tx = live.tx
        if self._busy(tx):
            # Its time came before that was written: it is ours again, unless another node has it by now.
            tx = self._mine(tx)
            self.live.put(tx)
            self._write_progress(_all_of(tx))
            return
        for branch in tx.branches:
            self.calls.forget((tx.tx_id, branch.id))
            self.phase_two.forget((tx.tx_id, branch.id))
        self.live.drop(tx.tx_id)
        first = first_due(tx, 0)
        if first is not None:
            due = Due(
                tx.tx_id,
                tx.epoch,
                first.at_us,
                tx.namespace,
                first.branch.resource,
                first.branch.id,
                first.branch.attempts + 1,
            )
            self._spawn(self._put(due), f"put:{tx.tx_id}")

    async def _put(self, due: Due) -> None:
        await self._failpoints.reach("hand_off.before_put")
        if self._queue is not None:
            self._queue.put(due)

    # ---- what is told is written ----

    def _write_progress(self, change: Change) -> None:
        self.writes.begun(change.tx.tx_id, forced=change.forced)
        if change.forced:
            self._spawn(self._write_forced(change), f"write:{change.tx.tx_id}")
        else:
            self.log.write_lazily(change, self._after_write(change))

    async def _write_forced(self, change: Change) -> None:
        while True:
            try:
                result = await self.log.write(change)
            except LogUnavailable as error:
                # The log itself says that it is away.
                log.debug("log.unavailable", tx_id=change.tx.tx_id, reason=str(error))
                await self.clock.sleep(0.5)
                continue
            self._after_write(change)(result)
            return

    def _after_write(self, change: Change) -> Callable[[WriteResult], None]:
        tx_id = change.tx.tx_id

        def written(result: WriteResult) -> None:
            self.clock.observe(result.now_us)
            live = self.live.get(tx_id)
            if result.written is Written.OK:
                if change.tx.ended or change.tx.shown_parked:
                    self.waiting.tell_others(change.tx)
                for line in ended(change.tx).values():
                    self.ordering.ended(line)
                if live is not None and live.tx is change.tx:
                    if live.tx.shown_parked:
                        # At rest until an operator comes, to this node or to another: the log alone knows it.
                        self.live.drop(tx_id)
                    elif not change.tx.owner:
                        self._let_go(live)
            elif live is None or live.tx.epoch <= max(change.expected_epoch, change.tx.epoch):
                # Another node has taken the row over: what we know is old. Whoever waits reads again.
                # (Otherwise our own newer claim, or an operator's order here, went past it.)
                log.warning("tx.stale_epoch", tx_id=tx_id, epoch=change.expected_epoch)
                self.live.drop(tx_id)
            self.writes.ended(tx_id, forced=change.forced)
            if change.forced and (live := self.live.get(tx_id)) is not None:
                self._look_whether_it_waits(live)

        return written

    def _raise_alarms(self, tx: Tx, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, Alarm):
                self.alarm(effect.kind, tx.tx_id, effect.branch_id, effect.detail)

    def alarm(self, kind: str, tx_id: str, branch: str = "", detail: str = "") -> None:
        """Something that a person must see."""
        self.alarms[kind] = self.alarms.get(kind, 0) + 1
        log.error(f"alarm.{kind}", tx_id=tx_id, branch=branch, detail=detail)


def _all_of(tx: Tx) -> Change:
    """A change that says how it stands, branch by branch."""
    return Change(ChangeKind.PROGRESS, tx, tx.branches, tx.epoch, tx.epoch, forced=False)
