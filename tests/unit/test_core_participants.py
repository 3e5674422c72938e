"""TCC branches in the core: all short histories, and what an answer means."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txcoord.core.action import Action, Answer, AnswerKind, Op, Retry
from txcoord.core.calling import op_of, pause_us
from txcoord.core.events import Alarm, Answered, Call, Commit, Enlist, Operate, Rollback, Verdict
from txcoord.core.machine import decide, resume
from txcoord.core.model import Branch, BranchState, Change, ChangeKind, DecidedBy, Kind, Tx, TxState

from . import core_support
from .core_support import AUDIT, COMMON, TX, WINDOWS, World, branch, moves, news, say, step, tx_of
from .test_core_world import search

B, K = BranchState, AnswerKind
NOW = 50
DEFAULTS = Retry(5_000, 500, 2.0, 60_000, give_up_us=86_400)
RESERVE = Action("stock.Reserve")
ONE = Branch("1", Kind.TCC, B.OPEN, "grpc://stock", action=RESERVE, payload=b"{}")
TWO = replace(ONE, id="2", action=replace(RESERVE, after=("1",)))
"""Confirmed after branch 1, cancelled before it."""
THREE = branch("3", B.READY)


def voted(number: str, state: BranchState = B.READY) -> Branch:
    """A branch that is enlisted, as the initiator names it with its vote."""
    return Branch(number, Kind.TCC, state)


def answer(number: str, op: Op, kind: AnswerKind, *, retry: Retry = DEFAULTS) -> core_support.Action:
    def act(world: World, mode: str) -> World:
        row = world.live or world.row
        found = row.branch(number) if row is not None else None
        if found is None or row is None or op_of(found) is not op or not row.may_go(found):
            return world  # Nobody has called it.
        event = Answered(number, op, found.attempts + 1, Answer(kind, reason="WHY"), 0.5, retry)
        return news(world, event, mode)

    return act


TCC: dict[str, core_support.Action] = {
    **COMMON,
    "enlist both": lambda w, m: say(w, Enlist(TX, (ONE, TWO)), m),
    "enlist 2 again": lambda w, m: say(w, Enlist(TX, (TWO,)), m),
    "vote 2 no": lambda w, m: say(w, Enlist(TX, (replace(TWO, state=B.REFUSED),)), m),
    "commit": lambda w, m: _commit(w, m, voted("1"), voted("2"), THREE),
    "commit, 2 unheard": lambda w, m: _commit(w, m, voted("1"), voted("2", B.OPEN), THREE),
    "confirmed 1": answer("1", Op.CONFIRM, K.DONE),
    "confirmed 2": answer("2", Op.CONFIRM, K.DONE),
    "cancelled 1": answer("1", Op.CANCEL, K.DONE),
    "cancelled 2": answer("2", Op.CANCEL, K.DONE),
    "confirm 1 fails": answer("1", Op.CONFIRM, K.FAILED),
    "cancel 2 is pending": answer("2", Op.CANCEL, K.PENDING),
    "cancel 2 is refused": answer("2", Op.CANCEL, K.REFUSED),
    "confirm 1 is given up": answer("1", Op.CONFIRM, K.FAILED, retry=replace(DEFAULTS, max_attempts=1)),
    "retry 1": lambda w, m: news(w, Operate("retry", "1", AUDIT), m),
    "skip 2": lambda w, m: news(w, Operate("skip", "2", AUDIT), m),
}
SHORT = {
    name: action
    for name, action in TCC.items()
    if name
    not in ("enlist 2 again", "vote 2 no", "retry 1", "skip 2", "cancel 2 is pending", "prune", "seal, log")
}


def _commit(world: World, mode: str, *branches: Branch) -> World:
    if world.sealed:
        return world
    return say(replace(world, commit_sent=True), Commit(tx_of(*branches), begun=True), mode)


@pytest.mark.timeout(600)
def test_every_short_history() -> None:
    worlds, steps = search(step(World(), TCC, "enlist both", "ok"), SHORT, 5)
    print(f"{worlds} worlds, {steps} steps")
    assert worlds > 1_000


@settings(max_examples=800)
@given(st.lists(st.sampled_from(moves(TCC)), max_size=40))
def test_long_histories(history: list[tuple[str, str]]) -> None:
    world = World()
    for name, mode in history:
        world = step(world, TCC, name, mode)


# ---- one by one ----


def ask(tx: Tx | None, event: object) -> Verdict:
    return decide(tx, event, NOW, WINDOWS)  # type: ignore[arg-type]


ENLISTED = ask(None, Enlist(TX, (ONE, TWO))).tx
COMMITTING = ask(ENLISTED, Commit(tx_of(voted("1"), voted("2")), begun=True)).tx
ABORTING = ask(ENLISTED, Rollback(TX)).tx


def answered(tx: Tx, number: str, op: Op, said: Answer, attempt: int = 1, retry: Retry = DEFAULTS) -> Verdict:
    return ask(tx, Answered(number, op, attempt, said, 0.5, retry))


def calls(verdict: Verdict) -> list[tuple[str, Op, int, int]]:
    return [(e.branch.id, e.op, e.attempt, e.at_us) for e in verdict.effects if isinstance(e, Call)]


def test_a_short_name_is_filled_from_the_log() -> None:
    assert COMMITTING.state is TxState.COMMITTING
    assert COMMITTING.branch("1") == replace(ONE, state=B.FINISHING)


def test_the_result_of_the_try_rides_on_the_commit() -> None:
    said = replace(voted("1"), result=b'{"n": 1}')
    tx = ask(ENLISTED, Commit(tx_of(said, voted("2")), begun=True)).tx
    assert tx.branch("1") == replace(ONE, state=B.FINISHING, result=b'{"n": 1}')


def test_one_that_was_never_enlisted_cannot_be_committed() -> None:
    for tx in (None, ask(None, Enlist(TX, (ONE,))).tx):
        refusal = ask(tx, Commit(tx_of(voted("1"), voted("2")))).refusal
        assert refusal is not None
        assert refusal.reason == "BAD_BRANCH"


def test_where_the_log_was_lost_nobody_is_called() -> None:
    verdict = ask(None, Commit(tx_of(voted("1")), begun=True))
    assert (verdict.tx.state, verdict.tx.branches, calls(verdict)) == (TxState.ABORTED, (), [])
    verdict = ask(None, Rollback(tx_of(voted("1")), sealed=True))
    assert (verdict.tx.state, verdict.tx.branches) == (TxState.ABORTED, ())


def test_the_same_number_with_other_content() -> None:
    other = replace(ONE, payload=b'{"n": 2}')
    for event in (Enlist(TX, (other,)), Commit(tx_of(other, voted("2")), begun=True)):
        refusal = ask(ENLISTED, event).refusal
        assert refusal is not None
        assert refusal.reason == "CONTENT_MISMATCH"


def test_confirms_in_order_and_cancels_in_reverse() -> None:
    assert [e.branch.id for e in resume(COMMITTING) if isinstance(e, Call)] == ["1"]
    done = answered(COMMITTING, "1", Op.CONFIRM, Answer(K.DONE))
    assert calls(done) == [("2", Op.CONFIRM, 1, 0)]
    assert answered(done.tx, "2", Op.CONFIRM, Answer(K.DONE)).tx.state is TxState.COMMITTED
    assert [e.branch.id for e in resume(ABORTING) if isinstance(e, Call)] == ["2"]
    assert calls(answered(ABORTING, "2", Op.CANCEL, Answer(K.DONE))) == [("1", Op.CANCEL, 1, 0)]


def test_a_confirm_that_went_well_writes_nothing_but_the_end() -> None:
    one = answered(COMMITTING, "1", Op.CONFIRM, Answer(K.DONE))
    assert one.change is None
    end = answered(one.tx, "2", Op.CONFIRM, Answer(K.DONE))
    assert end.change == Change(
        ChangeKind.PROGRESS, end.tx, (), expected_epoch=COMMITTING.epoch, forced=False
    )


def test_failures_are_tried_again_later_and_later_and_success_begins_anew() -> None:
    tx = COMMITTING
    for attempt, pause in ((1, 250), (2, 500), (3, 1_000)):
        retry = replace(DEFAULTS, give_up_us=0)
        verdict = answered(tx, "1", Op.CONFIRM, Answer(K.FAILED, reason="DOWN"), attempt, retry)
        # The floor of a pause is 20 ms.
        assert calls(verdict) == [("1", Op.CONFIRM, attempt + 1, NOW + max(pause, 20_000))]
        assert verdict.change is not None
        assert not verdict.change.forced
        tx = verdict.tx
    pending = answered(tx, "1", Op.CONFIRM, Answer(K.PENDING, retry_after_us=7), 4)
    assert calls(pending) == [("1", Op.CONFIRM, 5, NOW + 7)]
    found = pending.tx.branch("1")
    assert found is not None
    assert (found.attempts, found.failures) == (4, 0)


def test_only_the_latest_attempt_counts_but_done_is_a_fact() -> None:
    failed = answered(COMMITTING, "1", Op.CONFIRM, Answer(K.FAILED)).tx
    assert answered(failed, "1", Op.CONFIRM, Answer(K.FAILED)).tx == failed
    assert answered(failed, "1", Op.CONFIRM, Answer(K.DONE)).tx.branch("1") != failed.branch("1")
    assert answered(COMMITTING, "1", Op.CANCEL, Answer(K.DONE)).tx == COMMITTING


@pytest.mark.parametrize(
    ("said", "retry", "reason"),
    [
        (Answer(K.REFUSED, reason="NO"), DEFAULTS, "REFUSED_IN_PHASE_TWO: NO"),
        (
            Answer(K.FAILED, reason="DOWN"),
            replace(DEFAULTS, max_attempts=1),
            "RETRIES_SPENT: after 1 attempts: DOWN",
        ),
    ],
)
def test_what_cannot_be_confirmed_is_parked(said: Answer, retry: Retry, reason: str) -> None:
    verdict = answered(COMMITTING, "1", Op.CONFIRM, said, retry=retry)
    found = verdict.tx.branch("1")
    assert found is not None
    assert (found.state, found.reason) == (B.PARKED, reason)
    assert Alarm("parked", "1", reason) in verdict.effects
    # Branch 2 comes after it, and waits for the operator too.
    assert verdict.tx.shown_parked
    retried = ask(verdict.tx, Operate("retry", "1", AUDIT))
    assert calls(retried) == [("1", Op.CONFIRM, 1, 0)]


def test_given_up_after_a_time() -> None:
    late = replace(COMMITTING, branches=(replace(ONE, state=B.FINISHING, since_us=1, attempts=3), TWO))
    verdict = decide(
        late,
        Answered("1", Op.CONFIRM, 4, Answer(K.FAILED), 0.5, DEFAULTS),
        1 + DEFAULTS.give_up_us,
        WINDOWS,
    )
    found = verdict.tx.branch("1")
    assert found is not None
    assert found.state is B.PARKED


def test_a_schedule_instead_of_a_back_off() -> None:
    own = Retry(schedule_us=(100, 300))
    assert [pause_us(own, DEFAULTS, n, 0.9) for n in (1, 2, 3)] == [100, 300, 300]


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_full_jitter_below_the_cap(failures: int, draw: float) -> None:
    defaults = Retry(first_us=500_000, factor=2.0, cap_us=60_000_000)
    pause = pause_us(Retry(), defaults, failures, draw)
    assert 20_000 <= pause <= min(60_000_000, 500_000 * 2 ** min(failures - 1, 40))


def test_an_abort_cancels_all_that_may_have_been_tried() -> None:
    assert ABORTING.decided_by is DecidedBy.CLIENT
    assert [b.state for b in ABORTING.branches] == [B.UNDOING, B.UNDOING]


def test_nothing_is_confirmed_in_a_circle() -> None:
    first, second, third = (
        Branch(n, Kind.TCC, B.OPEN, "grpc://stock", action=replace(RESERVE, after=after))
        for n, after in (("1", ("2",)), ("2", ("1",)), ("3", ()))
    )
    for row in (None, decide(None, Enlist(TX, (third,)), 1, WINDOWS).tx):
        verdict = decide(row, Enlist(TX, (first, second)), 1, WINDOWS)
        assert verdict.refusal is not None
        assert verdict.refusal.reason == "BAD_BRANCH"
    row = decide(
        None, Enlist(TX, (third, replace(second, action=replace(RESERVE, after=("3",))))), 1, WINDOWS
    ).tx
    assert [b.id for b in row.branches] == ["3", "2"]
