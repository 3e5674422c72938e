"""The one state machine: ``decide(tx, event, now)`` says what an event means, and does nothing.

``tx`` is the row as it was read (None: the log has never heard of it). The verdict's change is written first;
if that conflicts, the caller reads again and asks again. Its effects are carried out after.
"""

from __future__ import annotations

from typing import assert_never

from . import answers, operating, plans, settle
from .branches import filled, only_named, says_more, union
from .deciding import change_of, decided, expired, refuse, too_late, write
from .events import (
    Alarm,
    Answered,
    Begin,
    BranchFailed,
    BranchFinished,
    Commit,
    DeadlinePassed,
    Deferred,
    Effect,
    Enlist,
    Event,
    Finish,
    HeuristicSeen,
    HolderReported,
    NotSent,
    OnePhaseDone,
    Operate,
    OrphanFound,
    Probe,
    Rollback,
    StepsSettled,
    Submit,
    Verdict,
)
from .evolve import replace
from .kinds import RULES
from .known import already_decided, content_of, gid_names, gid_taken, same_plan
from .lifecycle import TxEvent, next_tx
from .model import (
    TAKEN,
    Branch,
    BranchState,
    Change,
    ChangeKind,
    DecidedBy,
    Decision,
    HistoryEntry,
    Tx,
    TxState,
    Windows,
)


def decide(tx: Tx | None, event: Event, now_us: int, windows: Windows) -> Verdict:
    """What ``event`` means for ``tx`` at ``now_us`` (the log's clock)."""
    if (
        tx is not None
        and isinstance(event, Begin | Enlist | Submit | Commit | Rollback | OnePhaseDone)
        and tx.namespace not in ("", event.tx.namespace)  # A fence row has none.
    ):
        return refuse(event.tx, "NOT_FOUND", "NOT_FOUND", "no such transaction in this namespace")
    match event:
        case Commit():
            return _commit(tx, event, now_us, windows)
        case BranchFinished() | BranchFailed() | HeuristicSeen():
            return settle.progress(_known(tx), event, now_us)
        case Answered():
            return answers.answered(_known(tx), event, now_us)
        case Deferred():
            return answers.deferred(_known(tx), event, now_us)
        case NotSent():
            return answers.not_sent(_known(tx), event, now_us)
        case HolderReported():
            return settle.reported(_known(tx), event, now_us)
        case Begin():
            return _begin(tx, event, now_us, windows)
        case Enlist():
            return _enlist(tx, event, now_us, windows)
        case Submit():
            return _submit(tx, event, now_us, windows)
        case StepsSettled():
            return _steps_settled(_known(tx), now_us, windows)
        case Rollback():
            return _rollback(tx, event, now_us, windows)
        case OnePhaseDone():
            return _one_phase_done(tx, event, now_us, windows)
        case DeadlinePassed():
            return _deadline(_known(tx), event, now_us)
        case OrphanFound():
            return _orphan(tx, event, now_us, windows)
        case Operate():
            return operating.operate(_known(tx), event, now_us, windows)
        case _:
            assert_never(event)


def resume(tx: Tx) -> tuple[Effect, ...]:
    """What is left to do for a transaction in phase two that was just read from the log."""
    return settle.effects_of(tx)


def _known(tx: Tx | None) -> Tx:
    if tx is None:
        raise ValueError("this event needs the transaction's row")
    return tx


def _begin(tx: Tx | None, event: Begin, now_us: int, windows: Windows) -> Verdict:
    new = event.tx
    if tx is None:
        if now_us > new.deadline_us:
            return refuse(new, "FAILED_PRECONDITION", "DEADLINE", "the deadline has passed before begin")
        new = replace(new, created_us=now_us, version=1)
        return Verdict(new, Change(ChangeKind.INSERT, new, new.branches, not_after_us=new.deadline_us))
    if tx.tx_id != new.tx_id:
        return gid_names(tx, new, windows)
    if tx.decision is Decision.ABORT and tx.namespace in ("", new.namespace):
        # Whoever aborted it may not have known its content (the scanner, a rollback that overtook its begin).
        return already_decided(tx, windows)
    if tx.state is TxState.RUNNING or content_of(tx) != content_of(new):
        # A plan that was submitted is not begun by anybody: nothing could be done in it.
        return refuse(
            tx, "ALREADY_EXISTS", "CONTENT_MISMATCH", "this transaction was begun with other content"
        )
    if tx.decision is not None:
        return already_decided(tx, windows)
    return Verdict(tx)


