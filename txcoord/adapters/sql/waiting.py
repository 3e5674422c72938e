"""Branches that wait for their next attempt, by target: how many there are, and which could be tried at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, and_, func, or_, select, text, update

from ...core.model import HELD_BACK, BranchState, Tx
from ...ports import Backlog
from . import reading, tables, upkeep
from .tables import branch, tx

_STATES = sorted([str(BranchState.FINISHING), str(BranchState.UNDOING)])
_OF_ONE = 10
"""Branches that are looked at for each transaction that is wanted."""


def _waits() -> tuple[Any, ...]:
    # Literal: an engine uses a partial index only for what it can prove when it plans.
    return (text("txcoord_branch.next_attempt_us > 0"), branch.c.state.in_(_STATES))


def _for_target(target: str) -> tuple[Any, ...]:
    """As ``core.calling.waits_for_target``: not what waits since its time has not come, or its participant has asked.

    The failures in a row are in the column ``action`` if there are any. In its JSON only a key of a transaction's
    headers could look like theirs, with a string behind it: such a branch is never pulled forward.
    """
    a, reason = branch.c.action, branch.c.reason
    held = [or_(reason == code, reason.like(f"{code}:%")) for code in HELD_BACK]
    failed = and_(a.like('%"failures":%'), a.not_like('%"failures":"%'))
    return (*_waits(), branch.c.resource == target, or_(*held, failed))


def _decided(conn: Connection) -> Select[Any]:
    return select(tx.c.tx_id).where(tables.CARRIED_OUT.of(conn), tx.c.decision.is_not(None))


def backlog(conn: Connection) -> dict[str, Backlog]:
    """How many wait for each target, and since when the oldest of them could have been tried, or will be."""
    found = conn.execute(
        select(branch.c.resource, func.count(), func.min(branch.c.next_attempt_us))
        .where(*_waits(), branch.c.tx_id.in_(_decided(conn)))
        .group_by(branch.c.resource)
    )
    return {target: Backlog(int(count), int(oldest)) for target, count, oldest in found}


def handed_off(conn: Connection, target: str, limit: int) -> list[tuple[str, int]]:
    """Transactions that wait for this target and that no node has, by their epoch; those that are due first come
    first. Fewer than that may be found as long as there are some."""
    in_phase_two = (tx.c.decision.is_not(None), tx.c.ended_us == 0, ~tx.c.at_rest)
    found = conn.execute(
        select(tx.c.tx_id, tx.c.epoch)
        .join_from(branch, tx, branch.c.tx_id == tx.c.tx_id)
        .where(*_for_target(target), *in_phase_two, tx.c.owner == "")
        .order_by(branch.c.next_attempt_us)
        .limit(limit * _OF_ONE)  # In the order of the index: it does not look at all that wait.
    )
    return list({row.tx_id: row.epoch for row in found}.items())[:limit]


def claim(
    conn: Connection, now_us: int, owner: str, lease_us: int, due: Sequence[tuple[str, int]], target: str
) -> list[Tx]:
    """Take these over, and let what waits for this target be due at once."""
    ids = upkeep.locked_due(conn, due)
    # Not as the index has it: SQLite would take that, and look at all that waits for the target.
    _, *others = _for_target(target)
    waits = (func.coalesce(branch.c.next_attempt_us, 0) > 0, *others)
    for some in reading.chunks(ids):
        conn.execute(update(branch).where(branch.c.tx_id.in_(some), *waits).values(next_attempt_us=0))
    return upkeep.taken(conn, now_us, owner, lease_us, ids)
