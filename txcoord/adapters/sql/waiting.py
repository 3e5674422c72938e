"""Branches that wait for their next attempt, by target: how many there are, and which could be tried at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, or_, select, text, update

from ...core.model import HELD_BACK, BranchState, Tx
from ...ports import Backlog
from . import reading, tables, upkeep
from .tables import branch, tx

_STATES = sorted([str(BranchState.FINISHING), str(BranchState.UNDOING)])


def _waits() -> tuple[Any, ...]:
    # Literal: an engine uses a partial index only for what it can prove when it plans.
    return (text("txcoord_branch.next_attempt_us > 0"), branch.c.state.in_(_STATES))


def _for_target() -> ColumnElement[bool]:
    """As ``core.calling.waits_for_target`` has it: it waits since it has failed or was held back. What its participant
    has asked for, or what is not to be delivered before, keeps its time."""
    # So JSON of a number is written there; within any text of a user's the quotes would have backslashes.
    failed = [branch.c.action.contains(f'"failures":{digit}') for digit in range(1, 10)]
    held = [branch.c.reason.startswith(code) for code in HELD_BACK]
    return or_(branch.c.action == "", *failed, *held)


def _decided(conn: Connection, *more: ColumnElement[bool]) -> Select[Any]:
    return select(tx.c.tx_id).where(tables.CARRIED_OUT.of(conn), tx.c.decision.is_not(None), *more)


def backlog(conn: Connection) -> dict[str, Backlog]:
    """How many wait for each target, and since when the oldest of them could have been tried, or will be."""
    found = conn.execute(
        select(branch.c.resource, func.count(), func.min(branch.c.next_attempt_us))
        .where(*_waits(), branch.c.tx_id.in_(_decided(conn)))
        .group_by(branch.c.resource)
    )
    return {target: Backlog(int(count), int(oldest)) for target, count, oldest in found}


def handed_off(conn: Connection, target: str, limit: int) -> list[tuple[str, int]]:
    """Transactions that wait since this target has failed or was held back, and that no node has, by their epoch;
    those that are due first come first."""
    found = conn.execute(
        select(tx.c.tx_id, tx.c.epoch)
        .join(branch, branch.c.tx_id == tx.c.tx_id)
        .where(
            *_waits(),
            _for_target(),
            branch.c.resource == target,
            tx.c.tx_id.in_(_decided(conn, tx.c.owner == "")),
        )
        .group_by(tx.c.tx_id, tx.c.epoch)
        .order_by(func.min(branch.c.next_attempt_us))
        .limit(limit)
    )
    return [(row.tx_id, row.epoch) for row in found]


def claim(
    conn: Connection, now_us: int, owner: str, lease_us: int, due: Sequence[tuple[str, int]], target: str
) -> list[Tx]:
    """Take these over, and let what waits for this target be due at once."""
    ids = upkeep.locked_due(conn, due)
    for some in reading.chunks(ids):
        conn.execute(
            update(branch)
            .where(branch.c.tx_id.in_(some), *_waits(), _for_target(), branch.c.resource == target)
            .values(next_attempt_us=0)
        )
    return upkeep.taken(conn, now_us, owner, lease_us, ids)
