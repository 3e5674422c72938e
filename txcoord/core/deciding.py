"""How a decision is made and written, and how a no is said."""

from __future__ import annotations

from . import plans, settle
from .errors import Refusal
from .events import Verdict
from .evolve import replace
from .lifecycle import BranchEvent, TxEvent, next_branch, next_tx
from .model import Branch, BranchState, Change, ChangeKind, DecidedBy, Decision, Tx, TxState, Windows


def write(
    old: Tx | None,
    base: Tx,
    decision: Decision,
    by: DecidedBy,
    reason: str,
    now_us: int,
    windows: Windows | None,
) -> Verdict:
    """Write a decision. The writing statement itself carries the limit of time (*Windows*, rule 1)."""
    new = decided(base, decision, by, reason, now_us)
    new = replace(new, created_us=base.created_us or now_us, version=(old.version if old else 0) + 1)
    limit: int | None = None
    if decision is Decision.COMMIT:
        limit = base.deadline_us
    elif windows is not None:
        limit = windows.abort_until(base.deadline_us)
    return Verdict(new, change_of(old, new, limit), settle.effects_of(new))


def change_of(old: Tx | None, new: Tx, not_after_us: int | None) -> Change:
    if old is None:
        return Change(ChangeKind.INSERT, new, new.branches, not_after_us=not_after_us)
    return Change(
        ChangeKind.AMEND, new, new.branches, expected_version=old.version, not_after_us=not_after_us
    )


def decided(tx: Tx, decision: Decision, by: DecidedBy, reason: str, now_us: int) -> Tx:
    commit = decision is Decision.COMMIT
    branch_event = BranchEvent.COMMIT if commit else BranchEvent.ABORT
    if not commit and tx.state is TxState.ACTIVE:
        # Its client may have asked for its steps at several nodes, and none of them knows what the others began.
        tx = plans.as_read(tx)
    new = replace(
        tx,
        state=next_tx(tx.state, TxEvent.COMMIT if commit else TxEvent.ABORT),
        decision=decision,
        decided_by=by,
        reason=reason,
        decided_us=now_us,
        epoch=tx.epoch + 1,
        in_doubt=False,
        unwanted=None,
        branches=tuple(_obeying(b, branch_event) for b in tx.branches),
    )
    return settle.close(new, now_us)


def _obeying(b: Branch, event: BranchEvent) -> Branch:
    """A branch once the whole is decided: a new phase, with attempts of its own."""
    if b.state in (BranchState.SKIPPED, BranchState.RESOLVED):
        return b  # An operator has settled it while its plan ran.
    state = next_branch(b.kind, b.state, event)
    if b.action is None or state is b.state:
        return replace(b, state=state)
    # An abort finds a step that is never undone not begun: all that may say no comes before it, and was asked again.
    if state is BranchState.UNDOING and (b.action.no_undo or b.action.forward):
        state = next_branch(b.kind, state, BranchEvent.FINISHED)
    return replace(b, state=state, attempts=0, failures=0, since_us=0, next_attempt_us=0)


def too_late(tx: Tx) -> Verdict:
    return refuse(
        tx,
        "FAILED_PRECONDITION",
        "EXPIRED",
        "too long after its deadline: whether this transaction was committed is no longer known here",
        definite=False,
    )


def refuse(tx: Tx, code: str, reason: str, message: str, definite: bool = True, **facts: str) -> Verdict:
    return Verdict(tx, refusal=Refusal(code, reason, message, definite, {"tx_id": tx.tx_id, **facts}))


def expired(tx: Tx, windows: Windows) -> bool:
    """Is this row a fence, written by the scanner after W, and no outcome?"""
    # Only a fence: a deadline and a database decide rows that were there all along, or repeat a fact.
    return tx.decided_by is DecidedBy.SCANNER and tx.decided_us > windows.abort_until(tx.deadline_us)
