"""Recovery: deadlines, take-over of dead nodes' rows, and one scanner a resource.

Every loop survives one bad row, and says so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto

from txcoord_client.protocol import xid as xids

from ..core.errors import Refused
from ..core.events import OrphanFound
from ..core.model import (
    FOREVER_US,
    Branch,
    BranchState,
    Change,
    ChangeKind,
    Decision,
    HistoryEntry,
    Kind,
    Tx,
    TxState,
)
from ..observe import logs
from ..ports import (
    Failpoints,
    Finished,
    Finisher,
    Leases,
    LogUnavailable,
    PreparedBranch,
    Query,
    ResourceTrouble,
    Spawn,
    TargetRules,
    Task,
)
from .coordinator import Coordinator
from .deadlines import Deadlines
from .drain import Drain
from .live import Live
from .troubles import Troubles

log = logs.get("txcoord.recovery")

_SLACK_US = 60_000_000
"""For clocks that differ: the log's, the resources', the SDKs'."""
_ON_THEIR_WAY = (TxState.ACTIVE, TxState.RUNNING, TxState.COMMITTING, TxState.ABORTING)


class Judgement(Enum):
    """What the scanner makes of a prepared branch."""

    LEAVE = auto()
    """Somebody is at it."""
    UNKNOWN = auto()
    """The log has never heard of its transaction."""
    COMMITTED_BUT_PREPARED = auto()
    NOT_IN_COMMIT_LIST = auto()
    PREPARED_AFTER_ABORT = auto()
    PRUNED = auto()
    """Committed, and the log has forgotten its branches."""


_LATE = (
    Judgement.COMMITTED_BUT_PREPARED,
    Judgement.NOT_IN_COMMIT_LIST,
    Judgement.PREPARED_AFTER_ABORT,
)


Judged = tuple[PreparedBranch, xids.Xid, Judgement]


@dataclass(frozen=True, slots=True)
class RecoverySettings:
    """How often what happens, in seconds."""

    deadline_sweep_s: float = 0.2
    takeover_s: float = 1.0
    scan_s: float = 10.0
    prune_s: float = 60.0
    targets_s: float = 1.0
    """Between two looks at what operators have said about targets."""
    batch: int = 500
    deadline_max_us: int = 86_400_000_000
    """The furthest deadline that a transaction may have: markers are kept that much longer."""