def _submit(tx: Tx | None, event: Submit, now_us: int, windows: Windows) -> Verdict:
    asked = event.tx
    if tx is not None and tx.tx_id != asked.tx_id:
        return gid_names(tx, asked, windows)
    if tx is not None:
        if tx.decision is Decision.ABORT and not tx.branches and not tx.detail_pruned:
            # A rollback that overtook it: it was aborted before anything of it was known.
            return already_decided(tx, windows)
        same = content_of(tx) == content_of(asked) and (tx.detail_pruned or same_plan(tx, asked))
        if not same:
            return refuse(
                tx, "ALREADY_EXISTS", "CONTENT_MISMATCH", "this plan was submitted with other content"
            )
        return too_late(tx) if expired(tx, windows) else Verdict(tx)
    if now_us > asked.deadline_us:
        return refuse(
            asked, "FAILED_PRECONDITION", "DEADLINE", "the deadline has passed before the plan began"
        )
    new = plans.sealed(replace(asked, created_us=now_us, version=1))
    return Verdict(
        new,
        Change(ChangeKind.INSERT, new, new.branches, not_after_us=new.deadline_us),
        plans.effects_of(new),
    )


def _steps_settled(tx: Tx, now_us: int, windows: Windows) -> Verdict:
    if tx.decision is not None:
        return Verdict(tx)
    if now_us > tx.deadline_us and not plans.only_forward(tx) and not tx.in_doubt:
        return write(tx, tx, Decision.ABORT, DecidedBy.DEADLINE, "DEADLINE", now_us, None)
    no = plans.no_of(tx)
    if no is not None:
        by, reason = DecidedBy.BRANCH, no.reason.split(":", 1)[0] or "BRANCH_REFUSED"
        if tx.in_doubt and reason == "DEADLINE":
            # It was asked as if it were over, or it is.
            by, reason = tx.unwanted or (DecidedBy.DEADLINE, reason)
        return write(tx, tx, Decision.ABORT, by, reason, now_us, None)
    if tx.state is not TxState.RUNNING or not plans.all_done(tx):
        return Verdict(tx)
    verdict = write(tx, tx, Decision.COMMIT, DecidedBy.BRANCH, "", now_us, windows)
    change = verdict.change
    assert change is not None
    # In doubt it may have been decided, and told, in time.
    limit = None if plans.only_forward(tx) or tx.in_doubt else change.not_after_us
    change = replace(change, not_after_us=limit, forced=not plans.may_be_lost(tx), soon=True)
    return replace(verdict, change=change)


def _not_its_row(tx: Tx | None, asked: Tx, windows: Windows) -> Verdict | None:
    """Refuse a request about a transaction of another namespace, or one whose gid another one holds."""
    if tx is None:
        return None
    if tx.namespace not in ("", asked.namespace):
        return refuse(asked, "NOT_FOUND", "NOT_FOUND", "there is no such transaction")
    return gid_taken(tx, windows) if tx.tx_id != asked.tx_id else None


def _without_gid(tx: Tx | None, asked: Tx) -> tuple[Tx | None, Tx]:
    """A row that was found by its gid only is not this transaction's: go on without row and gid."""
    if tx is not None and tx.tx_id != asked.tx_id:
        return None, replace(asked, gid="")
    return tx, asked


def _has_steps(tx: Tx, asked: tuple[Branch, ...]) -> bool:
    found = [(tx.branch(b.id), b) for b in asked]
    return all(old is not None and old.same_work(b) for old, b in found)


