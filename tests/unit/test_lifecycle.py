"""The tables of states: what they allow is listed, everything else raises, and all roads lead to an end."""

from __future__ import annotations

from itertools import product

import pytest

from txcoord.core.errors import IllegalTransition
from txcoord.core.kinds import RULES
from txcoord.core.lifecycle import BRANCH_NEXT, TX_NEXT, BranchEvent, TxEvent, next_branch, next_tx
from txcoord.core.model import (
    ENDED,
    RUNNABLE_BRANCH,
    SETTLED_BRANCH,
    Branch,
    BranchState,
    Decision,
    Kind,
    Tx,
    TxState,
    Windows,
)
from txcoord.core.settle import close, effects_of, read_back

B, E = BranchState, BranchEvent
FIRST_PHASE = [kind for kind in Kind if RULES[kind].first_phase]


@pytest.mark.parametrize(("state", "event"), list(product(TxState, TxEvent)))
def test_every_pair_of_a_transaction_is_legal_or_raises(state: TxState, event: TxEvent) -> None:
    if (state, event) in TX_NEXT:
        assert next_tx(state, event) is TX_NEXT[state, event]
    else:
        with pytest.raises(IllegalTransition) as raised:
            next_tx(state, event)
        assert (raised.value.state, raised.value.event) == (state, event)


@pytest.mark.parametrize("kind", Kind)
def test_every_pair_of_a_branch_is_legal_or_raises(kind: Kind) -> None:
    table = BRANCH_NEXT[kind]
    for state, event in product(B, E):
        if (state, event) in table:
            assert next_branch(kind, state, event) is table[state, event]
        else:
            with pytest.raises(IllegalTransition):
                next_branch(kind, state, event)


def test_a_decision_cannot_be_taken_back() -> None:
    commit, abort = {TxState.COMMITTING, TxState.COMMITTED}, {TxState.ABORTING, TxState.ABORTED}
    for (state, _), after in TX_NEXT.items():
        assert state not in ENDED, "what has ended stays so"
        assert state not in commit or after in commit
        assert state not in abort or after in abort
    assert {s for s, e in TX_NEXT if e in (TxEvent.COMMIT, TxEvent.ABORT)} == {
        TxState.ACTIVE,
        TxState.RUNNING,
    }


def reachable(kind: Kind, start: BranchState) -> set[BranchState]:
    seen = {start}
    while True:
        more = {after for (state, _), after in BRANCH_NEXT[kind].items() if state in seen} - seen
        if not more:
            return seen
        seen |= more


@pytest.mark.parametrize("kind", Kind)
def test_every_state_that_can_be_reached_leads_to_an_end(kind: Kind) -> None:
    for state in reachable(kind, B.OPEN):
        assert reachable(kind, state) & SETTLED_BRANCH, f"{kind} {state} is a dead end"
    for state in (B.DONE, B.UNDONE, B.SKIPPED, B.RESOLVED):
        assert reachable(kind, state) == {state}, "what is settled stays so"


@pytest.mark.parametrize("kind", Kind)
def test_no_road_leads_from_commit_to_undo(kind: Kind) -> None:
    """But for PARKED, where the decision tells the way back (RETRY_COMMIT or RETRY_ABORT)."""
    for (state, event), after in BRANCH_NEXT[kind].items():
        if state is B.FINISHING:
            assert after not in (B.UNDOING, B.UNDONE, B.READY, B.OPEN)
        if state is B.UNDOING:
            assert after not in (B.FINISHING, B.DONE, B.READY, B.OPEN)
        if event is E.RETRY_COMMIT:
            assert after is B.FINISHING
        if event is E.RETRY_ABORT:
            assert after is B.UNDOING


