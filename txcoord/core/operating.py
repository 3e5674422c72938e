"""Operators' orders."""

from __future__ import annotations

from . import plans, settle
from .deciding import write
from .events import Operate, Verdict
from .evolve import replace
from .kinds import RULES
from .lifecycle import BranchEvent, next_branch
from .model import (
    FOREVER_US,
    TAKEN,
    Branch,
    BranchState,
    Change,
    ChangeKind,
    DecidedBy,
    Decision,
    HistoryEntry,
    Kind,
    Tx,
    TxState,
    Windows,
)

_GIVEN_UP = {"skip": BranchEvent.SKIP, "resolve": BranchEvent.RESOLVE}
_ABORTED = "ABORTED_BY_OPERATOR"
_OPERATOR = {"skip": BranchEvent.SKIP, "resolve": BranchEvent.RESOLVE, "park": BranchEvent.PARK}


def operate(tx: Tx, event: Operate, now_us: int, windows: Windows) -> Verdict:
    """An operator's order. It takes the row over, so that a slower writer finds its epoch gone."""
    branch = tx.branch(event.branch_id)
    if branch is None:
        return settle.no(tx, "NOT_FOUND", "NOT_FOUND", f"there is no branch {event.branch_id!r}")
    if event.parked and branch.state is not BranchState.PARKED:
        text = f"branch {branch.id} is not parked any more: it is {branch.state}"
        return settle.no(tx, "FAILED_PRECONDITION", "NOT_PARKED", text)
    if tx.ended and RULES[branch.kind].first_phase:
        return settle.no(tx, "FAILED_PRECONDITION", "NOT_PARKED", f"the transaction has ended: {tx.state}")
    if tx.decision is None:
        return _on_running(tx, branch, event, now_us)
    if event.action == "not_done":
        return settle.no(tx, "FAILED_PRECONDITION", "DECIDED", f"it was decided: {tx.state}")
    if (no := _not_sent_again(tx, branch, event, now_us, windows)) is not None:
        return no
    # A callback has only one way to go.
    commit = tx.decision is Decision.COMMIT or branch.kind is Kind.CALLBACK
    if event.action == "retry":
        if branch.state is BranchState.PARKED:
            moved = replace(
                branch,
                state=next_branch(
                    branch.kind, branch.state, BranchEvent.RETRY_COMMIT if commit else BranchEvent.RETRY_ABORT
                ),
                attempts=0,
                next_attempt_us=_from_us(branch, event, now_us),
                heuristic=False,
                failures=0,
                since_us=0,
                edited=branch.edited if event.payload is None else event.payload,
            )
        elif branch.state in (BranchState.FINISHING, BranchState.UNDOING):
            moved = _due_now(branch, event, now_us)
        else:
            return settle.no(tx, "FAILED_PRECONDITION", "NOT_PARKED", f"branch {branch.id} is {branch.state}")
    elif event.action in _OPERATOR:
        if branch.state not in (BranchState.FINISHING, BranchState.UNDOING, BranchState.PARKED) or (
            event.action == "park" and branch.state is BranchState.PARKED
        ):
            return settle.no(tx, "FAILED_PRECONDITION", "NOT_PARKED", f"branch {branch.id} is {branch.state}")
        moved = replace(
            branch,
            state=next_branch(branch.kind, branch.state, _OPERATOR[event.action]),
            reason=branch.reason if event.action == "park" and branch.reason else event.audit.reason,
            # Settled by hand is a heuristic outcome, and says so; of a delivery the decision does not depend.
            heuristic=branch.heuristic or (event.action in _GIVEN_UP and RULES[branch.kind].first_phase),
        )
    else:
        return settle.no(tx, "INVALID_ARGUMENT", "BAD_REQUEST", f"no such order: {event.action!r}")
    new = replace(settle.close(settle.with_branch(tx, moved), now_us), epoch=tx.epoch + TAKEN)
    entry = HistoryEntry(now_us, f"operator.{event.action}", branch.id, event.audit.actor, event.audit.reason)
    change = Change(
        ChangeKind.OPERATE,
        new,
        new.branches,
        expected_epoch=tx.epoch,
        history=(entry,),
        audit=event.audit,
        job=(event.audit.replay, event.job_epoch) if event.audit.replay else None,
    )
    return Verdict(new, change, settle.effects_of(new))


def _from_us(branch: Branch, event: Operate, now_us: int) -> int:
    """From when on a branch that is retried is due: not before the time that its sender has chosen."""
    chosen_us = branch.action.delivery.deliver_at_us if branch.action is not None else 0
    return chosen_us if chosen_us > now_us and not event.early else 0


def _due_now(branch: Branch, event: Operate, now_us: int) -> Branch:
    moved = replace(branch, next_attempt_us=_from_us(branch, event, now_us))
    return replace(moved, attempts=0, failures=0, since_us=0) if event.reset else moved


