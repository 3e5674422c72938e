"""Jobs that retry parked branches, in the log's own database. Each function of it is one SQL transaction."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    exists,
    func,
    insert,
    not_,
    or_,
    select,
    update,
)

from ...core.model import Audit, BranchState
from ...core.replaying import (
    AuditQuery,
    AuditRow,
    Base,
    ItemState,
    JobState,
    Order,
    ParkedBranch,
    Replay,
    ReplayItem,
)
from ...ports import Query
from . import mapping, reading, trail
from .log import SqlLog
from .tables import audit, branch, history, replay_item, tx
from .tables import replay as job
from .upkeep import inserted

_BY_ITSELF = ("branch.parked", "branch.heuristic")
_BY_HAND = "operator.park"
_PARKS = (*_BY_ITSELF, _BY_HAND)


class SqlReplays:
    """``ports.Replays`` beside an open log."""

    def __init__(self, log: SqlLog) -> None:
        self._store = log.store

    async def create(self, replay: Replay) -> Replay:
        """Write it, or answer the one that this request has made before."""
        return await self._store.changing(lambda c: _create(c, replay))

    async def get(self, namespace: str, replay_id: str) -> Replay | None:
        """One job, with its counts."""
        return await self._store.reading(lambda c: _get(c, namespace, replay_id))

    async def page(self, namespace: str, before: str, limit: int) -> list[Replay]:
        """A page, newest first."""
        return await self._store.reading(lambda c: _list(c, namespace, before, limit))

    async def items(self, replay_id: str, after: tuple[str, str], limit: int) -> list[ReplayItem]:
        """A page, in the order in which they are taken."""
        return await self._store.reading(lambda c: _items(c, replay_id, after, (), limit))

    async def pick(self, replay_id: str, states: Collection[ItemState], limit: int) -> list[ReplayItem]:
        """The first ones in one of these states."""
        return await self._store.reading(lambda c: _items(c, replay_id, ("", ""), states, limit))

    async def turn(
        self, namespace: str, replay_id: str, state: JobState, order: Audit, rate_per_s: float
    ) -> Replay | None:
        """An operator's order: cancel, or resume."""
        clock = self._store.clock
        return await self._store.changing(
            lambda c: _turn(c, clock(c), namespace, replay_id, state, order, rate_per_s)
        )

    async def claim(self, owner: str, lease_us: int, mine: Collection[str]) -> list[Replay]:
        """Jobs that nobody runs."""
        clock = self._store.clock
        return await self._store.changing(lambda c: _claim(c, clock(c), owner, lease_us, mine))

    async def save(
        self, replay: Replay, lease_us: int, items: Sequence[ReplayItem] = (), new: Sequence[ReplayItem] = ()
    ) -> Replay | None:
        """Where it stands now, if it is this owner's still."""
        clock = self._store.clock
        return await self._store.changing(lambda c: _save(c, clock(c), replay, lease_us, items, new))

    async def parked(
        self, query: Query, since_us: int, after: tuple[str, str], limit: int, *, by_hand: bool = True
    ) -> list[ParkedBranch]:
        """Parked branches, in order."""
        return await self._store.reading(lambda c: _parked(c, query, since_us, after, limit, by_hand))

    async def audits(self, query: AuditQuery) -> list[AuditRow]:
        """A page of the audit trail, newest first."""
        return await self._store.reading(lambda c: trail.page(c, query))


# ---- jobs ----


def _create(conn: Connection, r: Replay) -> Replay:
    if not inserted(conn, insert(job).values(_row(r))):
        found = conn.execute(
            select(job).where(job.c.namespace == r.namespace, job.c.request_id == r.request_id)
        ).one()
        return _from(conn, found)
    _audit(conn, r, Audit(r.actor, r.reason, "replay.start", r.started_us, detail=_what(r.order)))
    return r


def _audit(conn: Connection, r: Replay, a: Audit) -> None:
    conn.execute(
        insert(audit).values(
            tx_id=r.id,
            at_us=a.at_us,
            ordinal=secrets.randbits(62),
            actor=a.actor,
            reason=a.reason,
            action=a.action,
            namespace=r.namespace,
            branch="",
            replay=r.id,
            detail=a.detail,
        )
    )


def _what(order: Order) -> str:
    return json.dumps(asdict(order), ensure_ascii=False, separators=(",", ":"))


