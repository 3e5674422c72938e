"""The promises of the core, over all short histories and over random long ones."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .core_support import (
    COMMON,
    ONE_PHASE,
    XA,
    Action,
    World,
    key,
    moves,
    step,
)

# The exhaustive search leaves out what only multiplies the states; the random one below has everything.
XA_SHORT = {
    name: action
    for name, action in XA.items()
    if name in COMMON
    or name
    in {"enlist 2", "enlist 2 yes", "enlist 2 no", "commit", "commit 1", "orphan", "finished 1", "finished 2"}
}


PHASE_TWO = {
    name: action
    for name, action in XA.items()
    if name in {"read", "crash", "commit", "finished 1", "finished 2", "failed 1", "heuristic 2"}
    or name in {"retry 1", "park 1", "skip 1", "resolve 1"}
}
DECIDED = step(World(), XA, "commit", "ok")


def search(start: World, actions: dict[str, Action], depth: int) -> tuple[int, int]:
    """Every history of ``depth`` steps, each distinct world once. How many worlds and steps there were."""
    all_moves = moves(actions)
    seen = {key(start)}
    edge = [(start, ())]
    steps = 0
    for _ in range(depth):
        fresh: list[tuple[World, tuple[object, ...]]] = []
        for world, path in edge:
            for name, mode in all_moves:
                steps += 1
                try:
                    after = step(world, actions, name, mode)
                except Exception as error:
                    told, at = [], path
                    while at:
                        told.append(at[1])
                        at = at[0]  # type: ignore[assignment]
                    error.add_note(f"after {[*reversed(told), (name, mode)]}")
                    raise
                k = key(after)
                if k not in seen:
                    seen.add(k)
                    fresh.append((after, (path, (name, mode))))
        edge = fresh
    return len(seen), steps


@pytest.mark.timeout(600)  # Nothing but work for the processor, which others may use.
@pytest.mark.parametrize(
    ("start", "actions", "depth"),
    [
        pytest.param(World(), XA_SHORT, 6, id="xa"),
        pytest.param(DECIDED, PHASE_TWO, 6, id="phase two"),
        pytest.param(World(one_phase=True), ONE_PHASE, 7, id="one-phase"),
    ],
)
def test_every_short_history(start: World, actions: dict[str, Action], depth: int) -> None:
    began = time.perf_counter()
    worlds, steps = search(start, actions, depth)
    took = time.perf_counter() - began
    print(f"{worlds} worlds, {steps} steps, {steps / took:,.0f} steps/s")
    assert worlds > 1_000


def histories(actions: dict[str, Action]) -> st.SearchStrategy[list[tuple[str, str]]]:
    return st.lists(st.sampled_from(moves(actions)), max_size=40)


@settings(max_examples=1_500)
@given(histories(XA))
def test_long_histories_of_xa(history: list[tuple[str, str]]) -> None:
    world = World()
    for name, mode in history:
        world = step(world, XA, name, mode)


@settings(max_examples=1_000)
@given(histories(ONE_PHASE))
def test_long_histories_of_one_phase(history: list[tuple[str, str]]) -> None:
    world = World(one_phase=True)
    for name, mode in history:
        world = step(world, ONE_PHASE, name, mode)
