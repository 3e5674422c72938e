"""Every state and every legal transition, as tables. The diagrams in the docs are drawn from them.

A missing entry raises :class:`~txcoord.core.errors.IllegalTransition`: nothing moves by accident.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from .errors import IllegalTransition
from .model import BranchState as B
from .model import Kind, TxState


class TxEvent(StrEnum):
    """What moves a global transaction."""

    SEAL = "seal"
    COMMIT = "commit"
    ABORT = "abort"
    SETTLED = "settled"
    """No branch with a first phase has anything left to do."""


class BranchEvent(StrEnum):
    """What moves a branch."""

    START = "start"
    VOTE_YES = "vote_yes"
    VOTE_READ_ONLY = "vote_read_only"
    VOTE_NO = "vote_no"
    COMMIT = "commit"
    ABORT = "abort"
    DELIVER = "deliver"
    """The whole is COMMITTED: a delivery may start."""
    FINISHED = "finished"
    FAILED = "failed"
    """This attempt failed, or the answer was *pending*: it will be tried again."""
    PARK = "park"
    """Attempts spent, refused in phase two, a heuristic outcome, or an operator's wish."""
    RETRY_COMMIT = "retry_commit"
    RETRY_ABORT = "retry_abort"
    SKIP = "skip"
    RESOLVE = "resolve"


TX_NEXT: Mapping[tuple[TxState, TxEvent], TxState] = {
    (TxState.ACTIVE, TxEvent.SEAL): TxState.RUNNING,
    (TxState.ACTIVE, TxEvent.COMMIT): TxState.COMMITTING,
    (TxState.ACTIVE, TxEvent.ABORT): TxState.ABORTING,
    (TxState.RUNNING, TxEvent.COMMIT): TxState.COMMITTING,
    (TxState.RUNNING, TxEvent.ABORT): TxState.ABORTING,
    (TxState.COMMITTING, TxEvent.SETTLED): TxState.COMMITTED,
    (TxState.ABORTING, TxEvent.SETTLED): TxState.ABORTED,
}

_E = BranchEvent
Table = Mapping[tuple[B, BranchEvent], B]

# What an operator can do to any branch in phase two.
_FINISHING: Table = {
    (B.FINISHING, _E.FINISHED): B.DONE,
    (B.FINISHING, _E.FAILED): B.FINISHING,
    (B.FINISHING, _E.PARK): B.PARKED,
    (B.FINISHING, _E.SKIP): B.SKIPPED,
    (B.FINISHING, _E.RESOLVE): B.RESOLVED,
    (B.PARKED, _E.RETRY_COMMIT): B.FINISHING,
}
_UNDOING: Table = {
    (B.UNDOING, _E.FINISHED): B.UNDONE,
    (B.UNDOING, _E.FAILED): B.UNDOING,
    (B.UNDOING, _E.PARK): B.PARKED,
    (B.UNDOING, _E.SKIP): B.SKIPPED,
    (B.UNDOING, _E.RESOLVE): B.RESOLVED,
    (B.PARKED, _E.RETRY_ABORT): B.UNDOING,
}
_PARKED: Table = {
    (B.PARKED, _E.SKIP): B.SKIPPED,
    (B.PARKED, _E.RESOLVE): B.RESOLVED,
}

_XA: Table = {
    (B.OPEN, _E.VOTE_YES): B.READY,
    (B.OPEN, _E.VOTE_READ_ONLY): B.READ_ONLY,
    (B.OPEN, _E.VOTE_NO): B.REFUSED,
    (B.READY, _E.COMMIT): B.FINISHING,
    (B.READ_ONLY, _E.COMMIT): B.READ_ONLY,
    # A PREPARE may have landed even where no vote, or a no, was heard: roll back all but the read-only.
    (B.OPEN, _E.ABORT): B.UNDOING,
    (B.READY, _E.ABORT): B.UNDOING,
    (B.REFUSED, _E.ABORT): B.UNDOING,
    (B.READ_ONLY, _E.ABORT): B.READ_ONLY,
    **_FINISHING,
    **_UNDOING,
    **_PARKED,
}

_TCC: Table = {
    (B.OPEN, _E.START): B.RUNNING,
    (B.OPEN, _E.VOTE_YES): B.READY,
    (B.OPEN, _E.VOTE_NO): B.REFUSED,
    (B.RUNNING, _E.VOTE_YES): B.READY,
    (B.RUNNING, _E.VOTE_NO): B.REFUSED,
    (B.RUNNING, _E.FAILED): B.RUNNING,
    (B.READY, _E.COMMIT): B.FINISHING,
    # A try may be on its way even where none was reported: cancel it (an empty cancel is a success).
    (B.OPEN, _E.ABORT): B.UNDOING,
    (B.RUNNING, _E.ABORT): B.UNDOING,
    (B.READY, _E.ABORT): B.UNDOING,
    (B.REFUSED, _E.ABORT): B.UNDOING,
    **_FINISHING,
    **_UNDOING,
    **_PARKED,
}

_SAGA: Table = {
    (B.OPEN, _E.START): B.RUNNING,
    (B.RUNNING, _E.VOTE_YES): B.READY,
    (B.RUNNING, _E.VOTE_NO): B.REFUSED,
    (B.RUNNING, _E.FAILED): B.RUNNING,
    (B.RUNNING, _E.PARK): B.PARKED,
    # An operator's word, for one that is never undone: the plan goes on without it.
    (B.RUNNING, _E.SKIP): B.SKIPPED,
    (B.RUNNING, _E.RESOLVE): B.RESOLVED,
    (B.PARKED, _E.START): B.RUNNING,
    # The action was the work: commit asks nothing more of it.
    (B.READY, _E.COMMIT): B.DONE,
    # A step never started is not compensated; one that may have run is.
    (B.OPEN, _E.ABORT): B.UNDONE,
    (B.RUNNING, _E.ABORT): B.UNDOING,
    (B.READY, _E.ABORT): B.UNDOING,
    (B.REFUSED, _E.ABORT): B.REFUSED,
    (B.PARKED, _E.ABORT): B.UNDOING,
    **_UNDOING,
    **_PARKED,
}

# Deliveries have no first phase: ready from the start, they leave once the whole is COMMITTED.
_DELIVERY: Table = {
    (B.OPEN, _E.COMMIT): B.READY,
    (B.READY, _E.DELIVER): B.FINISHING,
    (B.OPEN, _E.ABORT): B.UNDONE,
    (B.READY, _E.PARK): B.PARKED,
    (B.READY, _E.SKIP): B.SKIPPED,
    **_FINISHING,
    **_PARKED,
}

# As a delivery; but it leaves whichever way the whole has ended.
_CALLBACK: Table = {
    **_DELIVERY,
    (B.OPEN, _E.ABORT): B.READY,
}

BRANCH_NEXT: Mapping[Kind, Table] = {
    Kind.XA: _XA,
    Kind.TCC: _TCC,
    Kind.SAGA: _SAGA,
    Kind.MESSAGE: _DELIVERY,
    Kind.NOTIFY: _DELIVERY,
    Kind.CALLBACK: _CALLBACK,
}


def next_tx(state: TxState, event: TxEvent) -> TxState:
    """Where ``event`` takes a transaction."""
    try:
        return TX_NEXT[state, event]
    except KeyError:
        raise IllegalTransition(state, event) from None


def next_branch(kind: Kind, state: B, event: BranchEvent) -> B:
    """Where ``event`` takes a branch of that kind."""
    try:
        return BRANCH_NEXT[kind][state, event]
    except KeyError:
        raise IllegalTransition(f"{kind} {state}", event) from None
