"""`txcoord bench hung`: a participant that is well, alone, and beside others that take calls and never answer them.

Two coordinators of the same build take turns with the same participant. One of them has plans for twenty more that
hang: half of these accept the call and never answer it, half accept the connection and never say a word.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Any, Final

from txcoord_client import Coordinator, saga

from .answering import DEAF, HUNG, declared
from .calling import NAMES, Calling, folder, free_ports, started_coordinator, started_participants
from .loop import Once, measure
from .match import Match, Row

ALONE: Final = "alone"
BESIDE: Final = "beside-hung"
_PLANS: Final = 50
"""For each that hangs."""


def run(hung: int, concurrency: Sequence[int], seconds: float, log: str, emit: Callable[[str], None]) -> int:
    """Run the bench; one JSON object a line through ``emit``. Answers the number of errors."""
    with ExitStack() as stack:
        places = [stack.enter_context(folder()) for _ in (ALONE, BESIDE)]
        alone, beside = (started_coordinator(place, log, None, stack) for place in places)
        hanging = [f"{HUNG if n % 2 else DEAF}hung{n}" for n in range(hung)]
        all_ports = free_ports([*NAMES, *hanging])
        ports, hung_ports = {n: all_ports[n] for n in NAMES}, {n: all_ports[n] for n in hanging}
        started_participants(places[0], all_ports, stack)
        at = {name: f"grpc://127.0.0.1:{port}" for name, port in ports.items()}
        away = {name.rpartition(":")[2]: f"grpc://127.0.0.1:{port}" for name, port in hung_ports.items()}

        async def compare() -> int:
            errors = 0
            async with AsyncExitStack() as coordinators:
                apart = await coordinators.enter_async_context(Coordinator(alone.address, participants=at))
                near = await coordinators.enter_async_context(
                    Coordinator(beside.address, participants=at | away)
                )
                plans = await _hang(near, away)
                for callers in concurrency:
                    rows = await _compare({ALONE: apart, BESIDE: near}, callers, seconds)
                    rows[0]["hung"] = len(away)
                    rows[0]["waiting"] = await _still_running(near, plans)
                    rows[0]["errors"] += len(plans) - rows[0]["waiting"]
                    for row in rows:
                        errors += row["errors"]
                        emit(json.dumps({**row, "log": log}))
            return errors

        return asyncio.run(compare())


async def _hang(coord: Coordinator, names: Mapping[str, str]) -> list[str]:
    """Plans whose only step is never answered."""

    async def some(name: str) -> list[str]:
        flow = saga("hung").step(declared(name)[2])
        return [(await coord.submit(flow, data={"item": n, "n": 1})).tx_id for n in range(_PLANS)]

    return [tx_id for made in await asyncio.gather(*map(some, names)) for tx_id in made]


async def _still_running(coord: Coordinator, plans: Sequence[str]) -> int:
    outcomes: list[Any] = []
    for first in range(0, len(plans), 100):
        outcomes += await asyncio.gather(*(coord.get(tx_id=tx_id) for tx_id in plans[first : first + 100]))
    return sum(out is not None and out.state == "RUNNING" for out in outcomes)


async def _compare(coordinators: Mapping[str, Coordinator], callers: int, seconds: float) -> list[Row]:
    once: dict[str, Once] = {name: Calling(coord).tcc for name, coord in coordinators.items()}
    match = Match(seconds, BESIDE, ALONE)
    for turn in match.turns():
        await measure(once[turn.kind], callers, turn)
    beside, alone = match.rows(callers)
    del beside["ratio_of_slices"]
    # Of the slowest hundredth, not of how many: that is what hung ones would spoil.
    known = beside["p99_ms"] and alone["p99_ms"]
    beside["ratio"] = round(beside["p99_ms"] / alone["p99_ms"], 3) if known else None
    return [beside, alone]
