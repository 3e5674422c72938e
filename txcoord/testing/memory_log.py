"""A log in memory, with the semantics of ``ports.Log``: what is durable is in :class:`Storage`, what a node
still keeps to itself (its lazy writes) is in :class:`MemoryLog`, and dies with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from txcoord.core.calling import waits_for_target
from txcoord.core.model import (
    TAKEN,
    Audit,
    Branch,
    BranchState,
    Change,
    ChangeKind,
    Decision,
    HistoryEntry,
    Kind,
    TargetAudit,
    TargetRule,
    Tx,
    TxState,
    Windows,
    WriteResult,
    Written,
)
from txcoord.core.ordering import WAITS, Place, ended, places_of
from txcoord.core.settle import read_back
from txcoord.outgoing import Outgoing
from txcoord.ports import Backlog, DeliveryQuery, Figures, LogIdentity, LogUnavailable, Query, Turn

LOG_ID = "0123456789"
Done = Callable[[WriteResult], None]


def _carried_out(row: Tx) -> bool:
    """Has a node it: in phase two, or a plan that runs?"""
    return row.decision is not None or row.state is TxState.RUNNING


def _in_phase_two(row: Tx) -> bool:
    return row.decision is not None and not row.rests


def _waits(branch: Branch, target: str) -> bool:
    return (
        branch.resource == target
        and branch.next_attempt_us > 0
        and branch.state in (BranchState.FINISHING, BranchState.UNDOING)
    )


def _for_target(branch: Branch, target: str) -> bool:
    return _waits(branch, target) and (branch.action is None or waits_for_target(branch))


@dataclass
class Storage:
    """What survives every crash of a node. Several nodes may share one."""

    clock: Callable[[], int]
    windows: Windows = field(default_factory=Windows)
    identity: LogIdentity = field(default_factory=lambda: LogIdentity(LOG_ID, 1))
    rows: dict[str, Tx] = field(default_factory=dict)
    histories: dict[str, list[HistoryEntry]] = field(default_factory=dict)
    audit_rows: dict[str, list[Audit]] = field(default_factory=dict)
    resources: dict[str, str] = field(default_factory=dict)
    leases: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    targets: dict[str, TargetRule] = field(default_factory=dict)
    target_audits: list[TargetAudit] = field(default_factory=list)
    down: bool = False
    durable: dict[str, Tx] = field(default_factory=dict)
    """The rows as the last forced write has left them."""
    outbox: dict[tuple[str, int, int], Outgoing] = field(default_factory=dict)
    durable_outbox: dict[tuple[str, int, int], Outgoing] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    jobs: dict[str, int] = field(default_factory=dict)
    """Epochs of replay jobs that run."""
    places: dict[tuple[str, str], Place] = field(default_factory=dict)
    durable_places: dict[tuple[str, str], Place] = field(default_factory=dict)
    has_turn: set[tuple[str, str]] = field(default_factory=set)
    written: list[tuple[Change, Written]] = field(default_factory=list)
    """Every change that was tried, for tests to look at."""

    def lose_unforced(self) -> None:
        """Its database crashes: what no forced write has brought to disk is gone."""
        self.rows, self.outbox = dict(self.durable), dict(self.durable_outbox)
        self.places = dict(self.durable_places)

    def sync(self) -> None:
        """What was written is on disk now."""
        self.durable, self.durable_outbox = dict(self.rows), dict(self.outbox)
        self.durable_places = dict(self.places)

    def check(self) -> None:
        if self.down:
            raise LogUnavailable("the log is down")

    def apply(self, change: Change) -> WriteResult:
        now_us = self.clock()
        written = self._apply(change, now_us)
        self.written.append((change, written))
        return WriteResult(written, now_us)

    def _apply(self, change: Change, now_us: int) -> Written:
        new, old = change.tx, self.rows.get(change.tx.tx_id)
        if change.not_after_us is not None and now_us > change.not_after_us:
            return Written.TOO_LATE
        match change.kind:
            case ChangeKind.INSERT:
                if old is not None or (new.gid and self.by_gid(new.namespace, new.gid)):
                    return Written.CONFLICT
                row = replace(new, branches=())
            case ChangeKind.AMEND:
                if old is None or old.version != change.expected_version or old.decision is not None:
                    return Written.CONFLICT
                row = replace(
                    new,
                    namespace=old.namespace,
                    gid=old.gid,
                    name=old.name,
                    deadline_us=old.deadline_us,
                    created_us=old.created_us,
                    labels=old.labels,
                    headers=old.headers,
                    branches=old.branches,
                )
            case ChangeKind.PROGRESS | ChangeKind.OPERATE:
                if old is None or old.epoch != change.expected_epoch or not _carried_out(old):
                    return Written.CONFLICT
                if change.job is not None and self.jobs.get(change.job[0]) != change.job[1]:
                    return Written.CONFLICT
                row = replace(
                    old,
                    state=new.state,
                    ended_us=new.ended_us,
                    epoch=new.epoch,
                    owner=new.owner,
                    # Handed off it says when it is overdue, and that is nobody's lease.
                    lease_until_us=max(
                        old.lease_until_us if new.owner and old.owner else 0, new.lease_until_us
                    ),
                )
            case ChangeKind.RELEASE_GID:
                if (
                    old is None
                    or old.decision is not Decision.ABORT
                    or old.version != change.expected_version
                ):
                    return Written.CONFLICT
                row = replace(old, gid="")
        branches = {b.id: b for b in row.branches}
        branches.update((b.id, b) for b in change.touched)
        self.rows[new.tx_id] = replace(row, branches=tuple(branches.values()))
        self.histories.setdefault(new.tx_id, []).extend(change.history)
        for told in change.announcements:
            out = Outgoing(new.tx_id, told)
            self.outbox.setdefault(out.key, out)
        for place in places_of(change):
            self.places.setdefault((new.tx_id, place.branch), place)
        if change.audit is not None:
            self.audit_rows.setdefault(new.tx_id, []).append(change.audit)
        return Written.OK

    def turn(self, line: str) -> Turn | None:
        """Whose turn it is; what has ended is forgotten."""
        now_us = self.clock()
        for key, place in list(self.places.items()):
            row = self.rows.get(key[0])
            branch = row.branch(key[1]) if row is not None else None
            if place.line == line and (row is None or branch is None or key[1] in ended(row)):
                del self.places[key]
                self.has_turn.discard(key)
        mine = [key for key, place in self.places.items() if place.line == line]
        due = [key for key in mine if self.places[key].due_us <= now_us]
        held = next((key for key in mine if key in self.has_turn), None) or next(iter(due), None)
        if held is None:
            return None
        self.has_turn.add(held)
        row = self.rows[held[0]]
        branch = row.branch(held[1])
        assert branch is not None
        waits = branch.reason.startswith(WAITS)
        return Turn(*held, row.epoch, row.owner, row.decision is not None, waits)

    def by_gid(self, namespace: str, gid: str) -> Tx | None:
        for row in self.rows.values():
            if (row.namespace, row.gid) == (namespace, gid):
                return read_back(row)
        return None

    def row(self, tx_id: str) -> Tx:
        return read_back(self.rows[tx_id])


class MemoryLog:
    """``ports.Log`` of one node. ``lazy_s`` is when lazy writes are flushed if nothing else takes them along;
    None: not before ``settle`` or a forced write."""

    def __init__(self, storage: Storage, *, lazy_s: float | None = 0.02, latency_s: float = 0.0) -> None:
        self.storage = storage
        self.lazy_s = lazy_s
        self.latency_s = latency_s
        self.lose_replies = 0
        """So many forced writes are written, and say LogUnavailable."""
        self.forced_flushes = 0
        self.lazy_flushes = 0
        self._queue: list[tuple[Change, Done | asyncio.Future[WriteResult] | None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._dead = False

    async def open(self) -> LogIdentity:
        self.storage.check()
        return self.storage.identity

    async def close(self) -> None:
        self._flush()

    def abandon(self) -> None:
        """Die: what was lazy is lost."""
        self._dead = True
        self._queue.clear()
        self.lazy_s = None
        if self._timer is not None:
            self._timer.cancel()

    async def write(self, change: Change) -> WriteResult:
        # Once it is in the queue it is written, also when its caller leaves.
        future: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()
        self._queue.append((change, future))
        asyncio.get_running_loop().call_later(self.latency_s, self._flush)
        return await future

    def write_lazily(self, change: Change, done: Done | None = None) -> None:
        self._queue.append((change, done))
        self._arm()

    def _arm(self) -> None:
        if self.lazy_s is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.lazy_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._flush()

    def _flush(self) -> None:
        """Write all in order; while the log is down what is lazy stays."""
        if self._dead:
            return
        queue, self._queue = self._queue, []
        forced = sum(isinstance(done, asyncio.Future) and change.forced for change, done in queue)
        self.forced_flushes += forced > 0
        self.lazy_flushes += bool(queue) and not forced
        for change, done in queue:
            if self.storage.down:
                if not isinstance(done, asyncio.Future):
                    self._queue.append((change, done))
                elif not done.done():
                    done.set_exception(LogUnavailable("the log is down"))
                continue
            result = self.storage.apply(change)
            if not isinstance(done, asyncio.Future):
                if done is not None:
                    done(result)
            elif not done.done():
                if self.lose_replies:
                    self.lose_replies -= 1
                    done.set_exception(LogUnavailable("the reply was lost"))
                else:
                    done.set_result(result)
        if forced and not self.storage.down:
            self.storage.sync()
        if self._queue:
            self._arm()

    async def settle(self) -> None:
        self.storage.check()
        self._flush()

    async def read(self, tx_ids: Sequence[str]) -> dict[str, Tx]:
        await asyncio.sleep(self.latency_s)
        self.storage.check()
        return {i: self.storage.row(i) for i in tx_ids if i in self.storage.rows}

    async def news(self, undecided: Sequence[str], unended: Sequence[str]) -> tuple[set[str], set[str]]:
        await asyncio.sleep(self.latency_s)
        self.storage.check()
        rows = self.storage.rows
        return (
            {i for i in undecided if i in rows and rows[i].decision is not None},
            {i for i in unended if i in rows and (rows[i].ended or rows[i].shown_parked)},
        )

    async def read_gid(self, namespace: str, gid: str) -> Tx | None:
        await asyncio.sleep(self.latency_s)
        self.storage.check()
        return self.storage.by_gid(namespace, gid)

    async def history(self, tx_id: str) -> list[HistoryEntry]:
        return list(self.storage.histories.get(tx_id, []))

    async def deliveries(self, query: DeliveryQuery) -> list[tuple[Tx, Branch]]:
        self.storage.check()
        q = query
        found = [
            (row, b)
            for row in map(read_back, self.storage.rows.values())
            for b in row.branches
            if b.kind in (Kind.MESSAGE, Kind.NOTIFY)
            and row.namespace == q.namespace
            and row.created_us >= q.since_us
            and q.target in ("", b.resource)
            and (not q.states or b.state in q.states)
            and (row.tx_id, b.id) > q.after
        ]
        return sorted(found, key=lambda pair: (pair[0].tx_id, pair[1].id))[: q.limit]

    async def audits(self, tx_id: str) -> list[Audit]:
        return list(self.storage.audit_rows.get(tx_id, []))

    async def query(self, query: Query) -> list[Tx]:
        self.storage.check()
        q = query
        found = [
            row
            for row in map(read_back, self.storage.rows.values())
            if (q.namespace is None or row.namespace == q.namespace)
            and (not q.states or row.state in q.states)
            and (q.parked is None or (row.parked > 0) is q.parked)
            and (q.heuristic is None or row.heuristic is q.heuristic)
            and (q.resource is None or any(b.resource == q.resource for b in row.branches))
            and (
                q.reason is None
                or any(q.reason == r.split(":")[0] for r in (row.reason, *(b.reason for b in row.branches)))
            )
            and (q.name is None or row.name == q.name)
            and (q.created_before_us is None or row.created_us < q.created_before_us)
            and (q.created_after_us is None or row.created_us > q.created_after_us)
            and (q.after_tx_id is None or row.tx_id < q.after_tx_id)
        ]
        return sorted(found, key=lambda row: row.tx_id, reverse=True)[: q.limit]

    async def overdue(self, limit: int) -> list[Tx]:
        self.storage.check()
        now_us = self.storage.clock()
        late = [r for r in self.storage.rows.values() if not _carried_out(r) and r.deadline_us < now_us]
        return sorted(late, key=lambda row: (row.deadline_us, row.tx_id))[:limit]

    async def claim(self, owner: str, lease_us: int, limit: int, *, all_of_owner: bool = False) -> list[Tx]:
        await asyncio.sleep(0)
        self.storage.check()
        now_us = self.storage.clock()
        free = [
            r
            for r in self.storage.rows.values()
            if _carried_out(r)
            and not r.rests
            and (r.lease_until_us < now_us or (all_of_owner and r.owner == owner))
        ]
        for row in sorted(free, key=lambda row: row.lease_until_us)[:limit]:
            self.storage.rows[row.tx_id] = replace(
                row,
                owner=owner,
                lease_until_us=now_us + lease_us,
                epoch=row.epoch + TAKEN,
                version=row.version + (row.decision is None),
            )
        self.storage.sync()
        taken = sorted(free, key=lambda row: row.lease_until_us)[:limit]
        return [self.storage.row(row.tx_id) for row in taken]

    async def claim_due(self, owner: str, lease_us: int, due: Sequence[tuple[str, int]]) -> list[Tx]:
        await asyncio.sleep(0)
        return self._claim_due(owner, lease_us, due)

    def _claim_due(self, owner: str, lease_us: int, due: Sequence[tuple[str, int]]) -> list[Tx]:
        self.storage.check()
        until_us = self.storage.clock() + lease_us
        taken = []
        for tx_id, epoch in dict(due).items():
            row = self.storage.rows.get(tx_id)
            if row is None or not _in_phase_two(row) or (row.owner, row.epoch) != ("", epoch):
                continue
            self.storage.rows[tx_id] = replace(row, owner=owner, lease_until_us=until_us, epoch=epoch + TAKEN)
            taken.append(tx_id)
        self.storage.sync()
        return [self.storage.row(tx_id) for tx_id in taken]

    async def claim_waiting(self, owner: str, lease_us: int, target: str, limit: int) -> list[Tx]:
        await asyncio.sleep(0)
        self.storage.check()
        found = [
            (min(b.next_attempt_us for b in row.branches if _for_target(b, target)), row)
            for row in self.storage.rows.values()
            if not row.owner and _in_phase_two(row) and any(_for_target(b, target) for b in row.branches)
        ]
        due = [row for _, row in sorted(found, key=lambda item: item[0])[:limit]]
        for row in due:
            branches = tuple(
                replace(b, next_attempt_us=0) if _for_target(b, target) else b for b in row.branches
            )
            self.storage.rows[row.tx_id] = replace(row, branches=branches)
        return self._claim_due(owner, lease_us, [(row.tx_id, row.epoch) for row in due])

    async def turns(self, lines: Collection[str]) -> dict[str, Turn]:
        await asyncio.sleep(0)
        self.storage.check()
        out = {line: turn for line in lines if (turn := self.storage.turn(line)) is not None}
        self.storage.sync()
        return out

    async def ahead(self, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], int]:
        await asyncio.sleep(0)
        self.storage.check()
        places = self.storage.places
        lines = {
            key: [k for k, p in places.items() if p.line == places[key].line] for key in keys if key in places
        }
        return {key: line.index(key) for key, line in lines.items()}

    async def hasten(self, keys: Collection[tuple[str, str]]) -> None:
        await asyncio.sleep(0)
        self.storage.check()
        places = self.storage.places
        places.update({key: replace(places[key], due_us=0) for key in keys if key in places})
        self.storage.sync()

    async def backlog(self) -> dict[str, Backlog]:
        self.storage.check()
        found: dict[str, list[int]] = {}
        for row in self.storage.rows.values():
            for b in row.branches if _in_phase_two(row) else ():
                if _waits(b, b.resource):
                    found.setdefault(b.resource, []).append(b.next_attempt_us)
        return {target: Backlog(len(due), min(due)) for target, due in found.items()}

    async def renew(self, owner: str, tx_ids: Sequence[str], lease_us: int) -> set[str]:
        self.storage.check()
        kept = set()
        for tx_id in tx_ids:
            row = self.storage.rows.get(tx_id)
            if row is not None and row.owner == owner and not row.rests:
                until_us = self.storage.clock() + lease_us
                self.storage.rows[tx_id] = replace(row, lease_until_us=until_us)
                kept.add(tx_id)
        return kept

    async def now_us(self) -> int:
        self.storage.check()
        return self.storage.clock()

    async def resource_identity(self, name: str) -> str | None:
        return self.storage.resources.get(name)

    async def remember_resource(self, name: str, identity: str, *, replace: bool = False) -> str:
        if replace:
            self.storage.resources[name] = identity
        return self.storage.resources.setdefault(name, identity)

    async def prune(self, owner: str, limit: int) -> int:
        now_us = self.storage.clock()
        keep_until = self.storage.windows.keep_until
        gone = [r.tx_id for r in self.storage.rows.values() if r.ended and keep_until(r.deadline_us) < now_us]
        for tx_id in gone[:limit]:
            del self.storage.rows[tx_id]
        return len(gone[:limit])

    async def figures(self) -> Figures:
        self.storage.check()
        rows = self.storage.rows.values()
        going = [row.decided_us for row in rows if row.decision is not None and not row.ended]
        over = [row for row in rows if row.ended]
        parked, heuristics = sum(row.parked > 0 for row in rows), sum(row.heuristic for row in rows)
        waiting = [self.storage.outbox[key].announcement.at_us for key in sorted(self.storage.outbox)[:1]]
        return Figures(
            phase_two=len(going),
            oldest_decided_us=min(going, default=0),
            delivering=sum(not row.ended_us and not row.rests for row in over),
            parked=parked,
            parked_deliveries=sum(row.parked > 0 for row in over),
            heuristics=heuristics,
            outbox=len(self.storage.outbox),
            oldest_event_us=waiting[0] if waiting else 0,
            held=len(self.storage.held),
        )

    async def flushes(self) -> tuple[int, int]:
        return self.forced_flushes, self.lazy_flushes
