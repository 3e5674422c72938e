"""Planted bugs of the gate: of breakers."""

from __future__ import annotations

from typing import Any

import txcoord.core.breaker as breaker


def starves(right: Any) -> Any:
    def may_probe(self: Any, now_us: int) -> bool:
        return False

    return may_probe


PLANTS = (
    (
        "breaker-starves",
        "a target that was found dead is probed, so that what waits for it is tried again in bounded time",
        breaker.Health,
        "may_probe",
        starves,
    ),
)
"""Name, rule, where, attribute, and what is there instead."""
