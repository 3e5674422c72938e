"""A call that is held back uses up no time of its branch's budget; one that is pulled forward wins none."""

from __future__ import annotations

from tests.support.logs import S, committing
from txcoord.core.action import Action, Answer, AnswerKind, Op, Retry
from txcoord.core.events import Answered, Deferred
from txcoord.core.evolve import replace
from txcoord.core.machine import decide
from txcoord.core.model import Branch, BranchState, Kind, Tx, Windows

NOW = 1_800_000_000 * S
AWAY = Answer(AnswerKind.FAILED, reason="UNAVAILABLE")


def held_back(tx: Tx, at_us: int, until_us: int) -> Tx:
    event = Deferred(
        "1", Op.CONFIRM, tx.branches[0].attempts + 1, until_us, "BREAKER_OPEN: it does not answer"
    )
    return decide(tx, event, at_us, Windows()).tx


def failed(tx: Tx, at_us: int) -> Tx:
    event = Answered("1", Op.CONFIRM, tx.branches[0].attempts + 1, AWAY, 0.5, Retry())
    return decide(tx, event, at_us, Windows()).tx


def since_s(tx: Tx) -> int:
    return (tx.branches[0].since_us - NOW) // S


def test_its_time_goes_on_when_its_wait_is_over() -> None:
    branch = Branch("1", Kind.TCC, BranchState.FINISHING, "grpc://stock:7000", action=Action("confirm"))
    tx = failed(committing(NOW, branch), NOW)
    assert since_s(tx) == 0
    waits = held_back(tx, NOW + 10 * S, NOW + 60 * S)
    assert since_s(waits) == 50
    # It has waited so long, once or in pieces.
    assert since_s(failed(waits, NOW + 60 * S)) == 50
    assert since_s(failed(held_back(waits, NOW + 60 * S, NOW + 70 * S), NOW + 70 * S)) == 60
    # It was pulled forward, and called, or held back once more.
    assert since_s(failed(waits, NOW + 20 * S)) == 10
    assert since_s(held_back(waits, NOW + 20 * S, NOW + 30 * S)) == 20
    # The log has pulled it forward: it has waited until now at most.
    pulled = replace(waits, branches=(replace(waits.branches[0], next_attempt_us=0),))
    assert since_s(failed(pulled, NOW + 20 * S)) == 20
