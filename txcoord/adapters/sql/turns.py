"""Whose turn it is: of the messages of one line, one after the other.

A row of ``txcoord_ordering`` is written with the change that takes its place (see the stores), and deleted here once
its message has ended. One row of a line has the turn, and keeps it until then: the unique index sees to that, so that
it does not matter which of two that were written at the same time is seen first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import Connection, and_, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError

from txcoord_client.protocol.identifiers import is_tx_id

from ...core.model import SETTLED_BRANCH, Decision
from ...core.ordering import WAITS
from ...ports import Turn
from . import reading
from .tables import branch, ordering, tx

_TOGETHER = 32
"""Rows of a line that are looked at in one statement."""
_FAR = 200
"""So many places ahead of one are counted."""
_ENDED = [str(state) for state in SETTLED_BRANCH]
_SEEN = (
    select(
        ordering.c.id,
        ordering.c.line,
        ordering.c.tx_id,
        ordering.c.branch,
        tx.c.tx_id.label("known"),
        tx.c.decision,
        tx.c.owner,
        tx.c.epoch,
        branch.c.state,
        branch.c.reason,
    )
    .outerjoin_from(ordering, tx, tx.c.tx_id == ordering.c.tx_id)
    .outerjoin(branch, and_(branch.c.tx_id == ordering.c.tx_id, branch.c.id == ordering.c.branch))
)


def turns(conn: Connection, now_us: int, lines: Collection[str]) -> dict[str, Turn]:
    """Whose turn it is in each of these, by the line; none: nobody's that is due."""
    out: dict[str, Turn] = {}
    # One line after the other, in the same order on each node: who waits for a row here has none of a later line.
    for some in reading.chunks(sorted(set(lines))):
        found = conn.execute(_SEEN.where(ordering.c.line.in_(some), ordering.c.turn == 1)).all()
        held = {row.line: row for row in found}
        for line in some:
            row = held.get(line)
            if row is not None and _over(row):
                _forget(conn, [row.id])
                row = None
            if row is None:
                row = _next(conn, now_us, line)
            if row is not None:
                out[line] = _turn(row)
    return out


def ahead(conn: Connection, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """How many are before each of these, up to a limit; what has no place is not among them."""
    out = {}
    for tx_id, branch_id in keys:
        if not is_tx_id(tx_id):
            continue
        own = conn.execute(
            select(ordering.c.id, ordering.c.line).where(
                ordering.c.tx_id == tx_id, ordering.c.branch == branch_id
            )
        ).first()
        if own is not None:
            # Whoever has the turn comes first, wherever its row is.
            before = or_(ordering.c.id < own.id, ordering.c.turn == 1)
            some = select(ordering.c.id).where(ordering.c.line == own.line, before).limit(_FAR).subquery()
            out[tx_id, branch_id] = int(conn.execute(select(func.count()).select_from(some)).scalar_one())
    return out


def hasten(conn: Connection, keys: Collection[tuple[str, str]]) -> None:
    """These are due now, whatever their senders have chosen."""
    for tx_id, branch_id in sorted(keys):
        if not is_tx_id(tx_id):
            continue
        own = and_(ordering.c.tx_id == tx_id, ordering.c.branch == branch_id)
        conn.execute(update(ordering).where(own).values(due_us=0))


def _next(conn: Connection, now_us: int, line: str) -> Any:
    """Give the turn to the first that is due and has not ended; None: there is none."""
    found = (
        _SEEN.where(ordering.c.line == line, ordering.c.due_us <= now_us)
        .order_by(ordering.c.id)
        .limit(_TOGETHER)
    )
    while True:
        rows = conn.execute(found).all()
        first = next((row for row in rows if not _over(row)), None)
        _forget(conn, [row.id for row in rows if _over(row) and (first is None or row.id < first.id)])
        if first is None:
            if len(rows) < _TOGETHER:
                return None
            continue
        try:
            with conn.begin_nested():
                given = conn.execute(
                    update(ordering)
                    .where(ordering.c.id == first.id, ordering.c.turn.is_(None))
                    .values(turn=1)
                ).rowcount
        except IntegrityError:
            given = 0  # Another node has given it to another one.
        if given:
            return first
        held = conn.execute(_SEEN.where(ordering.c.line == line, ordering.c.turn == 1)).first()
        if held is not None:
            if not _over(held):
                return held
            _forget(conn, [held.id])


def _over(row: Any) -> bool:
    """Has it ended? That is so for good."""
    if row.known is None or row.decision == str(Decision.ABORT):
        return True
    # Without its branches a row says nothing of them but that they have ended.
    return row.decision is not None and (row.state is None or row.state in _ENDED)


def _forget(conn: Connection, ids: Iterable[int]) -> None:
    if some := sorted(ids):
        conn.execute(delete(ordering).where(ordering.c.id.in_(some)))


def _turn(row: Any) -> Turn:
    return Turn(
        row.tx_id,
        row.branch,
        row.epoch,
        row.owner,
        row.decision is not None,
        (row.reason or "").startswith(WAITS),
    )
