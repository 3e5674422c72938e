"""What must be so when a database has caught up: by the log's rows, and by those of the databases themselves."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tests.faults.outage_check import Found, Row, spread

NAMES: Final = ("accounts", "ledger")
"""On PostgreSQL, and on MariaDB."""
COUNTERS: Final = 8


class Unit(NamedTuple):
    """One ``g.sql``: an increment, and a row of a table without a key."""

    name: str
    counter: int
    by: int


@dataclass(frozen=True)
class Asked:
    """One transaction."""

    gid: str
    start: float
    units: tuple[Unit, ...]
    """Its branches 1, 2, …"""
    gives_up: bool
    """Its client rolls back."""
    often: bool
    """Tried again each second or so; else as notifications are."""


class Done(NamedTuple):
    """A row of ``done``."""

    gid: str
    branch: str
    at_us: int


@dataclass
class Rows:
    """All that is read."""

    txs: dict[str, Row]
    """By gid."""
    decided_us: dict[str, int]
    """By gid."""
    open: Counter[str]
    """Branches that are not done, by state."""
    done: dict[str, list[Done]]
    """By database."""
    counters: dict[str, list[int]]
    """By database."""
    markers: dict[str, set[tuple[str, str]]]
    """By database: tx id and branch."""
    repeated: Counter[str] = field(default_factory=Counter)
    """By database: units that came when they had been done."""


def drawn(units: int, window: float, seed: int) -> list[Asked]:
    """All that is asked for, at least so many units, in the order of their start."""
    rng = random.Random(seed)
    out: list[Asked] = []
    count = 0
    while count < units:
        names = rng.choice([("accounts", "ledger"), ("ledger", "accounts"), ("ledger",), ("accounts",)])
        parts = tuple(Unit(name, rng.randint(1, COUNTERS), rng.randint(1, 1000)) for name in names)
        gid = f"catch-up-{seed}-{len(out)}"
        out.append(Asked(gid, rng.uniform(0, window), parts, rng.random() < 0.1, rng.random() < 0.5))
        count += len(parts)
    return sorted(out, key=lambda asked: asked.start)


def check(
    asked: Sequence[Asked],
    answers: Mapping[str, str],
    rows: Rows,
    gone: str,
    back_us: int,
    found: Found,
) -> None:
    """Each unit of what is committed once in effect, none of what is not; nothing parked, nothing forgotten."""
    committed = _outcomes(asked, answers, rows, found)
    if rows.open:
        found.wrong.append(f"deliveries that are not done: {dict(rows.open)}")
    late: dict[str, list[int]] = {name: [] for name in NAMES}
    for name in NAMES:
        wanted = {
            (one.gid, str(number)): unit
            for one in committed
            for number, unit in enumerate(one.units, 1)
            if unit.name == name
        }
        came = Counter((done.gid, done.branch) for done in rows.done[name])
        for key in sorted(wanted.keys() | came.keys()):
            if came[key] != (key in wanted):
                found.wrong.append(f"{name}: {key[0]} unit {key[1]} is there {came[key]} times")
        sums = [0] * COUNTERS
        for unit in wanted.values():
            sums[unit.counter - 1] += unit.by
        if rows.counters[name] != sums:
            found.wrong.append(f"{name}: its counters are {rows.counters[name]}, and should be {sums}")
        if rows.markers[name] != {(rows.txs[gid].tx_id, branch) for gid, branch in wanted}:
            found.wrong.append(f"{name}: its markers are not those of the units that are committed")
        for done in rows.done[name]:
            due = max(rows.decided_us.get(done.gid, 0), back_us if name == gone else 0)
            late[name].append(max(0, done.at_us - due))
    waited = [done for done in rows.done[gone] if rows.decided_us.get(done.gid, 0) < back_us <= done.at_us]
    if not waited:
        found.wrong.append(f"{gone} was not down for anything: nothing had to catch up")
    f = found.figures
    f["transactions"] = f"{len(asked)}, committed {len(committed)}"
    f["units in effect"] = ", ".join(f"{len(rows.done[name])} {name}" for name in NAMES)
    f[f"of them caught up by {gone}"] = len(waited)
    f["units that came again, and did nothing"] = ", ".join(f"{rows.repeated[name]} {name}" for name in NAMES)
    for name in NAMES:
        since = "the commit, and the return" if name == gone else "the commit"
        f[f"{name}: s after {since} (p50 p99 max)"] = spread(late[name])


def _outcomes(asked: Sequence[Asked], answers: Mapping[str, str], rows: Rows, found: Found) -> list[Asked]:
    """Those that are committed; what clients were told is what the log says."""
    committed = []
    for one in asked:
        row = rows.txs.get(one.gid)
        state = row.state if row is not None else "aborted"  # One that never came to be.
        answer = answers.get(one.gid, "unknown")
        if answer in ("committed", "aborted") and answer != state:
            found.wrong.append(f"{one.gid}: its client was told {answer}, and the log says {state}")
        if state not in ("committed", "aborted"):
            found.wrong.append(f"{one.gid}: its state is {state}")
        if state == "committed":
            committed.append(one)
    told = Counter(answers.get(one.gid, "unknown") for one in asked)
    found.figures["clients were told"] = ", ".join(f"{n} {what}" for what, n in sorted(told.items()))
    return committed
