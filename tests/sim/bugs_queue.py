"""Planted bugs of handing off: of the queue, of claiming what is due, and of the sweep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import txcoord.engine.carrier as carrier
import txcoord.engine.due as due
from txcoord.core.events import Call, Finish
from txcoord.core.model import Tx

_LONG_US = 86_400_000_000


def early_retry(right: Any) -> Any:
    def resume(tx: Tx) -> Any:
        return tuple(replace(e, at_us=0) if isinstance(e, Call | Finish) else e for e in right(tx))

    return resume


def lost_sweep(right: Any) -> Any:
    def handed_off(self: Any, live: Any, tx: Tx) -> Tx | None:
        row = right(self, live, tx)
        return replace(row, lease_until_us=row.lease_until_us + _LONG_US) if row is not None else None

    return handed_off


def consumed_before_the_log(right: Any) -> Any:
    async def outcome(self: Any, claimed: Tx) -> None:
        pass

    return outcome


PLANTS = (
    (
        "early-retry",
        "who claims a transaction tries none of its branches before its time",
        carrier,
        "resume",
        early_retry,
    ),
    (
        "lost-sweep",
        "what is handed off has a lease that ends soon after it is due, so that what the queue loses is taken over",
        carrier.Carrier,
        "_handed_off",
        lost_sweep,
    ),
    (
        "offset-before-outcome",
        "what the queue has brought counts as consumed when its outcome is in the log",
        due.Carrying,
        "_outcome",
        consumed_before_the_log,
    ),
)
"""Name, rule, where, attribute, and what is there instead."""
