"""The coordinator: takes commands, asks the core, writes its verdict to the log, carries the effects out.

It holds no state that the log does not have, but for what is on its way here.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ..core.backoff import Backoff
from ..core.errors import Refusal, Refused
from ..core.events import (
    Alarm,
    Begin,
    BranchFailed,
    BranchFinished,
    Commit,
    DeadlinePassed,
    Effect,
    Enlist,
    Event,
    Finish,
    HeuristicSeen,
    HolderReported,
    OnePhaseDone,
    Operate,
    OrphanFound,
    Probe,
    Rollback,
    Verdict,
)
from ..core.machine import decide, expired, resume
from ..core.model import (
    BranchState,
    Change,
    ChangeKind,
    Decision,
    Tx,
    Windows,
    WriteResult,
    Written,
)
from ..observe import logs
from ..ports import (
    Clock,
    Failpoints,
    Finisher,
    Log,
    LogIdentity,
    LogUnavailable,
    Randomness,
    Spawn,
)
from .live import LiveSet, WaitLevel
from .one_phase import Prober
from .phase_two import PhaseTwo
from .strays import Strays
from .waiting import Waiting

log = logs.get("txcoord.coordinator")

_ROWS_KEPT = 50_000
_PATIENCE = 8


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the engine needs to know. Durations in microseconds."""

    node: str
    windows: Windows = field(default_factory=Windows)
    lease_us: int = 10_000_000
    backoff: Backoff = field(default_factory=Backoff)
    finish_width: int = 8
    hold_us: int = 2_000_000
    """How long the session that prepared a branch has, from the decision on, before it is ended."""
    watch_interval_s: float = 0.15
    """Between two looks into the log for those who wait for what other nodes do."""
    shared: bool = True
    """May other nodes use this log?"""
    probe_interval_s: float = 0.2


