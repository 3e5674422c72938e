"""Phase two: how branches settle, and when the whole has ended."""

from __future__ import annotations

from . import plans
from .calling import calls_of, op_of
from .errors import Refusal
from .events import (
    Alarm,
    BranchFailed,
    BranchFinished,
    Effect,
    Finish,
    HeuristicSeen,
    HolderReported,
    Settled,
    Verdict,
)
from .evolve import replace
from .kinds import RULES
from .lifecycle import BranchEvent, TxEvent, next_branch, next_tx
from .model import (
    SETTLED_BRANCH,
    Branch,
    BranchState,
    Change,
    ChangeKind,
    Decision,
    HistoryEntry,
    Tx,
    TxState,
    held_back,
)

_BY_HAND = (BranchState.PARKED, BranchState.SKIPPED, BranchState.RESOLVED)
_PHASE_TWO = (TxState.COMMITTING, TxState.ABORTING)


def effects_of(tx: Tx) -> tuple[Effect, ...]:
    """Everything that is left to do for a transaction that is carried out; asking twice asks for the same."""
    if tx.decision is None:
        return plans.effects_of(tx)
    out: list[Effect] = [
        Finish(
            b,
            commit=b.state is BranchState.FINISHING,
            at_us=b.next_attempt_us,
            held=b.has_holder and not b.attempts,
        )
        for b in tx.branches
        if b.state in (BranchState.FINISHING, BranchState.UNDOING)
        and op_of(b) is None
        # An end that went well is written without its branches: they may still read as on their way.
        and not (tx.ended and RULES[b.kind].first_phase)
    ]
    out.extend(calls_of(tx))
    if tx.ended or tx.shown_parked:
        out.append(Settled())
    return tuple(out)


def close(tx: Tx, now_us: int) -> Tx:
    """End a decided transaction when no branch with a first phase has anything left; free its deliveries."""
    if tx.ended:
        return _over(tx, now_us)
    if tx.state not in _PHASE_TWO:
        return tx
    if any(RULES[b.kind].first_phase and b.state not in SETTLED_BRANCH for b in tx.branches):
        return tx
    branches = tuple(_freed(b) if b.kind.is_delivery else b for b in tx.branches)
    return _over(replace(tx, state=next_tx(tx.state, TxEvent.SETTLED), branches=branches), now_us)


def _freed(b: Branch) -> Branch:
    """A delivery once the whole has ended. Under abort only callbacks are ready."""
    if b.state is not BranchState.READY:
        return b
    due_us = b.action.delivery.deliver_at_us if b.action is not None else 0
    return replace(b, state=next_branch(b.kind, b.state, BranchEvent.DELIVER), next_attempt_us=due_us)


def _over(tx: Tx, now_us: int) -> Tx:
    """Note the end, once deliveries are over too: until then a node has the row, or it waits for an operator."""
    if tx.ended_us or any(b.kind.is_delivery and b.state not in SETTLED_BRANCH for b in tx.branches):
        return tx
    return replace(tx, ended_us=now_us)


def progress(tx: Tx, event: BranchFinished | BranchFailed | HeuristicSeen, now_us: int) -> Verdict:
    """A branch moved in phase two. Repeats and late news change nothing."""
    branch = tx.branch(event.branch_id)
    if branch is None or branch.state not in (BranchState.FINISHING, BranchState.UNDOING):
        return Verdict(tx)
    if tx.ended and RULES[branch.kind].first_phase:
        return Verdict(tx)
    effects: tuple[Effect, ...] = ()
    history: tuple[HistoryEntry, ...] = ()
    match event:
        case BranchFinished():
            moved = replace(branch, state=_next(branch, BranchEvent.FINISHED), next_attempt_us=0)
            if branch.attempts:
                history = (HistoryEntry(now_us, "branch.finished", branch.id),)
        case BranchFailed():
            moved = replace(
                branch,
                state=_next(branch, BranchEvent.FAILED),
                attempts=branch.attempts + 1,
                next_attempt_us=event.retry_at_us,
                reason=event.reason,
            )
            effects = (Finish(moved, moved.state is BranchState.FINISHING, event.retry_at_us),)
            if _in_limbo(moved) and not _in_limbo(branch):
                effects = (*effects, Alarm("in_limbo", branch.id, event.reason))
            history = (HistoryEntry(now_us, "branch.failed", branch.id, reason=event.reason),)
        case _:
            moved = replace(
                branch, state=_next(branch, BranchEvent.PARK), heuristic=True, reason=event.reason
            )
            effects = (Alarm("heuristic", branch.id, event.reason),)
            history = (HistoryEntry(now_us, "branch.heuristic", branch.id, reason=event.reason),)
    new = close(with_branch(tx, moved), now_us)
    if new.ended and not tx.ended:
        # Whoever decided on the row as it was before its end must find that out: an operator's order, a
        # late note of the scanner. Without a new epoch it would be written over the end.
        new = replace(new, epoch=tx.epoch + 1)
        effects = (*effects, *effects_of(new))  # The deliveries that this has freed.
    elif new.ended or new.shown_parked:
        effects = (*effects, Settled())
    return Verdict(new, lazy(tx, new, moved, history), effects)


