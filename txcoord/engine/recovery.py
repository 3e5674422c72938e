"""Recovery: deadlines, take-over of dead nodes' rows, and one scanner a resource.

Every loop survives one bad row, and says so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from txcoord_client.protocol import xid as xids

from ..core.errors import Refused
from ..core.events import OrphanFound
from ..core.model import (
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
    ResourceTrouble,
    Spawn,
    Task,
)
from .coordinator import Coordinator

log = logs.get("txcoord.recovery")


@dataclass(frozen=True, slots=True)
class RecoverySettings:
    """How often what happens, in seconds."""

    deadline_sweep_s: float = 0.2
    takeover_s: float = 1.0
    scan_s: float = 10.0
    prune_s: float = 60.0
    batch: int = 500


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
    ) -> None:
        self._c = coordinator
        self._leases = leases
        self._s = settings
        self._spawn = spawn
        self._failpoints = failpoints
        self._tasks: list[Task] = []
        self.scans: dict[str, int] = {}
        """How many scans each resource has had."""
        self.orphans: dict[str, int] = {}
        self.problems: dict[str, str] = {}
        """Why a resource could not be scanned the last time."""

    async def start(self) -> None:
        """Take this node's own rows of before its restart back, then start the loops."""
        while await self._take_over(all_of_owner=True):
            pass
        self._loop("deadlines", self._s.deadline_sweep_s, self.sweep_deadlines)
        self._loop("takeover", self._s.takeover_s, self.take_over)
        self._loop("prune", self._s.prune_s, self.prune)
        for finisher in self._c.finishers.values():
            self._loop(f"scan:{finisher.name}", self._s.scan_s, self._scanner(finisher))

    def stop(self) -> None:
        """End the loops."""
        for task in self._tasks:
            task.cancel()

    def _loop(self, name: str, every_s: float, step: Callable[[], Awaitable[object]]) -> None:
        async def run() -> None:
            while True:
                try:
                    await step()
                except LogUnavailable as error:
                    log.error("log.unavailable", duty=name, reason=str(error))
                except ResourceTrouble as trouble:
                    log.error("resource.trouble", duty=name, resource=trouble.resource, reason=str(trouble))
                except Exception:
                    log.exception("recovery.failed", duty=name)
                await self._c.clock.sleep(every_s)

        self._tasks.append(self._spawn(run(), f"recovery:{name}"))

    # ---- deadlines ----

    async def sweep_deadlines(self) -> int:
        """Abort what is undecided past its deadline. How many were looked at."""
        overdue = await self._c.log.overdue(self._s.batch)
        for tx in overdue:
            try:
                await self._c.expire(tx)
            except Refused as refused:
                log.warning("deadline.refused", tx_id=tx.tx_id, reason=refused.refusal.reason)
        return len(overdue)

    # ---- take-over ----

    async def take_over(self) -> int:
        """Renew our leases, then take over rows whose lease has run out."""
        c = self._c
        # A parked row stays ours only while something in it is runnable.
        ours = [live.tx.tx_id for live in c.live if live.logged]
        if ours:
            await c.log.renew(c.settings.node, ours, c.settings.lease_us)
        return await self._take_over(all_of_owner=False)

    async def _take_over(self, *, all_of_owner: bool) -> int:
        c = self._c
        rows = await c.log.claim(
            c.settings.node, c.settings.lease_us, self._s.batch, all_of_owner=all_of_owner
        )
        fresh = 0
        for tx in rows:
            await self._failpoints.reach("takeover.after_claim")
            fresh += c.live.get(tx.tx_id) is None
            c.adopt(tx)
        if fresh:
            log.info("takeover", rows=fresh)
        return fresh

    # ---- scan ----

    def _scanner(self, finisher: Finisher) -> Callable[[], Awaitable[object]]:
        async def scan() -> None:
            owner = self._c.settings.node
            ttl_us = int(self._s.scan_s * 3_000_000)
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
        for p, x in found:
            try:
                await self._failpoints.reach("scan.before_judge")
                await self._judge(finisher, p, x, rows.get(x.tx_id), now_us)
            except (Refused, LogUnavailable, ResourceTrouble) as error:
                log.warning("scan.skipped", tx_id=x.tx_id, branch=x.branch, reason=str(error))
            except Exception:
                log.exception("scan.failed", tx_id=x.tx_id, branch=x.branch, resource=finisher.name)
        self.scans[finisher.name] = self.scans.get(finisher.name, 0) + 1
        self.problems.pop(finisher.name, None)
        return len(found)

    async def _judge(
        self, finisher: Finisher, prepared: PreparedBranch, x: xids.Xid, tx: Tx | None, now_us: int
    ) -> None:
        c = self._c
        live = c.live.get(x.tx_id)
        if live is not None:
            tx = live.tx if live.logged else tx
        if tx is None:
            await self._judge_unknown(finisher, x, now_us)
            return
        if tx.decision is None:
            return  # Its deadline, or its caller, decides.
        listed = tx.branch(x.branch)
        known = listed is not None and listed.xid == prepared.xid and listed.resource == finisher.name
        if tx.decision is Decision.COMMIT and known and listed is not None:
            if listed.state in (BranchState.SKIPPED, BranchState.RESOLVED, BranchState.PARKED):
                return  # An operator has it.
            if not tx.ended:
                return  # Phase two is at it, here or on the node that holds the lease.
            await self._finish_late(finisher, prepared.xid, x, tx, commit=True, why="COMMITTED_BUT_PREPARED")
        elif tx.decision is Decision.COMMIT and not tx.detail_pruned:
            # Commit carries the whole list: this one is a bug or an attack.
            await self._finish_late(finisher, prepared.xid, x, tx, commit=False, why="NOT_IN_COMMIT_LIST")
        elif tx.decision is Decision.ABORT:
            if not tx.ended and known:
                return
            await self._finish_late(finisher, prepared.xid, x, tx, commit=False, why="PREPARED_AFTER_ABORT")
        else:
            c.alarm("prepared_after_prune", x.tx_id, x.branch, f"on {finisher.name}: left alone")

    async def _judge_unknown(self, finisher: Finisher, x: xids.Xid, now_us: int) -> None:
        c = self._c
        assert c.identity is not None
        if x.log_id != c.identity.log_id:
            # The log was restored since: whether it was committed is not known here any more.
            c.alarm("earlier_incarnation", x.tx_id, x.branch, f"on {finisher.name}: needs an operator")
            return
        if now_us <= c.settings.windows.marker_until(x.deadline_us):
            return
        branch = Branch(x.branch, Kind.XA, BranchState.OPEN, finisher.name, str(x))
        orphan = Tx(x.tx_id, "", x.deadline_us, branches=(branch,))
        self.orphans[finisher.name] = self.orphans.get(finisher.name, 0) + 1
        log.warning("orphan.found", tx_id=x.tx_id, branch=x.branch, resource=finisher.name)
        tx = await c.fence(OrphanFound(orphan))
        if tx.state is TxState.ABORTING or tx.decision is None:
            return  # The fence's own phase two rolls it back; an undecided row is obeyed when it is decided.
        await self._judge(finisher, PreparedBranch(str(x), "", 0), x, tx, now_us)

    async def _finish_late(
        self, finisher: Finisher, xid: str, x: xids.Xid, tx: Tx, *, commit: bool, why: str
    ) -> None:
        """Finish a branch outside of phase two, and write that down."""
        c = self._c
        result = await finisher.finish(xid, commit)
        log.warning("branch.finished_late", tx_id=tx.tx_id, branch=x.branch, why=why, result=result.finished)
        if result.finished is Finished.RETRY:
            return
        if why != "PREPARED_AFTER_ABORT":
            c.alarm(why.lower(), tx.tx_id, x.branch, f"on {finisher.name}")
        entry = HistoryEntry(c.clock.now_us(), "branch.finished_late", x.branch, c.settings.node, why)
        change = Change(ChangeKind.PROGRESS, tx, expected_epoch=tx.epoch, forced=False, history=(entry,))
        if c.live.get(tx.tx_id) is None:
            c.log.write_lazily(replace(change))

    # ---- housekeeping ----

    async def prune(self) -> int:
        """Delete what retention allows to go: rows of the log, and markers in the resources."""
        c = self._c
        ttl_us = int(self._s.prune_s * 2_000_000)
        if await self._leases.acquire("prune", c.settings.node, ttl_us) is None:
            return 0
        return await c.log.prune(c.settings.node, self._s.batch)
