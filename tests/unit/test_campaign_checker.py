"""The campaign's checker finds each anomaly: a history that is well, and what can be wrong with one, one by one."""

from __future__ import annotations

import ast
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examples.smallbank import check as checker
from examples.smallbank import report
from examples.smallbank.check import Incomplete, check

Records = list[dict[str, Any]]

NODES = ("n1", "n2")
FOREIGN = {"a": ["foreign-a"], "b": ["foreign-b"]}
PAID = [["a", 1, -10], ["b", 2, 10]]
MOVED = [["a", 1, -5], ["a", 2, 5]]


def seen(gid: str, tx: str, outcome: str, *, asked: float, last: bool, node: str = "n1") -> dict[str, Any]:
    return {
        "kind": "seen", "t": asked + 0.01, "asked": asked, "node": node, "gid": gid, "tx": tx, "outcome": outcome,
        "ended": bool(outcome), "note": "" if outcome else "ACTIVE", "last": last,
    }  # fmt: skip


def end(
    database: str, accounts: list[list[int]], journal: list[list[Any]], markers: list[str]
) -> dict[str, Any]:
    return {
        "kind": "rows", "t": 20.0, "database": database, "accounts": accounts, "journal": journal,
        "markers": [[tx, True] for tx in markers] + [["t3", False]], "prepared": list(FOREIGN[database]), "limbo": 0,
    }  # fmt: skip


def well() -> Records:
    """p1 is paid, over both databases, at the second call; p2 within one; p3 aborted; p4 refused; p5 never heard of."""
    database = {"accounts": 2, "each": 100}
    out: Records = [
        {
            "kind": "world",
            "t": 0.0,
            "databases": {name: {**database, "foreign": foreign} for name, foreign in FOREIGN.items()},
            "nodes": list(NODES),
        },
        {"kind": "fault", "t": 0.5, "what": "kill", "on": ["n1"]},
    ]
    calls = [
        ("p1", PAID, "unknown"), ("p1", PAID, "committed"), ("p2", MOVED, "committed"), ("p3", PAID, "aborted"),
        ("p4", MOVED, "refused"), ("p5", PAID, "failed"),
    ]  # fmt: skip
    for number, (gid, rows, told) in enumerate(calls, 1):
        out.append({"kind": "call", "t": float(number), "call": number, "gid": gid, "rows": rows})
        out.append({"kind": "reply", "t": number + 0.5, "call": number, "gid": gid, "told": told, "why": ""})
    out.append(seen("p1", "t1", "", asked=1.1, last=False))
    out.append(seen("p1", "t1", "committed", asked=1.4, last=False, node="n2"))
    out.append(seen("p1", "t1", "committed", asked=1.9, last=False))
    ends = {"p1": "committed", "p2": "committed", "p3": "aborted", "p4": "aborted"}
    for node in NODES:
        for number, (gid, outcome) in enumerate(ends.items(), 1):
            out.append(seen(gid, f"t{number}", outcome, asked=19.0, last=True, node=node))
        out.append({**seen("p5", "", "", asked=19.0, last=True, node=node), "note": "NOT_FOUND"})
    out.append(end("a", [[1, 85], [2, 105]], [["p1", 1, -10], ["p2", 1, -5], ["p2", 2, 5]], ["t1", "t2"]))
    out.append(end("b", [[1, 100], [2, 110]], [["p1", 2, 10]], ["t1"]))
    # What participants have done for t1 is kept; for t3 one was cancelled, and one was never there.
    done = {("t1", "2.1"): ("action",), ("t1", "3"): ("try", "confirm"), ("t3", "2"): ("try", "cancel")}
    out[-1]["calls"] = [[tx, branch, op, True] for (tx, branch), ops in done.items() for op in ops]
    out[-1]["calls"] += [["t3", "1", "cancel", True], ["t3", "1", "try", False]]
    return out


def reply(records: Records, call: int) -> dict[str, Any]:
    return next(r for r in records if r["kind"] == "reply" and r["call"] == call)


def rows(records: Records, database: str) -> dict[str, Any]:
    return next(r for r in records if r["kind"] == "rows" and r["database"] == database)


