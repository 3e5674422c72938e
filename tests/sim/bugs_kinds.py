"""Planted bugs of TCC and saga: of the barrier, and of how plans are run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import txcoord.adapters.sql.upkeep as upkeep
import txcoord.core.answers as answers
import txcoord.core.plans as plans
import txcoord.engine.carrier as carrier
import txcoord.engine.coordinator as coordinator
import txcoord_client._barrier as barrier
from txcoord.core.machine import resume
from txcoord.core.model import Decision, Tx
from txcoord_client.protocol import barrier as statements
from txcoord_client.protocol.barrier import FIRST, UNDOING


def late_try_acts(right: Any) -> Any:
    async def enter(db: Any, call: Any, keep_days: int = 0) -> Any:
        try:
            return await right(db, call, keep_days)
        except barrier.Refused as refused:
            if refused.reason != barrier.reasons.DECIDED:
                raise
            return barrier._SqlEntry(call, True, None, db)

    return enter


def _undoing(first: tuple[int, ...]) -> Any:
    """An undoing call does its work when so many rows were inserted."""

    def wrong(right: Any) -> Any:
        async def enter(db: Any, call: Any, keep_days: int = 0) -> Any:
            if call.op not in UNDOING:
                return await right(db, call, keep_days)
            of = barrier._statements(db)
            inserted = await db.run(of.enter(call.tx_id, call.branch, call.op, 0))
            row = await db.row(of.read(call.tx_id, call.branch, FIRST[call.op]))
            if inserted not in first or (not inserted and row[0] != barrier.marker.DONE):
                return barrier._SqlEntry(call, False, None, db)
            return barrier._SqlEntry(call, True, row[1] if row is not None else None, db)

        return enter

    return wrong


double_compensate = _undoing((0, 1))
empty_cancel_acts = _undoing((1, 2))


def no_tombstone(right: Any) -> Any:
    def rows(op: str) -> Any:
        return right(op)[:1]

    return rows


def act_before_the_log(right: Any) -> Any:
    async def write(self: Any, new: Tx, change: Any) -> Any:
        if new.decision is Decision.ABORT and self.live.get(new.tx_id) is not None:
            self.live.put(replace(new))
            self._carry_out(new, resume(new))
        return await right(self, new, change)

    return write


def claim_keeps_the_version(right: Any) -> Any:
    def case(*_: Any, else_: Any) -> Any:
        return else_

    return case


def nothing_is_held(right: Any) -> Any:
    @contextmanager
    def holding(self: Any, tx_id: str) -> Iterator[None]:
        yield

    return holding


def believe_the_row(right: Any) -> Any:
    def as_read(tx: Tx) -> Tx:
        return tx

    return as_read


def believe_each_no(right: Any) -> Any:
    def only(tx: Tx, branch: Any) -> bool:
        return True

    return only


PLANTS = (
    (
        "late-try",
        "a try or action that finds the tombstone of its cancel or compensation does nothing",
        barrier,
        "enter",
        late_try_acts,
    ),
    (
        "no-tombstone",
        "a cancel or compensation takes the row of its try or action, so that a late one does nothing",
        statements,
        "_rows",
        no_tombstone,
    ),
    (
        "double-compensate",
        "a cancel or compensation that was done before is not done again",
        barrier,
        "enter",
        double_compensate,
    ),
    (
        "empty-cancel",
        "a cancel or compensation with nothing to undo does nothing",
        barrier,
        "enter",
        empty_cancel_acts,
    ),
    (
        "undo-before-log",
        "nothing is compensated or cancelled before the abort is in the log",
        coordinator.Coordinator,
        "_write",
        act_before_the_log,
    ),
    (
        "stale-owner",
        "who takes an undecided plan over raises its version, so that its old owner decides nothing",
        upkeep,
        "case",
        claim_keeps_the_version,
    ),
    (
        "news-not-held",
        "no step begins, or counts as done, while a decision on its plan is being written",
        carrier.Carrier,
        "_holding_news",
        nothing_is_held,
    ),
    (
        "row-believed",
        "a step of an undecided plan that the log has as not begun may have begun",
        plans,
        "as_read",
        believe_the_row,
    ),
    (
        "no-believed",
        "a no is believed only of a step's only attempt",
        answers,
        "_only_attempt",
        believe_each_no,
    ),
)
"""Name, rule, where, attribute, and what is there instead."""
