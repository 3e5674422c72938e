"""Histories of the real code, as the simulation has them, are steps of the model; and the check would notice.

``tests/sim`` checks the history of each of its seeds this way. Here it is shown that there is something to check.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.sim.kinds import plan
from tests.sim.world import World

from .transitions import ACTIONS, Monitor, Windows, check

SEEDS = range(40)
History = list[dict[str, Any]]


@pytest.fixture(scope="module")
def histories() -> list[tuple[History, Windows]]:
    out = []
    for seed in SEEDS:
        world = World(plan(seed))
        result = world.run()
        windows = Windows(world.windows.grace_us, world.windows.retention_us)
        by_hand = world.checker.by_hand
        out.append(([step for step in result.actions if step["tx"] not in by_hand], windows))
    return out


@pytest.mark.timeout(300)
def test_what_the_code_does_is_allowed(histories: list[tuple[History, Windows]]) -> None:
    seen: Counter[str] = Counter()
    for history, windows in histories:
        monitor = Monitor(windows)
        for step in history:
            monitor.take(step)
            seen[step["action"]] += 1
        assert monitor.wrong == []
    print(dict(seen))
    assert seen.keys() <= ACTIONS.keys()
    for action in (
        "prepare_lands",
        "Commit",
        "finish",
        "BranchFinished",
        "tell",
        "Rollback",
        "OnePhaseDone",
        "Begin",
    ):
        assert seen[action] >= 5, action


def _is(action: str, **facts: object) -> Callable[[dict[str, Any]], bool]:
    return lambda step: step["action"] == action and all(step.get(k) == v for k, v in facts.items())


def _late(step: dict[str, Any]) -> dict[str, Any]:
    return {**step, "at_us": step["deadline_us"] + 1} if step["action"] == "Commit" else step


TAMPERED: dict[str, Callable[[History], History]] = {
    "a branch that voted yes was never prepared": lambda h: [s for s in h if not _is("prepare_lands")(s)],
    "committed without a decision": lambda h: [s for s in h if not _is("Commit")(s)],
    "rolled back after the commit": lambda h: [
        {**s, "to": "rolledback"} if _is("finish", to="committed")(s) else s for s in h
    ],
    "told before it was so": lambda h: [s for s in h if not _is("finish")(s)],
    "committed after its deadline": lambda h: [_late(s) for s in h],
    "decided otherwise before": lambda h: [
        t for s in h for t in ([{**s, "action": "Rollback"}, s] if _is("Commit")(s) else [s])
    ],
    "committed in one phase after its abort was told": lambda h: [
        t
        for s in h
        for t in ([{**s, "action": "tell", "what": "ABORTED"}, s] if _is("local_commit")(s) else [s])
    ],
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", TAMPERED)
def test_a_history_that_was_tampered_with_is_noticed(
    histories: list[tuple[History, Windows]], what: str
) -> None:
    changed = [(TAMPERED[what](history), history, windows) for history, windows in histories]
    noticed = [bool(check(new, windows)) for new, old, windows in changed if new != old]
    assert sum(noticed) >= 5
    assert sum(noticed) >= 0.8 * len(noticed)