def _enlist(tx: Tx | None, event: Enlist, now_us: int, windows: Windows) -> Verdict:
    asked = event.tx
    refused = _not_its_row(tx, asked, windows)
    if refused is not None:
        return refused
    # Is it a repetition of what took effect? Then no refusal is definite.
    fresh = tx is None or not any(tx.branch(b.id) for b in event.branches)
    if tx is not None and tx.decision is not None and event.run and _has_steps(tx, event.branches):
        return Verdict(
            tx
        )  # Asked for again, since its answer was lost: how its steps have ended is the answer.
    if tx is not None and tx.decision is not None:
        text = f"the transaction is {tx.state}; nothing can enlist any more"
        return refuse(tx, "FAILED_PRECONDITION", "DECIDED", text, fresh)
    if tx is not None and tx.state is not TxState.ACTIVE:
        text = "the plan is sealed; nothing can enlist any more"
        return refuse(tx, "FAILED_PRECONDITION", "DECIDED", text, fresh)
    if now_us > asked.deadline_us:
        text = "the transaction's deadline has passed"
        return refuse(asked, "FAILED_PRECONDITION", "DEADLINE", text, fresh)
    known = {b.id for b in tx.branches} if tx is not None else set()
    for b in event.branches:
        if (
            b.action is not None
            and not plans.is_step(b)
            and b.id not in known
            and not known.issuperset(b.action.after)
        ):
            # In a circle none would ever be confirmed, or cancelled, and nobody would be told.
            text = f"branch {b.id}: it comes after branches that are enlisted before it, or with it and named before it"
            return refuse(asked, "INVALID_ARGUMENT", "BAD_BRANCH", text, fresh)
        known.add(b.id)
    if tx is None:
        new = replace(asked, branches=event.branches, created_us=now_us, version=1)
        new = plans.started(new) if event.run else new
        change = Change(ChangeKind.INSERT, new, new.branches, not_after_us=asked.deadline_us)
        return Verdict(new, change, plans.effects_of(new) if event.run else ())
    if tx.deadline_us != asked.deadline_us:
        return refuse(tx, "INVALID_ARGUMENT", "BAD_XID", "the deadline differs from the transaction's")
    merged = {b.id: b for b in tx.branches}
    touched = []
    for b in event.branches:
        old = merged.get(b.id)
        if old is not None and not old.same_work(b):
            return refuse(tx, "ALREADY_EXISTS", "CONTENT_MISMATCH", f"branch {b.id} was enlisted differently")
        if old is None or says_more(b, old):
            merged[b.id] = b
            touched.append(b)
    if not touched:
        return Verdict(tx)
    new = replace(tx, branches=tuple(merged.values()), version=tx.version + 1)
    new = plans.started(new) if event.run else new
    touched = [b for b in new.branches if b != tx.branch(b.id)]
    return Verdict(
        new,
        Change(
            ChangeKind.AMEND,
            new,
            tuple(touched),
            expected_version=tx.version,
            not_after_us=tx.deadline_us,
        ),
        plans.effects_of(new) if event.run else (),
    )


