# Made from txcoord_client/_finish.py by scripts/sync; to change it, change that.
"""How a transaction ends: prepare, decide, tell. One function for each way."""

from __future__ import annotations

import logging
from functools import partial

from .. import outcome as outcomes
from .._pb import common_pb2 as c
from .._pb import coordinator_pb2 as pb
from ..errors import Aborted, Heuristic, OutcomeUnknown, Rejected, TxcoordError, Unavailable
from ..outcome import Outcome, State
from ..protocol import reasons
from . import _aio, _keeping, _tries
from ._xa.branch import Branch, Failed, Stage, reason_of
from .transaction import Transaction

log = logging.getLogger("txcoord.client")
_LAST_WORD_S = 1.0
"""How long after the deadline the end of a transaction may still be asked for."""
_ROLLBACK_WAIT_S = 2.0


def end(tx: Transaction, error: BaseException | None) -> None:
    """Commit, or roll back because of ``error``. To be run in a task that cancelling the caller does not stop."""
    tx._close()
    if error is None:
        if tx._runtime.closed:
            # Nobody could be asked for a decision: nothing is prepared.
            tx.set_rollback_only("CLOSED", "the Coordinator was closed before the transaction ended")
        commit(tx)
    else:
        tx.set_rollback_only(reason_of(error), f"{type(error).__name__}: {error}")
        rollback(tx)


def leave(tx: Transaction) -> None:
    """End it in a service that was called: prepare what was done here, or undo it. The caller decides."""
    tx._close()
    if not tx.rollback_only and tx._deliveries:
        _enlist_deliveries(tx)
    if not tx.rollback_only:
        prepare(tx)
    if tx.rollback_only:
        rollback(tx)
    else:
        release(tx, True)


def _enlist_deliveries(tx: Transaction) -> None:
    """A vote has no room for what they carry: it names them."""
    deliveries = list(tx._deliveries.values())
    try:
        _tries.enlisted(tx, deliveries)
    except TxcoordError as error:
        tx.set_rollback_only(error.reason, f"its messages could not be enlisted: {error}")
        return
    tx._remote.update({b.id: c.Branch(id=b.id, kind=b.kind) for b in deliveries})
    tx._deliveries.clear()


def commit(tx: Transaction) -> None:
    """Commit it. Raises Aborted, OutcomeUnknown or Heuristic; sets ``tx.outcome``."""
    try:
        _commit(tx)
    finally:
        committed = tx.outcome is not None and tx.outcome.committed
        release(tx, committed)


def _commit(tx: Transaction) -> None:
    if tx.rollback_only:
        _abort(tx)
        return
    local = tx._local
    if len(local) == 1 and not tx._remote and _may_one_phase(tx, local[0]):
        if tx._deliveries:
            # They are durable before its COMMIT is sent; from then on its database tells whether they leave.
            tx._one_phase_resource = local[0].resource
            _enlist_deliveries(tx)
        if tx.rollback_only:
            _abort(tx)
            return
        _one_phase(tx, local[0])
        return
    prepare(tx)
    if tx.rollback_only:
        _abort(tx)
        return
    branches = [b.to_pb() for b in local] + list(tx._remote.values()) + list(tx._deliveries.values())
    if not tx._begun and all(b.vote == c.VOTE_READ_ONLY for b in branches):
        tx.outcome = Outcome(State.COMMITTED, tx.tx_id, tx.gid, "client")  # Nothing was written anywhere.
        return
    _ask_commit(tx, branches)


def _may_one_phase(tx: Transaction, branch: Branch) -> bool:
    return not tx._begun or tx._one_phase_resource == branch.resource


def prepare(tx: Transaction) -> None:
    """Prepare all branches of this process, side by side. A failure makes the transaction rollback-only."""
    local = [b for b in tx._local if b.stage is Stage.OPEN]
    try:
        results = _aio.gather([partial(b.prepare, tx._until) for b in local])
    except BaseException as error:
        # Interrupted. No commit was asked for yet: nothing is left to wait for its deadline.
        tx.set_rollback_only(reasons.APPLICATION_ERROR, f"interrupted by {type(error).__name__}")
        rollback(tx)
        raise
    for branch, result in zip(local, results, strict=True):
        if isinstance(result, Failed):
            tx.set_rollback_only(result.reason, result.message)
        elif isinstance(result, BaseException):
            tx.set_rollback_only(reasons.APPLICATION_ERROR, f"{branch.resource!r}: {result}")
    _release_early(tx)


# ---- the ways to end ----


