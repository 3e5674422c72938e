"""Plans in the core: all short histories of a saga, and what its steps decide."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from txcoord.core.action import Action, Answer, AnswerKind, Op, Retry
from txcoord.core.calling import op_of
from txcoord.core.events import (
    Answered,
    Begin,
    Call,
    Commit,
    DeadlinePassed,
    Decide,
    Enlist,
    Rollback,
    StepsSettled,
    Submit,
)
from txcoord.core.machine import decide, resume
from txcoord.core.model import FOREVER_US, Branch, BranchState, DecidedBy, Decision, Kind, Tx, TxState
from txcoord.core.settle import read_back

from . import core_support
from .core_support import COMMON, DEADLINE, TX, WINDOWS, World, moves, must, news, say, step
from .test_core_world import search

B, K = BranchState, AnswerKind
NOW = 50
DEFAULTS = Retry(5_000, 500, 2.0, 60_000, give_up_us=86_400)


def a_step(number: str, *after: str, **more: object) -> Branch:
    action = Action(f"ship.{number}", run_first=True, after=after)
    return Branch(number, Kind.SAGA, B.OPEN, "grpc://ship", action=replace(action, **more))  # type: ignore[arg-type]


IN_ORDER = (a_step("1"), a_step("2", "1"))
GRAPH = (a_step("1"), a_step("2"), a_step("3", "1", "2"))
PLAN = replace(TX, branches=GRAPH)


def answer(number: str, op: Op, kind: AnswerKind, *, retry: Retry = DEFAULTS) -> core_support.Action:
    def act(world: World, mode: str) -> World:
        row = world.live or world.row
        found = row.branch(number) if row is not None else None
        if found is None or row is None or op_of(found) is not op or not row.may_go(found):
            return world  # Nobody has called it.
        event = Answered(number, op, found.attempts + 1, Answer(kind, b"r", reason="WHY"), 0.5, retry)
        world = news(world, event, mode)
        live = world.live
        if live is not None and Decide() in resume(live):
            world = say(world, StepsSettled(), "ok" if mode == "stale" else mode)
        return _undone_after_decision(world)

    return act


def _undone_after_decision(world: World) -> World:
    """No compensation before the abort is in the log."""
    live = world.live
    if live is not None and any(b.state in (B.UNDOING, B.UNDONE) for b in live.branches):
        must(
            world.row is not None and world.row.decision is Decision.ABORT,
            "undone before the abort is durable",
        )
    return world


SAGA: dict[str, core_support.Action] = {
    **{name: COMMON[name] for name in ("tick", "prune")},
    "read": lambda w, m: replace(w, stale=read_back(w.row)) if w.row is not None else w,
    "crash": lambda w, m: _taken_over(core_support.crash(w)),
    "submit": lambda w, m: say(w, Submit(PLAN), m),
    "abort": lambda w, m: say(w, Rollback(replace(PLAN, branches=())), m) if w.row is not None else w,
    "deadline": lambda w, m: say(w, DeadlinePassed(), m) if w.live is not None and w.stale is not None else w,
    **{f"done {n}": answer(n, Op.ACTION, K.DONE) for n in "123"},
    **{f"no {n}": answer(n, Op.ACTION, K.REFUSED) for n in "23"},
    "1 fails": answer("1", Op.ACTION, K.FAILED),
    "1 is given up": answer("1", Op.ACTION, K.FAILED, retry=Retry(5_000, 500, 2.0, 60_000)),
    **{f"undone {n}": answer(n, Op.COMPENSATE, K.DONE) for n in "123"},
}
SHORT = {n: a for n, a in SAGA.items() if n not in ("1 fails", "1 is given up", "prune", "tick", "no 2")}


def _taken_over(world: World) -> World:
    """Another node claims the plan, and goes on with what the log says."""
    if world.row is None or world.row.decision is not None:
        return world
    row = replace(world.row, epoch=world.row.epoch + 1, version=world.row.version + 1)
    return replace(world, row=row, live=read_back(row))


@pytest.mark.timeout(600)
def test_every_short_history() -> None:
    worlds, steps = search(step(World(), SAGA, "submit", "ok"), SHORT, 5)
    print(f"{worlds} worlds, {steps} steps")
    assert worlds > 500


@settings(max_examples=800)
@given(st.lists(st.sampled_from(moves(SAGA)), max_size=40))
def test_long_histories(history: list[tuple[str, str]]) -> None:
    world = World()
    for name, mode in history:
        world = step(world, SAGA, name, mode)


# ---- one by one ----


def ask(tx: Tx | None, event: object, now_us: int = NOW):  # type: ignore[no-untyped-def]
    return decide(tx, event, now_us, WINDOWS)  # type: ignore[arg-type]


def running(*branches: Branch, deadline_us: int = DEADLINE) -> Tx:
    return ask(None, Submit(replace(TX, branches=branches, deadline_us=deadline_us))).tx  # type: ignore[no-any-return]


def said(tx: Tx, number: str, kind: AnswerKind, op: Op = Op.ACTION, *, retry: Retry = DEFAULTS):  # type: ignore[no-untyped-def]
    found = tx.branch(number)
    assert found is not None
    return ask(tx, Answered(number, op, found.attempts + 1, Answer(kind, b"r", reason="NO"), 0.5, retry))


def calls(effects: object) -> list[tuple[str, Op]]:
    return [(e.branch.id, e.op) for e in effects if isinstance(e, Call)]  # type: ignore[attr-defined]


def test_one_forced_write_starts_it_and_progress_is_lazy() -> None:
    verdict = ask(None, Submit(PLAN))
    assert verdict.change.forced
    assert verdict.tx.state is TxState.RUNNING
    assert calls(verdict.effects) == [("1", Op.ACTION), ("2", Op.ACTION)]
    done = said(verdict.tx, "1", K.DONE)
    assert (done.change.forced, calls(done.effects)) == (False, [])
    done = said(done.tx, "2", K.DONE)
    assert calls(done.effects) == [("3", Op.ACTION)]


def test_all_done_and_the_steps_decide() -> None:
    tx = running(*IN_ORDER)
    tx = said(tx, "1", K.DONE).tx
    last = said(tx, "2", K.DONE)
    assert last.effects == (Decide(),)
    end = ask(last.tx, StepsSettled())
    assert (end.tx.state, end.tx.decided_by) == (TxState.COMMITTED, DecidedBy.BRANCH)
    assert [b.state for b in end.tx.branches] == [B.DONE, B.DONE]
    assert not end.change.forced


def test_one_said_no_and_what_was_done_is_undone_in_reverse() -> None:
    tx = running(a_step("1"), a_step("2", "1"), a_step("3", "2"), a_step("4", "3"))
    tx = said(tx, "1", K.DONE).tx
    tx = said(tx, "2", K.DONE).tx
    no = said(tx, "3", K.REFUSED)
    assert no.effects == (Decide(),)
    assert calls(resume(no.tx)) == []
    end = ask(no.tx, StepsSettled())
    assert end.change.forced
    assert [b.state for b in end.tx.branches] == [B.UNDOING, B.UNDOING, B.REFUSED, B.UNDONE]
    assert calls(end.effects) == [("2", Op.COMPENSATE)]
    undone = said(end.tx, "2", K.DONE, Op.COMPENSATE)
    assert calls(undone.effects) == [("1", Op.COMPENSATE)]
    assert said(undone.tx, "1", K.DONE, Op.COMPENSATE).tx.state is TxState.ABORTED


def test_a_step_that_was_given_up_may_have_run() -> None:
    tx = running(a_step("1", retry=Retry(max_attempts=2)))
    once = said(tx, "1", K.FAILED)
    assert calls(once.effects) == [("1", Op.ACTION)]
    twice = said(once.tx, "1", K.FAILED)
    assert twice.effects == (Decide(),)
    end = ask(twice.tx, StepsSettled())
    assert end.tx.reason == "RETRIES_SPENT"
    assert calls(end.effects) == [("1", Op.COMPENSATE)]
    # Its budget was for the action: what undoes it is asked for until it is done.
    undoing = end.tx
    for _ in range(5):
        failed = said(undoing, "1", K.FAILED, Op.COMPENSATE)
        undoing = failed.tx
        assert calls(failed.effects) == [("1", Op.COMPENSATE)]


@pytest.mark.parametrize("retry", [Retry(schedule_us=(1_000, 1_000)), Retry(give_up_us=1_000)])
def test_each_budget_is_of_the_action_alone(retry: Retry) -> None:
    tx = running(a_step("1", retry=retry), a_step("2", "1"))
    tx = said(said(tx, "1", K.DONE).tx, "2", K.REFUSED).tx
    undoing = ask(tx, StepsSettled()).tx
    for n in range(5):
        event = Answered("1", Op.COMPENSATE, n + 1, Answer(K.FAILED, reason="BUSY"), 0.5, DEFAULTS)
        undoing = decide(undoing, event, 50 + n * 1_000, WINDOWS).tx
        assert undoing.branch("1").state is B.UNDOING, n


def test_a_plan_that_was_read_may_have_gone_further_than_its_row() -> None:
    row = running(*GRAPH)
    read = read_back(row)
    assert [b.state for b in read.branches] == [B.RUNNING] * 3
    assert calls(resume(read)) == [("1", Op.ACTION), ("2", Op.ACTION)]
    # It may have been committed: it is taken over, and its steps say.
    asked = ask(read, Rollback(replace(TX, branches=())))
    assert (asked.tx.decision, asked.change.forced) == (None, True)
    assert calls(asked.effects) == [("1", Op.ACTION), ("2", Op.ACTION)]
    no = said(said(asked.tx, "1", K.DONE).tx, "2", K.REFUSED)
    assert no.effects == (Decide(),)
    aborted = ask(no.tx, StepsSettled())
    assert calls(aborted.effects) == [("3", Op.COMPENSATE)]


def test_no_branch_is_added_and_no_client_commits_it() -> None:
    tx = running(*IN_ORDER)
    assert ask(tx, Enlist(TX, (a_step("9"),))).refusal.reason == "DECIDED"
    assert ask(tx, Commit(TX)).refusal.reason == "NOT_SUPPORTED"
    assert ask(tx, Submit(replace(TX, branches=IN_ORDER))).tx == tx
    assert ask(tx, Submit(PLAN)).refusal.reason == "CONTENT_MISMATCH"


def test_a_step_that_is_never_undone() -> None:
    tx = running(a_step("1"), a_step("2", "1", forward=True), deadline_us=FOREVER_US)
    assert ask(tx, Rollback(replace(TX, branches=(), deadline_us=FOREVER_US))).tx.state is TxState.ABORTING
    tx = said(tx, "1", K.DONE).tx
    assert (
        ask(tx, Rollback(replace(TX, branches=(), deadline_us=FOREVER_US))).refusal.reason == "ONLY_FORWARD"
    )
    refused = said(tx, "2", K.REFUSED)
    assert calls(refused.effects) == [("2", Op.ACTION)]
    late = replace(refused.tx, deadline_us=DEADLINE)
    assert ask(late, DeadlinePassed(), DEADLINE + 1).tx == late
    done = said(refused.tx, "2", K.DONE)
    assert ask(done.tx, StepsSettled()).tx.state is TxState.COMMITTED


def test_a_deadline_in_the_middle() -> None:
    tx = said(running(*IN_ORDER), "1", K.DONE).tx
    end = ask(tx, DeadlinePassed(), DEADLINE + 1)
    assert (end.tx.decided_by, calls(end.effects)) == (DecidedBy.DEADLINE, [("2", Op.COMPENSATE)])


def test_a_step_that_is_never_undone_is_not_compensated_after_a_take_over() -> None:
    tx = running(a_step("1"), a_step("2", "1"), a_step("3", "2", forward=True))
    tx = said(tx, "1", K.DONE).tx
    read = read_back(replace(tx, epoch=1, version=2))  # Any of them may have begun, for all that is known.
    tx = said(read, "1", K.DONE).tx
    no = said(tx, "2", K.REFUSED)
    assert no.effects == (Decide(),)
    end = ask(no.tx, StepsSettled())
    # Its compensation may be its action once more, where its method has no other; and all others would wait for it.
    assert (end.tx.branch("3").state, calls(end.effects)) == (B.UNDONE, [("2", Op.COMPENSATE)])


def test_a_refusal_beside_which_another_attempt_may_come_through_is_compensated() -> None:
    first = running(*IN_ORDER)
    assert said(first, "1", K.REFUSED).tx.branch("1").state is B.REFUSED
    again = said(first, "1", K.FAILED).tx  # Timed out: it may run still.
    elsewhere = replace(first, epoch=1)  # The node that had it may be asking still.
    client = replace(first, state=TxState.ACTIVE)  # It may have asked several nodes.
    for tx in (again, elsewhere, client):
        no = said(tx, "1", K.REFUSED)
        assert no.effects == (Decide(),)
        end = ask(no.tx, StepsSettled())
        assert (end.tx.decision, end.tx.reason) == (Decision.ABORT, "NO")
        assert ("1", Op.COMPENSATE) in calls(
            (*end.effects, *said(end.tx, "2", K.DONE, Op.COMPENSATE).effects)
        )


def test_inside_a_transaction_any_step_may_have_begun_elsewhere() -> None:
    tx = ask(None, Enlist(TX, IN_ORDER, run=True)).tx
    assert [b.state for b in tx.branches] == [B.RUNNING, B.OPEN]
    # The client asked another node too, which has done both; this one only knows that time is up.
    end = ask(tx, DeadlinePassed(), DEADLINE + 1)
    assert [b.state for b in end.tx.branches] == [B.UNDOING] * 2
    assert calls(end.effects) == [("2", Op.COMPENSATE)]


def test_whose_answer_was_lost_asks_for_the_same_steps_again_and_hears_how_they_have_ended() -> None:
    first = Enlist(TX, IN_ORDER, run=True)
    no = said(ask(None, first).tx, "1", K.REFUSED)
    end = ask(no.tx, StepsSettled()).tx
    assert end.decision is Decision.ABORT
    again = ask(end, first)
    assert (again.tx, again.change, again.refusal) == (end, None, None)
    # Other steps are new, and come too late.
    assert ask(end, Enlist(TX, (a_step("9"),), run=True)).refusal.reason == "DECIDED"
    assert ask(end, Enlist(TX, (a_step("1", "2"),), run=True)).refusal.reason == "DECIDED"


def test_an_answer_to_an_attempt_that_was_forgotten() -> None:
    tx = running(*IN_ORDER)
    late = ask(tx, Answered("1", Op.ACTION, 4, Answer(K.FAILED, reason="X"), 0.5, DEFAULTS))
    assert calls(late.effects) == [("1", Op.ACTION)]  # Else nobody would call it again.
    assert ask(late.tx, Answered("1", Op.ACTION, 1, Answer(K.FAILED), 0.5, DEFAULTS)).tx == late.tx


def test_when_a_participant_wants_to_be_asked_again() -> None:
    tx = running(*IN_ORDER)
    never = Answer(K.PENDING, retry_after_us=(1 << 63) - 1)
    asked = ask(tx, Answered("1", Op.ACTION, 1, never, 0.5, DEFAULTS)).tx
    assert asked.branch("1").next_attempt_us < 1 << 60  # The log can store it.


def test_a_gid_that_names_other_work() -> None:
    plan = replace(PLAN, gid="order-1", name="ship")
    row = ask(None, Submit(plan)).tx
    again, other = (
        replace(plan, tx_id="0" * 31 + n, name=name) for n, name in (("2", "ship"), ("3", "bill"))
    )
    assert ask(row, Submit(again)).refusal.reason == "IN_PROGRESS"
    # "Done before" would be a false success.
    assert ask(row, Submit(other)).refusal.reason == "CONTENT_MISMATCH"


def test_a_gid_that_names_other_data() -> None:
    def plan(number: str, payload: bytes, **more: object) -> Tx:
        one = replace(a_step("1"), payload=payload, **more)  # type: ignore[arg-type]
        return replace(TX, tx_id="0" * 31 + number, gid="order-1", name="ship", branches=(one,))

    row = ask(None, Submit(plan("1", b'{"order":1,"n":2}'))).tx
    done = ask(said(row, "1", K.DONE).tx, StepsSettled()).tx
    for known, reason in ((row, "IN_PROGRESS"), (done, "ALREADY_COMMITTED")):
        # The order of JSON's names is nothing, nor is where the participant is now.
        again = plan("2", b'{"n":2, "order":1}', resource="grpc://elsewhere:1")
        assert ask(known, Submit(again)).refusal.reason == reason
        assert ask(known, Submit(plan("2", b'{"order":1,"n":3}'))).refusal.reason == "CONTENT_MISMATCH"
        more = replace(again, branches=(*again.branches, a_step("2")))
        assert ask(known, Submit(more)).refusal.reason == "CONTENT_MISMATCH"
        action = replace(a_step("1").action, operation="ship.other")  # type: ignore[type-var]
        other = plan("2", b'{"order":1,"n":2}', action=action)
        assert ask(known, Submit(other)).refusal.reason == "CONTENT_MISMATCH"
    deep = ask(None, Submit(plan("1", b"[" * 100_000 + b"]" * 100_000))).tx
    assert ask(deep, Submit(plan("2", b"[" * 100_000))).refusal.reason == "CONTENT_MISMATCH"
    pruned = replace(done, branches=(), detail_pruned=True)
    assert ask(pruned, Submit(plan("2", b"{}"))).refusal.reason == "ALREADY_COMMITTED"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b'{"paid":1}', b'{"paid":true}', False),
        (b'{"paid":0}', b'{"paid":false}', False),
        (b'{"n":1}', b'{"n":1.0}', False),
        (b'{"n":[1]}', b'{"n":[true]}', False),
        (b'{"n":1}', b'{"n":["int",1]}', False),
        (b'{"n":0.1}', b'{"n":0.10}', True),
        (b'{"n":1e2}', b'{"n":100.0}', True),
        (b'{"n":9007199254740993.0}', b'{"n":9007199254740992.0}', False),
        (b'{"n":1e400}', b'{"n":1e500}', False),
        (b'{"n":1e9999999999999999999}', b'{"n":1e99999999999999999999}', False),
        (b'{"n":1,"n":2}', b'{"n":2}', False),
        (b'{"n":"\\u0061"}', b'{"n": "a"}', True),
    ],
)
def test_data_of_a_gid_are_compared_exactly(one: bytes, other: bytes, same: bool) -> None:
    def plan(number: str, payload: bytes) -> Tx:
        branch = replace(a_step("1"), payload=payload)
        return replace(TX, tx_id="0" * 31 + number, gid="order-1", name="ship", branches=(branch,))

    row = ask(None, Submit(plan("1", one))).tx
    reason = "IN_PROGRESS" if same else "CONTENT_MISMATCH"
    assert ask(row, Submit(plan("2", other))).refusal.reason == reason


@pytest.mark.parametrize("field", ["first_operation", "commit_operation", "abort_operation", "content_type"])
def test_a_gid_that_names_other_operations(field: str) -> None:
    def plan(number: str, **more: str) -> Tx:
        tried = replace(a_step("1", **more), kind=Kind.TCC)
        return replace(TX, tx_id="0" * 31 + number, gid="order-1", name="ship", branches=(tried,))

    default = "application/json" if field == "content_type" else "ship.1"
    row = ask(None, Submit(plan("1"))).tx
    assert ask(row, Submit(plan("2", **{field: default}))).refusal.reason == "IN_PROGRESS"
    assert ask(row, Submit(plan("2", **{field: "/other"}))).refusal.reason == "CONTENT_MISMATCH"


def test_results_of_all_steps_together_fit_into_one_message() -> None:
    tx = running(*(a_step(str(n)) for n in range(1, 11)))
    answer = Answer(K.DONE, b"x" * 256 * 1024)
    for n in range(1, 9):
        tx = ask(tx, Answered(str(n), Op.ACTION, 1, answer, 0.5, DEFAULTS)).tx
    late = ask(tx, Answered("9", Op.ACTION, 1, answer, 0.5, DEFAULTS)).tx.branch("9")
    assert (late.state, late.reason.split(":")[0]) == (B.RUNNING, "TOO_LARGE")
    assert ask(tx, Answered("9", Op.ACTION, 1, Answer(K.DONE), 0.5, DEFAULTS)).tx.branch("9").state is B.READY


def test_a_long_chain_costs_each_answer_little() -> None:
    """Counted, not timed: how often the state of a branch is looked at for one answer."""
    looks = 0

    class Counted(tuple):  # type: ignore[type-arg]
        def __iter__(self):  # type: ignore[no-untyped-def]
            nonlocal looks
            looks += 1
            return super().__iter__()

    chain = (a_step("1"), *(a_step(str(n), str(n - 1)) for n in range(2, 1_001)))
    tx = running(*chain)
    counted = replace(tx, branches=Counted(tx.branches))
    assert calls(said(counted, "1", K.DONE).effects) == [("2", Op.ACTION)]
    assert looks < 20  # And not once for each step.


def test_what_is_looked_up_is_of_the_list_that_is_there() -> None:
    tx = running(a_step("1"), *(a_step(str(n), str(n - 1)) for n in range(2, 20)))
    assert tx.branch("1") is tx.branches[0]
    copied = replace(tx, branches=tuple(replace(b, state=B.UNDOING) for b in tx.branches))
    # However it was copied: with what was found in the other list.
    object.__setattr__(copied, "_by_id", tx._by_id)
    assert copied.branch("1") is copied.branches[0]
    assert not copied.may_go(copied.branches[0])
    ended = replace(copied, branches=tuple(replace(b, state=B.UNDONE) for b in copied.branches))
    object.__setattr__(ended, "_followers", copied._followers)
    assert ended.may_go(replace(ended.branches[0], state=B.UNDOING))


def test_before_a_step_that_is_never_undone_has_surely_begun() -> None:
    """After a take-over it reads as begun. Those before it still tell whether it can have been."""
    tx = running(a_step("1"), a_step("2", "1", forward=True))
    asked = ask(read_back(replace(tx, epoch=1)), Rollback(replace(TX, branches=()))).tx
    assert (asked.decision, asked.unwanted) == (None, (DecidedBy.CLIENT, "ROLLED_BACK_BY_CLIENT"))
    no = ask(asked, Answered("1", Op.ACTION, 1, Answer(K.REFUSED, reason="DEADLINE"), 0.5, DEFAULTS)).tx
    end = ask(no, StepsSettled()).tx
    assert (end.decision, end.decided_by, end.branch("2").state) == (
        Decision.ABORT,
        DecidedBy.CLIENT,
        B.UNDONE,
    )
    begun = said(asked, "1", K.DONE).tx
    assert ask(begun, Rollback(replace(TX, branches=()))).refusal.reason == "ONLY_FORWARD"


def test_a_rollback_that_overtook_its_plan() -> None:
    row = ask(None, Rollback(replace(TX, branches=()), probed=True)).tx
    assert ask(row, Submit(replace(PLAN, name="ship"))).refusal.reason == "ALREADY_ABORTED"


def test_a_plan_is_not_begun_a_second_time() -> None:
    row = ask(None, Submit(PLAN)).tx
    assert ask(row, Begin(replace(PLAN, branches=()))).refusal.reason == "CONTENT_MISMATCH"