def _commit(tx: Tx | None, event: Commit, now_us: int, windows: Windows) -> Verdict:
    asked = event.tx
    refused = _not_its_row(tx, asked, windows)
    if refused is not None:
        return refused
    if tx is not None and tx.decision is not None:
        return _answer_commit(tx, asked, windows)
    if tx is not None and tx.deadline_us != asked.deadline_us:
        return refuse(tx, "INVALID_ARGUMENT", "BAD_XID", "the deadline differs from the transaction's")
    if tx is not None and tx.state is TxState.RUNNING:
        text = "a plan that was submitted is decided by its steps"
        return refuse(tx, "FAILED_PRECONDITION", "NOT_SUPPORTED", text)
    if now_us > windows.abort_until(asked.deadline_us):
        return too_late(tx or asked)
    branches = asked.branches
    if tx is not None and tx.branches:
        branches, clash = union(tx.branches, asked.branches)
        if clash:
            return refuse(
                tx, "ALREADY_EXISTS", "CONTENT_MISMATCH", f"branch {clash} was enlisted differently"
            )
    base = (
        replace(asked, branches=branches)
        if tx is None
        else replace(tx, branches=branches, result=asked.result)
    )
    lost = tx is None and event.begun
    for b in asked.branches:
        if only_named(b) and (tx is None or tx.branch(b.id) is None):
            if not lost:
                what = (
                    "says where it goes"
                    if b.kind.is_delivery
                    else "is enlisted before anything is done for it"
                )
                text = f"branch {b.id}: a {b.kind} branch {what}"
                return refuse(base, "INVALID_ARGUMENT", "BAD_BRANCH", text)
            base = replace(base, branches=tuple(x for x in base.branches if x.id != b.id))
    if now_us > asked.deadline_us:
        return write(tx, base, Decision.ABORT, DecidedBy.DEADLINE, "DEADLINE", now_us, windows)
    if lost:
        return write(tx, base, Decision.ABORT, DecidedBy.CLIENT, "NOT_FOUND", now_us, windows)
    for b in branches:
        if RULES[b.kind].first_phase and b.state not in (BranchState.READY, BranchState.READ_ONLY):
            reason = b.reason or ("BRANCH_REFUSED" if b.state is BranchState.REFUSED else "VOTE_MISSING")
            return write(tx, base, Decision.ABORT, DecidedBy.BRANCH, reason, now_us, windows)
    return write(tx, base, Decision.COMMIT, DecidedBy.CLIENT, "", now_us, windows)


def _answer_commit(tx: Tx, asked: Tx, windows: Windows) -> Verdict:
    """Commit of a decided transaction: the same answer as ever."""
    if expired(tx, windows):
        return too_late(tx)
    if tx.decision is Decision.COMMIT and not tx.detail_pruned and tx.decided_by is not DecidedBy.DATABASE:
        for b in asked.branches:
            old = tx.branch(b.id)
            if old is None or not old.same_work(filled(b, old)):
                return refuse(
                    tx,
                    "ALREADY_EXISTS",
                    "CONTENT_MISMATCH",
                    f"it was committed with another list: branch {b.id}",
                )
    return Verdict(tx)


def _rollback(tx: Tx | None, event: Rollback, now_us: int, windows: Windows) -> Verdict:
    tx, asked = _without_gid(tx, event.tx)
    refused = _not_its_row(tx, asked, windows)
    if refused is not None:
        return refused
    if tx is not None and tx.decision is not None:
        return too_late(tx) if expired(tx, windows) else Verdict(tx)
    if tx is not None and tx.deadline_us != asked.deadline_us:
        return refuse(tx, "INVALID_ARGUMENT", "BAD_XID", "the deadline differs from the transaction's")
    if tx is not None and plans.only_forward(tx) and not plans.may_say_no(tx):
        text = "a step that is never undone has begun: the plan can only go forward"
        return refuse(tx, "FAILED_PRECONDITION", "ONLY_FORWARD", text)
    if now_us > windows.abort_until(asked.deadline_us):
        return too_late(tx or asked)
    if tx is not None and tx.in_doubt:
        return _find_out(tx, event)
    if not event.sealed and not event.probed:
        probe = _probe_needed(tx, event.resources)
        if probe is not None:
            return Verdict(tx or asked, effects=(probe,))
    by = event.by
    if by is DecidedBy.CLIENT and any(b.state is BranchState.REFUSED for b in asked.branches):
        by = DecidedBy.BRANCH  # The client only carries its no.
    # One that was never enlisted was never tried, and names nobody to ask.
    said = tuple(b for b in asked.branches if not only_named(b) or (tx is not None and tx.branch(b.id)))
    asked = replace(asked, branches=said)
    if tx is None and event.sealed and not event.logged and not asked.gid:
        undone = decided(asked, Decision.ABORT, by, event.reason, now_us)
        return Verdict(undone, effects=settle.effects_of(undone), unlogged=True)
    base = asked if tx is None else replace(tx, branches=union(tx.branches, said)[0])
    return write(tx, base, Decision.ABORT, by, event.reason, now_us, windows)