def _ask_commit(tx: Transaction, branches: list[c.Branch]) -> None:
    until = _last_word(tx)
    kept = [b for b in tx._local if b.kept]
    request = pb.CommitRequest(
        tx_id=tx.tx_id,
        deadline_us=tx.deadline_us,
        begun=tx._begun,
        branches=branches,
        # What has to be finished here is not to be waited for.
        wait=min(tx._wait, c.WAIT_LEVEL_DECIDED) if kept else tx._wait,
        wait_us=int((until - _now()) * 1e6),
        gid=tx.gid,
        result=tx.result,
    )
    if not tx._begun:
        request.spec.CopyFrom(tx._spec())
    try:
        response = tx._runtime.wire.call("commit", request, until, tx_id=tx.tx_id, gid=tx.gid)
    except Unavailable as error:
        if not error.definite:
            raise _unknown(tx, f"no answer to commit: {error}") from error
        _abort_after(tx, error)
    except OutcomeUnknown as error:
        raise _unknown(tx, error.message) from error
    except TxcoordError as error:
        if error.outcome is not None and error.outcome.aborted:
            tx.outcome = error.outcome
            raise _aborted(tx) from error
        if not error.definite:
            raise _unknown(tx, str(error)) from error
        _abort_after(tx, error)
    else:
        out = response.outcome
        if kept:
            out = _keeping.carry_out(tx, kept, out, until)
        _conclude(tx, _followed(tx, out, until))


def _followed(tx: Transaction, out: c.Outcome, until: float) -> c.Outcome:
    """Wait on where the coordinator's own limit of a wait was shorter than the time that is left."""
    while out.pending and until - _now() > 1.0:
        request = pb.WaitRequest(
            items=[pb.WaitItem(tx_id=tx.tx_id, level=tx._wait)], wait_us=int((until - _now()) * 1e6)
        )
        try:
            response = tx._runtime.wire.call("wait", request, until, tx_id=tx.tx_id, gid=tx.gid)
        except TxcoordError:
            break  # That it is decided is known already.
        if any(result.HasField("status") for result in response.results):
            break  # It cannot be waited for: asking again would be answered as fast.
        for result in response.results:
            out = result.outcome
    return out


def _conclude(tx: Transaction, out: c.Outcome) -> None:
    tx.outcome = outcomes.from_pb(out, tx_id=tx.tx_id, gid=tx.gid)
    if tx.outcome.heuristic:
        decided = "abort" if tx.outcome.aborted else "commit"
        raise Heuristic(
            f"{decided} was decided, but a branch was finished otherwise by hand: see `txcoord tx show "
            f"{tx.gid or tx.tx_id}`",
            tx_id=tx.tx_id,
            gid=tx.gid,
        )
    if tx.outcome.aborted:
        raise _aborted(tx)
    if not tx.outcome.committed:
        raise _unknown(tx, "the coordinator answered without a decision")


def _one_phase(tx: Transaction, branch: Branch) -> None:
    """Its own database decides; the coordinator is told afterwards."""
    try:
        branch.commit_one_phase(tx._until)
    except Failed as failed:
        if branch.stage is not Stage.UNKNOWN:
            tx.set_rollback_only(failed.reason, failed.message)
            _abort(tx)
            return
        _settle_one_phase(tx, branch)
        return
    _release_early(tx)
    if branch.stage is Stage.READ_ONLY and tx._begun:
        _ask_commit(tx, [branch.to_pb()])
        return
    tx.outcome = Outcome(
        State.COMMITTED, tx.tx_id, tx.gid, "database", result=tx.result, delivered=not tx._remote
    )
    if branch.stage is Stage.READ_ONLY:
        return
    request = pb.ReportRequest(
        tx_id=tx.tx_id,
        deadline_us=tx.deadline_us,
        reports=[branch.report(c.BRANCH_EVENT_ONE_PHASE_COMMITTED)],
        gid=tx.gid,
        spec=tx._spec(),
        result=tx.result,
        begun=tx._begun,
    )
    report = tx._runtime.wire.tell(
        "report", request, _last_word(tx) + 5.0, "not heard: the one-phase commit", tx_id=tx.tx_id, gid=tx.gid
    )
    if tx._remote and tx._wait == c.WAIT_LEVEL_DELIVERED:
        until = _last_word(tx)
        response = report.wait(max(until - _now(), 0.0))
        if response is not None:
            out = c.Outcome(pending=True)
            out.MergeFrom(response.outcome)
            _conclude(tx, _followed(tx, out, until))
    elif tx._begun and not (tx._remote and not tx.gid):
        # Whoever asks by the gid next shall find it committed; if not, the deadline's probe finds the marker.
        report.wait(min(tx.remaining, _ROLLBACK_WAIT_S))


def _settle_one_phase(tx: Transaction, branch: Branch) -> None:
    """The reply to the local COMMIT was lost: a tombstone tells, never an absent marker."""
    try:
        out = tx._runtime.settle(
            tx.tx_id,
            tx.gid,
            tx.deadline_us,
            (branch.resource,),
            begun=tx._begun,
            until=_last_word(tx),
            reason=reasons.CONNECTION_LOST,
        )
    except TxcoordError as error:
        raise _unknown(tx, f"the reply to COMMIT was lost, and so far nobody could tell: {error}") from error
    _conclude(tx, out)


def _abort(tx: Transaction) -> None:
    """Roll back, then raise Aborted with the reason why."""
    rollback(tx)
    raise _aborted(tx)


