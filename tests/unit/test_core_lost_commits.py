"""The COMMIT of a saga is not forced: every short history in which the log's database loses it.

Two nodes, a log whose lazy writes a crash takes back (those that come after the last forced one), and participants with
the barrier whose calls may come late. What must hold: nobody is told COMMITTED of what is, or will be, undone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from txcoord.core import answers, machine, operating, plans
from txcoord.core.action import Action, Answer, AnswerKind, Op, Retry
from txcoord.core.calling import op_of
from txcoord.core.deciding import write
from txcoord.core.events import (
    Answered,
    DeadlinePassed,
    Decide,
    Event,
    Operate,
    Rollback,
    StepsSettled,
    Submit,
    Verdict,
)
from txcoord.core.machine import decide, resume
from txcoord.core.model import (
    Audit,
    Branch,
    BranchState,
    Change,
    ChangeKind,
    DecidedBy,
    Decision,
    Kind,
    Tx,
    TxState,
    Windows,
)
from txcoord.core.settle import read_back

DEADLINE = 100
IN_TIME, LATE = 50, 150
WINDOWS = Windows(grace_us=500, retention_us=100_000)
ONCE = Retry(5_000, 1, 1.0, 1, max_attempts=1)


def _step(number: str, *after: str) -> Branch:
    return Branch(
        number,
        Kind.SAGA,
        BranchState.OPEN,
        "grpc://ship",
        action=Action(number, run_first=True, after=after, retry=ONCE),
    )


ASKED = Tx("0" * 31 + "1", "shop", DEADLINE, branches=(_step("1"), _step("2", "1")))


class Broken(AssertionError):
    """A promise was broken."""


def must(holds: bool, what: str) -> None:
    if not holds:
        raise Broken(what)


@dataclass(frozen=True, slots=True)
class World:
    """All that there is at one moment."""

    row: Tx
    """As everybody reads it."""
    durable: Tx
    """As a crash of the database leaves it."""
    live: tuple[Tx | None, Tx | None]
    late: bool = False
    sent: frozenset[tuple[str, int]] = frozenset()
    """Actions on their way, with the deadline that was given."""
    done: frozenset[str] = frozenset()
    undone: frozenset[str] = frozenset()
    """Compensated, or kept from ever being done."""
    told: frozenset[str] = frozenset()
    operators: bool = False
    looked: str = ""
    """An operator saw that this step was not done; he forgets it when he is asked to look again."""

    @property
    def now(self) -> int:
        return LATE if self.late else IN_TIME

    def node(self, n: int, tx: Tx | None) -> World:
        return replace(self, live=(tx, self.live[1]) if n == 0 else (self.live[0], tx))


def _written(w: World, change: Change) -> World | None:
    row, new = w.row, change.tx
    if change.kind is ChangeKind.AMEND:
        conflict = row.version != change.expected_version or row.decision is not None
    else:
        conflict = row.epoch != change.expected_epoch
    if conflict or (change.not_after_us is not None and w.now > change.not_after_us):
        return None
    branches = {b.id: b for b in row.branches}
    branches.update((b.id, b) for b in change.touched)
    if change.kind is ChangeKind.PROGRESS:
        new = replace(row, state=new.state, ended_us=new.ended_us, epoch=new.epoch)
    w = replace(w, row=replace(new, branches=tuple(branches.values())))
    return replace(w, durable=w.row) if change.forced else w


def _told(w: World, tx: Tx) -> World:
    if tx.decision is None:
        return w
    return replace(w, told=w.told | {str(tx.decision)})


def _command(w: World, n: int, event: Event, lost: bool) -> World:
    """A command at a node, as the engine has it: from what is live there, or else from the row."""
    tx = w.live[n] or read_back(w.row)
    for _ in range(3):
        verdict = decide(tx, event, w.now, WINDOWS)
        if verdict.refusal is not None:
            return w
        if verdict.change is None:
            return _told(w, verdict.tx)
        found = _written(w, verdict.change)
        if found is not None:
            if lost:
                # The reply is lost: a decision by the steps is tried again, else the plan is let go of.
                live = w.live[n]
                if live is not None and isinstance(event, StepsSettled):
                    return found.node(n, _unanswered(live))
                return found.node(n, None)
            tx = verdict.tx
            return _told(found.node(n, None if tx.ended else tx), tx)
        tx = read_back(w.row)
        if isinstance(event, StepsSettled) and tx.decision is None:
            return w.node(n, None)  # Another node has it.
    raise Broken("no end of writing")


def _unanswered(tx: Tx) -> Tx:
    return replace(tx, in_doubt=plans.no_of(tx) is None)


def _answer(w: World, n: int, number: str, answer: Answer) -> World:
    tx = w.live[n]
    assert tx is not None
    found = tx.branch(number)
    assert found is not None
    op = op_of(found)
    assert op is not None
    verdict = answers.answered(tx, Answered(number, op, found.attempts + 1, answer, 0.5, ONCE), w.now)
    if verdict.change is not None:
        after = _written(w, verdict.change)
        if after is None:
            return w.node(n, None)
        w = after
    return w.node(n, None if verdict.tx.ended else verdict.tx)


def _barrier(w: World, number: str, limit: int) -> tuple[World, Answer]:
    if number in w.undone:
        return w, Answer(AnswerKind.REFUSED, reason="DECIDED")
    if number in w.done:
        return w, Answer(AnswerKind.DONE)
    if w.now > limit:
        return w, Answer(AnswerKind.REFUSED, reason="DEADLINE")
    return replace(w, done=w.done | {number}), Answer(AnswerKind.DONE)


def moves(w: World) -> Iterator[tuple[str, World]]:
    """All that can happen next."""
    yield "the database crashes", replace(w, row=w.durable)
    if not w.late:
        yield "time passes", replace(w, late=True)
    yield "somebody reads", _told(w, w.row)
    for number, limit in w.sent:
        on, _ = _barrier(w, number, limit)
        yield f"a late {number} arrives", replace(on, sent=w.sent - {(number, limit)})
    for number in {"1", "2"} - w.done - {w.looked} if w.operators else ():
        yield f"an operator looks at {number}", replace(w, looked=number)
    for n in (0, 1):
        if w.looked:
            order = Operate("not_done", w.looked, Audit("ann", "it was not done", "not_done", w.now))
            yield (
                f"{n} is told that {w.looked} was not done",
                replace(_command(w, n, order, False), looked=""),
            )
        yield f"{n} rolls back", _command(w, n, Rollback(replace(ASKED, branches=())), False)
        yield f"{n} rolls back, unanswered", _command(w, n, Rollback(replace(ASKED, branches=())), True)
        tx = w.live[n]
        if tx is None:
            if not w.row.ended:
                epoch, version = w.row.epoch + 1, w.row.version + (w.row.decision is None)
                row = replace(w.row, epoch=epoch, version=version)
                claimed = read_back(row)
                yield f"{n} claims", replace(w, row=row, durable=row).node(n, claimed)
            continue
        yield f"{n} crashes", w.node(n, None)
        if tx.decision is None:
            yield f"{n}: deadline", _command(w, n, DeadlinePassed(), False)
        if Decide() in resume(tx):
            yield f"{n} settles", _command(w, n, StepsSettled(), False)
            yield f"{n} settles, unanswered", _command(w, n, StepsSettled(), True)
        for b in tx.branches:
            op = op_of(b)
            if op is None or not tx.may_go(b):
                continue
            if op is Op.COMPENSATE:
                must(w.durable.decision is Decision.ABORT, "undone before the abort is durable")
                yield (
                    f"{n} undoes {b.id}",
                    _answer(replace(w, undone=w.undone | {b.id}), n, b.id, Answer(AnswerKind.DONE)),
                )
                continue
            limit = plans.as_asked(tx).deadline_us
            yield f"{n} sends {b.id}", replace(w, sent=w.sent | {(b.id, limit)})
            on, answer = _barrier(w, b.id, limit)
            yield f"{n} runs {b.id}", _answer(on, n, b.id, answer)
            if b.id not in w.done:
                # The only attempt there ever was is over with it; others may be on their way.
                only = not b.attempts and not tx.epoch
                over = replace(w, sent=w.sent - {(b.id, limit)}) if only else w
                yield f"{n}: {b.id} says no", _answer(over, n, b.id, Answer(AnswerKind.REFUSED, reason="NO"))
            yield f"{n}: {b.id} fails", _answer(w, n, b.id, Answer(AnswerKind.FAILED, reason="X"))


def check(w: World) -> None:
    must(len(w.told) < 2, f"two stories: {set(w.told)}")
    if "commit" in w.told:
        must(w.done == {"1", "2"} and not w.undone, "told COMMITTED, and it is not all done")
    if w.row.state is TxState.ABORTED:
        must(w.done <= w.undone, "ABORTED, and something is done")
        must({number for number, _ in w.sent} <= w.undone | w.done or _harmless(w), "a late action will act")


def _harmless(w: World) -> bool:
    return all(number in w.undone or number in w.done or w.now > limit for number, limit in w.sent)


def _key(tx: Tx | None) -> object:
    if tx is None:
        return None
    branches = tuple((b.id, b.state, min(b.attempts, 2)) for b in tx.branches)
    return tx.state, tx.decided_by, tx.version, tx.epoch, tx.in_doubt, tx.unwanted, branches


def key(w: World) -> object:
    return (
        _key(w.row),
        _key(w.durable),
        *map(_key, w.live),
        w.late,
        w.sent,
        w.done,
        w.undone,
        w.told,
        w.looked,
    )


def begun() -> World:
    tx = decide(None, Submit(ASKED), IN_TIME, WINDOWS).tx
    return World(tx, tx, (tx, None))


def search(depth: int, start: World | None = None) -> int:
    """All histories of so many moves. How many worlds they make; raises Broken with the shortest that breaks."""
    first = start or begun()
    seen = {key(first)}
    edge: list[tuple[World, tuple[str, ...]]] = [(first, ())]
    for _ in range(depth):
        following: list[tuple[World, tuple[str, ...]]] = []
        for w, path in edge:
            for name, on in moves(w):
                known = key(on)
                if known in seen:
                    continue
                seen.add(known)
                try:
                    check(on)
                except Broken as broken:
                    raise Broken(f"{broken}: {' / '.join((*path, name))}") from None
                following.append((on, (*path, name)))
        edge = following
    return len(seen)


def after(*names: str, operators: bool = False) -> World:
    """How it stands after these moves."""
    w = replace(begun(), operators=operators)
    for name in names:
        w = dict(moves(w))[name]
    return w


TOLD = ("0 runs 1", "0 runs 2", "0 settles", "the database crashes")


BEGINS = ((), TOLD, (*TOLD[:2], "0 settles, unanswered", "somebody reads", TOLD[3]))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("begins", BEGINS)
def test_every_short_history(begins: tuple[str, ...]) -> None:
    worlds = search(5, after(*begins))
    print(f"{worlds} worlds")
    assert worlds > 500


def test_the_commit_is_lost_and_found_again() -> None:
    lost = after(*TOLD)
    assert (lost.row.decision, lost.told) == (None, {"commit"})
    again = dict(moves(dict(moves(lost))["1 rolls back"]))["1 runs 1"]
    assert again.row.decision is None
    for name in ("1 runs 2", "1 settles"):
        again = dict(moves(again))[name]
    assert again.row.state is TxState.COMMITTED


def test_what_was_not_done_is_aborted_without_going_forward() -> None:
    w = after("0 runs 1", "0 crashes", "1 rolls back", "1 runs 2", "1 settles")
    assert (w.row.state, w.row.decided_by, w.row.reason) == (
        TxState.ABORTING,
        DecidedBy.CLIENT,
        "ROLLED_BACK_BY_CLIENT",
    )
    assert w.done == {"1"}


@pytest.mark.parametrize(
    "mutant", ["rollback", "deadline", "given up", "the settling node", "no is believed"]
)
def test_the_search_finds_what_each_rule_is_for(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    match mutant:
        case "rollback":
            monkeypatch.setattr(machine, "_find_out", lambda tx, event: _abort(tx, DecidedBy.CLIENT))
        case "deadline":
            monkeypatch.setattr(
                machine,
                "_deadline",
                lambda tx, event, now: _abort(tx, DecidedBy.DEADLINE) if tx.decision is None else Verdict(tx),
            )
        case "given up":
            moved = answers._moved
            monkeypatch.setattr(
                answers, "_moved", lambda tx, *rest: moved(replace(tx, in_doubt=False), *rest)
            )
        case "the settling node":
            monkeypatch.setattr(f"{__name__}._unanswered", lambda tx: tx)
        case _:
            monkeypatch.setattr(answers, "_only_attempt", lambda tx, branch: True)
    with pytest.raises(Broken):
        _ = [search(5, after(*begins)) for begins in BEGINS]


LOOKED = ("0 runs 1", "an operator looks at 2", *TOLD[1:])


def test_every_short_history_with_an_operator_who_tells_what_he_has_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert search(4, after(operators=True)) > 500
    assert search(5, after(*LOOKED, operators=True)) > 500
    # Believed at once he undoes what was told COMMITTED, and lost, after he had looked.
    monkeypatch.setattr(operating, "_not_done", lambda tx, *_: _abort(tx, DecidedBy.OPERATOR))
    with pytest.raises(Broken):
        search(3, after(*LOOKED, operators=True))


def test_an_operator_who_looks_again_is_believed() -> None:
    w = after("0 runs 1", "an operator looks at 2", "0 crashes", "1 claims", operators=True)
    for name in ("1 is told that 2 was not done", "an operator looks at 2", "1 is told that 2 was not done"):
        w = dict(moves(w))[name]
    assert (w.row.state, w.row.decided_by) == (TxState.ABORTING, DecidedBy.OPERATOR)


def _abort(tx: Tx, by: DecidedBy) -> Verdict:
    return write(tx, tx, Decision.ABORT, by, "X", IN_TIME, None)
