"""Sessions that are kept to the end: on MariaDB the session that prepared a branch must finish it.

The caller that commits finishes its own as soon as it hears the decision. In a called service, and where the answer
was lost, a task waits for the decision; the coordinator takes the branch over when the session is gone, or does not
report in time.
"""

from __future__ import annotations

import logging
from functools import partial

from . import _aio
from ._pb import common_pb2 as c
from ._pb import coordinator_pb2 as pb
from ._xa.branch import Branch
from .errors import TxcoordError, Unavailable
from .transaction import Transaction

log = logging.getLogger("txcoord.client")
_FINISH_S = 5.0
_ASK_S = 1.0
"""How long one question waits. Another node may have decided: each question looks into the log, and has to come well
within the time that the coordinator gives to a holder (``recovery.hold``)."""
_PAUSE_S = 0.5
_REPORT_S = 5.0


async def carry_out(tx: Transaction, kept: list[Branch], out: c.Outcome, until: float) -> c.Outcome:
    """Finish what this process has prepared, by the decision; report it. How the transaction stands then."""
    commit = out.decision == c.DECISION_COMMIT
    if out.decision == c.DECISION_UNSPECIFIED:
        return out
    request = await _finished(tx, kept, commit)
    if tx._wait <= c.WAIT_LEVEL_DECIDED:
        _tell(tx, request)
        return out
    try:
        response = await tx._runtime.wire.call("report", request, until, tx_id=tx.tx_id)
    except TxcoordError as error:
        # The decision is known, and carried out here: the coordinator will find that out by itself.
        log.warning("not heard: the end of a branch of %s: %s", tx.tx_id, error)
        out.pending = True
        return out
    told: c.Outcome = response.outcome
    # Whether its deliveries have ended is for whoever waits for that to ask.
    told.pending = told.state in (c.STATE_COMMITTING, c.STATE_ABORTING) or tx._wait == c.WAIT_LEVEL_DELIVERED
    return told


async def _finished(tx: Transaction, kept: list[Branch], commit: bool) -> pb.ReportRequest:
    done = await _aio.gather([partial(b.finish, commit, _FINISH_S) for b in kept])
    request = pb.ReportRequest(tx_id=tx.tx_id, deadline_us=tx.deadline_us, begun=True)
    for branch, well in zip(kept, done, strict=True):
        event = c.BRANCH_EVENT_COMMITTED if commit else c.BRANCH_EVENT_ROLLED_BACK
        request.reports.append(branch.report(event if well is True else c.BRANCH_EVENT_RELEASED))
    return request


def _tell(tx: Transaction, request: pb.ReportRequest) -> None:
    tx._runtime.wire.tell(
        "report", request, _aio.now() + _REPORT_S, "not heard: the end of a branch", tx_id=tx.tx_id
    )


async def keep(tx: Transaction, kept: list[Branch]) -> None:
    """Keep these sessions until the decision is known, in a task of their own."""
    if not kept:
        return
    try:
        for branch in kept:
            if not branch.owned:
                try:
                    await branch.held.take_out()
                except Exception as error:
                    log.warning(
                        "a session of %r cannot be kept: %s: %s", branch.resource, type(error).__name__, error
                    )
                    await branch.give_up()
    finally:
        tx._runtime.tasks.keep(f"txcoord.keep:{tx.tx_id}", _await_decision, tx, kept)


async def _await_decision(tx: Transaction, kept: list[Branch]) -> None:
    try:
        decision = await _decision(tx, kept)
        if decision == c.DECISION_COMMIT:
            await _give_up_unlisted(tx, kept)
        if decision != c.DECISION_UNSPECIFIED:
            request = await _finished(tx, [b for b in kept if b.kept], decision == c.DECISION_COMMIT)
            if request.reports:
                _tell(tx, request)
    finally:
        for branch in kept:
            if branch.kept:
                await branch.give_up()
            await tx._runtime.release_branch(branch, tx, True)


async def _decision(tx: Transaction, kept: list[Branch]) -> c.Decision:
    """Wait for it; unspecified once this Coordinator is closed, or no session is left that waits for it."""
    request = pb.WaitRequest(
        items=[pb.WaitItem(tx_id=tx.tx_id, level=c.WAIT_LEVEL_DECIDED, expected=True)],
        wait_us=int(_ASK_S * 1e6),
    )
    while not tx._runtime.closed and any(b.kept for b in kept):
        asked = _aio.now()
        try:
            response = await tx._runtime.wire.call("wait", request, asked + _ASK_S + 1.0, tx_id=tx.tx_id)
        except TxcoordError:
            await _aio.sleep(_PAUSE_S)
            continue
        for result in response.results:
            if result.outcome.decision != c.DECISION_UNSPECIFIED:
                decision: c.Decision = result.outcome.decision
                return decision
        if _aio.now() - asked < _PAUSE_S:
            await _aio.sleep(_PAUSE_S)  # Whoever answers at once that there is nothing is not stormed.
        # An abort may be unlogged: only the node that took it knows of it, and has ended the session.
        for branch in kept:
            if branch.kept and not await branch.lives(_FINISH_S):
                await branch.give_up()
    return c.DECISION_UNSPECIFIED


async def _give_up_unlisted(tx: Transaction, kept: list[Branch]) -> None:
    """What is not in the list that was committed has no part in it: a call that ran twice, say. The coordinator's scan
    rolls it back, and says so."""
    listed: set[tuple[str, str, int]] = set()
    while not tx._runtime.closed:
        try:
            response = await tx._runtime.wire.call(
                "get", pb.GetRequest(tx_id=tx.tx_id), _aio.now() + _ASK_S + 1.0, tx_id=tx.tx_id
            )
        except Unavailable:
            await _aio.sleep(_PAUSE_S)
            continue
        except TxcoordError as error:
            log.warning("not told: the branches of %s: %s", tx.tx_id, error)
        else:
            parts = [branch.spec.xa for branch in response.transaction.branches]
            listed = {(part.resource, part.xid, part.connection_id) for part in parts}
        break
    for branch in kept:
        part = branch.to_pb().xa
        if branch.kept and (part.resource, part.xid, part.connection_id) not in listed:
            log.error("branch %s of %s is not in the list that was committed", branch.number, tx.tx_id)
            await branch.give_up()