def _not_sent_again(tx: Tx, branch: Branch, event: Operate, now_us: int, windows: Windows) -> Verdict | None:
    """Why a delivery must not be sent again, or not so."""
    if event.action != "retry":
        return None
    delivery = not RULES[branch.kind].first_phase
    if delivery and branch.state is BranchState.PARKED and now_us > windows.keep_until(_settled_us(tx)):
        text = "whoever received it may have forgotten that by now, and would act twice: its marker's time is over"
        return settle.no(tx, "FAILED_PRECONDITION", "PAST_RETENTION", text)
    if event.payload is None:
        return None
    if not delivery:
        text = f"branch {branch.id} is {branch.kind}: what was agreed to in its first phase is not changed any more"
        return settle.no(tx, "FAILED_PRECONDITION", "NOT_SUPPORTED", text)
    if branch.state is not BranchState.PARKED:
        text = f"branch {branch.id} is {branch.state}: only a parked one is sent with another payload"
        return settle.no(tx, "FAILED_PRECONDITION", "NOT_PARKED", text)
    return None


def _settled_us(tx: Tx) -> int:
    """From when on markers of its deliveries were kept: no later than that they may be deleted, once P is over."""
    return tx.decided_us if tx.deadline_us == FOREVER_US else max(tx.deadline_us, tx.decided_us)


def _on_running(tx: Tx, branch: Branch, event: Operate, now_us: int) -> Verdict:
    """Call a step now; or give up one that is never undone, so that its plan can end.

    It takes the plan over: whoever has it reads it again before deciding.
    """
    if tx.state is not TxState.RUNNING or not plans.is_step(branch) or branch.action is None:
        return settle.no(
            tx,
            "FAILED_PRECONDITION",
            "NOT_SUPPORTED",
            "the transaction is not decided yet, and that is its client's to do",
        )
    if not plans.runs(tx, branch):
        return settle.no(
            tx,
            "FAILED_PRECONDITION",
            "NOT_PARKED",
            f"branch {branch.id} is {branch.state}, and is not being called",
        )
    if event.action == "not_done":
        return _not_done(tx, branch, event, now_us)
    if event.action == "retry":
        moved = _due_now(branch, event, now_us)
    elif event.action not in _GIVEN_UP:
        text = "a step is not parked while its plan runs: roll the plan back, or skip a step that is never undone"
        return settle.no(tx, "FAILED_PRECONDITION", "NOT_SUPPORTED", text)
    elif not branch.action.forward:
        # Its plan would be committed without it, or be undone without undoing it.
        return settle.no(
            tx,
            "FAILED_PRECONDITION",
            "NOT_SUPPORTED",
            f"branch {branch.id} can be undone: roll the plan back instead",
        )
    else:
        state = next_branch(branch.kind, branch.state, _GIVEN_UP[event.action])
        moved = replace(branch, state=state, reason=event.audit.reason, heuristic=True, next_attempt_us=0)
    new = replace(tx, branches=tuple(moved if b.id == moved.id else b for b in tx.branches))
    new = replace(plans.started(new), version=tx.version + 1, epoch=tx.epoch + TAKEN)
    entry = HistoryEntry(now_us, f"operator.{event.action}", branch.id, event.audit.actor, event.audit.reason)
    changed = tuple(b for b, old in zip(new.branches, tx.branches, strict=True) if b is not old)
    change = Change(
        ChangeKind.AMEND,
        new,
        changed,
        expected_version=tx.version,
        history=(entry,),
        audit=event.audit,
    )
    return Verdict(new, change, plans.effects_of(new))


def _not_done(tx: Tx, branch: Branch, event: Operate, now_us: int) -> Verdict:
    """An operator says that a step was not done: so its plan was not committed, and is aborted.

    In doubt he may have looked before it was done, by a node that has committed, told and lost it since. So the first
    order only takes the plan over, and lets no step begin any more; what he sees after that, he says by a second one.
    Where that is forgotten, by a crash or a take-over, he is asked to look again.
    """
    if branch.action is not None and branch.action.forward:
        text = f"branch {branch.id} is never undone, and all before it is done: skip it, or resolve it"
        return settle.no(tx, "FAILED_PRECONDITION", "NOT_SUPPORTED", text)
    entry = HistoryEntry(now_us, "operator.not_done", branch.id, event.audit.actor, event.audit.reason)
    if tx.in_doubt and (tx.unwanted is None or tx.unwanted[0] is not DecidedBy.OPERATOR):
        new = plans.unwanted(tx, DecidedBy.OPERATOR, _ABORTED)
        new = replace(new, version=tx.version + 1, epoch=tx.epoch + TAKEN)
        change = Change(
            ChangeKind.AMEND, new, expected_version=tx.version, history=(entry,), audit=event.audit
        )
        return Verdict(new, change, plans.effects_of(new))
    # By a person's word alone: that is heuristic, and says so.
    moved = replace(branch, reason=event.audit.reason, heuristic=tx.in_doubt)
    verdict = write(
        tx, settle.with_branch(tx, moved), Decision.ABORT, DecidedBy.OPERATOR, _ABORTED, now_us, None
    )
    assert verdict.change is not None
    return replace(verdict, change=replace(verdict.change, history=(entry,), audit=event.audit))
