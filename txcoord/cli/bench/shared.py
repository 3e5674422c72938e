"""`txcoord bench shared`: TCC transactions of a coordinator that has Kafka and Redis, against the same without them.

All goes well, so nothing waits for a later attempt: what is measured is what it costs to have both. Two coordinators of
the same build take turns with the same participants. With ``events`` the first one publishes, too.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Final

from txcoord_client import Coordinator

from ...testing.processes import free_port
from .calling import NAMES, Calling, folder, free_ports, started_coordinator, started_participants
from .cpu import Used
from .events import EACH, Topic
from .loop import measure
from .match import Match, Row

SHARED: Final = "shared"
ALONE: Final = "alone"


def run(
    kafka: str,
    redis: str,
    events: bool,
    concurrency: Sequence[int],
    seconds: float,
    log: str,
    emit: Callable[[str], None],
) -> int:
    """Run the bench; one JSON object a line through ``emit``. Answers the number of errors."""
    with ExitStack() as stack:
        places = [stack.enter_context(folder()) for _ in (SHARED, ALONE)]
        metrics = f"127.0.0.1:{free_port()}"
        both = {
            "METRICS_ADDRESS": metrics,
            "KAFKA__BOOTSTRAP_SERVERS": kafka,
            "KAFKA__PREFIX": f"bench-{time.time_ns()}",
            "REDIS__URL": redis,
            "EVENTS__ENABLED": str(events).lower(),
        }
        nodes = {
            SHARED: started_coordinator(places[0], log, None, stack, settings=both),
            ALONE: started_coordinator(places[1], log, None, stack),
        }
        ports = free_ports(NAMES)
        started_participants(places[0], ports, stack)
        at = {name: f"grpc://127.0.0.1:{port}" for name, port in ports.items()}
        topic = Topic(metrics) if events else None

        async def compare() -> int:
            errors = 0
            async with AsyncExitStack() as coordinators:
                once = {}
                for kind, node in nodes.items():
                    coord = await coordinators.enter_async_context(Coordinator(node.address, participants=at))
                    once[kind] = Calling(coord)
                for callers in concurrency:
                    used = {kind: Used({"coordinator": node.pid}) for kind, node in nodes.items()}
                    for row in await _compare(once, topic, used, callers, seconds):
                        errors += row["errors"]
                        emit(json.dumps({**row, "log": log, "events": events}))
            return errors

        return asyncio.run(compare())


async def _compare(
    calling: dict[str, Calling], topic: Topic | None, used: dict[str, Used], callers: int, seconds: float
) -> list[Row]:
    match = Match(seconds, SHARED, ALONE)
    late_s = 0.0
    for turn in match.turns():
        counts = turn.sample is match.samples[turn.kind]
        before = len(turn.sample.durations)
        with used[turn.kind].counted(counts):
            await measure(calling[turn.kind].tcc, callers, turn)
            if topic is not None and turn.kind == SHARED:
                topic.expected += EACH * (len(turn.sample.durations) - before)
                begun = time.monotonic()
                await topic.has_all()
                late_s += (time.monotonic() - begun) * counts
    # What comes late is part of the work.
    match.samples[SHARED].seconds += late_s
    rows = match.rows(callers)
    for row in rows:
        row["cpu_ms"] = used[row["kind"]].per(len(match.samples[row["kind"]].durations))
    return rows