class Recovery:
    """The loops that finish what nobody else finishes."""

    def __init__(
        self,
        coordinator: Coordinator,
        *,
        leases: Leases,
        settings: RecoverySettings,
        spawn: Spawn,
        failpoints: Failpoints,
        targets: TargetRules | None = None,
    ) -> None:
        self._targets = targets
        self._c = coordinator
        self._leases = leases
        self._s = settings
        self._spawn = spawn
        self._failpoints = failpoints
        self._tasks: list[Task] = []
        self.deadlines = Deadlines(coordinator, batch=settings.batch, spawn=spawn)
        self.drain = Drain(coordinator, leases=leases, spawn=spawn)
        self.scans: dict[str, int] = {}
        """How many scans each resource has had."""
        self.orphans: dict[str, int] = {}
        self._late: dict[str, dict[str, int]] = {}
        """Branches with a holder that the last scan of a resource would have finished, and since when."""
        self._limbo: dict[str, tuple[int, int]] = {}
        """How many there were at the last scan of a resource, and for how many there was an alarm."""
        self.problems: dict[str, str] = {}
        """Why a resource could not be scanned the last time."""

    async def start(self) -> None:
        """Take this node's own rows of before its restart back, then start the loops."""
        await self.follow_rules()  # Before anything is called.
        self._c.gate.start()
        known: set[str] = set()
        while True:
            rows, _ = await self._claim(all_of_owner=True)
            # What ended meanwhile is still there until its lazy end record is: taking it again and again would
            # never let that be written.
            if len(rows) < self._s.batch or not known.isdisjoint(tx.tx_id for tx in rows):
                break
            known.update(tx.tx_id for tx in rows)
        self._loop("deadlines", self._s.deadline_sweep_s, self.sweep_deadlines)
        self._loop("targets", self._s.targets_s, self.follow_rules)
        self._loop("takeover", self._s.takeover_s, self.take_over)
        self._loop("prune", self._s.prune_s, self.prune)
        for finisher in self._c.finishers.values():
            self._loop(f"scan:{finisher.name}", self._s.scan_s, self._scanner(finisher))
            self._loop(f"prune:{finisher.name}", self._s.prune_s, self._pruner(finisher))

    def stop(self) -> None:
        """End the loops."""
        self.deadlines.stop()
        self.drain.stop()
        for task in self._tasks:
            task.cancel()

    def _loop(self, name: str, every_s: float, step: Callable[[], Awaitable[object]]) -> None:
        troubles = Troubles(name, self._c.clock.now_us)

        async def run() -> None:
            while True:
                try:
                    await step()
                    troubles.well()
                except LogUnavailable as error:
                    # The log itself says that it is away, once for all.
                    log.debug("log.unavailable", duty=name, reason=str(error))
                except ResourceTrouble as trouble:
                    troubles.trouble(trouble)
                except Exception:
                    log.exception("recovery.failed", duty=name)
                await self._c.clock.sleep(every_s)

        self._tasks.append(self._spawn(run(), f"recovery:{name}"))

    # ---- deadlines ----

    async def sweep_deadlines(self) -> int:
        """Abort what is undecided past its deadline. How many were looked at."""
        return await self.deadlines.sweep()

    # ---- targets ----

    async def follow_rules(self) -> None:
        """Do as operators have said about targets; while the log is away, as they had said before. Disable those at
        which nothing arrives."""
        if self._targets is not None:
            rules = await self._targets.all()
            self._c.gate.rules_are(rules)
            changed = await self._c.disabling.look(self._targets, rules)
            if changed is not rules:
                self._c.gate.rules_are(changed)

    # ---- take-over ----

    async def take_over(self) -> int:
        """Renew our leases that are half over, then take over rows whose lease has run out."""
        c = self._c
        # Most end before half of their lease is over. A row at rest is not among them: it is nobody's.
        now_us, lease_us = c.clock.now_us(), c.settings.lease_us
        soon_us = now_us + max(lease_us // 2, int(self._s.takeover_s * 2_500_000))
        old = [
            live
            for live in c.live
            if live.logged and live.lease_until_us < soon_us and live.tx.state is not TxState.ACTIVE
        ]
        await self._renew(old)
        await self._let_go_of_decided()
        return await self._take_over(all_of_owner=False)

    async def _let_go_of_decided(self) -> None:
        """Drop what was run here for a client that is gone, and was decided by another node."""
        c = self._c
        late_us = c.clock.now_us() - c.settings.windows.grace_us
        over = [live for live in c.live if live.tx.state is TxState.ACTIVE and live.tx.deadline_us < late_us][
            : self._s.batch
        ]
        rows = await c.log.read([live.tx.tx_id for live in over]) if over else {}
        for live in over:
            row = rows.get(live.tx.tx_id)
            if row is not None and row.decision is not None and c.live.get(row.tx_id) is live:
                c.live.drop(row.tx_id)

    async def _renew(self, lives: list[Live]) -> None:
        """Keep what is ours; drop what another node has taken over meanwhile: we were stopped, or too slow."""
        if not lives:
            return
        c = self._c
        now_us, lease_us = c.clock.now_us(), c.settings.lease_us
        kept = await c.log.renew(c.settings.node, [live.tx.tx_id for live in lives], lease_us)
        for live in lives:
            if live.tx.tx_id in kept:
                live.lease_until_us = now_us + lease_us
        lost = [live for live in lives if live.tx.tx_id not in kept]
        rows = await c.log.read([live.tx.tx_id for live in lost]) if lost else {}
        for live in lost:
            row = rows.get(live.tx.tx_id)
            if row is not None and row.epoch > live.tx.epoch and c.live.get(row.tx_id) is live:
                log.warning("tx.stale_epoch", tx_id=row.tx_id, epoch=live.tx.epoch, owner=row.owner)
                c.live.drop(row.tx_id)

    async def _take_over(self, *, all_of_owner: bool) -> int:
        return (await self._claim(all_of_owner=all_of_owner))[1]

    async def _claim(self, *, all_of_owner: bool) -> tuple[list[Tx], int]:
        """A batch of rows, and how many of them are new here."""
        c = self._c
        rows = await c.log.claim(
            c.settings.node, c.settings.lease_us, self._s.batch, all_of_owner=all_of_owner
        )
        fresh = 0
        for tx in rows:
            await self._failpoints.reach("takeover.after_claim")
            fresh += c.live.get(tx.tx_id) is None
            try:
                c.adopt(tx)
                c.ordering.taken_over(tx)
            except Exception:
                log.exception("takeover.failed", tx_id=tx.tx_id)
        if fresh:
            log.info("takeover", rows=fresh)
        return rows, fresh

    # ---- scan ----

    def _scanner(self, finisher: Finisher) -> Callable[[], Awaitable[object]]:
        async def scan() -> None:
            owner = self._c.settings.node
            # Asked for again before it ends; when its node has died another one scans soon after.
            ttl_us = int(self._s.scan_s * 1_500_000) + self._c.settings.lease_us // 2
            if await self._leases.acquire(f"scan:{finisher.name}", owner, ttl_us) is None:
                return
            try:
                await self.scan(finisher)
            except ResourceTrouble as trouble:
                self.problems[finisher.name] = str(trouble)
                raise

        return scan

    async def scan(self, finisher: Finisher) -> int:
        """Judge every prepared branch of ours in one database. How many there were."""
        identity = self._c.identity
        assert identity is not None
        own = [identity.log_id, *identity.earlier_log_ids]
        prepared = await finisher.list_prepared(own)
        now_us = await self._c.log.now_us()
        self._c.clock.observe(now_us)
        found = [(p, x) for p in prepared if (x := xids.parse(p.xid)) is not None]
        await self._c.log.settle()
        rows = await self._c.log.read(list({x.tx_id for _, x in found})) if found else {}
        judged = [(p, x, self._judge(finisher, p.xid, x, self._row(rows, x))) for p, x in found]
        if any(j in _LATE for _, _, j in judged):
            # Phase two may have ended between the list and the rows. What is prepared still is no race.
            again = {p.xid for p in await finisher.list_prepared(own)}
            judged = [item for item in judged if item[2] not in _LATE or item[0].xid in again]
        for p, x, judgement in self._without_held(finisher, judged):
            try:
                await self._failpoints.reach("scan.before_judge")
                await self._act(finisher, p.xid, x, judgement, now_us)
            except (Refused, LogUnavailable, ResourceTrouble) as error:
                log.warning("scan.skipped", tx_id=x.tx_id, branch=x.branch, reason=str(error))
            except Exception:
                log.exception("scan.failed", tx_id=x.tx_id, branch=x.branch, resource=finisher.name)
        await self._look_for_limbo(finisher)
        self.scans[finisher.name] = self.scans.get(finisher.name, 0) + 1
        self.problems.pop(finisher.name, None)
        return len(found)

    def _without_held(self, finisher: Finisher, judged: list[Judged]) -> list[Judged]:
        """The session that holds a branch learns the decision too, and finishes it: not ended at first sight, and
        not before its time is over."""
        now_us, before = self._c.clock.now_us(), self._late.get(finisher.name, {})
        seen = {p.xid: before.get(p.xid, now_us) for p, x, j in judged if j in _LATE and x.connection_id}
        self._late[finisher.name] = seen
        hold_us = self._c.settings.hold_us
        return [
            (p, x, j)
            for p, x, j in judged
            if p.xid not in seen or (p.xid in before and now_us - seen[p.xid] >= hold_us)
        ]

    @staticmethod
    async def _is_here(finisher: Finisher, x: xids.Xid) -> bool:
        """In this database, and not in another one of its server?"""
        return not finisher.lists_server or await finisher.owns(str(x))

    async def _look_for_limbo(self, finisher: Finisher) -> None:
        """Alarm for prepared branches that nobody can name. They come back when their server is started again."""
        found = await finisher.in_limbo()
        before, alarmed = self._limbo.get(finisher.name, (0, 0))
        # Twice in a row: the server may show what was so a while ago.
        sure = min(found, before)
        if sure > alarmed:
            detail = f"IN_LIMBO: {sure} on {finisher.name}: restart that server"
            self._c.alarm("in_limbo", "", detail=detail)
        self._limbo[finisher.name] = (found, max(sure, min(alarmed, found)))

    def _row(self, rows: Mapping[str, Tx], x: xids.Xid) -> Tx | None:
        live = self._c.live.get(x.tx_id)
        # One whose steps are run here for its client is decided anywhere: only the log knows that.
        ahead = live is not None and live.logged and live.tx.state is not TxState.ACTIVE
        return live.tx if ahead and live is not None else rows.get(x.tx_id)

    def _judge(self, finisher: Finisher, xid: str, x: xids.Xid, tx: Tx | None) -> Judgement:
        """What a prepared branch is, by the row of its transaction."""
        if tx is None:
            return Judgement.UNKNOWN
        if tx.decision is None:
            return Judgement.LEAVE  # Its deadline, or its caller, decides.
        listed = tx.branch(x.branch)
        known = listed is not None and listed.xid == xid and listed.resource == finisher.name
        if finisher.lists_server and listed is not None and listed.xid == xid and not known:
            other = self._c.finishers.get(listed.resource)
            if other is None or other.lists_server:
                return Judgement.LEAVE  # Of another database on this server: its own scan judges it.
        if tx.decision is Decision.ABORT:
            # Until the end phase two is at what it knows, here or on the node that holds the lease.
            at_it = known and not tx.ended and listed is not None and listed.state is not BranchState.UNDONE
            return Judgement.LEAVE if at_it else Judgement.PREPARED_AFTER_ABORT
        if known and listed is not None:
            if listed.state in (BranchState.SKIPPED, BranchState.RESOLVED, BranchState.PARKED):
                return Judgement.LEAVE  # An operator has it.
            done = tx.ended or listed.state is BranchState.DONE
            return Judgement.COMMITTED_BUT_PREPARED if done else Judgement.LEAVE
        # Commit carries the whole list: one that is not in it is a bug or an attack.
        return Judgement.PRUNED if tx.detail_pruned else Judgement.NOT_IN_COMMIT_LIST

    async def _act(
        self, finisher: Finisher, xid: str, x: xids.Xid, judgement: Judgement, now_us: int
    ) -> None:
        c = self._c
        if judgement is Judgement.UNKNOWN:
            await self._unknown(finisher, x, now_us)
        elif judgement is Judgement.PRUNED:
            c.alarm("prepared_after_prune", x.tx_id, x.branch, f"on {finisher.name}: left alone")
        elif judgement in _LATE:
            commit = judgement is Judgement.COMMITTED_BUT_PREPARED
            await self._finish_late(finisher, xid, x, commit=commit, why=judgement.name)

    async def _unknown(self, finisher: Finisher, x: xids.Xid, now_us: int) -> None:
        c = self._c
        assert c.identity is not None
        if x.log_id != c.identity.log_id:
            # The log was restored since: whether it was committed is not known here any more.
            c.alarm("earlier_incarnation", x.tx_id, x.branch, f"on {finisher.name}: needs an operator")
            return
        if now_us <= c.settings.windows.marker_until(x.deadline_us) or not await self._is_here(finisher, x):
            return
        branch = Branch(x.branch, Kind.XA, BranchState.OPEN, finisher.name, str(x))
        orphan = Tx(x.tx_id, "", x.deadline_us, branches=(branch,))
        self.orphans[finisher.name] = self.orphans.get(finisher.name, 0) + 1
        log.warning("orphan.found", tx_id=x.tx_id, branch=x.branch, resource=finisher.name)
        # Its own phase two rolls it back. Where somebody was first, the next scan obeys the row.
        await c.fence(OrphanFound(orphan))

    async def _finish_late(
        self, finisher: Finisher, xid: str, x: xids.Xid, *, commit: bool, why: str
    ) -> None:
        """Finish a branch outside of phase two, and write that down."""
        c = self._c
        if not await self._is_here(finisher, x):
            return
        await self._failpoints.reach("finish_late.before")
        result = await finisher.finish(xid, commit)
        await self._failpoints.reach("finish_late.after")
        log.warning("branch.finished_late", tx_id=x.tx_id, branch=x.branch, why=why, result=result.finished)
        if result.finished is Finished.RETRY:
            return
        heuristic = result.finished is Finished.HEURISTIC
        if heuristic:
            c.alarm("heuristic", x.tx_id, x.branch, result.reason)
        elif why != "PREPARED_AFTER_ABORT":
            c.alarm(why.lower(), x.tx_id, x.branch, f"on {finisher.name}")
        live = c.live.get(x.tx_id)
        # Read again: the note must not put an older state of the row back.
        tx = c.leased(live.tx) if live is not None and live.logged else await c.get(x.tx_id)
        if tx is None:
            return
        ours = live is not None and live.logged
        if not ours and tx.owner and not tx.rests and not (heuristic and tx.ended):
            # Another node carries it out: what that one writes meanwhile bears the same epoch, and a note would put an
            # older state of the row back. The line above says the same.
            return
        entry = HistoryEntry(
            c.clock.now_us(), "branch.finished_late", x.branch, c.settings.node, result.reason or why
        )
        listed = tx.branch(x.branch)
        touched: tuple[Branch, ...] = ()
        before = tx
        if heuristic and tx.ended and listed is not None:
            touched = (replace(listed, heuristic=True, reason=result.reason),)
            tx = replace(tx, branches=tuple(touched[0] if b.id == x.branch else b for b in tx.branches))
        change = Change(ChangeKind.PROGRESS, tx, touched, tx.epoch, tx.epoch, forced=False, history=(entry,))
        c.log.write_lazily(c.announced(before, change))

    # ---- housekeeping ----

    async def prune(self) -> int:
        """Delete what retention allows to go from the log."""
        c = self._c
        if await self._leases.acquire("prune", c.settings.node, self._prune_ttl_us) is None:
            return 0
        return await c.log.prune(c.settings.node, self._s.batch)

    @property
    def _prune_ttl_us(self) -> int:
        return int(self._s.prune_s * 2_000_000)

    def _pruner(self, finisher: Finisher) -> Callable[[], Awaitable[object]]:
        async def prune() -> None:
            duty = f"prune:{finisher.name}"
            if await self._leases.acquire(duty, self._c.settings.node, self._prune_ttl_us) is not None:
                await self.prune_markers(finisher)

        return prune

    async def prune_markers(self, finisher: Finisher) -> int:
        """Delete a small batch of markers, each past its own P, of no transaction that is still on its way."""
        c, windows = self._c, self._c.settings.windows
        # P is retention after H. A marker does not say its transaction's deadline, but it was made after begin.
        longest_us = self._s.deadline_max_us + windows.grace_us + _SLACK_US
        before_us = await c.log.now_us() - longest_us - windows.retention_us
        began_before_us = before_us + longest_us
        after: str | None = None
        while True:
            # Normally there is none. A log row that has ended answers by itself; these may still need a marker.
            page = await c.log.query(
                Query(states=_ON_THEIR_WAY, created_before_us=began_before_us, after_tx_id=after)
            )
            for tx in page:
                # A plan without a deadline may need all markers that it ever made.
                forever = tx.deadline_us == FOREVER_US
                before_us = min(before_us, tx.created_us if forever else tx.deadline_us - longest_us)
            if not page:
                break
            after = page[-1].tx_id
        return await finisher.prune_markers(before_us, self._s.batch)
