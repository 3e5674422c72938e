"""Carries replay jobs out: one node has a job at a time, by a lease; what it has done is in the log.

An order is given by the same way as an operator's, so nothing is done twice: what is not parked is left alone, and an
order that a crash has made doubtful is looked up in the audit trail, which is written with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..core import replaying
from ..core.errors import Refused
from ..core.events import Operate
from ..core.machine import decide
from ..core.model import Audit, Branch, BranchState, Tx
from ..core.replaying import ItemState, JobState, Replay, ReplayItem
from ..observe import logs
from ..ports import Failpoints, LogUnavailable, Query, Replays, Spawn, Task
from .coordinator import Coordinator

log = logs.get("txcoord.replay")

_LOOK_S = 1.0
"""Between two looks for jobs that nobody runs."""
_TICK_S = 0.05
_SLOWEST_S = 5.0
_PAGE = 500
_AT_ONCE = 100

Key = tuple[str, str]


class Replayer:
    """Runs the jobs that this node has taken."""

    def __init__(
        self,
        coordinator: Coordinator,
        store: Replays,
        query_of: Callable[[Replay], Query],
        *,
        spawn: Spawn,
        failpoints: Failpoints,
    ) -> None:
        self.store = store
        self._c = coordinator
        self._query_of = query_of
        self._spawn = spawn
        self._failpoints = failpoints
        self._running: dict[str, Task] = {}
        self._watch: Task | None = None
        self._news = asyncio.Event()

    def start(self) -> None:
        """Begin to look for jobs."""
        self._watch = self._spawn(self._look(), "replay:look")

    def stop(self) -> None:
        """Let go of all: another node goes on with them when their leases are over."""
        for task in (self._watch, *self._running.values()):
            if task is not None:
                task.cancel()

    def wake(self) -> None:
        """There is a job to be taken."""
        self._news.set()

    async def _look(self) -> None:
        settings = self._c.settings
        while True:
            try:
                for job in await self.store.claim(settings.node, settings.lease_us, list(self._running)):
                    log.info("replay.taken", replay=job.id, epoch=job.epoch)
                    self._running[job.id] = self._spawn(self._run(job), f"replay:{job.id}")
            except LogUnavailable as error:
                log.debug("log.unavailable", duty="replay", reason=str(error))
            except Exception:
                log.exception("replay.failed", duty="look")
            self._news.clear()
            nap = self._spawn(self._nap(), "replay:nap")
            try:
                await self._news.wait()
            finally:
                nap.cancel()

    async def _nap(self) -> None:
        await self._c.clock.sleep(_LOOK_S)
        self._news.set()

    async def _run(self, job: Replay) -> None:
        try:
            await _Run(self, job).run()
        except LogUnavailable as error:
            # Whether the last note was written is not known: it is taken again, as it is in the log.
            log.debug("log.unavailable", replay=job.id, reason=str(error))
            await self._c.clock.sleep(_LOOK_S)
        except Exception:
            log.exception("replay.failed", replay=job.id)
            await self._c.clock.sleep(_SLOWEST_S)
        finally:
            self._running.pop(job.id, None)

    # ---- what a run needs ----

    async def save(
        self, job: Replay, items: Sequence[ReplayItem] = (), new: Sequence[ReplayItem] = ()
    ) -> Replay | None:
        """Write it down; None: it is not ours any more."""
        return await self.store.save(job, self._c.settings.lease_us, items, new)

    async def parked(self, job: Replay, limit: int) -> list[ReplayItem]:
        """The next parked branches."""
        await self._c.log.settle()
        query = self._query_of(job)
        # What an operator has parked he means to stay so; whoever names its transaction means that one.
        by_hand = job.order.by_hand or query.gid is not None
        found = await self.store.parked(query, job.order.since_us, job.after, limit, by_hand=by_hand)
        items = [ReplayItem(p.tx_id, p.branch.id, gid=p.gid) for p in found]
        if not job.order.dry_run:
            return items
        rows = await self._c.log.read([p.tx_id for p in found])
        return [self._would(job, item, rows.get(item.tx_id)) for item in items]

    def order_of(self, job: Replay, item: ReplayItem) -> Operate:
        """What is ordered for one branch."""
        now_us = self._c.clock.now_us()
        audit = Audit(job.actor, job.reason, "retry", now_us, branch=item.branch, replay=job.id)
        return Operate("retry", item.branch, audit, parked=True, job_epoch=job.epoch)

    def _would(self, job: Replay, item: ReplayItem, tx: Tx | None) -> ReplayItem:
        branch = tx.branch(item.branch) if tx is not None else None
        if tx is None or branch is None or branch.state is not BranchState.PARKED:
            return replace(item, state=ItemState.REFUSED, reason="NOT_PARKED", message=_now(branch))
        verdict = decide(tx, self.order_of(job, item), self._c.clock.now_us(), self._c.settings.windows)
        if verdict.refusal is not None:
            no = verdict.refusal
            return replace(item, state=ItemState.REFUSED, reason=no.reason, message=no.message)
        after = verdict.tx.branch(item.branch)
        what = f"{after.state} it on {branch.resource} again" if after is not None else ""
        return replace(item, state=ItemState.WOULD, message=f"{what}; it was parked by {branch.reason}")

    async def give(self, job: Replay, item: ReplayItem, *, doubtful: bool) -> ReplayItem:
        """Give the order for one branch; what became of that."""
        if doubtful and any(
            a.replay == job.id and a.branch == item.branch for a in await self._c.log.audits(item.tx_id)
        ):
            return replace(item, state=ItemState.TAKEN)
        tx = await self._c.get(item.tx_id)
        branch = tx.branch(item.branch) if tx is not None else None
        if branch is None or branch.state is not BranchState.PARKED:
            return replace(item, state=ItemState.REFUSED, reason="NOT_PARKED", message=_now(branch))
        await self._failpoints.reach("replay.before_order")
        try:
            await self._c.operate(item.tx_id, self.order_of(job, item))
        except Refused as refused:
            no = refused.refusal
            if not no.definite:
                return replace(item, state=ItemState.WAITING)
            return replace(item, state=ItemState.REFUSED, reason=no.reason, message=no.message)
        await self._failpoints.reach("replay.after_order")
        return replace(item, state=ItemState.TAKEN)

    async def branches(self, items: Sequence[ReplayItem]) -> dict[Key, Branch | None]:
        """How these branches are now."""
        out: dict[Key, Branch | None] = {}
        unknown = []
        for item in items:
            live = self._c.live.get(item.tx_id)
            if live is not None:
                out[item.tx_id, item.branch] = live.tx.branch(item.branch)
            else:
                unknown.append(item)
        if unknown:
            await self._c.log.settle()
            rows = await self._c.log.read([item.tx_id for item in unknown])
            for item in unknown:
                row = rows.get(item.tx_id)
                out[item.tx_id, item.branch] = row.branch(item.branch) if row is not None else None
        return out

    async def sleep(self, seconds: float) -> float:
        """For so long; the time then, for measuring."""
        await self._c.clock.sleep(seconds)
        return self._c.clock.monotonic()

    def monotonic(self) -> float:
        """The time, for measuring."""
        return self._c.clock.monotonic()


def _now(branch: Branch | None) -> str:
    return f"it is {branch.state} now" if branch is not None else "it has been pruned"


class _Run:
    """One job while this node has it."""

    def __init__(self, replayer: Replayer, job: Replay) -> None:
        self._r = replayer
        self._job = job
        self._open: dict[Key, ReplayItem] = {}
        self._allowance = 0.0

    async def run(self) -> None:
        r = self._r
        for item in await r.store.pick(self._job.id, [ItemState.TAKEN], 1_000_000):
            self._open[item.tx_id, item.branch] = item
        doubtful = await r.store.pick(self._job.id, [ItemState.TAKING], 1_000_000)
        if doubtful and not await self._give(doubtful, doubtful=True):
            return
        await self._go_on()

    async def _go_on(self) -> None:
        r = self._r
        pause, last = _TICK_S, r.monotonic()
        looked = saved = last
        while True:
            listed, taken, changed = await self._list(), 0, False
            if listed is None:
                return
            now = r.monotonic()
            if now - looked >= pause:
                looked = now
                moved = await self._look()
                if moved is None:
                    return
                pause = _TICK_S if moved else min(pause * 1.5, _SLOWEST_S)
                changed = moved
            if replaying.over(self._job):
                await self._end(JobState.DONE, "")
                return
            rate = self._job.order.rate_per_s
            self._allowance = min(self._allowance + (now - last) * rate, max(1.0, rate))
            last = now
            wanted = min(_AT_ONCE, replaying.room(self._job, self._allowance))
            if wanted:
                items = await r.store.pick(self._job.id, [ItemState.WAITING], wanted)
                self._allowance -= len(items)
                if not await self._give(items, doubtful=False):
                    return
                taken, pause = len(items), _TICK_S
            if listed or taken or changed:
                saved = now
            elif now - saved > 1.0:
                # Nothing to write; but the lease goes on.
                if not await self._save():
                    return
                saved = now
            await r.sleep(_TICK_S)

    async def _save(
        self, items: Sequence[ReplayItem] = (), new: Sequence[ReplayItem] = (), **changes: Any
    ) -> bool:
        job = await self._r.save(replace(self._job, **changes), items, new)
        if job is None:
            log.info("replay.left", replay=self._job.id)
            return False
        self._job = job
        return True

    async def _list(self) -> bool | None:
        """Find more, if there is too little to go on with. None: it is not ours any more."""
        job = self._job
        if job.listed or job.count(ItemState.WAITING) >= _PAGE:
            return False
        known = sum(job.counts.values())
        most = min(_PAGE, job.order.limit - known) if job.order.limit else _PAGE
        items = await self._r.parked(job, most) if most > 0 else []
        after = (items[-1].tx_id, items[-1].branch) if items else job.after
        done = len(items) < most or most <= 0 or known + len(items) == job.order.limit
        return True if await self._save(new=items, after=after, listed=done) else None

    async def _give(self, items: Sequence[ReplayItem], *, doubtful: bool) -> bool:
        taking = [replace(item, state=ItemState.TAKING) for item in items]
        if not doubtful and not await self._save(taking):
            return False
        ends = await asyncio.gather(
            *(self._r.give(self._job, item, doubtful=doubtful) for item in taking), return_exceptions=True
        )
        given = []
        for end in ends:
            if isinstance(end, BaseException):
                # No order of it is on its way any more. What was written is found by whoever takes the job up.
                raise end
            given.append(end)
        for item in given:
            if item.state is ItemState.TAKEN:
                self._open[item.tx_id, item.branch] = item
        return await self._save(given)

    async def _look(self) -> bool | None:
        """What has become of what is on its way. Did something change? None: it is not ours any more."""
        moved: list[ReplayItem] = []
        failing: list[ReplayItem] = []
        found = await self._r.branches(list(self._open.values())) if self._open else {}
        for key, branch in found.items():
            state, item = replaying.outcome(branch), self._open[key]
            said = _said(branch)
            if state is not ItemState.TAKEN:
                moved.append(replace(item, state=state, **said if state is ItemState.FAILED else {}))
            elif branch is not None and (branch.failures if branch.action is not None else branch.attempts):
                failing.append(replace(item, state=ItemState.FAILED, **said))
        if moved and not await self._save(moved):
            return None
        for item in moved:
            del self._open[item.tx_id, item.branch]
        bad = [*(item for item in moved if item.state is ItemState.FAILED), *failing]
        example = f"branch {bad[0].branch} of {bad[0].tx_id}: {bad[0].message}" if bad else self._job.message
        why = replaying.stopped(self._job, len(failing), example)
        if why:
            # They are tried again by themselves, as any branch is; this job counts them as failed.
            await self._end(JobState.STOPPED, why, failing)
            return None
        step = replaying.next_canary(self._job)
        if step != self._job.canary_step and not await self._save(canary_step=step):
            return None
        return bool(moved)

    async def _end(self, state: JobState, why: str, items: Sequence[ReplayItem] = ()) -> None:
        if await self._save(items, state=state, message=why):
            log.info("replay.ended", replay=self._job.id, state=str(state), reason=why)


def _said(branch: Branch | None) -> dict[str, str]:
    if branch is None:
        return {}
    return {"reason": branch.reason.split(":", 1)[0], "message": branch.reason}
