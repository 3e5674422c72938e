"""Worlds in which the simulation has found a bug, shrunk: they stay well."""

from __future__ import annotations

from tests.sim import run, story
from tests.sim.plan import Fault, Op, Plan

LIMBO_BEYOND_W = Plan(
    seed=169,
    nodes=1,
    databases=(("a", "mariadb"), ("b", "mariadb")),
    ops=(Op("t1", "c2", 0.47, databases=(), remote=("b",), gid="g1", timeout_s=2.0),),
    faults=(
        Fault("slow_detach", "b", seconds=0.44),
        Fault("stop", "n1", at_s=3.04, seconds=6.81),
        Fault("stop_client", "wire", nth=2, seconds=1.34),
    ),
    retention_s=12.0,
    prune_s=2.0,
)
"""A branch was in limbo until after W. A tombstone is refused then before its key's lock is met, so the branch was
taken for gone and parked; after the server's restart it was prepared, and nobody's."""

LOOKS_FOR_EVER = Plan(
    seed=169,
    nodes=2,
    databases=(("a", "mariadb"), ("b", "mariadb")),
    ops=(Op("t1", "c2", 0.47, databases=(), remote=("b",), gid="g1", timeout_s=2.0),),
    faults=(Fault("stop_client", "wire", nth=2, seconds=1.34),),
    addresses=True,
)
"""The SDK looks whether its coordinator has been silent for a second. The rest of that second was so short that adding
it to the clock changed nothing: it looked again and again."""


def _well(world: Plan) -> list[str]:
    result = run.run_plan(world, keep_trace=True)
    told = story.of(result)
    assert not result.violations, "\n".join(told)
    assert len(result.fired) == len(world.faults)
    return told


def test_limbo_beyond_w() -> None:
    assert any("is in limbo" in line for line in _well(LIMBO_BEYOND_W))


def test_who_looks_whether_a_coordinator_is_silent_looks_once() -> None:
    _well(LOOKS_FOR_EVER)
