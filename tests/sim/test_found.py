"""Worlds in which the simulation has found a bug, shrunk: they stay well."""

from __future__ import annotations

import pytest

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


@pytest.mark.parametrize("world", [LIMBO_BEYOND_W], ids=["limbo beyond W"])
def test_it_stays_well(world: Plan) -> None:
    result = run.run_plan(world, keep_trace=True)
    assert not result.violations, "\n".join(story.of(result))
    assert len(result.fired) == len(world.faults)
    assert any("is in limbo" in line for line in story.of(result))