def last(records: Records, gid: str, node: str = "n1") -> dict[str, Any]:
    return next(
        r for r in records if r["kind"] == "seen" and r["last"] and (r["gid"], r["node"]) == (gid, node)
    )


def test_one_that_is_well() -> None:
    verdict = check(well())
    assert verdict.anomalies == []
    assert verdict.good
    assert (verdict.payments, verdict.calls, verdict.observations) == (5, 6, 13)
    assert (verdict.done, verdict.one_phase, verdict.foreign_left) == (2, 1, 2)
    assert verdict.money_before == verdict.money_after == 400
    assert verdict.told == {"committed": 2, "aborted": 1, "refused": 1, "failed": 1}
    assert verdict.doubted == {"committed": 1}


def lost(records: Records) -> None:
    """Told committed, and it is nowhere; the nodes know better."""
    rows(records, "a").update(accounts=[[1, 95], [2, 105]], journal=[["p2", 1, -5], ["p2", 2, 5]])
    rows(records, "a")["markers"] = [["t2", True]]
    rows(records, "b").update(accounts=[[1, 100], [2, 100]], journal=[], markers=[])
    for record in records:
        if record["kind"] == "seen" and record["gid"] == "p1":
            record["outcome"] = "aborted" if record["last"] else ""
            record["t"], record["asked"] = (20.0, 19.0) if record["last"] else (1.2, 1.1)


def undead(records: Records) -> None:
    """Told aborted, and it is there."""
    reply(records, 2)["told"] = "aborted"


def lost_though_certain(records: Records) -> None:
    """As the one above, but told only that it will be committed."""
    lost(records)
    reply(records, 2)["told"] = "committing"


def two_stories_one_of_them_to_come(records: Records) -> None:
    two_stories(records)
    reply(records, 2)["told"] = "committing"


def failed_and_there(records: Records) -> None:
    """Every call was told that it did nothing, and it is there."""
    for call in (1, 2):
        reply(records, call)["told"] = "failed"


def torn(records: Records) -> None:
    rows(records, "b").update(accounts=[[1, 100], [2, 100]], journal=[])


def torn_but_the_money_is_there(records: Records) -> None:
    rows(records, "b").update(journal=[])


def twice(records: Records) -> None:
    rows(records, "b").update(accounts=[[1, 100], [2, 120]], journal=[["p1", 2, 10], ["p1", 2, 10]])


def twice_as_a_whole(records: Records) -> None:
    """The money is all there; only the journal tells."""
    rows(records, "a")["accounts"][0][1] -= 10
    rows(records, "a")["journal"].append(["p1", 1, -10])
    rows(records, "b").update(accounts=[[1, 100], [2, 120]], journal=[["p1", 2, 10], ["p1", 2, 10]])


def other_rows(records: Records) -> None:
    rows(records, "b").update(accounts=[[1, 110], [2, 100]], journal=[["p1", 1, 10]])


def nobody_asked(records: Records) -> None:
    rows(records, "a")["journal"].append(["p9", 1, 0])


def money(records: Records) -> None:
    rows(records, "b")["accounts"] = [[1, 100], [2, 111]]


def an_account_is_gone(records: Records) -> None:
    rows(records, "b")["accounts"] = [[2, 210]]


def balance(records: Records) -> None:
    """The sum is right, two accounts are not."""
    rows(records, "b")["accounts"] = [[1, 101], [2, 109]]


def two_stories(records: Records) -> None:
    records.append({"kind": "call", "t": 8.0, "call": 7, "gid": "p1", "rows": PAID})
    records.append({"kind": "reply", "t": 8.5, "call": 7, "gid": "p1", "told": "aborted", "why": ""})


def nodes_disagree(records: Records) -> None:
    last(records, "p1", "n2")["outcome"] = "aborted"


def it_changed(records: Records) -> None:
    """An observer saw the opposite once, of something that no client was told of."""
    records.append(seen("p1", "t1", "aborted", asked=1.15, last=False))
    reply(records, 2)["told"] = "unknown"


def client_and_node_disagree(records: Records) -> None:
    records.append(seen("p3", "t3", "committed", asked=5.0, last=False))


