"""Planted bugs of deliveries: of when they leave, and of how long they are kept."""

from __future__ import annotations

from typing import Any

import txcoord.core.settle as settle
import txcoord.engine.ordering as ordering
import txcoord_client._finish as finish
from txcoord.core.evolve import replace
from txcoord.core.model import Decision, Tx


def leave_when_decided(right: Any) -> Any:
    def close(tx: Tx, now_us: int) -> Tx:
        tx = right(tx, now_us)
        if tx.ended or tx.decision is not Decision.COMMIT:
            return tx
        return replace(tx, branches=tuple(settle._freed(b) if b.kind.is_delivery else b for b in tx.branches))

    return close


def over_with_the_others(right: Any) -> Any:
    def over(tx: Tx, now_us: int) -> Tx:
        return replace(tx, ended_us=tx.ended_us or now_us)

    return over


def committed_before_they_are_durable(right: Any) -> Any:
    async def enlist(tx: Any) -> None:
        if not tx.initiator:
            await right(tx)
            return
        tx._runtime.tasks.spawn("too late", right, tx)

    return enlist


def out_of_turn(_right: Any) -> Any:
    def ask(_self: Any, _key: Any, waiting: Any) -> None:
        waiting.go()

    return ask


PLANTS = (
    (
        "out-of-turn",
        "a message with an order key leaves when those before it have ended",
        ordering.Ordering,
        "ask",
        out_of_turn,
    ),
    (
        "leave-early",
        "a delivery leaves only once every other branch is done",
        settle,
        "close",
        leave_when_decided,
    ),
    (
        "over-early",
        "a transaction is over only once its deliveries have ended: until then somebody has it",
        settle,
        "_over",
        over_with_the_others,
    ),
    (
        "commit-first",
        "messages are durable before the local COMMIT is sent",
        finish,
        "_enlist_deliveries",
        committed_before_they_are_durable,
    ),
)
"""Name, rule, where, attribute, and what is there instead."""