@pytest.mark.parametrize("kind", FIRST_PHASE)
def test_abort_undoes_whatever_may_have_happened(kind: Kind) -> None:
    """Nothing that may hold locks or reservations is dropped, and every undecided state knows abort."""
    table = BRANCH_NEXT[kind]
    undecided = {B.OPEN, B.RUNNING, B.READY, B.REFUSED, B.READ_ONLY} & reachable(kind, B.OPEN)
    for state in undecided:
        after = table[state, E.ABORT]
        assert after in (B.UNDOING, B.UNDONE, B.READ_ONLY, B.REFUSED)
    assert table[B.READY, E.ABORT] is B.UNDOING


def test_a_prepared_branch_that_was_not_heard_of_is_rolled_back_too() -> None:
    xa = BRANCH_NEXT[Kind.XA]
    assert [xa[s, E.ABORT] for s in (B.OPEN, B.READY, B.REFUSED)] == [B.UNDOING] * 3
    assert xa[B.READ_ONLY, E.ABORT] is B.READ_ONLY


@pytest.mark.parametrize("kind", FIRST_PHASE)
def test_commit_needs_a_vote(kind: Kind) -> None:
    allowed = {state for (state, event) in BRANCH_NEXT[kind] if event is E.COMMIT}
    assert allowed <= {B.READY, B.READ_ONLY}


@pytest.mark.parametrize("kind", [k for k in Kind if not RULES[k].first_phase])
def test_deliveries_wait_for_the_whole(kind: Kind) -> None:
    table = BRANCH_NEXT[kind]
    assert {s for (s, _), after in table.items() if after is B.FINISHING} == {B.READY, B.FINISHING, B.PARKED}
    if kind is Kind.CALLBACK:
        assert table[B.OPEN, E.ABORT] is B.READY, "whoever asked is told of an abort too"
        return
    assert table[B.OPEN, E.ABORT] is B.UNDONE, "an abort delivers nothing"
    assert not any(event in (E.VOTE_YES, E.VOTE_NO) for _, event in table)


def test_settled_and_runnable_have_nothing_in_common() -> None:
    assert not SETTLED_BRANCH & RUNNABLE_BRANCH


@pytest.mark.parametrize("decision", Decision)
@pytest.mark.parametrize("state", B)
def test_a_transaction_ends_exactly_when_its_first_phase_branches_are_settled(
    decision: Decision, state: BranchState
) -> None:
    commit = decision is Decision.COMMIT
    tx = Tx(
        "0" * 32,
        "shop",
        1,
        state=TxState.COMMITTING if commit else TxState.ABORTING,
        decision=decision,
        branches=(Branch("1", Kind.XA, state), Branch("2", Kind.MESSAGE, B.READY if commit else B.UNDONE)),
    )
    closed = close(tx, 7)
    assert closed.ended is (state in SETTLED_BRANCH)
    delivering = closed.branches[1].state is B.FINISHING
    assert closed.ended_us == (7 if closed.ended and not delivering else 0)
    assert delivering is (closed.ended and commit), "deliveries start with COMMITTED, and only then"
    assert close(closed, 9) == closed
    assert {e.branch.id for e in effects_of(closed) if hasattr(e, "branch")} == {
        b.id for b in closed.branches if b.state in (B.FINISHING, B.UNDOING)
    }


def test_an_end_record_without_branches_reads_as_done() -> None:
    tx = Tx(
        "0" * 32,
        "shop",
        1,
        state=TxState.COMMITTED,
        branches=(Branch("1", Kind.XA, B.FINISHING), Branch("2", Kind.MESSAGE, B.FINISHING)),
    )
    assert [b.state for b in read_back(tx).branches] == [B.DONE, B.FINISHING]
    running = Tx("0" * 32, "shop", 1, state=TxState.COMMITTING, branches=tx.branches)
    assert read_back(running) == running


def test_windows_follow_each_other() -> None:
    w = Windows()
    assert 0 < w.marker_until(0) < w.abort_until(0) < w.keep_until(0)
    assert w.keep_until(0) - w.abort_until(0) == w.abort_until(0) - w.marker_until(0)
