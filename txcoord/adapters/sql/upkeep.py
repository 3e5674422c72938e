"""Claims, leases, resources and pruning: rarer changes of the log, the same on every dialect.

Each function is one SQL transaction. Rows are first locked, passing by what others have locked (SQLite has one
writer at a time and needs no locks), then changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Insert, Select, case, delete, exists, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from txcoord_client.protocol.identifiers import is_tx_id

from ...core.kinds import RULES
from ...core.model import FOREVER_US, SETTLED_BRANCH, TAKEN, Kind, Tx, Windows
from . import reading, tables
from .tables import branch, lease, resource, tx

_DELIVERIES = sorted(str(kind) for kind in Kind if not RULES[kind].first_phase)
_SETTLED = sorted(str(state) for state in SETTLED_BRANCH)


def claim(
    conn: Connection, now_us: int, owner: str, lease_us: int, limit: int, *, all_of_owner: bool
) -> list[Tx]:
    """Take over what nobody carries out; those whose lease ended first come first."""
    due = tables.CARRIED_OUT.due_of(conn)
    free = due < now_us
    ids = _locked(
        conn,
        select(tx.c.tx_id)
        .where(tables.CARRIED_OUT.of(conn), or_(free, tx.c.owner == owner) if all_of_owner else free)
        .order_by(due)
        .limit(limit),
    )
    return taken(conn, now_us, owner, lease_us, ids)


def claim_due(
    conn: Connection, now_us: int, owner: str, lease_us: int, due: Sequence[tuple[str, int]]
) -> list[Tx]:
    """Take over what was handed off, each row only with the epoch that is asked for."""
    return taken(conn, now_us, owner, lease_us, locked_due(conn, due))


def locked_due(conn: Connection, due: Sequence[tuple[str, int]]) -> list[str]:
    """Those of these that no node has and that still have this epoch, locked."""
    epochs = dict(due)
    ids: list[str] = []
    for some in reading.chunks(filter(is_tx_id, epochs)):
        found = select(tx.c.tx_id, tx.c.epoch).where(
            tx.c.tx_id.in_(some), tables.CARRIED_OUT.of(conn), tx.c.decision.is_not(None), tx.c.owner == ""
        )
        if conn.dialect.name != "sqlite":
            found = found.with_for_update(skip_locked=True)
        ids.extend(row.tx_id for row in conn.execute(found) if row.epoch == epochs[row.tx_id])
    return ids


def taken(conn: Connection, now_us: int, owner: str, lease_us: int, ids: Sequence[str]) -> list[Tx]:
    """These, as this owner's from now on."""
    for some in reading.chunks(ids):
        conn.execute(
            update(tx)
            .where(tx.c.tx_id.in_(some))
            .values(
                owner=owner,
                lease_until_us=now_us + lease_us,
                epoch=tx.c.epoch + TAKEN,
                # Who read an undecided plan before cannot decide it now.
                version=case((tx.c.decision.is_(None), tx.c.version + 1), else_=tx.c.version),
            )
        )
    found = reading.read(conn, ids)
    return [found[tx_id] for tx_id in ids]


def renew(conn: Connection, now_us: int, owner: str, tx_ids: Sequence[str], lease_us: int) -> set[str]:
    """Keep the lease of what this owner still has; which that is."""
    kept: set[str] = set()
    mine = (tables.CARRIED_OUT.of(conn), tx.c.owner == owner)
    for some in reading.chunks(tx_ids):
        ids = [
            row.tx_id
            for row in conn.execute(
                select(tx.c.tx_id).where(tx.c.tx_id.in_(some), *mine).order_by(tx.c.tx_id).with_for_update()
            )
        ]
        conn.execute(update(tx).where(tx.c.tx_id.in_(ids)).values(lease_until_us=now_us + lease_us))
        kept.update(ids)
    return kept


