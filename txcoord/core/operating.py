"""An operator's orders on a plan that runs."""

from __future__ import annotations

from dataclasses import replace

from . import plans
from .errors import Refusal
from .events import Operate, Verdict
from .lifecycle import BranchEvent, next_branch
from .model import Branch, Change, ChangeKind, HistoryEntry, Tx, TxState

_BY_HAND = {"skip": BranchEvent.SKIP, "resolve": BranchEvent.RESOLVE}


def on_running(tx: Tx, branch: Branch, event: Operate, now_us: int) -> Verdict:
    """Call a step now; or give up one that is never undone, so that its plan can end.

    It takes the plan over: whoever has it reads it again before deciding.
    """
    if tx.state is not TxState.RUNNING or not plans.is_step(branch) or branch.action is None:
        return _no(tx, "NOT_SUPPORTED", "the transaction is not decided yet, and that is its client's to do")
    if not plans.runs(tx, branch):
        return _no(tx, "NOT_PARKED", f"branch {branch.id} is {branch.state}, and is not being called")
    if event.action == "retry":
        moved = replace(branch, next_attempt_us=0)
    elif event.action not in _BY_HAND:
        text = "a step is not parked while its plan runs: roll the plan back, or skip a step that is never undone"
        return _no(tx, "NOT_SUPPORTED", text)
    elif not branch.action.forward:
        # Its plan would be committed without it, or be undone without undoing it.
        return _no(tx, "NOT_SUPPORTED", f"branch {branch.id} can be undone: roll the plan back instead")
    else:
        state = next_branch(branch.kind, branch.state, _BY_HAND[event.action])
        moved = replace(branch, state=state, reason=event.audit.reason, heuristic=True, next_attempt_us=0)
    new = replace(tx, branches=tuple(moved if b.id == moved.id else b for b in tx.branches))
    new = replace(plans.started(new), version=tx.version + 1, epoch=tx.epoch + 1)
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


def _no(tx: Tx, reason: str, message: str) -> Verdict:
    return Verdict(tx, refusal=Refusal("FAILED_PRECONDITION", reason, message, True, {"tx_id": tx.tx_id}))
