"""What is asked for in an outage, and what breaks when: drawn from a seed before anything starts."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.faults.outage_participant import NAMES, How

CLIENT_SAYS_NO: Final = "client says no"
REPORTING: Final = "reporting"
"""A database for best-effort SQL."""


@dataclass(frozen=True)
class Form:
    """How large, and how long. Times in seconds from the first transaction on."""

    sagas: int = 1_000
    tccs: int = 1_000
    window: float = 60.0
    """All begin within it."""
    down: tuple[float, float] = (12.0, 42.0)
    """When the participant is killed, and started again."""
    redis_killed: float = 14.0
    broker: tuple[float, float] = (16.0, 24.0)
    """When it is killed, and started again."""
    coordinator_killed: float = 24.0
    worker_killed: float = 34.0
    timeout: float = 180.0
    """Of a transaction."""
    pend: tuple[float, float] = (0.3, 5.0)
    """What a participant that is not ready asks for."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of all nodes, beside those that they always have."""
    storms: bool = False
    """The retry topics are deleted, a third worker joins, and records are spoilt."""


LONG: Final = Form()
SHORT: Final = Form(
    sagas=40,
    tccs=40,
    window=8.0,
    down=(2.0, 6.0),
    redis_killed=2.5,
    broker=(3.0, 4.0),
    coordinator_killed=3.5,
    worker_killed=5.0,
    timeout=60.0,
    pend=(0.3, 1.5),
    settings={
        "KAFKA__TIERS": "200ms, 500ms, 1s, 2s",
        "BACKOFF__FIRST": "2s",
        "BACKOFF__CAP": "4s",
    },
)


@dataclass(frozen=True)
class Asked:
    """One transaction."""

    kind: str
    gid: str
    start: float
    think: float
    """TCC: between the tries and the end."""
    parts: tuple[str, ...]
    """Who has branch 1, 2, …"""
    how: How
    gives_up: bool = False
    """TCC: its client rolls back."""
    told: tuple[tuple[str, str], ...] = ()
    """TCC: what is delivered to whom when it is committed, as branches 3, 4, …: a message, a notification, SQL."""


def drawn(form: Form, seed: int) -> list[Asked]:
    """All that is asked for, in the order of their start."""
    rng = random.Random(seed)
    tccs = [_tcc(form, rng, f"tcc-{seed}-{n}") for n in range(form.tccs)]
    sagas = [_saga(form, rng, f"saga-{seed}-{n}") for n in range(form.sagas)]
    return sorted([*tccs, *sagas], key=lambda asked: asked.start)


def _tcc(form: Form, rng: random.Random, gid: str) -> Asked:
    gone, back = form.down
    how: How = {}
    for branch in "12":
        for op in ("confirm", "cancel"):
            _troubled(form, rng, how, f"{branch} {op}")
    if rng.random() < 0.5:
        # Held before the participant dies, and decided while it is dead.
        start = rng.uniform(0, gone * 0.8)
        think = rng.uniform(gone, back) - start
        parts = rng.choice([("stock", "payment"), ("payment", "stock")])
    else:
        start, think = rng.uniform(0, form.window), rng.uniform(0, 0.5)
        dead = gone - 1 < start < back
        # A few go to the dead one, and are aborted.
        well = not dead or rng.random() < 0.05
        parts = ("payment", "stock" if well else "payment")
    if rng.random() < 0.03:
        how["2 try"] = ["no"]
    every = [("message", rng.choice(NAMES)), ("notify", rng.choice(NAMES)), ("sql", REPORTING)]
    told = tuple(one for one in every if rng.random() < 0.4)
    for number, (what, _) in enumerate(told, 3):
        _troubled(form, rng, how, f"{number} {what}")
    return Asked("tcc", gid, start, think, parts, how, rng.random() < 0.1, told)


def _saga(form: Form, rng: random.Random, gid: str) -> Asked:
    gone, back = form.down
    how: How = {}
    if rng.random() < 0.4:
        # Its second step hesitates until the participant of the first is dead; then it often says no.
        start = rng.uniform(0, gone * 0.8)
        parts = ("stock", "payment", "payment")
        how["2 action"] = [f"pend {rng.uniform(gone, back) - start:.3f}"]
        if rng.random() < 0.6:
            how["2 action"].append("no")
    else:
        start = rng.uniform(0, form.window)
        parts = tuple(rng.choice(("stock", "payment")) for _ in "123")
        for branch in "123":
            _troubled(form, rng, how, f"{branch} action")
        if rng.random() < 0.1:
            how["3 action"] = ["no"]
    for branch in "12":
        _troubled(form, rng, how, f"{branch} compensate")
    return Asked("saga", gid, start, 0.0, parts, how)


def _troubled(form: Form, rng: random.Random, how: How, key: str) -> None:
    lot = rng.random()
    if lot < 0.05:
        how[key] = ["fail"] * rng.randint(1, 2)
    elif lot < 0.15:
        how[key] = [f"pend {rng.uniform(*form.pend):.3f}" for _ in range(rng.randint(1, 2))]