def forgotten(records: Records) -> None:
    """Decided, says one; later another has not heard of it."""
    records.append({**seen("p1", "", "", asked=1.6, last=False), "note": "NOT_FOUND"})


def told_too_early(records: Records) -> None:
    """Told committed, and one of the databases has it only later."""
    records.append({"kind": "read", "t": 2.7, "asked": 2.6, "gid": "p1", "database": "b", "rows": 0})


def there_after_an_abort(records: Records) -> None:
    """Told aborted, and it is there for a while."""
    records.append({"kind": "read", "t": 5.0, "asked": 4.6, "gid": "p3", "database": "a", "rows": 1})


def all_nodes_lie(records: Records) -> None:
    for node in NODES:
        last(records, "p3", node)["outcome"] = "committed"


def undecided_in_the_end(records: Records) -> None:
    for node in NODES:
        last(records, "p3", node).update(outcome="", ended=False, note="ACTIVE")


def not_ended(records: Records) -> None:
    last(records, "p1").update(ended=False, note="COMMITTING")


def parked(records: Records) -> None:
    last(records, "p1").update(ended=False, note="COMMITTING, 1 parked")


def heuristic(records: Records) -> None:
    last(records, "p1").update(note="heuristic")


def no_marker(records: Records) -> None:
    rows(records, "b")["markers"] = []


def marker_of_an_aborted_one(records: Records) -> None:
    rows(records, "b")["markers"].append(["t3", True])


def marker_of_nothing(records: Records) -> None:
    rows(records, "b")["markers"].append(["t9", True])


def kept_though_aborted(records: Records) -> None:
    rows(records, "b")["calls"].append(["t3", "3", "action", True])


def never_confirmed(records: Records) -> None:
    rows(records, "b")["calls"].append(["t1", "4", "try", True])


def confirmed_and_cancelled(records: Records) -> None:
    rows(records, "b")["calls"].append(["t1", "3", "cancel", True])


def done_for_nobody(records: Records) -> None:
    rows(records, "b")["calls"].append(["t9", "1", "action", True])


def prepared(records: Records) -> None:
    rows(records, "a")["prepared"].append("ours-1")


def limbo(records: Records) -> None:
    rows(records, "b")["limbo"] = 1


def foreign(records: Records) -> None:
    rows(records, "b")["prepared"] = []


def alarm(records: Records) -> None:
    records.append({"kind": "alarm", "t": 20.0, "node": "n1", "text": "alarm.vote_missing"})


@pytest.mark.parametrize(
    ("spoil", "kinds"),
    [
        (lost, {"LOST", "CHANGED"}),
        (lost_though_certain, {"LOST", "CHANGED"}),
        (two_stories_one_of_them_to_come, {"TWO_STORIES"}),
        (undead, {"UNDEAD", "CHANGED"}),
        (failed_and_there, {"UNDEAD"}),
        (torn, {"TORN", "MONEY"}),
        (torn_but_the_money_is_there, {"TORN", "BALANCE"}),
        (twice, {"TWICE", "MONEY"}),
        (twice_as_a_whole, {"TWICE"}),
        (other_rows, {"WRONG_ROWS"}),
        (nobody_asked, {"NOBODY_ASKED"}),
        (money, {"MONEY", "BALANCE"}),
        (an_account_is_gone, {"BALANCE"}),
        (balance, {"BALANCE"}),
        (two_stories, {"TWO_STORIES"}),
        (nodes_disagree, {"CHANGED", "LIE"}),
        (it_changed, {"CHANGED"}),
        (client_and_node_disagree, {"CHANGED"}),
        (forgotten, {"FORGOTTEN"}),
        (told_too_early, {"TOO_EARLY"}),
        (there_after_an_abort, {"TOO_EARLY"}),
        (all_nodes_lie, {"CHANGED", "LIE"}),
        (undecided_in_the_end, {"NOT_ENDED"}),
        (not_ended, {"NOT_ENDED"}),
        (parked, {"NOT_ENDED"}),
        (heuristic, {"HEURISTIC"}),
        (no_marker, {"MARKER"}),
        (marker_of_an_aborted_one, {"MARKER"}),
        (marker_of_nothing, {"MARKER"}),
        (kept_though_aborted, {"HALF"}),
        (never_confirmed, {"HALF"}),
        (confirmed_and_cancelled, {"HALF"}),
        (done_for_nobody, {"HALF"}),
        (prepared, {"PREPARED"}),
        (limbo, {"LIMBO"}),
        (foreign, {"FOREIGN"}),
        (alarm, {"ALARM"}),
    ],
)
def test_each_anomaly_is_found(spoil: Callable[[Records], None], kinds: set[str]) -> None:
    records = copy.deepcopy(well())
    spoil(records)
    found = {anomaly.split(" ")[0] for anomaly in check(records).anomalies}
    assert kinds <= found <= kinds | {"BALANCE", "HALF"}


