"""What the log says of itself for metrics: a few small questions, each answered by an index."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, func, select

from ...core.model import TxState
from ...ports import Figures
from . import tables
from .tables import outbox, outbox_held, tx

MOST = 100_000
"""What there is more of is not counted."""
_IN_DOUBT = tx.c.state.in_((TxState.COMMITTING.value, TxState.ABORTING.value))
_OVER = tx.c.state.in_((TxState.COMMITTED.value, TxState.ABORTED.value))
_FIRST = select(outbox.c.at_us).order_by(outbox.c.tx_id, outbox.c.epoch, outbox.c.seq).limit(1)


def ask(conn: Connection) -> Figures:
    """All of them, on one connection."""

    def counted(part: tables.Part) -> int:
        return _count(conn, select(tx.c.tx_id).where(part.of(conn)))

    # What holds something of its decision; what has ended and is still told to somebody holds nothing.
    running = select(tx.c.decided_us).where(tables.CARRIED_OUT.of(conn), _IN_DOUBT).limit(MOST)
    stuck = select(tx.c.decided_us).where(tables.PARKED.of(conn), tx.c.at_rest, _IN_DOUBT).limit(MOST)
    counts = [_counted_since(conn, rows) for rows in (running, stuck)]
    oldest = [since_us for _, since_us in counts if since_us]
    return Figures(
        phase_two=sum(count for count, _ in counts),
        oldest_decided_us=min(oldest, default=0),
        delivering=_count(conn, select(tx.c.tx_id).where(tables.CARRIED_OUT.of(conn), _OVER)),
        parked=counted(tables.PARKED),
        parked_deliveries=_count(conn, select(tx.c.tx_id).where(tables.PARKED.of(conn), _OVER)),
        heuristics=counted(tables.HEURISTIC),
        outbox=_count(conn, select(outbox.c.tx_id)),
        # Tx ids are in order of creation: near enough.
        oldest_event_us=conn.execute(_FIRST).scalar_one_or_none() or 0,
        held=_count(conn, select(outbox_held.c.tx_id)),
    )


def _counted_since(conn: Connection, rows: Select[Any]) -> tuple[int, int]:
    few = rows.subquery()
    count, since_us = conn.execute(select(func.count(), func.min(few.c.decided_us)).select_from(few)).one()
    return int(count), int(since_us or 0)


def _count(conn: Connection, rows: Select[Any]) -> int:
    return int(conn.execute(select(func.count()).select_from(rows.limit(MOST).subquery())).scalar_one())