def prune(conn: Connection, now_us: int, windows: Windows, detail_retention_us: int, limit: int) -> int:
    """Detail first (audits stay), then bare rows; how many rows were stripped or deleted."""
    pending = exists().where(
        branch.c.tx_id == tx.c.tx_id, branch.c.kind.in_(_DELIVERIES), branch.c.state.not_in(_SETTLED)
    )
    ended, over = tables.WITH_DETAIL.due_of(conn), tables.BARE.due_of(conn)
    stripped = _locked(
        conn,
        select(tx.c.tx_id)
        .where(
            tables.WITH_DETAIL.of(conn),
            ended <= now_us - detail_retention_us,
            tx.c.parked == 0,
            ~pending,
        )
        .order_by(ended)
        .limit(limit),
    )
    for some in reading.chunks(stripped):
        conn.execute(delete(branch).where(branch.c.tx_id.in_(some)))
        conn.execute(delete(tables.history).where(tables.history.c.tx_id.in_(some)))
        # The last of a line may still have a row: nobody has asked for the next turn.
        conn.execute(delete(tables.ordering).where(tables.ordering.c.tx_id.in_(some)))
        # What ended long after its deadline, or had none, is kept as if that had been its end; but a fence of the
        # scanner's is told from an outcome by its deadline.
        late = (tx.c.ended_us > tx.c.deadline_us) & (func.coalesce(tx.c.decided_by, "") != "scanner")
        deadline = case((or_(tx.c.deadline_us == FOREVER_US, late), tx.c.ended_us), else_=tx.c.deadline_us)
        conn.execute(update(tx).where(tx.c.tx_id.in_(some)).values(detail_pruned=True, deadline_us=deadline))
    gone = _locked(
        conn,
        select(tx.c.tx_id)
        .where(tables.BARE.of(conn), over < now_us - windows.keep_until(0))
        .order_by(over)
        .limit(limit - len(stripped)),
    )
    for some in reading.chunks(gone):
        conn.execute(delete(tx).where(tx.c.tx_id.in_(some)))
    return len(stripped) + len(gone)


def _locked(conn: Connection, statement: Select[Any]) -> list[str]:
    return list(conn.execute(statement.with_for_update(skip_locked=True)).scalars())


def inserted(conn: Connection, statement: Insert) -> bool:
    """False: someone else was first."""
    try:
        with conn.begin_nested():
            conn.execute(statement)
    except IntegrityError:
        return False
    return True


# ---- resources ----


def resource_identity(conn: Connection, name: str) -> str | None:
    """The identity that is known."""
    return conn.execute(select(resource.c.identity).where(resource.c.name == name)).scalar_one_or_none()


def remember_resource(conn: Connection, name: str, identity: str, *, replace: bool) -> str:
    """Remember it; answer the one that is known."""
    known = resource_identity(conn, name)
    if known is None:
        if inserted(conn, insert(resource).values(name=name, identity=identity)):
            return identity
        known = resource_identity(conn, name)
    if known is not None and replace:
        conn.execute(update(resource).where(resource.c.name == name).values(identity=identity))
        return identity
    return known or identity


# ---- leases for singleton duties ----


def acquire(conn: Connection, now_us: int, duty: str, owner: str, ttl_us: int) -> int | None:
    """The token, or None while another owner holds the lease."""
    free = or_(lease.c.owner.in_(["", owner]), lease.c.until_us <= now_us)
    taken = conn.execute(
        update(lease)
        .where(lease.c.duty == duty, free)
        .values(owner=owner, until_us=now_us + ttl_us, token=lease.c.token + 1)
    )
    token = select(lease.c.token).where(lease.c.duty == duty)
    if taken.rowcount:
        return int(conn.execute(token).scalar_one())
    if conn.execute(token).scalar_one_or_none() is not None:
        return None
    first = insert(lease).values(duty=duty, owner=owner, until_us=now_us + ttl_us, token=1)
    return 1 if inserted(conn, first) else None


def holder(conn: Connection, duty: str) -> tuple[str, int] | None:
    """Who has it or had it last, and by which token."""
    row = conn.execute(select(lease.c.owner, lease.c.token).where(lease.c.duty == duty)).one_or_none()
    return None if row is None else (row.owner, int(row.token))


def release(conn: Connection, duty: str, owner: str) -> None:
    """Give it back. The row stays: its token must never go down."""
    conn.execute(
        update(lease).where(lease.c.duty == duty, lease.c.owner == owner).values(owner="", until_us=0)
    )