def test_where_a_participant_does_it_there_is_no_marker_of_a_branch() -> None:
    records = well()
    for record in records:
        if record["kind"] == "call" and record["gid"] == "p1":
            record["xa"] = ["a"]
    assert [a.split(" ")[0] for a in check(records).anomalies] == ["MARKER"]
    rows(records, "b")["markers"] = []
    assert check(records).anomalies == []
    assert check(records).branches == 4


def test_who_is_told_that_it_will_be_may_find_it_later() -> None:
    records = well()
    told_too_early(records)
    reply(records, 2)["told"] = "committing"
    verdict = check(records)
    assert verdict.anomalies == []
    assert verdict.told["committed"] == 2


def test_what_is_allowed() -> None:
    """Undecided before it is decided, also after the question was put; no word of a call that was never answered."""
    records = well()
    records.append(seen("p1", "t1", "", asked=1.39, last=False))
    records.append({"kind": "call", "t": 9.0, "call": 8, "gid": "p3", "rows": PAID})
    records.append({"kind": "read", "t": 2.6, "asked": 2.4, "gid": "p1", "database": "b", "rows": 0})
    records.append({"kind": "read", "t": 2.7, "asked": 2.6, "gid": "p1", "database": "b", "rows": 1})
    verdict = check(records)
    assert verdict.anomalies == []
    assert verdict.doubted == {"committed": 1, "aborted": 1}


@pytest.mark.parametrize(
    "missing",
    [
        lambda record: record["kind"] == "world",
        lambda record: record["kind"] == "rows" and record["database"] == "b",
        lambda record: record["kind"] == "seen" and record["last"] and record["node"] == "n2",
        lambda record: record["kind"] == "call" and record["gid"] == "p3",
    ],
)
def test_half_of_the_evidence_is_no_verdict(missing: Callable[[dict[str, Any]], bool]) -> None:
    with pytest.raises(Incomplete):
        check([record for record in well() if not missing(record)])


def test_it_stands_on_the_standard_library_alone() -> None:
    tree = ast.parse(Path(checker.__file__).read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module).split(".")[0])
    assert names <= sys.stdlib_module_names


def test_as_a_command(tmp_path: Path) -> None:
    good, bad, half = (tmp_path / f"{name}.jsonl" for name in ("good", "bad", "half"))
    broken = well()
    torn(broken)
    for file, records in ((good, well()), (bad, broken), (half, well()[:-1])):
        file.write_text("".join(json.dumps(record) + "\n" for record in records))

    def judged(*files: Path) -> tuple[int, str]:
        command = [sys.executable, "-I", "-S", checker.__file__, *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    status, said = judged(good)
    assert (status, "0 anomalies" in said) == (0, True)
    status, said = judged(good, bad)
    assert (status, "TORN p1" in said) == (1, True)
    status, said = judged(half)
    assert (status, "no verdict" in said) == (2, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "it is empty"), ('{"kind": "world"}\n{"kind": "ca', "line 2 is no JSON"), ("{}\n", "KeyError")],
)
@pytest.mark.parametrize("tool", [checker.main, report.main])
def test_a_file_that_is_no_history_is_told_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str, tool: Callable[[list[str]], int]
) -> None:
    file = tmp_path / "history.jsonl"
    file.write_text(text)
    assert tool([str(file)]) == 2
    told = capsys.readouterr()
    assert f"{file}: no " in told.out + told.err
    assert said in told.out + told.err
