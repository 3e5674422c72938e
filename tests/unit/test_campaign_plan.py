"""What the campaign draws from its seed, and what it makes of a history for people."""

from __future__ import annotations

import json
import random
import re
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import pytest

from examples.smallbank.campaign import plans_of
from examples.smallbank.faults import Blow, Jam, Pause, blows, disturbances
from examples.smallbank.network import Network
from examples.smallbank.report import write
from examples.smallbank.world import World

VICTIMS = ["checking", "savings", "log", "service", "coordinator-1", "coordinator-2"]
NO_OPTIONS = Namespace(
    seed=7, mariadb=False, sync=False, all=False, log="both", kills=None, transactions=None, clients=16, keep=False,
    nodes=3, disturbances=None,
)  # fmt: skip


def world(folder: Path) -> World:
    """As much of one as plans are drawn for."""
    network = Network.__new__(Network)
    network.ways = {f"{a}>{b}": "" for a in VICTIMS[3:] for b in VICTIMS[:3]}
    return cast(World, SimpleNamespace(victims=VICTIMS, lease_s=3.0, network=network))


@pytest.mark.parametrize("kills", [1, 2, 50])
def test_so_many_kills(kills: int) -> None:
    planned = blows(random.Random(1), kills, VICTIMS)
    assert sum(blow.kills for blow in planned) == kills
    if kills == 50:
        assert {victim for blow in planned for victim in blow.victims} == set(VICTIMS)
        assert any(blow.again_s for blow in planned)
        assert any(len(blow.victims) == 2 for blow in planned)


def test_stops_and_network_faults_in_turn(tmp_path: Path) -> None:
    planned = disturbances(random.Random(1), 80, world(tmp_path), (0.0, 1.0))
    stops = [fault for fault in planned if isinstance(fault, Pause)]
    jams = [fault for fault in planned if isinstance(fault, Jam)]
    assert (len(stops), len(jams)) == (40, 40)
    assert {stop.victim for stop in stops} == set(VICTIMS)
    assert sum(stop.for_s > 3.0 for stop in stops) == 20  # longer than the lease
    assert {jam.trouble.kind for jam in jams} == {"cut", "latency", "reset_peer", "timeout"}
    assert {jam.trouble.streams for jam in jams if jam.trouble.kind == "timeout"} >= {("downstream",)}
    assert {len(jam.ways) for jam in jams} == {1, 3}


def test_the_same_seed_is_the_same_plan(tmp_path: Path) -> None:
    def plan(seed: int) -> tuple[list[Blow], list[Any]]:
        rng = random.Random(seed)
        return blows(rng, 20, VICTIMS), disturbances(rng, 20, world(tmp_path), (0.0, 1.0))

    assert plan(3) == plan(3)
    assert plan(3) != plan(4)


def test_the_long_form(tmp_path: Path) -> None:
    plans = plans_of(Namespace(**{**vars(NO_OPTIONS), "all": True}), tmp_path)
    assert {(plan.savings, plan.log) for plan in plans} == {
        (savings, log) for savings in ("postgresql", "mariadb") for log in ("postgresql", "mariadb", "sqlite")
    }
    assert all(plan.kills >= 100 for plan in plans)
    assert sum(plan.kills for plan in plans) >= 500
    assert sum(plan.payments for plan in plans) >= 20_000
    assert {plan.log: plan.nodes for plan in plans} == {"postgresql": 3, "mariadb": 3, "sqlite": 1}
    assert {plan.seed for plan in plans} == {7}
    assert len({plan.history for plan in plans}) == 6


def test_the_options_of_one_run(tmp_path: Path) -> None:
    two = plans_of(NO_OPTIONS, tmp_path)
    assert [(plan.log, plan.kills, plan.services) for plan in two] == [
        ("sqlite", 200, ("async", "sync")),
        ("postgresql", 200, ("async", "sync")),
    ]
    asked = {"log": "mariadb", "mariadb": True, "sync": True, "kills": 3}
    (one,) = plans_of(Namespace(**{**vars(NO_OPTIONS), **asked}), tmp_path)
    assert (one.log, one.savings, one.kills, one.services) == ("mariadb", "mariadb", 3, ("sync", "sync"))


