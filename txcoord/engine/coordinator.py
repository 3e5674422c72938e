"""The coordinator: takes commands, asks the core, writes its verdict to the log, carries the effects out.

It holds no state that the log does not have, but for what is on its way here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from ..core import plans
from ..core.calling import op_of
from ..core.errors import Refusal, Refused
from ..core.events import (
    Answered,
    Begin,
    Commit,
    DeadlinePassed,
    Effect,
    Enlist,
    Event,
    HolderReported,
    OnePhaseDone,
    Operate,
    OrphanFound,
    Probe,
    Rollback,
    StepsSettled,
    Submit,
    Verdict,
)
from ..core.evolve import replace
from ..core.known import being_undone
from ..core.machine import decide, expired, resume
from ..core.model import (
    BranchState,
    Change,
    ChangeKind,
    Decision,
    Tx,
    TxState,
    WriteResult,
    Written,
)
from ..core.plans import is_step
from ..observe import logs
from ..ports import (
    LogUnavailable,
)
from .carrier import Carrier, EngineSettings
from .live import Live, WaitLevel

log = logs.get("txcoord.coordinator")

_ROWS_KEPT = 50_000
_PATIENCE = 8
_NO_TIME_S = 1e-4


class Coordinator(Carrier):
    """Commands of clients and operators, and news from phase two."""

    # ---- commands ----

    async def begin(
        self, event: Begin, *, may_take_over: frozenset[str] = frozenset(), retry_of: str = ""
    ) -> Tx:
        """Announce a transaction, forced.

        ``retry_of`` names the aborted attempt whose gid it takes over, when that one's reason is in
        ``may_take_over`` (empty set: any reason) and its participants have undone their parts.
        """
        await self._failpoints.reach("begin.before_write")
        tx = await self._named(event, may_take_over, retry_of)
        await self._failpoints.reach("begin.after_write")
        return tx

    async def _named(self, event: Begin | Submit, may_take_over: frozenset[str], retry_of: str) -> Tx:
        while True:
            try:
                return await self._settle(event, self._rows.get(event.tx.tx_id), gid=event.tx.gid)
            except Refused as refused:
                if not retry_of or refused.refusal.reason != "ALREADY_ABORTED":
                    raise
                if not await self._release_gid(event.tx, retry_of, may_take_over):
                    raise
                retry_of = ""

    async def enlist(self, event: Enlist, *, begun: bool) -> Tx:
        """Add branches to an undecided transaction, forced."""
        await self._failpoints.reach("enlist.before_write")
        tx = await self._settle(event, await self._row(event.tx.tx_id, begun), gid=event.tx.gid)
        await self._failpoints.reach("enlist.after_write")
        if event.run and tx.decision is None:
            # Enlisted before, here or on another node, which is gone or has nobody who asks it any more.
            live = self.live.get(tx.tx_id)
            self._run(live.tx if live is not None else tx)
        return tx

    def _run(self, tx: Tx) -> None:
        """Carry out the steps of a transaction that its client decides, as long as that one asks for them."""
        self._rows.pop(tx.tx_id, None)
        self.live.put(tx)
        self._carry_out(tx, resume(tx))

    async def steps(self, tx: Tx, branch_ids: Collection[str], timeout_s: float) -> Tx:
        """Wait until these steps are done, or the whole is decided, at most so long; how it stands then."""
        until = self.clock.monotonic() + timeout_s
        while tx.decision is None and not all(
            b.state is BranchState.READY for b in tx.branches if b.id in branch_ids
        ):
            live = self.live.get(tx.tx_id)
            left = until - self.clock.monotonic()
            # A rest so short that adding it to the clock changes nothing would be waited for again and again.
            if live is None or left < _NO_TIME_S:
                break
            if live.tx is tx:
                news = self.live.news(live)
                try:
                    await asyncio.wait({news}, timeout=left)
                finally:
                    live.watchers.discard(news)
            tx = live.tx
        return await self.get(tx.tx_id) or tx

    async def submit(
        self, event: Submit, *, may_take_over: frozenset[str] = frozenset(), retry_of: str = ""
    ) -> Tx:
        """Take a whole plan over, forced; its steps are run from now on. For the rest see :meth:`begin`."""
        await self._failpoints.reach("submit.before_write")
        tx = await self._named(event, may_take_over, retry_of)
        await self._failpoints.reach("submit.after_write")
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

    async def _steps_settled(self, tx_id: str) -> None:
        """The steps of a plan have decided: write it, however long that takes."""
        # It may be in the log though the log did not say so: nothing may begin before that is known.
        with self._holding_news(tx_id):
            while (live := self.live.get(tx_id)) is not None and live.tx.decision is None:
                try:
                    await self._failpoints.reach("decide.before_write")
                    tx = await self._settle(StepsSettled(), live.tx)
                    await self._failpoints.reach("decide.after_write")
                except LogUnavailable as error:
                    # The log itself says that it is away.
                    log.debug("log.unavailable", tx_id=tx_id, reason=str(error))
                    await self.clock.sleep(0.5)
                    continue
                except Refused as refused:
                    log.warning("plan.not_decided", tx_id=tx_id, reason=refused.refusal.reason)
                    await self.clock.sleep(0.5)
                    continue
                except ValueError as error:
                    # Its row is gone, or cannot be written. It is let go of: whoever takes it over says so again.
                    self.alarm("plan_not_decided", tx_id, detail=str(error))
                    self.live.drop(tx_id)
                    return
                if tx.decision is None:
                    return

    async def fence(self, event: OrphanFound) -> Tx:
        """Fence an orphan: its ABORT row first."""
        await self._failpoints.reach("orphan.before_fence")
        tx = await self._settle(event, None)
        await self._failpoints.reach("orphan.after_fence")
        return tx

    async def get_by_gid(self, namespace: str, gid: str) -> Tx | None:
        """The transaction that a gid names now."""
        await self.log.settle()
        tx = await self.log.read_gid(namespace, gid)
        live = self.live.get(tx.tx_id) if tx is not None else None
        return live.tx if live is not None and live.logged else tx

    async def wait(self, tx: Tx, level: WaitLevel, timeout_s: float) -> Tx:
        """Wait until it has reached ``level``, at most ``timeout_s`` seconds; answers how it stands then."""
        return await self.waiting.wait(tx, level, timeout_s)

    async def answered_late(self, tx_id: str, event: Answered) -> Tx:
        """A participant reports by itself what became of a call that it had answered *pending*. A crash may forget it:
        then the participant is asked again."""
        live = self.live.get(tx_id)
        if live is None:
            tx = await self.get(tx_id)
            if tx is None:
                raise Refused(Refusal("NOT_FOUND", "NOT_FOUND", f"there is no transaction {tx_id}"))
            branch = tx.branch(event.branch_id)
            if tx.rests or branch is None or op_of(branch) is not event.op:
                return tx  # It is seen to already.
            live = await self._claimed_early(tx)
            if live is None:
                text = "another coordinator carries it out: report to that one, or wait to be asked again"
                raise Refused(Refusal("UNAVAILABLE", "IN_PROGRESS", text, False, {"owner": tx.owner}))
        self.tell(tx_id, event)
        # What is told is lost with this process until it is written.
        await self.log.settle()
        return live.tx

    async def _claimed_early(self, tx: Tx) -> Live | None:
        """A transaction that waits for its next attempt, and that no node carries out until then: ours from now on."""
        if tx.decision is not None and not tx.owner and not tx.rests:
            mine = self.settings.node, self.settings.lease_us
            for row in await self.log.claim_due(*mine, [(tx.tx_id, tx.epoch)]):
                self.adopt(row)
        return self.live.get(tx.tx_id)

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
            live = await self._claimed_early(tx)
        if live is None:
            # Another node carries it out, and looks by itself; or it has ended.
            self._raise_alarms(tx, verdict.effects)
            return tx
        self.tell(tx.tx_id, event)
        return live.tx

    # ---- the loop around the core ----

    async def _settle(self, event: Event, tx: Tx | None, gid: str = "") -> Tx:
        """Ask the core, write its change, and again until it is written or refused."""
        running = self.live.get(tx.tx_id) if tx is not None else None
        if running is None or running.tx.decision is not None:
            return await self._settle_now(event, tx, gid)
        # What is decided on a plan must be all of it: no step may begin, or end, while that is being written.
        tx_id = running.tx.tx_id
        with self._holding_news(tx_id):
            try:
                return await self._settle_now(event, tx, gid)
            except (LogUnavailable, asyncio.CancelledError):
                live = self.live.get(tx_id)
                asked_again = isinstance(event, StepsSettled)
                if live is not None and live.tx.state is TxState.RUNNING:
                    if asked_again:
                        # Other nodes may have read it, and told it, before it was lost.
                        self.live.put(replace(live.tx, in_doubt=plans.may_have_committed(live.tx)))
                    else:
                        # It may be decided, by what was known now. No step may begin any more: when its lease is over,
                        # the plan is taken over as after a crash.
                        self.live.drop(tx_id)
                raise

    async def _settle_now(self, event: Event, tx: Tx | None, gid: str) -> Tx:
        live = self.live.get(tx.tx_id) if tx is not None else None
        if live is not None and live.logged:
            tx = live.tx
        elif tx is not None and tx.state is TxState.RUNNING:
            tx = plans.as_read(tx)  # It was live here a moment ago: it may have been committed since.
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
            change = self.announced(tx, change)
            doubted = self._doubted(change)
            result = await self._write(new, change)
            self.clock.observe(result.now_us)
            if doubted is not None and result.written is Written.TOO_LATE:
                self._doubted_no_more(*doubted)
            if result.written is Written.OK:
                if new.ended and (tx is None or not tx.ended):
                    self.metrics.ended(new)
                self._written(new, change, verdict.effects)
                return new
            now_us = max(now_us, result.now_us)
            if result.written is Written.CONFLICT:
                tx = self._with_own(await self._reread(new.tx_id, new.namespace, gid))
                if change.job is not None and tx is not None and tx.epoch == change.expected_epoch:
                    text = "the job that orders it has been cancelled, or another node has it"
                    raise Refused(Refusal("ABORTED", "IN_PROGRESS", text, False))
                if isinstance(event, Rollback | DeadlinePassed):
                    # The row may name a resource that was not asked.
                    event = replace(event, probed=False)
        raise Refused(
            Refusal("ABORTED", "IN_PROGRESS", "many writers at once on this transaction: try again", False)
        )

    def _doubted(self, change: Change) -> tuple[Tx, Tx] | None:
        """While a COMMIT that may be lost is being written it may be told, and lost, before the next change is there:
        whatever is decided beside it is decided in doubt. The plan as it was, and as it is now."""
        live = self.live.get(change.tx.tx_id)
        lossy = change.tx.decision is Decision.COMMIT and not change.forced
        if not lossy or live is None or live.tx.state is not TxState.RUNNING or live.tx.in_doubt:
            return None
        was = live.tx
        self.live.put(replace(was, in_doubt=plans.no_of(was) is None))
        return was, live.tx

    def _doubted_no_more(self, was: Tx, doubted: Tx) -> None:
        """The log says that it was not written."""
        live = self.live.get(was.tx_id)
        if live is not None and live.tx is doubted:
            self.live.put(was)

    async def _write(self, new: Tx, change: Change) -> WriteResult:
        try:
            return await self.log.write(change)
        except (LogUnavailable, asyncio.CancelledError):
            # It may have been written all the same. Nobody else would carry it out before its lease ends.
            if new.decision is not None and not new.rests:
                self._spawn(self._pick_up(new), f"pick_up:{new.tx_id}")
            raise

    def _written(self, new: Tx, change: Change, effects: tuple[Effect, ...]) -> None:
        self._raise_alarms(new, effects)
        if new.decision is None:
            if new.state is TxState.RUNNING:
                self._adopt(new, effects)
            elif any(map(is_step, new.branches)) and (effects or self.live.get(new.tx_id) is not None):
                self._run(new)
            else:
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
            if tx.ended and self.live.get(tx.tx_id) is None:
                self.metrics.ended(tx)
            self._adopt(tx, verdict.effects, logged=False)
            return tx
        live = self.live.get(tx.tx_id)
        if live is not None and live.tx.decision is None and tx.decision is not None:
            # Another node has decided what was carried out here: it has it from then on.
            self.live.drop(tx.tx_id)
            return tx
        return live.tx if live is not None and live.logged else tx

    def _stamp(self, verdict: Verdict) -> tuple[Tx, Change]:
        """A row in phase two carries who carries it out, and until when that is sure."""
        assert verdict.change is not None
        new, change = verdict.tx, verdict.change
        # A mere note takes no row over.
        carried_out = new.decision is not None or new.state is TxState.RUNNING
        if carried_out and not new.rests and change.kind is not ChangeKind.PROGRESS:
            new = replace(self.leased(new), owner=self.settings.node)
            change = replace(change, tx=new)
        return new, change

    def _with_own(self, row: Tx | None) -> Tx | None:
        """A row as it was read, and what is known here of the steps that are run here."""
        live = self.live.get(row.tx_id) if row is not None else None
        if row is None or live is None or not live.logged or row.decision is not None:
            return row
        if (live.tx.version, live.tx.epoch) == (row.version, row.epoch):
            return live.tx
        return plans.joined(row, live.tx) if row.state is TxState.ACTIVE else row

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
        await self.log.settle()  # That it is undone may be told lazily.
        old = await self.log.read_gid(new.namespace, new.gid)
        if old is None:
            return True
        if old.tx_id != retry_of or old.decision is not Decision.ABORT:
            return False
        if may_take_over and old.reason not in may_take_over:
            return False
        undoing = being_undone(old)
        if undoing is not None:
            raise Refused(undoing)
        live = self.live.get(old.tx_id)
        if live is not None:
            live.tx = replace(live.tx, gid="")
        change = Change(ChangeKind.RELEASE_GID, replace(old, gid=""), expected_version=old.version)
        await self._failpoints.reach("release_gid.before_write")
        written = (await self.log.write(change)).written
        await self._failpoints.reach("release_gid.after_write")
        return written is Written.OK


__all__ = ["Coordinator", "EngineSettings", "expired"]
