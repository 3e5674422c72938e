"""What a participant's answer means for its branch, and for the whole."""

from __future__ import annotations

from . import plans, settle
from .action import Answer, AnswerKind, Op, Retry
from .calling import call_of, calls_of, op_of, own_retry, pause_us, spent, stuck
from .events import Alarm, Answered, Call, Deferred, Effect, NotSent, Settled, Verdict
from .evolve import replace
from .lifecycle import BranchEvent, next_branch
from .model import (
    Branch,
    BranchState,
    Change,
    ChangeKind,
    DecidedBy,
    HistoryEntry,
    Tx,
    TxState,
    held_back,
)

_FIRST = (Op.TRY, Op.ACTION)
_EDITED_TOO_LATE = "EDITED_TOO_LATE"
_LONGEST_PAUSE_US = 30 * 86_400_000_000
"""A participant that says when it wants to be asked again is not believed beyond that."""
MOST_RESULTS = 2 * 1024 * 1024
"""Of all steps of a transaction together, in bytes."""
_ASK_AGAIN_US = 1_000_000
"""After *pending*, where the participant does not say when."""


def answered(tx: Tx, event: Answered, now_us: int) -> Verdict:
    """A participant has answered, or failed to. Repeats and late news change nothing."""
    branch = tx.branch(event.branch_id)
    if branch is None or op_of(branch) is not event.op or (tx.ended and not branch.kind.is_delivery):
        return Verdict(tx)
    if branch.edited is not None and event.sent != branch.sent:
        return _to_another_payload(tx, branch, event, now_us)
    if event.answer.result and event.op in _FIRST and tx.decision is None:
        event = replace(event, answer=_bounded(tx, branch, event.answer))
    # That it is done is a fact, whichever attempt says so; of the others only the latest counts. Earlier ones may have
    # been forgotten, with the node that made them, or by an operator's order: then it is later than the next one.
    if event.answer.kind is not AnswerKind.DONE and event.attempt <= branch.attempts:
        return Verdict(tx)
    moved, effects, history = _moved(tx, branch, event, now_us)
    if (
        tx.in_doubt
        and tx.unwanted is None
        and op_of(moved) is event.op
        and spent(moved, event.defaults, now_us)
    ):
        # Given up; but it may have been done before. Its participant still knows that.
        tx = replace(tx, unwanted=(DecidedBy.BRANCH, "RETRIES_SPENT"))
    new = settle.close(plans.started(settle.with_branch(tx, moved)), now_us)
    if tx.decision is None:
        # All others are as they were, or have begun.
        changed = tuple(b for b, old in zip(new.branches, tx.branches, strict=True) if b is not old)
        # Those that are on their way are not asked for again; this one is.
        before = {b.id for b in tx.branches if b.id != moved.id and plans.runs(tx, b)}
        effects = tuple(
            e for e in plans.effects_of(new) if not isinstance(e, Call) or e.branch.id not in before
        )
        # Lazy: what is lost is run again. In an active transaction its caller's commit says all of it.
        change = Change(ChangeKind.PROGRESS, new, changed, tx.epoch, tx.epoch, forced=False, history=history)
        before_stuck, now_stuck = (stuck(b, event.defaults, now_us) for b in (branch, moved))
        if now_stuck and not before_stuck and op_of(moved) is event.op:
            # It is tried on, but a person should look: it is never undone, or may have been committed.
            effects = (*effects, Alarm("step_stuck", branch.id, moved.reason))
        return Verdict(new, change if tx.state is TxState.RUNNING else None, effects)
    return _settled(tx, new, moved, effects, history)


def _settled(
    tx: Tx, new: Tx, moved: Branch, effects: tuple[Effect, ...], history: tuple[HistoryEntry, ...]
) -> Verdict:
    """A branch of a decided transaction has moved."""
    effects = (*effects, *_next_calls(tx, new, moved))
    if new.ended and not tx.ended:
        effects = (*effects, *settle.effects_of(new))
    elif new.rests:
        effects = (*effects, Settled())
    if (new.ended and not tx.ended) or (new.ended_us and not tx.ended_us):
        # As for the other kinds, see settle.progress; the same when the last delivery has ended.
        new = replace(new, epoch=tx.epoch + 1)
    return Verdict(new, settle.lazy(tx, new, moved, history), effects)


