"""`txcoord bench events`: TCC transactions with the event topic on, against the same with it off.

Two coordinators of the same build take turns with the same participants; the first one publishes to a Kafka that is
given. A turn of it has ended when all its events are on the topic: what was only put off would cost the next turn.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Any, Final

from txcoord_client import Coordinator

from ...testing.processes import free_port
from .calling import NAMES, Calling, folder, free_ports, started_coordinator, started_participants
from .cpu import Used
from .loop import Once, measure
from .match import Match, Row

ON: Final = "events-on"
OFF: Final = "events-off"
EACH: Final = 2
"""Events of a transaction: decided, and at its end."""
_SENT: Final = re.compile(r'^txcoord_events_total\{outcome="sent",topic="events"\} (\S+)$', re.MULTILINE)


def run(kafka: str, concurrency: Sequence[int], seconds: float, log: str, emit: Callable[[str], None]) -> int:
    """Run the bench; one JSON object a line through ``emit``. Answers the number of errors."""
    with ExitStack() as stack:
        places = [stack.enter_context(folder()) for _ in (ON, OFF)]
        metrics = f"127.0.0.1:{free_port()}"
        more = {
            "METRICS_ADDRESS": metrics,
            "EVENTS__ENABLED": "true",
            "KAFKA__BOOTSTRAP_SERVERS": kafka,
            "KAFKA__PREFIX": f"bench-{time.time_ns()}",
        }
        queue = {key: value for key, value in more.items() if key.startswith("KAFKA")}
        on = started_coordinator(places[0], log, None, stack, settings=more)
        off = started_coordinator(
            places[1], log, None, stack, settings={**queue, "KAFKA__PREFIX": "bench-off"}
        )
        ports = free_ports(NAMES)
        started_participants(places[0], ports, stack)
        at = {name: f"grpc://127.0.0.1:{port}" for name, port in ports.items()}

        async def compare() -> int:
            errors = 0
            async with AsyncExitStack() as coordinators:
                once = {
                    kind: await coordinators.enter_async_context(Coordinator(node.address, participants=at))
                    for kind, node in ((ON, on), (OFF, off))
                }
                topic = Topic(metrics)
                for callers in concurrency:
                    pids = {ON: {"coordinator": on.pid}, OFF: {"coordinator": off.pid}}
                    for row in await _compare(once, topic, pids, callers, seconds):
                        errors += row["errors"]
                        emit(json.dumps({**row, "log": log}))
            return errors

        return asyncio.run(compare())


class Topic:
    """How many events are on the topic, by the coordinator's metrics."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/metrics"
        self.expected = 0

    async def has_all(self) -> None:
        """Wait until all that are expected are there."""
        while await asyncio.to_thread(self._sent) < self.expected:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.02)

    def _sent(self) -> int:
        with urllib.request.urlopen(self._url, timeout=10) as answer:
            found = _SENT.search(answer.read().decode())
        return round(float(found[1])) if found else 0


async def _compare(
    coordinators: Mapping[str, Coordinator],
    topic: Topic,
    pids: Mapping[str, Mapping[str, int]],
    callers: int,
    seconds: float,
) -> list[Row]:
    once: dict[str, Once] = {kind: Calling(coord).tcc for kind, coord in coordinators.items()}
    match = Match(seconds, ON, OFF)
    used = {kind: Used(of) for kind, of in pids.items()}
    late_s = 0.0
    for turn in match.turns():
        counts = turn.sample is match.samples[turn.kind]
        before = len(turn.sample.durations)
        with used[turn.kind].counted(counts):
            await measure(once[turn.kind], callers, turn)
            if turn.kind == ON:
                topic.expected += EACH * (len(turn.sample.durations) - before)
                begun = time.monotonic()
                await topic.has_all()
                late_s += (time.monotonic() - begun) * counts
    # What comes late is part of the work.
    match.samples[ON].seconds += late_s
    rows = match.rows(callers)
    cpu_ms: dict[str, Any] = {}
    for row in rows:
        cpu_ms[row["kind"]] = used[row["kind"]].per(len(match.samples[row["kind"]].durations))
        row["cpu_ms"] = cpu_ms[row["kind"]]
    rows[0]["late_s"] = round(late_s, 2)
    if all(cpu_ms.values()):
        more = cpu_ms[ON]["coordinator"] - cpu_ms[OFF]["coordinator"]
        rows[0]["cpu_ms_of_event"] = round(more / EACH, 4)
    return rows