def _row(r: Replay) -> dict[str, Any]:
    return {
        "id": r.id,
        "namespace": r.namespace,
        "state": r.state,
        "what": _what(r.order),
        "base": json.dumps(asdict(r.base)),
        "actor": r.actor,
        "reason": r.reason,
        "message": r.message,
        "request_id": r.request_id,
        "owner": r.owner,
        "epoch": r.epoch,
        "lease_until_us": r.lease_until_us,
        "started_us": r.started_us,
        "updated_us": r.updated_us,
        "ended_us": r.ended_us,
        "after_tx_id": r.after[0],
        "after_branch": r.after[1],
        "listed": r.listed,
        "canary_step": r.canary_step,
    }


def _from(conn: Connection, row: Any) -> Replay:
    what = json.loads(row.what)
    what["canary"] = tuple(what["canary"])
    counts = conn.execute(
        select(replay_item.c.state, func.count())
        .where(replay_item.c.replay_id == row.id)
        .group_by(replay_item.c.state)
    ).all()
    return Replay(
        id=row.id,
        namespace=row.namespace,
        order=Order(**what),
        actor=row.actor,
        reason=row.reason,
        state=JobState(row.state),
        message=row.message,
        request_id=row.request_id,
        owner=row.owner,
        epoch=row.epoch,
        lease_until_us=row.lease_until_us,
        started_us=row.started_us,
        updated_us=row.updated_us,
        ended_us=row.ended_us,
        after=(row.after_tx_id, row.after_branch),
        listed=bool(row.listed),
        canary_step=row.canary_step,
        base=Base(**json.loads(row.base)),
        counts={ItemState(state): int(count) for state, count in counts},
    )


def _get(conn: Connection, namespace: str, replay_id: str) -> Replay | None:
    row = conn.execute(select(job).where(job.c.id == replay_id, job.c.namespace == namespace)).one_or_none()
    return None if row is None else _from(conn, row)


def _list(conn: Connection, namespace: str, before: str, limit: int) -> list[Replay]:
    # Ids are in the order of their making.
    wanted = [job.c.namespace == namespace, *([job.c.id < before] if before else [])]
    rows = conn.execute(select(job).where(*wanted).order_by(job.c.id.desc()).limit(limit)).all()
    return [_from(conn, row) for row in rows]


def _items(
    conn: Connection, replay_id: str, after: tuple[str, str], states: Collection[ItemState], limit: int
) -> list[ReplayItem]:
    i = replay_item.c
    wanted: list[ColumnElement[bool]] = [i.replay_id == replay_id]
    if states:
        wanted.append(i.state.in_([str(s) for s in states]))
    if after[0]:
        wanted.append(or_(i.tx_id > after[0], and_(i.tx_id == after[0], i.branch > after[1])))
    rows = conn.execute(select(replay_item).where(*wanted).order_by(i.tx_id, i.branch).limit(limit))
    return [
        ReplayItem(row.tx_id, row.branch, ItemState(row.state), row.gid, row.reason, row.message)
        for row in rows
    ]


def _turn(
    conn: Connection,
    now_us: int,
    namespace: str,
    replay_id: str,
    state: JobState,
    order: Audit,
    rate_per_s: float,
) -> Replay | None:
    locked = select(job).where(job.c.id == replay_id, job.c.namespace == namespace).with_for_update()
    row = conn.execute(locked).one_or_none()
    if row is None:
        return None
    old = _from(conn, row)
    if old.state is state or old.state is JobState.DONE or old.order.dry_run:
        return old
    new = replace(old, epoch=old.epoch + 1, owner="", lease_until_us=0, updated_us=now_us)
    if state is JobState.RUNNING:
        new = new.begun_again()
        if rate_per_s:
            new = replace(new, order=replace(new.order, rate_per_s=rate_per_s))
    else:
        new = replace(
            new, state=state, ended_us=now_us, message=f"cancelled by {order.actor}: {order.reason}"
        )
    conn.execute(update(job).where(job.c.id == replay_id).values(_row(new)))
    _audit(conn, new, order)
    return new


def _claim(conn: Connection, now_us: int, owner: str, lease_us: int, mine: Collection[str]) -> list[Replay]:
    free = or_(job.c.lease_until_us < now_us, job.c.owner == owner)
    rows = conn.execute(
        select(job)
        .where(job.c.state == str(JobState.RUNNING), free, job.c.id.not_in(list(mine)))
        .order_by(job.c.id)
        .limit(10)
        .with_for_update(skip_locked=True)
    ).all()
    out = []
    for row in rows:
        r = replace(
            _from(conn, row),
            owner=owner,
            epoch=row.epoch + 1,
            lease_until_us=now_us + lease_us,
            updated_us=now_us,
        )
        conn.execute(update(job).where(job.c.id == r.id).values(_row(r)))
        out.append(r)
    return out


