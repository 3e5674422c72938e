"""``transitions.py`` allows exactly what ``Xa.tla`` allows: compared over all states that TLC reaches."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from pathlib import Path

import pytest

from . import tlc
from .transitions import ACTIONS, ANSWERS, ZONES, Monitor, NotAllowed, State, Windows, check

pytestmark = pytest.mark.timeout(300)
BRANCHES = ("1", "2")
_NODE = re.compile(r'^(-?\d+) \[label="(.*?)"(?:,style = filled)?\]', re.M)
_EDGE = re.compile(r'^(-?\d+) -> (-?\d+) \[label="(\w+)"', re.M)
_NAME = re.compile(r'"([^"]*)"')
_PAIR = re.compile(r'"([^"]*)" :> "([^"]*)"')
WINDOWS = Windows(grace_us=5, retention_us=20)
Edges = dict[State, dict[str, set[State]]]


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory) -> Edges:
    """Every state of the model, and where each action leads from there."""
    graph = tmp_path_factory.mktemp("tlc") / "xa.dot"
    checked = tlc.check(
        "Xa",
        changed={"Branches": "{" + ", ".join(f'"{b}"' for b in BRANCHES) + "}"},
        options=["-dump", "dot,actionlabels", str(graph)],
    )
    assert not checked.violated
    states, found = _read(graph)
    assert len(states) == checked.distinct
    print(f"{len(states)} states, {sum(len(to) for a in found.values() for to in a.values())} steps")
    return found


def _read(graph: Path) -> tuple[dict[str, State], Edges]:
    text = graph.read_text()
    states = {m[1]: _state(m[2].replace('\\"', '"').replace("\\\\", "\\")) for m in _NODE.finditer(text)}
    found: Edges = {state: defaultdict(set) for state in states.values()}
    for start, end, action in _EDGE.findall(text):
        found[states[start]][action].add(states[end])
    return states, found


def _state(label: str) -> State:
    said = dict(part.strip().split(" = ", 1) for part in label.replace("\\n", "\n").split("/\\ ")[1:])
    names = {key: frozenset(_NAME.findall(said[key])) for key in ("enlisted", "listed", "known", "told")}
    pairs = _PAIR.findall(said["db"])
    return State(
        row=said["row"].strip('"\n'),
        ended="TRUE" in said["ended"],
        db=frozenset(pair for pair in pairs if pair[1] != "none"),
        one=said["one"].strip('"\n'),
        sealed="TRUE" in said["sealed"],
        top=int(said["top"]),
        **names,
    )


def _values(need: str) -> list[object]:
    lists = [frozenset(c) for n in range(len(BRANCHES) + 1) for c in itertools.combinations(BRANCHES, n)]
    return {
        "zone": list(ZONES),
        "branch": list(BRANCHES),
        "branches": lists,
        "to": ["committed", "rolledback"],
        "what": list(ANSWERS),
    }[need]


def test_it_allows_what_the_model_allows_and_nothing_else(edges: Edges) -> None:
    steps = 0
    for state, by_action in edges.items():
        assert set(by_action) <= set(ACTIONS)
        for name, (function, needs) in ACTIONS.items():
            allowed = set()
            for values in itertools.product(*map(_values, needs)):
                try:
                    allowed.add(function(state, **dict(zip(needs, values, strict=True))))
                except NotAllowed:
                    continue
            assert allowed == by_action.get(name, set()), (state, name)
            steps += len(allowed)
    assert steps > 10_000
    assert {name for by_action in edges.values() for name in by_action} == set(ACTIONS)


def log(action: str, at_us: int, **more: object) -> dict[str, object]:
    return {"action": action, "tx": "t", "node": "n1", "at_us": at_us, "deadline_us": 10, **more}


def db(action: str, branch: str = "", **more: object) -> dict[str, object]:
    return {"action": action, "tx": "t", "branch": branch, "node": "a", **more}


GOOD = [
    db("prepare_lands", "1"),
    db("prepare_lands", "2"),
    log("Commit", 9, branches=["1", "2"]),
    db("finish", "2", to="committed"),
    db("finish", "1", to="committed"),
    db("tell", what="COMMITTED"),
    db("tell", what="COMMITTED"),
    log("BranchFinished", 12),
    log("prune", 36),
]


def test_a_good_history() -> None:
    assert check(GOOD, WINDOWS) == []
    assert (
        check(
            [*GOOD, db("prepare_lands", "3"), log("OrphanFound", 40), db("finish", "3", to="rolledback")],
            WINDOWS,
        )
        == []
    )


@pytest.mark.parametrize(
    ("history", "why"),
    [
        ([db("prepare_lands", "1"), log("Commit", 9, branches=["1", "2"])], "branch 2 voted yes and is none"),
        ([db("prepare_lands", "1"), log("Commit", 11, branches=["1"])], "after the deadline"),
        ([*GOOD[:3], log("Rollback", 9)], "the row is commit"),
        ([*GOOD[:4], db("tell", what="COMMITTED")], "branch 1 is prepared"),
        ([*GOOD[:4], log("BranchFinished", 9)], "branch 1 is prepared"),
        ([*GOOD[:3], db("finish", "1", to="rolledback")], "commit was decided, and branch 1 is rolledback"),
        ([*GOOD, log("Rollback", 40)], "after W"),
        ([*GOOD[:2], db("finish", "1", to="rolledback")], "nothing was decided"),
        ([log("Enlist", 1, branch="3"), *GOOD[:3]], "['3'] had enlisted"),
        ([db("local_commit"), log("Rollback", 9)], "it is committed"),
        ([db("tombstone"), db("local_commit")], "its key is tombstone"),
        ([db("tell", what="ABORTED"), *GOOD[:3]], "its abort was promised"),
        ([*GOOD[:-1], log("prune", 30)], "before P"),
    ],
)
def test_bad_histories(history: list[dict[str, object]], why: str) -> None:
    found = check(history, WINDOWS)
    assert len(found) == 1
    assert why in found[0]


def test_what_a_person_has_touched_is_left_alone() -> None:
    monitor = Monitor(WINDOWS, left_alone={"t"})
    monitor.take(db("finish", "1", to="committed"))
    assert (monitor.steps, monitor.wrong) == (0, [])