def _abort_after(tx: Transaction, error: TxcoordError) -> None:
    """Commit was refused for sure: undo what is prepared, and say why."""
    # That nobody took it says nothing about the business: its gid may be run again.
    reason = reasons.CONNECTION_LOST if isinstance(error, Unavailable) else error.reason
    tx.set_rollback_only(reason, str(error))
    tx.outcome = Outcome(State.ABORTED, tx.tx_id, tx.gid, "client", reason)
    _tell_rollback(tx, sealed=False)
    if tx.outcome.committed:
        return  # It is a fact, whatever the refusal said.
    if isinstance(error, Rejected):
        raise error
    raise _aborted(tx) from error


def rollback(tx: Transaction) -> None:
    """Roll everything back. Never raises for a coordinator that does not answer: abort is presumed."""
    try:
        _aio.gather([partial(b.rollback, _now() + 5.0) for b in tx._local])
        # No commit was asked for, nor will be, and a called service has not voted yes: those that this process must
        # finish need not wait for an answer.
        _aio.gather([partial(b.finish, False, 5.0) for b in tx._local if b.kept])
    finally:
        release(tx, False)
    needed = (
        tx._begun or bool(tx._remote) or any(b.stage in (Stage.PREPARED, Stage.UNKNOWN) for b in tx._local)
    )
    by = "branch" if any(b.failure is not None for b in tx._local) else "client"
    tx.outcome = Outcome(State.ABORTED, tx.tx_id, tx.gid, by, tx._rollback_only)
    if needed and tx.initiator:
        _tell_rollback(tx, sealed=True)


def _tell_rollback(tx: Transaction, *, sealed: bool) -> None:
    runtime = tx._runtime
    # One that could not be prepared says no; one that was only rolled back says nothing.
    said = [b for b in tx._local if b.stage is not Stage.ROLLED_BACK or b.failure is not None]
    branches = [b.to_pb() for b in said] + list(tx._remote.values())
    # Sessions of other services wait for the decision, perhaps at another coordinator: only the log tells them.
    held_elsewhere = any(b.xa.connection_id for b in tx._remote.values())
    request = pb.RollbackRequest(
        tx_id=tx.tx_id,
        deadline_us=tx.deadline_us,
        branches=branches,
        initiator=True,
        sealed=sealed,
        force_log=not sealed or held_elsewhere,
        resources=sorted({b.resource for b in tx._local}),
        wait=c.WAIT_LEVEL_DECIDED,
        gid=tx.gid,
        begun=tx._begun,
        reason=tx._rollback_only,
        message=tx._rollback_message[:500],
    )

    # Where it is not heard its deadline aborts it, and the scan for orphans frees what is prepared.
    told = runtime.wire.tell(
        "rollback", request, _last_word(tx), "not heard: the rollback", tx_id=tx.tx_id, gid=tx.gid
    )
    response = told.wait(_ROLLBACK_WAIT_S)
    if response is not None:
        tx.outcome = outcomes.from_pb(response.outcome, tx_id=tx.tx_id, gid=tx.gid)


# ---- connections ----


def _release_early(tx: Transaction) -> None:
    """Connections that the SDK took go back to their pools as soon as nothing is open on them."""
    for branch in tx._local:
        if branch.stage is not Stage.OPEN and branch.owned and not branch.kept:
            tx._runtime.release_branch(branch, tx, branch.stage is not Stage.ROLLED_BACK)


def release(tx: Transaction, committed: bool) -> None:
    """Give all connections back, and sessions their freedom; but for those that must wait for the decision."""
    stopped: BaseException | None = None
    _keeping.keep(tx, [b for b in tx._local if b.kept])
    for branch in tx._local:
        if branch.kept:
            continue
        try:
            tx._runtime.release_branch(branch, tx, committed)
        except BaseException as error:
            stopped = error  # The others' too.
    if stopped is not None:
        raise stopped


# ---- words ----


def _now() -> float:
    return _aio.now()


def _last_word(tx: Transaction) -> float:
    """Until when the end may be asked for: a reply that comes shortly after the deadline is still a fact."""
    return max(tx._until, _now()) + _LAST_WORD_S


def _aborted(tx: Transaction) -> Aborted:
    out = tx.outcome
    reason = (out.reason if out is not None else "") or tx._rollback_only
    return Aborted(
        tx._rollback_message or f"the transaction was aborted by {out.decided_by if out else 'client'}",
        reason=reason,
        decided_by=out.decided_by if out is not None else "client",
        retriable=(out is not None and out.retriable) or reason in reasons.RETRYABLE_ABORTS,
        tx_id=tx.tx_id,
        gid=tx.gid,
    )


def _unknown(tx: Transaction, message: str) -> OutcomeUnknown:
    tx.outcome = Outcome(State.UNKNOWN, tx.tx_id, tx.gid)
    return OutcomeUnknown(
        message,
        tx_id=tx.tx_id,
        gid=tx.gid,
        deadline_us=tx.deadline_us,
        resources=tuple(sorted({b.resource for b in tx._local})),
    )