def _save(
    conn: Connection,
    now_us: int,
    r: Replay,
    lease_us: int,
    items: Sequence[ReplayItem],
    new: Sequence[ReplayItem],
) -> Replay | None:
    running = r.state is JobState.RUNNING
    r = replace(
        r,
        updated_us=now_us,
        lease_until_us=now_us + lease_us if running else 0,
        ended_us=0 if running else now_us,
    )
    mine = (job.c.id == r.id, job.c.epoch == r.epoch, job.c.owner == r.owner)
    still = job.c.state == str(JobState.RUNNING)
    if not conn.execute(update(job).where(*mine, still).values(_row(r))).rowcount:
        return None
    i = replay_item.c
    if new:
        conn.execute(insert(replay_item), [_item_row(r.id, item) for item in new])
    if items:
        keys = (i.replay_id == r.id, i.tx_id == bindparam("b_tx_id"), i.branch == bindparam("b_branch"))
        moved = update(replay_item).where(*keys)
        moved = moved.values({n: bindparam(f"b_{n}") for n in ("state", "reason", "message")})
        conn.execute(
            moved, [{f"b_{k}": v for k, v in _item_row(r.id, item).items() if k in _MOVES} for item in items]
        )
    found = conn.execute(select(job).where(job.c.id == r.id)).one()
    return _from(conn, found)


_MOVES = ("tx_id", "branch", "state", "reason", "message")


def _item_row(replay_id: str, item: ReplayItem) -> dict[str, Any]:
    return {
        "replay_id": replay_id,
        "tx_id": item.tx_id,
        "branch": item.branch,
        "state": str(item.state),
        "gid": item.gid,
        "reason": item.reason,
        "message": item.message,
    }


# ---- what is parked, and who did what ----


def _by_hand() -> ColumnElement[bool]:
    """Was it an operator who parked it last?"""
    h, later = history.alias(), history.alias()
    of_branch = (h.c.tx_id == branch.c.tx_id, h.c.branch == branch.c.id, h.c.what == _BY_HAND)
    parked_since = exists().where(
        later.c.tx_id == h.c.tx_id,
        later.c.branch == h.c.branch,
        later.c.what.in_(_BY_ITSELF),
        later.c.at_us > h.c.at_us,
    )
    return exists().where(*of_branch, not_(parked_since)).correlate(branch)


def _parked(
    conn: Connection, q: Query, since_us: int, after: tuple[str, str], limit: int, by_hand: bool
) -> list[ParkedBranch]:
    whole = replace(q, parked=True, kind=None, resource=None, reason=None)
    wanted: list[ColumnElement[bool]] = [
        branch.c.state == str(BranchState.PARKED),
        branch.c.tx_id.in_(select(tx.c.tx_id).where(*reading.filters(conn, whole))),
    ]
    if q.kind is not None:
        wanted.append(branch.c.kind == str(q.kind))
    if q.resource is not None:
        wanted.append(branch.c.resource == q.resource)
    if q.reason is not None:
        wanted.append(reading.reason_is(branch.c.reason, q.reason))
    if not by_hand:
        wanted.append(not_(_by_hand()))
    if since_us:
        wanted.append(
            exists().where(
                history.c.tx_id == branch.c.tx_id,
                history.c.branch == branch.c.id,
                history.c.what.in_(_PARKS),
                history.c.at_us >= since_us,
            )
        )
    if after[0]:
        wanted.append(
            or_(branch.c.tx_id > after[0], and_(branch.c.tx_id == after[0], branch.c.id > after[1]))
        )
    rows = conn.execute(
        select(branch).where(*wanted).order_by(branch.c.tx_id, branch.c.id).limit(limit)
    ).all()
    gids: dict[str, str] = {}
    parked: dict[tuple[str, str], int] = {}
    again: dict[tuple[str, str], int] = {}
    h = history.c
    for some in reading.chunks(row.tx_id for row in rows):
        gids.update(
            (row.tx_id, row.gid or "")
            for row in conn.execute(select(tx.c.tx_id, tx.c.gid).where(tx.c.tx_id.in_(some)))
        )
        words: Iterable[Any] = conn.execute(
            select(h.tx_id, h.branch, h.what, h.at_us).where(
                h.tx_id.in_(some), h.what.in_([*_PARKS, "operator.retry"])
            )
        )
        for row in words:
            last = again if row.what == "operator.retry" else parked
            key = (row.tx_id, row.branch)
            last[key] = max(row.at_us, last.get(key, 0))
    return [
        ParkedBranch(
            row.tx_id,
            gids.get(row.tx_id, ""),
            mapping.branch_from(row),
            parked.get((row.tx_id, row.id), 0),
            (row.tx_id, row.id) in again,
        )
        for row in rows
    ]
