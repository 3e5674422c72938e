"""`txcoord bench notify`: notifications to endpoints that are well, alone, and beside others that are of no use.

Two coordinators of the same build take turns with the same endpoints. One of them notifies others as well, in their
share of all endpoints, and has some waiting for each of these before it begins: of thirty ten never answer, ten
answer 500, five redirect and five answer 429. What is measured is from the begin of a transaction to the end of its
one notification. That the bad ones are told, too, is work: with many callers it is that which shows.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from itertools import count
from typing import Final

from txcoord_client import Coordinator

from .answering import WEB
from .calling import NAMES, folder, free_ports, started_coordinator, started_participants
from .loop import Once, measure
from .match import Match, Row

ALONE: Final = "alone"
BESIDE: Final = "beside-bad"
BAD: Final = {"0": 10, "500": 10, "302": 5, "429": 5}
"""How many of thirty answer so; 0 never does."""
_WELL: Final = 70
_FIRST: Final = 10
"""For each of the bad ones, before it begins."""


def run(
    endpoints: int, concurrency: Sequence[int], seconds: float, log: str, emit: Callable[[str], None]
) -> int:
    """Run the bench; one JSON object a line through ``emit``. Answers the number of errors."""
    shares = {"200": _WELL, **BAD}
    names = [
        f"{WEB}{status}:{n}"
        for status, share in shares.items()
        for n in range(max(1, share * endpoints // 100))
    ]
    with ExitStack() as stack:
        places = [stack.enter_context(folder()) for _ in (ALONE, BESIDE)]
        nodes = [started_coordinator(place, log, None, stack) for place in places]
        ports = free_ports([NAMES[0], *names])  # The first is asked whether they are there.
        started_participants(places[0], ports, stack)
        del ports[NAMES[0]]
        urls = {name: f"http://127.0.0.1:{port}/hook" for name, port in ports.items()}
        well = [url for name, url in urls.items() if name.startswith(f"{WEB}200:")]
        bad = [url for url in urls.values() if url not in well]

        async def compare() -> int:
            errors = 0
            async with AsyncExitStack() as coordinators:
                apart, near = [
                    await coordinators.enter_async_context(Coordinator(node.address)) for node in nodes
                ]
                beside = _Telling(near, well, bad)
                await beside.fill()
                for callers in concurrency:
                    both: dict[str, Once] = {ALONE: _Telling(apart, well, []).once, BESIDE: beside.once}
                    rows = await _compare(both, callers, seconds)
                    rows[0]["bad"], rows[0]["told_bad"] = len(bad), beside.told_bad
                    for row in rows:
                        errors += row["errors"]
                        emit(json.dumps({**row, "well": len(well), "log": log}))
            return errors

        return asyncio.run(compare())


class _Telling:
    """One transaction with one notification, until that has arrived."""

    def __init__(self, coord: Coordinator, well: Sequence[str], bad: Sequence[str]) -> None:
        self._coord, self._well, self._bad = coord, well, bad
        self._numbers = count()
        self._owed = 0.0
        self._telling: set[asyncio.Future[None]] = set()
        self.told_bad = 0

    async def once(self, number: int) -> None:
        """In turn; the bad ones are told in their share, and not waited for."""
        place = next(self._numbers)
        self._owed += len(self._bad) / len(self._well)
        while self._owed >= 1:
            self._owed -= 1
            task = asyncio.ensure_future(self._tell_bad())
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)
        async with self._coord.begin("bench", wait="delivered") as g:
            g.notify(self._well[place % len(self._well)], {"n": number})

    async def fill(self) -> None:
        """Let some wait for each of the bad ones."""
        for _ in range(_FIRST * len(self._bad)):
            await self._tell_bad()

    async def _tell_bad(self) -> None:
        self.told_bad += 1
        async with self._coord.begin("bench") as g:
            g.notify(self._bad[self.told_bad % len(self._bad)], {"n": self.told_bad})


async def _compare(once: Mapping[str, Once], callers: int, seconds: float) -> list[Row]:
    match = Match(seconds, BESIDE, ALONE)
    for turn in match.turns():
        await measure(once[turn.kind], callers, turn)
    beside, alone = match.rows(callers)
    del beside["ratio_of_slices"]
    known = beside["p99_ms"] and alone["p99_ms"]
    beside["ratio"] = round(beside["p99_ms"] / alone["p99_ms"], 3) if known else None
    return [beside, alone]
