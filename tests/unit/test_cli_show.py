"""What `txcoord tx show` says, of each kind."""

from __future__ import annotations

from typing import Any

import pytest

from txcoord.cli import show
from txcoord_client._pb import common_pb2 as c

NOW_US = 1_800_000_000_000_000
SHOP = "grpc://shop:9000"


def branch(number: str, kind: Any, state: str, operation: str = "", **status: Any) -> Any:
    made = c.BranchDetail()
    made.spec.id, made.spec.kind = number, kind
    made.spec.action.operation = operation
    status.setdefault("target", SHOP if operation else "ledger")
    made.status.MergeFrom(c.BranchStatus(state=f"BRANCH_STATE_{state}", **status))
    return made


def transaction(decision: Any, *branches: Any, **outcome: Any) -> Any:
    state = {c.DECISION_COMMIT: c.STATE_COMMITTING, c.DECISION_ABORT: c.STATE_ABORTING}.get(
        decision, c.STATE_RUNNING
    )
    tx = c.Transaction(tx_id="a-tx", branches=branches, created_us=NOW_US - 9_000_000)
    tx.outcome.MergeFrom(c.Outcome(**{"state": state, "decision": decision, **outcome}))
    return tx


def test_what_each_kind_waits_for() -> None:
    tx = transaction(
        c.DECISION_COMMIT,
        branch("1", c.KIND_XA, "FINISHING"),
        branch("2", c.KIND_TCC, "FINISHING", "stock.Reserve"),
        branch("told", c.KIND_UNSPECIFIED, "FINISHING", "shop.shipped"),
        branch("3", c.KIND_TCC, "PARKED", "stock.Reserve", message="DOWN"),
    )
    assert show.waits_for(tx, NOW_US) == [
        "COMMIT PREPARED of branch 1 on ledger",
        f"confirm of branch 2, stock.Reserve at {SHOP}",
        f"callback of branch told, shop.shipped at {SHOP}",
        f"an operator: branch 3, stock.Reserve at {SHOP} is parked (DOWN). "
        "`txcoord tx retry|resolve|skip a-tx --branch 3 --reason …`",
    ]
    tx = transaction(
        c.DECISION_ABORT,
        branch("1", c.KIND_XA, "UNDOING"),
        branch("2", c.KIND_TCC, "UNDOING", "stock.Reserve"),
        branch("3", c.KIND_SAGA, "UNDOING", "ship.pack"),
    )
    assert [line.partition(" of ")[0] for line in show.waits_for(tx, NOW_US)] == [
        "ROLLBACK PREPARED",
        "cancel",
        "compensate",
    ]
    tx = transaction(
        c.DECISION_UNSPECIFIED,
        branch("1", c.KIND_SAGA, "RUNNING", "ship.pack"),
        branch("2", c.KIND_TCC, "RUNNING", "stock.Reserve"),
    )
    assert show.waits_for(tx, NOW_US) == [
        f"action of step 1, ship.pack at {SHOP}",
        f"try of step 2, stock.Reserve at {SHOP}",
    ]


def test_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    tx = transaction(
        c.DECISION_ABORT,
        branch("1", c.KIND_SAGA, "UNDONE", "ship.pack", attempts=1, message="DOWN"),
        branch("2", c.KIND_TCC, "UNDONE", "stock.Reserve", message="OUT_OF_STOCK"),
        branch("a-long-name", c.KIND_UNSPECIFIED, "DONE", "shop.shipped"),
        state=c.STATE_ABORTED,
        decided_us=NOW_US - 5_000_000,
        ended_us=NOW_US - 1_000_000,
        deadline_us=NOW_US + 16_000_000,
    )
    for at, number, event in (
        (6, "1", "branch.failed"),
        (5, "2", "branch.refused"),
        (4, "1", "branch.failed"),
        (3, "a-long-name", "branch.failed"),
    ):
        tx.history.add(at_us=NOW_US - at * 1_000_000, event=event, branch=number, message="WHY")
    show.page(tx, [], NOW_US)
    page = capsys.readouterr().out
    assert [" ".join(line.split()) for line in page.splitlines() if SHOP in line] == [
        f"1 saga ship.pack at {SHOP} UNDONE 1 attempt: DOWN",
        f"2 tcc stock.Reserve at {SHOP} UNDONE, had voted no: OUT_OF_STOCK",
        f"a-long-name callback shop.shipped at {SHOP} DONE",
    ]
    assert [line.partition("branch.")[2] for line in page.splitlines() if "WHY" in line] == [
        "failed branch 1 (action): WHY",
        "refused branch 2 (try): WHY",
        "failed branch 1 (compensate): WHY",
        "failed branch a-long-name (callback): WHY",
    ]
    [deadline] = [line for line in page.splitlines() if line.startswith("deadline")]
    assert "in 16 s" not in deadline


def test_one_that_is_done_does_not_look_as_if_it_had_failed() -> None:
    done = branch("1", c.KIND_TCC, "DONE", "stock.Reserve", attempts=2, message="UNREACHABLE: gone")
    assert show._said(done) == "DONE 2 attempts; before that: UNREACHABLE: gone"
    tx = transaction(c.DECISION_COMMIT, done, parked_deliveries=1)
    assert show.state(tx) == "COMMITTING (1 delivery parked)"
    tx.namespace = "shop"
    tx.branches.append(branch("2", c.KIND_TCC, "PARKED", "stock.Reserve"))
    assert show.waits_for(tx, NOW_US)[0].endswith("--branch 2 --reason … --namespace shop`")