def _find_out(tx: Tx, event: Rollback) -> Verdict:
    """Somebody wants a plan aborted that may have been committed: take it over, so that nobody else decides it, and
    ask its steps."""
    if tx.unwanted is not None:
        return Verdict(tx)
    new = plans.unwanted(tx, event.by, event.reason)
    new = replace(new, version=tx.version + 1, epoch=tx.epoch + TAKEN)
    return Verdict(new, Change(ChangeKind.AMEND, new, expected_version=tx.version), plans.effects_of(new))


def _probe_needed(tx: Tx | None, resources: tuple[str, ...]) -> Probe | None:
    """May the transaction have been committed in one phase by its own database?

    A row names the only resource where that may be, if any. Without a row it may be any that the asker names,
    or else all of the namespace.
    """
    if tx is None:
        return Probe(resources)
    return Probe((tx.one_phase_resource,)) if tx.one_phase_resource else None


def _one_phase_done(tx: Tx | None, event: OnePhaseDone, now_us: int, windows: Windows) -> Verdict:
    tx, asked = _without_gid(tx, event.tx)
    refused = _not_its_row(tx, asked, windows)
    if refused is not None:
        return refused
    if tx is not None and tx.decision is not None:
        return settle.contradicted(tx, asked, now_us) if tx.decision is Decision.ABORT else Verdict(tx)
    base = asked if tx is None else tx
    branches, alone = settle.beside_one_phase(tx, asked)
    done = replace(
        base,
        state=next_tx(base.state, TxEvent.COMMIT),
        decision=Decision.COMMIT,
        decided_by=DecidedBy.DATABASE,
        decided_us=now_us,
        created_us=base.created_us or now_us,
        version=base.version + 1,
        epoch=base.epoch + 1,
        result=asked.result,
        branches=branches,
    )
    done = settle.close(done, now_us)
    effects = settle.effects_of(done)
    if not alone:
        effects = (*effects, Alarm("one_phase_not_alone", detail="other branches were enlisted beside it"))
    # The database has decided already: this row only repeats it, so no limit of time applies. Without a gid, and
    # without branches of others, nobody depends on it: losing it loses no truth. Deliveries do not: what is left of
    # their row has a deadline, which asks the database again.
    lazy = not done.gid and (tx is None or all(b.kind.is_delivery for b in tx.branches))
    change = replace(change_of(tx, done, None), forced=not lazy, soon=tx is not None)
    return Verdict(done, change, effects)


def _deadline(tx: Tx, event: DeadlinePassed, now_us: int) -> Verdict:
    if tx.decision is not None or now_us <= tx.deadline_us or plans.only_forward(tx) or tx.in_doubt:
        return Verdict(tx)
    if tx.one_phase_resource and not event.probed:
        return Verdict(tx, effects=(Probe((tx.one_phase_resource,)),))
    return write(tx, tx, Decision.ABORT, DecidedBy.DEADLINE, "DEADLINE", now_us, None)


def _orphan(tx: Tx | None, event: OrphanFound, now_us: int, windows: Windows) -> Verdict:
    """Fence an orphan: its ABORT row first; whoever comes later reads it and obeys.

    No upper limit applies to what is decided after W: such a row is a fence, which its own time shows.
    """
    if tx is not None:
        return Verdict(tx)
    if now_us <= windows.marker_until(event.tx.deadline_us):
        return Verdict(event.tx)  # Too early to judge.
    new = decided(event.tx, Decision.ABORT, DecidedBy.SCANNER, "ORPHAN", now_us)
    new = replace(new, created_us=now_us, version=1)
    entry = HistoryEntry(
        now_us, "orphan.fenced", new.branches[0].id if new.branches else "", "scanner", "ORPHAN"
    )
    # Decided by W it reads as an outcome: it must not land where the row that it did not find may be deleted since.
    until = windows.abort_until(new.deadline_us)
    change = Change(
        ChangeKind.INSERT,
        new,
        new.branches,
        not_after_us=until if now_us <= until else None,
        history=(entry,),
    )
    return Verdict(new, change, settle.effects_of(new))


__all__ = ["Finish", "decide", "expired", "resume"]