def test_the_report(tmp_path: Path) -> None:
    plan = {
        "seed": 5, "log": "sqlite", "savings": "mariadb", "nodes": 1,
        "begun": "2026-01-02T03:04:05+00:00", "commit": "abc123-dirty", "command": "./scripts/campaign --kills 1",
    }  # fmt: skip
    database = {"accounts": 2, "each": 100, "foreign": []}
    rows = [["a", 1, -10], ["a", 2, 10]]
    said = {"asked": 9.0, "node": "n1", "gid": "p1", "tx": "t1", "outcome": "committed", "ended": True}
    history: list[dict[str, Any]] = [
        {"kind": "world", "t": 1.0, "databases": {"a": database}, "nodes": ["n1"], "plan": plan},
        {"kind": "call", "t": 2.0, "call": 1, "gid": "p1", "rows": rows},
        {"kind": "fault", "t": 2.0, "what": "kill", "on": ["n1", "a"]},
        {"kind": "fault", "t": 2.5, "what": "stop", "on": ["<b>"], "s": 1.0},
        {"kind": "fault", "t": 3.0, "what": "up", "on": ["a"]},
        {"kind": "fault", "t": 3.5, "what": "go on", "on": ["<b>"]},
        {"kind": "fault", "t": 4.0, "what": "jam", "s": 9.0, "on": ["n1>a"], "name": "to a", "trouble": "cut"},
        {"kind": "reply", "t": 5.0, "call": 1, "gid": "p1", "told": "committed", "why": ""},
        {"kind": "fault", "t": 6.0, "what": "up", "on": ["n1"]},
        {"kind": "call", "t": 6.1, "call": 2, "gid": "p2", "rows": rows},
        {"kind": "reply", "t": 6.2, "call": 2, "gid": "p2", "told": "aborted", "why": "LOCK_TIMEOUT"},
        {"kind": "call", "t": 6.3, "call": 3, "gid": "p2", "rows": rows},
        {"kind": "reply", "t": 6.4, "call": 3, "gid": "p2", "told": "aborted", "why": "ALREADY_ABORTED"},
        {"kind": "over", "t": 8.0},
        {"kind": "seen", "t": 9.5, "last": True, "note": "", **said},
        {"kind": "seen", "t": 9.6, "last": True, "note": "", **said, "gid": "p2", "tx": "t2", "outcome": "aborted"},
        {
            "kind": "rows", "t": 10.0, "database": "a", "accounts": [[1, 90], [2, 110]],
            "journal": [["p1", 1, -10], ["p1", 2, 10]], "markers": [["t1", True]], "prepared": [], "limbo": 1,
        },
    ]  # fmt: skip
    file = tmp_path / "history.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in history))
    page = write([file], tmp_path / "report.html").read_text()
    assert "1 anomaly" in page
    assert "LIMBO 1 transactions in a" in page
    assert "postgresql + mariadb, log on sqlite, 1 coordinator" in page
    assert "a 1, n1 1" in page  # killed
    assert "<td>why aborted</td><td>LOCK_TIMEOUT 1</td>" in page
    assert "begun 2026-01-02T03:04:05+00:00, commit abc123-dirty" in page
    assert "command: ./scripts/campaign --kills 1" in page
    found = re.search(r"<svg.*</svg>", page, re.DOTALL)
    assert found is not None
    titles = [title.text for title in ElementTree.fromstring(found[0]).iter("title")]
    assert "2.0 s: SIGKILL, up after 1.0 s" in titles
    assert "2.0 s: SIGKILL, up after 4.0 s" in titles
    assert "2.5 s: SIGSTOP for 1.0 s" in titles
    assert "4.0 s: to a: cut, 4.0 s" in titles  # until all was over