class Coordinator:
    """Commands of clients and operators, and news from phase two."""

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
    ) -> None:
        self.log = log_
        self.finishers = dict(finishers)
        self.settings = settings
        self.clock = clock
        self.random = randomness
        self.live = LiveSet()
        self.alarms: dict[str, int] = {}
        self.identity: LogIdentity | None = None
        self._spawn = spawn
        self._failpoints = failpoints
        self._rows: OrderedDict[str, Tx] = OrderedDict()
        self._prober = Prober(
            self.finishers,
            windows=settings.windows,
            clock=clock,
            failpoints=failpoints,
            interval_s=settings.probe_interval_s,
        )
        self._strays = Strays(
            self.finishers, spawn=spawn, alarm=self.alarm, clock=clock, hold_us=settings.hold_us
        )
        self.waiting = Waiting(
            self, spawn=spawn, interval_s=settings.watch_interval_s, shared=settings.shared
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
        )

    # ---- commands ----

    async def begin(
        self, event: Begin, *, may_take_over: frozenset[str] = frozenset(), retry_of: str = ""
    ) -> Tx:
        """Announce a transaction, forced.

        ``retry_of`` names the aborted attempt whose gid it takes over, when that one's reason is in
        ``may_take_over`` (empty set: any reason).
        """
        await self._failpoints.reach("begin.before_write")
        while True:
            try:
                tx = await self._settle(event, self._rows.get(event.tx.tx_id), gid=event.tx.gid)
            except Refused as refused:
                if not retry_of or refused.refusal.reason != "ALREADY_ABORTED":
                    raise
                if not await self._release_gid(event.tx, retry_of, may_take_over):
                    raise
                retry_of = ""
                continue
            await self._failpoints.reach("begin.after_write")
            return tx

    async def enlist(self, event: Enlist, *, begun: bool) -> Tx:
        """Add branches to an undecided transaction, forced."""
        await self._failpoints.reach("enlist.before_write")
        tx = await self._settle(event, await self._row(event.tx.tx_id, begun), gid=event.tx.gid)
        await self._failpoints.reach("enlist.after_write")
        return tx

    async def commit(self, event: Commit) -> Tx:
        """Decide by the caller's wish and its branches' votes. Answers once the decision is durable."""
        await self._failpoints.reach("commit.before_write")
        tx = await self._settle(event, await self._row(event.tx.tx_id, event.begun), gid=event.tx.gid)
        await self._failpoints.reach("commit.after_write")
        self._strays.undo(tx, event.tx.branches)
        return tx

    async def rollback(self, event: Rollback, *, begun: bool) -> Tx:
        """Decide abort, unless a commit was first."""
        await self._failpoints.reach("rollback.before_write")
        row = await self._row(event.tx.tx_id, begun or not event.sealed)
        tx = await self._settle(event, row, gid=event.tx.gid)
        await self._failpoints.reach("rollback.after_write")
        self._strays.undo(tx, event.tx.branches)
        return tx

    async def one_phase_done(self, event: OnePhaseDone) -> Tx:
        """The initiator reports that its only branch was committed in one phase."""
        await self._failpoints.reach("report.before_write")
        tx = await self._settle(event, await self._row(event.tx.tx_id, True), gid=event.tx.gid)
        await self._failpoints.reach("report.after_write")
        return tx

    async def operate(self, tx_id: str, event: Operate) -> Tx:
        """An operator's order."""
        tx = await self.get(tx_id)
        if tx is None:
            raise Refused(Refusal("NOT_FOUND", "NOT_FOUND", f"there is no transaction {tx_id}"))
        await self._failpoints.reach("operate.before_write")
        tx = await self._settle(event, tx)
        await self._failpoints.reach("operate.after_write")
        return tx

    async def expire(self, tx: Tx) -> Tx:
        """The deadline of an undecided transaction has passed."""
        await self._failpoints.reach("deadline.before_write")
        tx = await self._settle(DeadlinePassed(), tx)
        await self._failpoints.reach("deadline.after_write")
        return tx

    async def fence(self, event: OrphanFound) -> Tx:
        """Fence an orphan: its ABORT row first."""
        await self._failpoints.reach("orphan.before_fence")
        tx = await self._settle(event, None)
        await self._failpoints.reach("orphan.after_fence")
        return tx

    async def get(self, tx_id: str) -> Tx | None:
        """A transaction as it stands: what this node carries out is ahead of the log by its lazy writes."""
        live = self.live.get(tx_id)
        if live is not None and live.logged:
            return live.tx
        await self.log.settle()
        return (await self.log.read([tx_id])).get(tx_id)

    async def get_by_gid(self, namespace: str, gid: str) -> Tx | None:
        """The transaction that a gid names now."""
        await self.log.settle()
        tx = await self.log.read_gid(namespace, gid)
        live = self.live.get(tx.tx_id) if tx is not None else None
        return live.tx if live is not None and live.logged else tx

    async def wait(self, tx: Tx, level: WaitLevel, timeout_s: float) -> Tx:
        """Wait until it has reached ``level``, at most ``timeout_s`` seconds; answers how it stands then."""
        return await self.waiting.wait(tx, level, timeout_s)

    async def holder_reported(self, asked: Tx, event: HolderReported) -> Tx | None:
        """The session that prepared a branch has finished it, or has let go of it. None: nothing is known of its
        transaction (presumed abort)."""
        live = self.live.get(asked.tx_id)
        tx = (
            live.tx if live is not None else await self.get(asked.tx_id) or self.waiting.unlogged(asked.tx_id)
        )
        if tx is not None and tx.namespace not in ("", asked.namespace):
            tx = None
        if tx is None:
            if event.committed:
                self.alarm("committed_unknown", asked.tx_id, event.branch_id, event.resource)
                raise Refused(Refusal("NOT_FOUND", "NOT_FOUND", f"there is no transaction {asked.tx_id}"))
            return None
        verdict = decide(tx, event, self.clock.now_us(), self.settings.windows)
        if verdict.refusal is not None:
            kind = "reported_before_decision" if tx.decision is None else "bad_report"
            self.alarm(kind, tx.tx_id, event.branch_id, verdict.refusal.message)
            raise Refused(verdict.refusal)
        if live is None:
            # Another node carries it out, and looks by itself; or it has ended.
            self._raise_alarms(tx, verdict.effects)
            return tx
        self.tell(tx.tx_id, event)
        return live.tx

    # ---- the loop around the core ----

    async def _settle(self, event: Event, tx: Tx | None, gid: str = "") -> Tx:
        """Ask the core, write its change, and again until it is written or refused."""
        live = self.live.get(tx.tx_id) if tx is not None else None
        if live is not None and live.logged:
            tx = live.tx
        now_us = self.clock.now_us()
        looked = False
        for _ in range(_PATIENCE):
            verdict = decide(tx, event, now_us, self.settings.windows)
            probe = next((e for e in verdict.effects if isinstance(e, Probe)), None)
            if probe is not None:
                assert isinstance(event, Rollback | DeadlinePassed)
                never, news = await self._prober.ask(verdict.tx, probe, event)
                event = news or replace(event, probed=never)
                continue
            unread = tx is None or self._rows.get(tx.tx_id) is tx
            if verdict.change is None and not verdict.unlogged and unread and not looked:
                # The log was not asked, or another node may have moved it on. What is answered must be so now.
                looked = True
                tx = await self._reread(verdict.tx.tx_id, verdict.tx.namespace, gid)
                continue
            if verdict.refusal is not None:
                raise Refused(verdict.refusal)
            if verdict.change is None:
                return self._unwritten(verdict)
            new, change = self._stamp(verdict)
            result = await self._write(new, change)
            self.clock.observe(result.now_us)
            if result.written is Written.OK:
                self._written(new, change, verdict.effects)
                return new
            now_us = max(now_us, result.now_us)
            if result.written is Written.CONFLICT:
                tx = await self._reread(new.tx_id, new.namespace, gid)
                if isinstance(event, Rollback | DeadlinePassed):
                    # The row may name a resource that was not asked.
                    event = replace(event, probed=False)
        raise Refused(
            Refusal("ABORTED", "IN_PROGRESS", "many writers at once on this transaction: try again", False)
        )

    async def _write(self, new: Tx, change: Change) -> WriteResult:
        try:
            return await self.log.write(change)
        except (LogUnavailable, asyncio.CancelledError):
            # It may have been written all the same. Nobody else would carry it out before its lease ends.
            if new.decision is not None and not new.ended:
                self._spawn(self._pick_up(new), f"pick_up:{new.tx_id}")
            raise

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

    def _written(self, new: Tx, change: Change, effects: tuple[Effect, ...]) -> None:
        self._raise_alarms(new, effects)
        if new.decision is None:
            self._remember(new)
            return
        self._rows.pop(new.tx_id, None)
        if change.kind is not ChangeKind.PROGRESS:
            self._adopt(new, effects)
        elif self.live.get(new.tx_id) is not None:
            self.live.put(new)  # A note on a row that is carried out here already.

    def _unwritten(self, verdict: Verdict) -> Tx:
        tx = verdict.tx
        self._raise_alarms(tx, verdict.effects)
        if verdict.unlogged:
            self._adopt(tx, verdict.effects, logged=False)
            return tx
        live = self.live.get(tx.tx_id)
        return live.tx if live is not None and live.logged else tx

    def _stamp(self, verdict: Verdict) -> tuple[Tx, Change]:
        """A row in phase two carries who carries it out, and until when that is sure."""
        assert verdict.change is not None
        new, change = verdict.tx, verdict.change
        # A mere note takes no row over.
        if new.decision is not None and not new.ended and change.kind is not ChangeKind.PROGRESS:
            new = replace(self.leased(new), owner=self.settings.node)
            change = replace(change, tx=new)
        return new, change

    def leased(self, tx: Tx) -> Tx:
        """As it is to be written: with a lease from now on. An old one would hand the row to another node."""
        return replace(tx, lease_until_us=self.clock.now_us() + self.settings.lease_us)

    async def _reread(self, tx_id: str, namespace: str, gid: str) -> Tx | None:
        self._rows.pop(tx_id, None)
        found = (await self.log.read([tx_id])).get(tx_id)
        if found is None and gid:
            found = await self.log.read_gid(namespace, gid)
        return found

    async def _row(self, tx_id: str, expected: bool) -> Tx | None:
        """What is known of a row, reading the log only when there may be one."""
        live = self.live.get(tx_id)
        if live is not None and live.logged:
            return live.tx
        known = self._rows.get(tx_id)
        if known is not None or not expected:
            return known
        return (await self.log.read([tx_id])).get(tx_id)

    def _remember(self, tx: Tx) -> None:
        self._rows[tx.tx_id] = tx
        if len(self._rows) > _ROWS_KEPT:
            self._rows.popitem(last=False)

    async def _release_gid(self, new: Tx, retry_of: str, may_take_over: frozenset[str]) -> bool:
        old = await self.log.read_gid(new.namespace, new.gid)
        if old is None:
            return True
        if old.tx_id != retry_of or old.decision is not Decision.ABORT:
            return False
        if may_take_over and old.reason not in may_take_over:
            return False
        live = self.live.get(old.tx_id)
        if live is not None:
            live.tx = replace(live.tx, gid="")
        change = Change(ChangeKind.RELEASE_GID, replace(old, gid=""), expected_version=old.version)
        await self._failpoints.reach("release_gid.before_write")
        written = (await self.log.write(change)).written
        await self._failpoints.reach("release_gid.after_write")
        return written is Written.OK

    # ---- phase two ----

    def adopt(self, tx: Tx) -> None:
        """Carry on with a transaction that was read from the log and is ours now."""
        self._adopt(tx, resume(tx))

    def _adopt(self, tx: Tx, effects: tuple[Effect, ...], *, logged: bool = True) -> None:
        self.waiting.decided(tx, logged=logged)
        live = self.live.get(tx.tx_id)
        if live is not None and live.logged and (not logged or live.tx.epoch >= tx.epoch):
            return
        if tx.ended or tx.shown_parked:
            # Nothing runs: the log alone knows it from now on.
            if live is not None:
                self.live.put(tx)
                self.live.drop(tx.tx_id)
            return
        self.live.put(tx, logged=logged)
        self._carry_out(tx, effects)

    def _carry_out(self, tx: Tx, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, Finish):
                self.phase_two.carry_out(tx.tx_id, effect)

    def _wanted(self, tx_id: str, branch_id: str) -> bool:
        live = self.live.get(tx_id)
        branch = live.tx.branch(branch_id) if live is not None else None
        return branch is not None and branch.state in (BranchState.FINISHING, BranchState.UNDOING)

    def tell(self, tx_id: str, event: Event) -> None:
        """News of a branch from phase two. Nothing waits between reading and replacing the row: none is lost."""
        live = self.live.get(tx_id)
        if live is None:
            return
        assert isinstance(event, BranchFinished | BranchFailed | HeuristicSeen | HolderReported)
        verdict = decide(live.tx, event, self.clock.now_us(), self.settings.windows)
        self._raise_alarms(verdict.tx, verdict.effects)
        tx, change = verdict.tx, verdict.change
        if change is not None and not live.logged and change.forced:
            # It was to stay unlogged, but this is for a person to see.
            tx = replace(self.leased(tx), owner=self.settings.node, version=1, created_us=tx.decided_us)
            limit = self.settings.windows.abort_until(tx.deadline_us)
            change = Change(ChangeKind.INSERT, tx, tx.branches, not_after_us=limit, history=change.history)
            live.logged = True
        elif change is not None and not tx.ended:
            tx = self.leased(tx)
            change = replace(change, tx=tx)
        self.live.put(tx)
        if change is not None and live.logged:
            if change.forced:
                self._spawn(self._write_forced(change), f"write:{tx_id}")
            else:
                self.log.write_lazily(change, self._after_write(change))
        if tx.ended:
            self.live.drop(tx_id)
        self._carry_out(tx, verdict.effects)

    async def _write_forced(self, change: Change) -> None:
        while True:
            try:
                result = await self.log.write(change)
            except LogUnavailable as error:
                log.error("log.unavailable", tx_id=change.tx.tx_id, reason=str(error))
                await self.clock.sleep(0.5)
                continue
            self._after_write(change)(result)
            return

    def _after_write(self, change: Change) -> Callable[[WriteResult], None]:
        def written(result: WriteResult) -> None:
            self.clock.observe(result.now_us)
            live = self.live.get(change.tx.tx_id)
            if result.written is Written.OK:
                if live is not None and live.tx is change.tx and live.tx.shown_parked:
                    # At rest until an operator comes, to this node or to another: the log alone knows it.
                    self.live.drop(change.tx.tx_id)
            elif live is None or live.tx.epoch <= max(change.expected_epoch, change.tx.epoch):
                # Another node has taken the row over: what we know is old. Whoever waits reads again.
                # (Otherwise our own newer claim, or an operator's order here, went past it.)
                log.warning("tx.stale_epoch", tx_id=change.tx.tx_id, epoch=change.expected_epoch)
                self.live.drop(change.tx.tx_id)

        return written

    def _raise_alarms(self, tx: Tx, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, Alarm):
                self.alarm(effect.kind, tx.tx_id, effect.branch_id, effect.detail)

    def alarm(self, kind: str, tx_id: str, branch: str = "", detail: str = "") -> None:
        """Something that a person must see."""
        self.alarms[kind] = self.alarms.get(kind, 0) + 1
        log.error(f"alarm.{kind}", tx_id=tx_id, branch=branch, detail=detail)


__all__ = ["Coordinator", "EngineSettings", "expired"]
