"""What is read from the log: SQLAlchemy Core, the same on every dialect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import ARRAY, ColumnElement, Connection, Select, and_, any_, exists, literal, or_, select

from txcoord_client.protocol.identifiers import is_tx_id, parse_tx_id

from ...core.model import ENDED, Audit, Branch, HistoryEntry, Kind, Tx
from ...ports import DeliveryQuery, LogIdentity, Query
from . import mapping, tables
from .tables import branch, tx

CHUNK = 500
"""Keys in one statement."""
_MANY = 5_000
"""Keys in one that reads nothing else."""


def chunks(keys: Iterable[str], size: int = CHUNK) -> Iterator[list[str]]:
    """The keys in pieces, in one order everywhere: rows are locked in it."""
    ordered = sorted(set(keys))
    for at in range(0, len(ordered), size):
        yield ordered[at : at + size]


def identity(conn: Connection) -> LogIdentity:
    """Which log this is."""
    row = conn.execute(select(tables.log_identity)).one()
    return LogIdentity(row.log_id, row.incarnation, tuple(row.earlier_log_ids.split()))


def read(conn: Connection, tx_ids: Iterable[str]) -> dict[str, Tx]:
    """Rows with their branches, those that exist."""
    out: dict[str, Tx] = {}
    for some in chunks(tx_ids):
        out.update((t.tx_id, t) for t in _whole(conn, select(tx).where(tx.c.tx_id.in_(some))))
    return out


_ENDED = sorted(map(str, ENDED))


def news(conn: Connection, undecided: Sequence[str], unended: Sequence[str]) -> tuple[set[str], set[str]]:
    """Which of these are decided by now, and which of those have ended or rest."""
    return (
        _those(conn, undecided, tx.c.decision.is_not(None)),
        _those(conn, unended, or_(tx.c.ended_us > 0, tx.c.at_rest, tx.c.state.in_(_ENDED))),
    )


def _those(conn: Connection, tx_ids: Sequence[str], condition: ColumnElement[bool]) -> set[str]:
    out: set[str] = set()
    for some in chunks(filter(is_tx_id, tx_ids), _MANY):
        out.update(conn.execute(select(tx.c.tx_id).where(named(conn, tx.c.tx_id, some), condition)).scalars())
    return out


def named(conn: Connection, column: ColumnElement[str], tx_ids: list[str]) -> ColumnElement[bool]:
    """Rows of these transactions."""
    if conn.dialect.name == "postgresql":
        # One parameter, whatever their number: the statement is made once.
        return column == any_(literal(tx_ids, ARRAY(tables.TxId)))
    return column.in_(tx_ids)


def read_gid(conn: Connection, namespace: str, gid: str) -> Tx | None:
    """The transaction that a gid names now."""
    found = _whole(conn, select(tx).where(tx.c.namespace == namespace, tx.c.gid == gid))
    return found[0] if found else None


def history(conn: Connection, tx_id: str) -> list[HistoryEntry]:
    """Oldest first."""
    h = tables.history
    rows = conn.execute(select(h).where(h.c.tx_id == tx_id).order_by(h.c.at_us, h.c.ordinal))
    return [mapping.history_from(row) for row in rows]


def audits(conn: Connection, tx_id: str) -> list[Audit]:
    """Oldest first."""
    a = tables.audit
    rows = conn.execute(select(a).where(a.c.tx_id == tx_id).order_by(a.c.at_us, a.c.ordinal))
    return [mapping.audit_from(row) for row in rows]


def overdue(conn: Connection, now_us: int, limit: int) -> list[Tx]:
    """Undecided and past their deadline, oldest first."""
    due = tables.UNDECIDED.due_of(conn)
    statement = (
        select(tx).where(tables.UNDECIDED.of(conn), due < now_us).order_by(due, tx.c.tx_id).limit(limit)
    )
    return _whole(conn, statement)


def query(conn: Connection, q: Query) -> list[Tx]:
    """A page, newest first."""
    statement = select(tx).where(*filters(conn, q)).order_by(tx.c.tx_id.desc()).limit(q.limit)
    return _whole(conn, statement)


def deliveries(conn: Connection, q: DeliveryQuery) -> list[tuple[Tx, Branch]]:
    """A page, in the order of their tx ids, which is that of their beginning."""
    b = branch.c
    wanted: list[ColumnElement[bool]] = [
        b.kind.in_([str(Kind.MESSAGE), str(Kind.NOTIFY)]),
        exists().where(tx.c.tx_id == b.tx_id, tx.c.namespace == q.namespace),
    ]
    if q.after[0]:
        wanted.append(or_(b.tx_id > q.after[0], and_(b.tx_id == q.after[0], b.id > q.after[1])))
    elif q.since_us:
        # A tx id begins with its time. Whoever made it may have been a little behind.
        wanted.append(b.tx_id >= f"{max(0, q.since_us // 1000 - _BEHIND_MS):012x}{'0' * 20}")
    if q.since_us:
        wanted.append(exists().where(tx.c.tx_id == b.tx_id, tx.c.created_us >= q.since_us))
    if q.target:
        wanted.append(b.resource == q.target)
    if q.states:
        wanted.append(b.state.in_([str(state) for state in q.states]))
    rows = conn.execute(select(b.tx_id, b.id).where(*wanted).order_by(b.tx_id, b.id).limit(q.limit)).all()
    found = read(conn, (row.tx_id for row in rows))
    pairs = ((found[row.tx_id], found[row.tx_id].branch(row.id)) for row in rows if row.tx_id in found)
    return [(t, one) for t, one in pairs if one is not None]


_BEHIND_MS = 60_000


def filters(conn: Connection, q: Query) -> Iterator[ColumnElement[bool]]:
    """What a transaction must be for a query to find it."""
    if q.namespace is not None:
        yield tx.c.namespace == q.namespace
    if q.states:
        yield tx.c.state.in_([str(s) for s in q.states])
    if q.parked is not None:
        yield _is(conn, tables.PARKED, q.parked)
    if q.heuristic is not None:
        yield _is(conn, tables.HEURISTIC, q.heuristic)
    if q.name is not None:
        yield tx.c.name == q.name
    if q.created_before_us is not None:
        yield tx.c.created_us < q.created_before_us
    if q.created_after_us is not None:
        yield tx.c.created_us > q.created_after_us
    if q.after_tx_id is not None:
        yield tx.c.tx_id < q.after_tx_id
    if q.gid is not None:
        bare = parse_tx_id(q.gid)
        yield or_(tx.c.gid == q.gid, tx.c.tx_id == bare) if bare is not None else tx.c.gid == q.gid
    if q.kind is not None:
        yield exists().where(branch.c.tx_id == tx.c.tx_id, branch.c.kind == str(q.kind))
    if q.resource is not None:
        yield exists().where(branch.c.tx_id == tx.c.tx_id, branch.c.resource == q.resource)
    if q.reason is not None:
        of_branch = exists().where(branch.c.tx_id == tx.c.tx_id, reason_is(branch.c.reason, q.reason))
        yield or_(reason_is(tx.c.reason, q.reason), of_branch)


def _is(conn: Connection, part: tables.Part, wanted: bool) -> Any:
    return part.of(conn) if wanted else part.others(conn)


def reason_is(column: Any, code: str) -> ColumnElement[bool]:
    """Is it this one? A reason is a code, perhaps followed by a colon and a text."""
    return or_(column == code, column.startswith(f"{code}:", autoescape=True))


def _whole(conn: Connection, statement: Select[Any]) -> list[Tx]:
    """Transactions with their branches, in the statement's order."""
    rows: Sequence[Any] = conn.execute(statement).all()
    branches: dict[str, list[Branch]] = {row.tx_id: [] for row in rows}
    for some in chunks(row.tx_id for row in rows if not row.detail_pruned):
        found = select(branch).where(branch.c.tx_id.in_(some)).order_by(branch.c.tx_id, branch.c.position)
        for row in conn.execute(found):
            branches[row.tx_id].append(mapping.branch_from(row))
    return [mapping.tx_from(row, branches[row.tx_id]) for row in rows]