def _to_another_payload(tx: Tx, branch: Branch, event: Answered, now_us: int) -> Verdict:
    """Since the call was made an operator has put something else in the place of its payload, and that has still to be
    sent: the answer says nothing of it."""
    if event.sent is None:
        # A report does not say what it is about: ask for what is to be sent now.
        moved = replace(branch, next_attempt_us=0)
        return _settled(tx, settle.with_branch(tx, moved), moved, (), ())
    if event.answer.kind is not AnswerKind.DONE:
        return Verdict(tx)
    moved, alarm, entry = _too_late(branch, "it has arrived with the payload that was replaced", now_us)
    # It is on its way with the new one already, or is about to be.
    new = settle.with_branch(tx, moved)
    return Verdict(new, settle.lazy(tx, new, moved, (entry,)), (alarm,))


def _too_late(branch: Branch, text: str, now_us: int) -> tuple[Branch, Alarm, HistoryEntry]:
    """Its receiver drops repeats, and may not act on what an operator has put in the place of its payload."""
    reason = f"{_EDITED_TOO_LATE}: {text}"
    entry = HistoryEntry(now_us, "branch.edited_too_late", branch.id, reason=reason)
    return replace(branch, reason=reason), Alarm("edited_too_late", branch.id, reason), entry


def not_sent(tx: Tx, event: NotSent, now_us: int) -> Verdict:
    """A delivery is parked without an attempt. Late news change nothing."""
    branch = tx.branch(event.branch_id)
    if branch is None or op_of(branch) is not event.op or not branch.kind.is_delivery:
        return Verdict(tx)
    if event.attempt <= branch.attempts:
        return Verdict(tx)
    moved, effects, history = _parked(branch, event.reason, now_us)
    return _settled(tx, settle.close(settle.with_branch(tx, moved), now_us), moved, effects, history)


def deferred(tx: Tx, event: Deferred, now_us: int) -> Verdict:
    """A call that was due is not made now. Nothing is counted: no attempt, no failure, no time of its budget.

    Lazy, and written only when the reason is another one: losing it makes the call due earlier. No history: it may be
    put off often.
    """
    branch = tx.branch(event.branch_id)
    if branch is None or op_of(branch) is not event.op or (tx.ended and not branch.kind.is_delivery):
        return Verdict(tx)
    if event.attempt <= branch.attempts:
        return Verdict(tx)  # Late: that attempt has ended, or was forgotten.
    since_us = _since(branch, now_us)
    waited_us = event.until_us - now_us if since_us else 0
    moved = replace(
        branch,
        next_attempt_us=event.until_us,
        reason=event.reason,
        # The time for which it is held back is not its participant's to use up.
        since_us=since_us + max(0, waited_us),
    )
    new = settle.with_branch(tx, moved)
    call = call_of(moved)
    effects: tuple[Effect, ...] = (call,) if call is not None else ()
    change = Change(ChangeKind.PROGRESS, new, (moved,), tx.epoch, tx.epoch, forced=False)
    known = held_back(branch.reason) == held_back(moved.reason)
    return Verdict(new, None if known or tx.state is TxState.ACTIVE else change, effects)


def _since(branch: Branch, now_us: int) -> int:
    """When its first attempt ended, moved by the time for which it was held back: not by what was left of that when it
    was pulled forward. What the log has pulled forward does not say any more how much that was."""
    left_us = branch.next_attempt_us - now_us if held_back(branch.reason) else 0
    return min(branch.since_us - max(0, left_us), now_us) if branch.since_us else 0


def _bounded(tx: Tx, branch: Branch, answer: Answer) -> Answer:
    """All results travel in one message: to later steps, and to whoever asks for the transaction."""
    size = len(answer.result) + sum(len(b.result) for b in tx.branches if b.id != branch.id)
    if size <= MOST_RESULTS:
        return answer
    text = f"TOO_LARGE: the results of all steps come to {size} bytes; at most {MOST_RESULTS}"
    return Answer(AnswerKind.FAILED, reason=text)


def _next_calls(old: Tx, new: Tx, moved: Branch) -> tuple[Effect, ...]:
    """What may be called now and could not before, and this one again."""
    before = {call.branch.id for call in calls_of(old)} - {moved.id}
    return tuple(call for call in calls_of(new) if call.branch.id not in before)


