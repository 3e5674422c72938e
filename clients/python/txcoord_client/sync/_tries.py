# Made from txcoord_client/_tries.py by scripts/sync; to change it, change that.
"""``g.tcc``: a branch is enlisted, then its try is called; the vote rides on the commit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from .. import _values
from .._pb import common_pb2 as c
from .._pb import coordinator_pb2 as pb
from .._pb import participant_pb2
from ..errors import Refused, Rejected, TxcoordError, Unavailable
from ..protocol import reasons
from . import _aio
from ._enlisting import Enlister
from ._participants import Participants
from ._runtime import Runtime
from .participant import Operation
from .sagas import Saga


class Home(Protocol):
    """What of a transaction is needed."""

    name: str
    tx_id: str
    gid: str
    deadline_us: int
    _begun: bool
    _runtime: Runtime
    _until: float
    _log_id: str
    _enlister: Enlister
    _remote: dict[str, c.Branch]

    @property
    def headers(self) -> dict[str, str]: ...

    @property
    def labels(self) -> dict[str, str]: ...

    @property
    def initiator(self) -> bool: ...

    def _spec(self) -> c.TransactionSpec: ...

    def _call_sent(self, what: str) -> c.CallContext: ...

    def _call_over(self, number: str) -> None: ...

    def set_rollback_only(self, reason: str = ..., message: str = "") -> None: ...


def tried(tx: Home, operation: Operation, arguments: dict[str, Any], timeout: float) -> Any:
    """Enlist and try; what the try returned. Raises Refused, Unavailable, Rejected for a call that does not fit the
    operation, and what enlisting raises."""
    participants: Participants = tx._runtime.participants
    place = participants.place(operation.participant)
    payload = _values.encode(arguments)
    most = tx._runtime.limits.max_payload_bytes
    if most and len(payload) > most:
        raise Rejected(f"the arguments have {len(payload)} bytes; at most {most}", reason=reasons.TOO_LARGE)
    what = f"the try of {operation.full_name}"
    number = tx._call_sent(what).branch
    part = c.ActionPart(
        target=participants.target(operation.participant), operation=operation.full_name, payload=payload
    )
    try:
        tx._enlister.enlist(c.Branch(id=number, kind=c.KIND_TCC, action=part))
        # From here on only its number and vote are said: the rest is in the log.
        tx._remote[number] = c.Branch(id=number, kind=c.KIND_TCC)
        answer = participants.run(
            place, _request(tx, number, operation, payload), min(tx._until, _aio.now() + timeout)
        )
    except BaseException as error:
        tx.set_rollback_only(
            error.reason if isinstance(error, TxcoordError) else reasons.VOTE_MISSING,
            f"{what} failed: {error}",
        )
        raise
    if answer.kind == c.ANSWER_KIND_REFUSED:
        tx._remote[number] = c.Branch(
            id=number, kind=c.KIND_TCC, vote=c.VOTE_NO, reason=answer.reason, message=answer.message
        )
        tx.set_rollback_only(answer.reason or reasons.BRANCH_REFUSED, answer.message)
        raise Refused(answer.reason, answer.message, **dict(answer.facts))
    voted = c.Branch(id=number, kind=c.KIND_TCC, vote=c.VOTE_PREPARED)
    voted.action.result = answer.result
    tx._remote[number] = voted
    tx._call_over(number)
    return _values.decode(answer.result, operation.returns)


def stepped(tx: Home, flow: Saga, data: Mapping[str, Any]) -> dict[str, Any]:
    """Run the steps of a saga now; what each returned. Raises Refused when one said no, Unavailable when the
    coordinator does not answer."""
    if any(step.tries for step in flow.steps):
        text = f"saga {flow.name!r} has tries: submit it; inside a transaction they are called by g.tcc"
        raise Rejected(text, reason=reasons.NOT_SUPPORTED)
    participants: Participants = tx._runtime.participants
    names = {step.operation.participant for step in flow.steps}
    branches = flow.branches({name: participants.target(name) for name in names}, data)
    what = f"the saga {flow.name!r}"
    number = tx._call_sent(what).branch
    for branch in branches:
        _renumber(branch, number)
    mine = {branch.id: branch.name for branch in branches}
    request = pb.EnlistRequest(
        tx_id=tx.tx_id,
        deadline_us=tx.deadline_us,
        branches=branches,
        gid=tx.gid,
        spec=tx._spec(),
        run=True,
    )
    try:
        while True:
            request.begun = tx._begun
            tx._begun = True
            left = max(tx._until - _aio.now(), 0.1)
            request.wait_us = int(left * 1e6)
            response = tx._runtime.wire.call("enlist", request, tx._until, tx_id=tx.tx_id, gid=tx.gid)
            if not response.outcome.pending or tx._until <= _aio.now():
                break
    except BaseException as error:
        # They may be there: they are named, so that their end is asked for.
        tx._remote.update({i: c.Branch(id=i, kind=c.KIND_SAGA) for i in mine})
        tx.set_rollback_only(
            error.reason if isinstance(error, TxcoordError) else reasons.VOTE_MISSING,
            f"{what} failed: {error}",
        )
        raise
    return _taken(tx, number, what, mine, response.outcome)


def _taken(tx: Home, number: str, what: str, mine: Mapping[str, str], out: c.Outcome) -> dict[str, Any]:
    """What became of the steps: their votes, and what they returned."""
    results: dict[str, Any] = {}
    for branch in out.branches:
        if branch.branch in mine:
            done = branch.state == c.BRANCH_STATE_READY
            vote = c.VOTE_PREPARED if done else c.VOTE_UNSPECIFIED
            tx._remote[branch.branch] = c.Branch(id=branch.branch, kind=c.KIND_SAGA, vote=vote)
            if done:
                results[mine[branch.branch]] = _values.decode(branch.result)
    if out.decision == c.DECISION_ABORT:
        no = [b for b in out.branches if b.branch in mine and said_no(b, out)]
        text = f"{no[0].name}: {no[0].message}" if no else f"{what} was given up"
        tx.set_rollback_only(out.reason, text)
        raise Refused(out.reason, text)
    if len(results) < len(mine):
        tx.set_rollback_only(reasons.DEADLINE, f"{what} was not done in time")
        raise Unavailable(f"{what} was not done in time", reason=reasons.DEADLINE, definite=False)
    tx._call_over(number)
    return results


def said_no(branch: c.BranchStatus, out: c.Outcome) -> bool:
    """Is this the step whose no has decided? It may be on its way to be compensated all the same."""
    if branch.state == c.BRANCH_STATE_REFUSED:
        return True
    return out.decision == c.DECISION_ABORT and bool(out.reason) and branch.reason == out.reason


def _renumber(branch: c.Branch, number: str) -> None:
    """The steps of a saga inside a transaction are numbered below its own number."""
    branch.id = f"{number}.{branch.id}"
    after, results = [*branch.after], [*branch.action.results_of]
    del branch.after[:], branch.action.results_of[:]
    branch.after.extend(f"{number}.{i}" for i in after)
    branch.action.results_of.extend(f"{number}.{i}" for i in results)


def enlisted(tx: Home, branches: list[c.Branch]) -> None:
    """Make branches durable. Once it was asked for, a row may exist: the end of the transaction must be told."""
    request = pb.EnlistRequest(
        tx_id=tx.tx_id, deadline_us=tx.deadline_us, branches=branches, gid=tx.gid, begun=tx._begun
    )
    if not tx._begun or not tx.initiator:
        request.spec.CopyFrom(tx._spec())
    until = min(tx._until, _aio.now() + tx._runtime.call_timeout)
    tx._begun = True
    tx._runtime.wire.call("enlist", request, until, tx_id=tx.tx_id, gid=tx.gid)


def _request(tx: Home, number: str, operation: Operation, payload: bytes) -> participant_pb2.ExecuteRequest:
    return participant_pb2.ExecuteRequest(
        namespace=tx._runtime.namespace,
        log_id=tx._log_id,
        contexts=[
            participant_pb2.ActionContext(
                tx_id=tx.tx_id,
                gid=tx.gid,
                name=tx.name,
                deadline_us=tx.deadline_us,
                headers=tx.headers,
                labels=tx.labels,
            )
        ],
        actions=[
            participant_pb2.BranchAction(
                branch=number,
                op=c.BRANCH_OP_TRY,
                operation=operation.full_name,
                attempt=1,
                payload=payload,
                kind=c.KIND_TCC,
            )
        ],
    )
