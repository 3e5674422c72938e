"""Worlds in which some transactions send messages: made out of a plan of the other kinds."""

from __future__ import annotations

import random
from dataclasses import replace

from .plan import Fault, Op, Plan

SHARE = 0.3
"""Of the worlds."""
EACH = 0.6
"""Of their transactions."""


def sending(plan: Plan) -> Plan:
    """The same world, perhaps with messages."""
    rng = random.Random(f"txcoord messages {plan.seed}")
    if rng.random() >= SHARE:
        return plan
    made: dict[str, tuple[str, ...]] = {}
    ops = []
    for op in plan.ops:
        # The same work asked for again is the same work.
        first = made.get(op.name.rstrip("b"))
        messages = _of(rng, op) if first is None else first
        made.setdefault(op.name, messages)
        ops.append(replace(op, messages=messages))
    places = sorted({place for op in ops for place in op.messages})
    if not places:
        return plan
    faults = tuple(_fault(rng, places, len(ops)) for _ in range(rng.choice((0, 1, 1, 2))))
    return replace(plan, ops=tuple(ops), faults=(*plan.faults, *faults))


def _of(rng: random.Random, op: Op) -> tuple[str, ...]:
    sends = rng.random() < EACH and not op.submit and op.how in ("commit", "raise", "run")
    return tuple(rng.choices(("p1", "p2"), k=rng.choice((1, 1, 2)))) if sends else ()


def _fault(rng: random.Random, places: list[str], ops: int) -> Fault:
    seconds = round(rng.choice((0.2, 1.0, 2.5)) * rng.uniform(0.5, 1.5), 2)
    if rng.random() < 0.3:
        what = rng.choice(("crash", "hang"))
        return Fault(what, rng.choice(places), round(rng.uniform(0.0, 5.0), 2), seconds=seconds)
    target = rng.choice(("execute", "execute", "commit_work", "log_lazy", "report.before_write"))
    kinds = ["crash_client", "stop_client"]
    if target in ("execute", "commit_work"):
        kinds += ["lose_request", "lose_reply", "late", "crash_server" if target == "execute" else "late"]
    return Fault(rng.choice(kinds), target, nth=rng.randint(1, 3 * ops), seconds=seconds)
