"""Every crash point of every scenario: the coordinator dies there, another one comes, and the databases are asked.

First one run counts what is reached, then there is one run for each hit. In process, on real PostgreSQL, with the
log on SQLite, on PostgreSQL and on MariaDB.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from operator import and_

import pytest

from tests.faults.crashing import Hit, crash_points
from tests.faults.enumeration import Places
from tests.faults.scenarios import (
    SCENARIOS,
    Scenario,
    commit_with_gid,
    one_phase_whose_reply_was_lost,
    rollback,
)
from txcoord.engine import failpoints

pytestmark = [  # Who dies while it connects leaves its sockets open.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ALL_PAIRS = os.environ.get("TXCOORD_ALL_PAIRS") == "1"
TWICE = (commit_with_gid, rollback, one_phase_whose_reply_was_lost)
LEAVES_MUCH = (
    ("commit.after_write", 1),
    ("rollback.after_write", 1),
    ("finish.after", 2),
    ("probe.after", 1),
)
Record = Callable[[Scenario, int], None]


@pytest.fixture(scope="module")
def record() -> Iterator[Record]:
    """Counts what was enumerated, and says it in the end."""
    count: Counter[str] = Counter()

    def add(scenario: Scenario, points: int) -> None:
        count[scenario.__name__] += points

    yield add
    print(f"\n{count.total()} crash points: {dict(count)}")


# ---- tests ----


async def counted(places: Places, scenario: Scenario, *crashes: Hit) -> Counter[str]:
    """What is reached after these crashes: of three runs, what is common to all. (Under load a step may be tried
    once more.)"""
    runs = await places.enumerate(scenario, [crashes] * 3)
    return reduce(and_, (run.reached[-1] for run in runs if not run.points.unfired))


async def all_of(places: Places, scenario: Scenario, crashes: Sequence[Sequence[Hit]]) -> list[Sequence[Hit]]:
    """None of them does harm; those that did not happen."""
    runs = await places.enumerate(scenario, crashes)
    return [crash for crash, run in zip(crashes, runs, strict=True) if run.points.unfired]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
async def test_dies_at_each_point_once(scenario: Scenario, places: Places, record: Record) -> None:
    points = crash_points(await counted(places, scenario))
    assert await all_of(places, scenario, [(point,) for point in points]) == []
    record(scenario, len(points))


@pytest.mark.timeout(1200 if ALL_PAIRS else 120)
@pytest.mark.parametrize("scenario", SCENARIOS if ALL_PAIRS else TWICE, ids=lambda s: s.__name__)
async def test_dies_again_at_each_point_of_its_recovery(
    scenario: Scenario, places: Places, record: Record
) -> None:
    """With TXCOORD_ALL_PAIRS=1 after every first crash; otherwise after those that leave the most to do."""
    for first in crash_points(await counted(places, scenario)):
        if not ALL_PAIRS and first not in LEAVES_MUCH:
            continue
        pairs = [(first, second) for second in crash_points(await counted(places, scenario, first))]
        missed = await all_of(places, scenario, pairs)
        # In a recovery phase two and the scanner race: either may leave the other nothing to do.
        assert len(missed) * 5 <= len(pairs), missed
        record(scenario, len(pairs) - len(missed))


@pytest.mark.timeout(60)
async def test_every_failpoint_is_reached(places: Places) -> None:
    """So none of those above has been left out."""
    clean = await places.run([(scenario, ()) for scenario in SCENARIOS])
    (again,) = await places.enumerate(commit_with_gid, [[("commit.after_write", 1)]])
    reached = set[str]().union(*(run.reached[0] for run in clean), again.reached[1])
    assert reached >= failpoints.NAMES