def reported(tx: Tx, event: HolderReported, now_us: int) -> Verdict:
    """The session that prepared a branch has finished it, or has let go of it.

    What it says is taken as proof only when it is what was decided. Anything else is a person's to see, and the
    branch's own database is asked at once.
    """
    if tx.decision is None:
        if event.committed is None:
            return Verdict(tx)
        done = "committed" if event.committed else "rolled back"
        text = f"branch {event.branch_id} was {done} before the transaction was decided"
        return no(tx, "FAILED_PRECONDITION", "IN_PROGRESS", text)
    branch = tx.branch(event.branch_id)
    if branch is None or (branch.resource, branch.xid) != (event.resource, event.xid):
        if tx.decision is Decision.ABORT and not event.committed:
            return Verdict(tx)  # Aborted without hearing of it, and undone.
        if branch is None and tx.detail_pruned and event.committed is not False:
            return Verdict(tx)  # It had stood still for long: the log has forgotten its branches meanwhile.
        return no(tx, "INVALID_ARGUMENT", "BAD_BRANCH", f"branch {event.branch_id} is not as it was decided")
    commit = tx.decision is Decision.COMMIT
    if event.committed is commit:
        return progress(tx, BranchFinished(branch.id), now_us)
    effects: tuple[Effect, ...] = ()
    if event.committed is not None:
        done = "committed" if event.committed else "rolled back"
        effects = (Alarm("reported_against_decision", branch.id, f"its session has {done} it"),)
    if branch.state in (BranchState.FINISHING, BranchState.UNDOING) and not tx.ended:
        effects = (*effects, Finish(branch, commit))
    return Verdict(tx, effects=effects)


def lazy(old: Tx, new: Tx, moved: Branch, history: tuple[HistoryEntry, ...]) -> Change | None:
    """What of it to write. Lazy: losing it only repeats work whose repetition is harmless.

    While all goes well a transaction writes one end record and nothing for each branch.
    """
    # An end record without branches says that all went well: not where anything was tried twice, or by hand.
    troubled = any(
        b.attempts or b.heuristic or b.state in _BY_HAND or held_back(b.reason) for b in new.branches
    )
    # Others wait for it.
    soon = (
        moved.action is not None and bool(moved.action.delivery.order_key) and moved.state in SETTLED_BRANCH
    )
    if not soon and not history and not troubled and (not new.ended or (old.ended and not new.rests)):
        return None  # Also for a delivery that is done while others are on their way: the last one says it.
    touched: tuple[Branch, ...] = new.branches if troubled else ()
    if new.ended and not troubled:
        touched = tuple(b for b in new.branches if not RULES[b.kind].first_phase)
    # A heuristic outcome is a fact that a person must not lose.
    forced = moved.heuristic
    return Change(
        ChangeKind.PROGRESS, new, touched, expected_epoch=old.epoch, forced=forced, soon=soon, history=history
    )


_SILENT = {BranchState.FINISHING: BranchState.DONE, BranchState.UNDOING: BranchState.UNDONE}


def read_back(tx: Tx) -> Tx:
    """While all goes well the end record of a transaction writes no branch: its branches with a first phase
    are done because it has ended."""
    if tx.state in (TxState.ACTIVE, TxState.RUNNING):
        return plans.as_read(tx)
    if not tx.ended or not any(b.state in _SILENT for b in tx.branches):
        return tx
    return replace(
        tx,
        branches=tuple(
            replace(b, state=_SILENT[b.state]) if b.state in _SILENT and RULES[b.kind].first_phase else b
            for b in tx.branches
        ),
    )


def beside_one_phase(tx: Tx | None, asked: Tx) -> tuple[tuple[Branch, ...], bool]:
    """The branches once the database has committed one of them; and was it the only one, as it must be?

    One that voted yes beside it is committed too; one that did not cannot be: that is for a person to see.
    """
    known = tx.branches if tx is not None else ()
    own = {b.id: replace(b, state=BranchState.DONE) for b in asked.branches or known}
    out = dict(own)
    alone = True
    for b in known:
        if not RULES[b.kind].first_phase or b.state in (BranchState.READY, BranchState.READ_ONLY):
            out[b.id] = replace(b, state=next_branch(b.kind, b.state, BranchEvent.COMMIT))
        elif b.id not in own or b.state is not BranchState.OPEN:
            reason = "HEURISTIC: committed in one phase beside this branch, which had not voted yes"
            out[b.id] = replace(b, state=BranchState.PARKED, heuristic=True, reason=reason)
        else:
            continue
        alone = alone and not RULES[b.kind].first_phase
    return tuple(out.values()), alone


def contradicted(tx: Tx, news: Tx, now_us: int) -> Verdict:
    """A database says that it committed in one phase what the log says was aborted: nobody must miss it."""
    reason = "HEURISTIC: its database committed it in one phase, though abort was decided"
    marked = tuple(
        replace(tx.branch(b.id) or replace(b, state=BranchState.DONE), heuristic=True, reason=reason)
        for b in news.branches
    )
    new = tx
    for b in marked:
        new = with_branch(new, b) if new.branch(b.id) else replace(new, branches=(*new.branches, b))
    alarm = Alarm("one_phase_after_abort", marked[0].id if marked else "", reason)
    if new == tx:
        return Verdict(tx, effects=(alarm,))
    entry = HistoryEntry(now_us, "one_phase.after_abort", marked[0].id, reason=reason)
    change = Change(ChangeKind.PROGRESS, new, marked, expected_epoch=tx.epoch, history=(entry,))
    return Verdict(new, change, (alarm,))


def _in_limbo(branch: Branch) -> bool:
    return branch.reason.startswith("IN_LIMBO")


def _next(branch: Branch, event: BranchEvent) -> BranchState:
    return next_branch(branch.kind, branch.state, event)


def with_branch(tx: Tx, moved: Branch) -> Tx:
    """The transaction with this branch in the place of the one of its id."""
    return replace(tx, branches=tuple(moved if b.id == moved.id else b for b in tx.branches))


def no(tx: Tx, code: str, reason: str, message: str) -> Verdict:
    """A definite no."""
    return Verdict(tx, refusal=Refusal(code, reason, message, True, {"tx_id": tx.tx_id}))
