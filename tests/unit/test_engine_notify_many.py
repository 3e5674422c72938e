"""A thousand notifications (NOTIFICATIONS=10000: ten thousand) to a hundred targets, of which thirty are of no use, on
virtual time."""

from __future__ import annotations

import asyncio
import os
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.support.virtual import eventually, run
from txcoord.core.action import Answer, AnswerKind, Retry
from txcoord.core.model import BranchState, Kind
from txcoord.engine.recovery import RecoverySettings
from txcoord.ports import CallRequest, Clock

from .test_engine_calls import a_place
from .test_engine_deliveries import committed, message

US = 1_000_000
COUNT, OF_ONE = int(os.environ.get("NOTIFICATIONS", "1000")), 10
"""Notifications, and how many of them a transaction has."""
SCHEDULE_S = (15, 30, 180)
WAIT_S = 40
"""What those say that answer 429."""
BAD = {
    **{f"https://hung{n}": "hung" for n in range(10)},
    **{f"https://broken{n}": "HTTP_500" for n in range(10)},
    **{f"https://moved{n}": "HTTP_302" for n in range(5)},
    **{f"https://busy{n}": "HTTP_429" for n in range(5)},
}
GOOD = [f"https://good{n}" for n in range(70)]
SELDOM = RecoverySettings(deadline_sweep_s=60.0, takeover_s=5.0, prune_s=600.0)


@dataclass
class World:
    """``ports.Caller``: a hundred endpoints, each with a way of its own."""

    clock: Clock
    at: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """When each notification was called, by tx id and branch."""
    took: list[float] = field(default_factory=list)
    """How long those that arrived were on their way, since their transaction was decided."""

    async def call(
        self, target: str, requests: Sequence[CallRequest], timeout_s: float
    ) -> AsyncIterator[tuple[CallRequest, Answer]]:
        way = BAD.get(target, "")
        for r in requests:
            self.at[f"{r.tx.tx_id}/{r.branch.id}"].append(self.clock.now_us())
        if way == "hung":
            await asyncio.Event().wait()
        await asyncio.sleep(0.02)
        for r in requests:
            if way:
                wait_us = WAIT_S * US if way == "HTTP_429" else 0
                yield r, Answer(AnswerKind.FAILED, reason=way, retry_after_us=wait_us)
            else:
                self.took.append((self.clock.now_us() - r.tx.decided_us) / US)
                yield r, Answer(AnswerKind.DONE)

    async def close(self) -> None: ...


async def told(count: int, targets: Sequence[str]) -> tuple[World, dict[str, list[tuple[str, int]]]]:
    """Send so many, ten a transaction, and see them ended. Of those that were parked: why, and how many attempts."""
    retry = Retry(schedule_us=tuple(s * US for s in SCHEDULE_S))
    async with a_place() as place:
        world = World(place.clock)
        place.participants = world  # type: ignore[assignment]
        node = await place.node(recovery=SELDOM)
        for first in range(0, count, OF_ONE):
            ours = [targets[n % len(targets)] for n in range(first, first + OF_ONE)]
            await committed(
                node,
                place.tx(),
                *(message(str(n), t, Kind.NOTIFY, retry=retry) for n, t in enumerate(ours, 1)),
            )
        await eventually(
            lambda: all(row.ended_us or row.rests for row in place.storage.rows.values()),
            within_s=7200,
            step_s=10,
        )
        parked: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for row in place.storage.rows.values():
            for b in row.branches:
                assert b.state is (BranchState.PARKED if b.resource in BAD else BranchState.DONE), b
                if b.resource in BAD:
                    parked[b.resource].append((f"{row.tx_id}/{b.id}", b.attempts))
        return world, parked


def p99(took: list[float]) -> float:
    return sorted(took)[len(took) * 99 // 100]


def test_the_others_are_as_quick_as_alone_and_the_rest_parks_as_scheduled() -> None:
    async def main() -> None:
        alone, none = await told(700, GOOD)
        assert not none
        # All in turn: each transaction has some of both.
        mixed = [*BAD, *GOOD]
        mixed = [mixed[n * 37 % len(mixed)] for n in range(len(mixed))]
        world, parked = await told(COUNT, mixed)
        assert len(world.took) == COUNT * 70 // 100
        assert p99(world.took) <= 2 * p99(alone.took)
        assert {t: len(found) for t, found in parked.items()} == dict.fromkeys(BAD, COUNT // 100)
        attempts = Counter(count for found in parked.values() for _, count in found)
        assert attempts == {len(SCHEDULE_S) + 1: COUNT * 30 // 100}
        for target, found in parked.items():
            for key, _ in found:
                at = world.at[key]
                pauses = [(b - a) / US for a, b in pairwise(at)]
                least = [max(s, WAIT_S) if BAD[target] == "HTTP_429" else s for s in SCHEDULE_S]
                assert all(p >= s for p, s in zip(pauses, least, strict=True)), (target, pauses)
                if BAD[target] != "hung":  # Its breaker is open: one of those that wait a second.
                    assert all(p <= s + 5 for p, s in zip(pauses, least, strict=True)), (target, pauses)

    run(main())