def _moved(
    tx: Tx, branch: Branch, event: Answered, now_us: int
) -> tuple[Branch, tuple[Effect, ...], tuple[HistoryEntry, ...]]:
    answer, first = event.answer, event.op in _FIRST
    if answer.kind is AnswerKind.DONE:
        moved = replace(
            branch,
            state=_next(branch, BranchEvent.VOTE_YES if first else BranchEvent.FINISHED),
            next_attempt_us=0,
        )
        if first:
            moved = replace(moved, result=answer.result, result_type=answer.content_type)
        said = (HistoryEntry(now_us, "branch.finished", branch.id),) if branch.attempts else ()
        if branch.edited is not None and answer.repeated:
            text = "its receiver had acted before, perhaps on the payload that was replaced"
            moved, alarm, entry = _too_late(moved, text, now_us)
            return moved, (alarm,), (*said, entry)
        return moved, (), said
    forward = first and branch.action is not None and branch.action.forward
    if answer.kind is AnswerKind.REFUSED and not forward:
        reason = answer.reason or "BRANCH_REFUSED"
        if first:
            no = BranchEvent.VOTE_NO if _only_attempt(tx, branch) else _GIVEN_UP[event.op]
            moved = replace(branch, state=_next(branch, no), reason=reason)
            return moved, (), (HistoryEntry(now_us, "branch.refused", branch.id, reason=reason),)
        return _parked(branch, f"REFUSED_IN_PHASE_TWO: {reason}", now_us)
    tried = replace(
        branch,
        attempts=branch.attempts + 1,
        since_us=_since(branch, now_us) or now_us,
        failures=branch.failures + 1 if answer.kind is not AnswerKind.PENDING else 0,
        reason=answer.reason or ("PENDING" if answer.kind is AnswerKind.PENDING else "FAILED"),
    )
    if not forward and not tx.in_doubt and spent(tried, event.defaults, now_us):
        reason = f"RETRIES_SPENT: after {tried.attempts} attempts: {tried.reason}"
        if not first:
            return _parked(tried, reason, now_us)
        moved = replace(tried, state=_next(branch, _GIVEN_UP[event.op]), reason=reason)
        return moved, (), (HistoryEntry(now_us, "branch.given_up", branch.id, reason=reason),)
    due_us = now_us + _pause_us(tried, answer, event.defaults, event.draw)
    moved = replace(tried, state=_next(branch, BranchEvent.FAILED), next_attempt_us=due_us)
    what = "branch.pending" if answer.kind is AnswerKind.PENDING else "branch.failed"
    return moved, (), (HistoryEntry(now_us, what, branch.id, reason=tried.reason),)


def _only_attempt(tx: Tx, branch: Branch) -> bool:
    """Is this the only attempt of a first phase that was ever made? Another one may be on its way still, or be made by
    another node, and come through: its action has to be compensated though it was refused here."""
    return not branch.attempts and tx.state is TxState.RUNNING and tx.epoch == 0 and not tx.in_doubt


_GIVEN_UP = {
    Op.TRY: BranchEvent.VOTE_NO,
    # It may have run: parked, not refused, so that it is compensated.
    Op.ACTION: BranchEvent.PARK,
}


def _pause_us(branch: Branch, answer: Answer, defaults: Retry, draw: float) -> int:
    asked_us = min(answer.retry_after_us, _LONGEST_PAUSE_US)
    if answer.kind is AnswerKind.PENDING:
        return asked_us or _ASK_AGAIN_US
    own = own_retry(branch)
    return max(asked_us, pause_us(own, defaults, branch.failures, draw))


def _parked(
    branch: Branch, reason: str, now_us: int
) -> tuple[Branch, tuple[Effect, ...], tuple[HistoryEntry, ...]]:
    moved = replace(branch, state=_next(branch, BranchEvent.PARK), reason=reason)
    entry = HistoryEntry(now_us, "branch.parked", branch.id, reason=reason)
    return moved, (Alarm("parked", branch.id, reason),), (entry,)


def _next(branch: Branch, event: BranchEvent) -> BranchState:
    return next_branch(branch.kind, branch.state, event)
