"""What a run looks like: its progress, on a terminal or piped, and its summary."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from .check import ABORTED, COMMITTED, FAILED, REFUSED, UNKNOWN, Verdict
from .clients import Clients, Wish
from .world import World

if TYPE_CHECKING:
    from .run import Result

_WHY = {
    "APPLICATION_ERROR": "a database was down while it worked",
    "DEADLINE": "its service or coordinator had died, and the deadline decided",
    "CONNECTION_LOST": "a database died at the end of the work",
    "SERIALIZATION_FAILURE": "serialization failure",
    "DEADLOCK": "deadlock, also across the two databases",
    "LOCK_TIMEOUT": "waited too long for a lock, also across the two databases",
    "RESOURCE_BUSY": "no connection to a database until the deadline",
    "ORPHAN": "prepared, then its service died",
    "SETTLED": "the reply to its commit was lost, and asking found that nothing was committed",
}


class Screen:
    """One line that changes on a terminal; piped, a line now and then. What happens is a line of its own."""

    def __init__(self, kills: int, every_s: float, *, events: bool = True) -> None:
        terminal = sys.stdout.isatty()
        self.console = Console(width=None if terminal else 120, highlight=False)
        self.begun = time.monotonic()
        self._kills = kills
        self._every_s = every_s
        self._events = events
        self._last = 0.0
        self._live = Live(console=self.console, refresh_per_second=8, transient=True) if terminal else None

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, soft_wrap=True)

    def event(self, text: str) -> None:
        """Something happened now."""
        if self._events:
            self.say(f"{self._now()}  [yellow]{text}[/]")

    def progress(self, clients: Clients, world: World) -> None:
        """How far it is."""
        told = clients.told
        line = (
            f"{self._now()}  {len(clients.wishes):,} payments: {told[COMMITTED]:,} committed, "
            f"{told[ABORTED]:,} aborted, {told[REFUSED]:,} refused; "
            f"{world.kills.total()} of {self._kills} kills"
        )
        if self._live is not None:
            down = f"  down: {', '.join(sorted(world.down))}" if world.down else ""
            self._live.update(line + down)
        elif time.monotonic() - self._last >= self._every_s:
            self._last = time.monotonic()
            self.say(line)

    def _now(self) -> str:
        return f"{time.monotonic() - self.begun:6.1f} s"


def money(cents: int) -> str:
    """For people."""
    return f"{cents / 100:,.2f}"


def summary(result: Result) -> Table:
    """What became of everything."""
    clients, verdict, kills = result.clients, result.verdict, result.kills
    busy_s, waited_s = result.busy_s, result.settled_s
    told, doubted = verdict.told, verdict.doubted
    sums = " + ".join(f"{name} {money(cents)}" for name, cents in verdict.sums.items())
    rows = [
        ("money before", money(verdict.money_before)),
        ("money after", f"{money(verdict.money_after)}  ({sums})"),
        ("kills survived (SIGKILL)", f"{kills.total()}: {_counts(kills)}"),
        *_disturbances(result),
        (
            "payments asked for",
            f"{len(clients.wishes):,} in {busy_s:.0f} s; asked again {clients.repeats:,} times; "
            f"the longest wait for an answer was {clients.longest_s:.1f} s",
        ),
        ("told committed", f"{told[COMMITTED]:,}: every one is there, complete, and once"),
        (
            "  of all that is there",
            f"{verdict.done:,}, of them {verdict.one_phase:,} within one database (one-phase)",
        ),
        *_of_tills(verdict),
        ("told refused (no funds)", f"{told[REFUSED]:,}: none is there"),
        ("told aborted", f"{told[ABORTED]:,}: none is there"),
        *((f"  {count:,}", why) for why, count in _reasons(clients.wishes.values()).most_common()),
    ]
    if told[FAILED]:
        rows.append(("gave up before any commit", f"{told[FAILED]:,}: none is there"))
    in_doubt = doubted.total()
    rows += [
        (
            "were in doubt for a while",
            f"{in_doubt:,}: {doubted[COMMITTED]:,} turned out committed, "
            f"{doubted[ABORTED] + doubted[REFUSED]:,} aborted"
            + (
                f"; {doubted[UNKNOWN]:,} still unknown to their clients "
                f"({verdict.unknown_done:,} are there, complete)"
                if doubted[UNKNOWN]
                else "; none is left"
            ),
        ),
        (
            "left prepared, or in limbo",
            f"{verdict.prepared_left + verdict.limbo_left} of ours, {waited_s:.1f} s after the last answer",
        ),
        ("foreign prepared ones", f"{verdict.foreign_left}, untouched"),
        (
            "checked",
            f"{verdict.calls:,} calls, {verdict.observations:,} times what a coordinator said, "
            "all rows of both databases",
        ),
    ]
    table = Table(title="What became of it", show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column()
    for name, text in rows:
        table.add_row(name, text)
    return table


def conclusion(verdict: Verdict) -> Iterable[str]:
    """In one line; and if all is not well, what is wrong."""
    if verdict.good:
        yield "[bold green]Nothing was lost, doubled, torn or left behind, and every client was told the truth."
        return
    yield f"[bold red]{len(verdict.anomalies)} anomalies:"
    for line in verdict.anomalies[:20]:
        yield f"  {line}"


def _of_tills(verdict: Verdict) -> Iterable[tuple[str, str]]:
    if verdict.branches:
        yield "  reservations and steps of sagas", f"{verdict.branches:,}: each kept, or undone, as decided"


def _disturbances(result: Result) -> Iterable[tuple[str, str]]:
    if result.stops or result.jams:
        yield "stopped (SIGSTOP)", f"{result.stops} times; network faults: {result.jams}"
    if result.ended:
        yield (
            "ended by themselves",
            f"{len(result.ended)}, and were started again: {', '.join(result.ended[:3])}",
        )


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))


def _reasons(wishes: Iterable[Wish]) -> Counter[str]:
    """Why the aborted ones were: in words."""
    out: Counter[str] = Counter()
    for wish in wishes:
        if wish.told == ABORTED:
            failed = FAILED in wish.words
            out["a database was down while it worked" if failed else _WHY.get(wish.why, wish.why)] += 1
    return out
