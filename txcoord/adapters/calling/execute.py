"""``ParticipantService.Execute``: what a participant with the SDK is asked, and how it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import participant_pb2 as pb

from ...core.action import Answer, AnswerKind, Op
from ...core.model import FOREVER_US, Decision, Kind, Tx
from ...ports import CallRequest

OPS: Mapping[Op, c.BranchOp] = {op: c.BranchOp.Value(f"BRANCH_OP_{op.name}") for op in Op}  # type: ignore[misc]
_KINDS: Mapping[Kind, c.Kind] = {
    kind: c.Kind.Value(f"KIND_{kind.name}")  # type: ignore[misc]
    for kind in Kind
    if kind is not Kind.CALLBACK
}
_ANSWERS: Mapping[int, AnswerKind] = {
    c.ANSWER_KIND_DONE: AnswerKind.DONE,
    c.ANSWER_KIND_REFUSED: AnswerKind.REFUSED,
    c.ANSWER_KIND_PENDING: AnswerKind.PENDING,
    c.ANSWER_KIND_FAILED: AnswerKind.FAILED,
}
_DECISIONS = {Decision.COMMIT: c.DECISION_COMMIT, Decision.ABORT: c.DECISION_ABORT}

Key = tuple[str, str, int]


_MOST_BYTES = 3 * 1024 * 1024
"""Of one message: gRPC servers take 4 MiB unless they are told otherwise."""
MOST_RESULT = 256 * 1024
_REPORTED_US = 60_000_000
"""One that reports by itself is asked again only for safety."""


def requests_of(requests: Sequence[CallRequest], *, node: str, log_id: str) -> list[pb.ExecuteRequest]:
    """One message for each namespace; more where one would be too large."""
    out: list[pb.ExecuteRequest] = []
    filling: dict[str, _Filling] = {}
    for request in requests:
        action = _action(request)
        name, size = request.tx.namespace, action.ByteSize()
        into = filling.get(name)
        if into is None or into.size + size > _MOST_BYTES:
            into = filling[name] = _Filling(pb.ExecuteRequest(namespace=name, node=node, log_id=log_id))
            out.append(into.message)
        into.add(request, action, size)
    return out


class _Filling:
    def __init__(self, message: pb.ExecuteRequest) -> None:
        self.message = message
        self.size = 0
        self._contexts: dict[tuple[str, bool], int] = {}

    def add(self, request: CallRequest, action: pb.BranchAction, size: int) -> None:
        own = request.branch.action
        # A step that is never undone has no deadline: it goes on after it, and the barrier must let it.
        forward = own is not None and own.forward
        key = request.tx.tx_id, forward
        index = self._contexts.get(key)
        if index is None:
            index = self._contexts[key] = len(self._contexts)
            context = _context(request.tx, FOREVER_US if forward else request.tx.deadline_us)
            self.message.contexts.append(context)
            size += context.ByteSize()
        action.context = index
        self.message.actions.append(action)
        self.size += size + 16


def _context(tx: Tx, deadline_us: int) -> pb.ActionContext:
    out = pb.ActionContext(
        tx_id=tx.tx_id,
        gid=tx.gid,
        name=tx.name,
        deadline_us=deadline_us if deadline_us != FOREVER_US else 0,
        headers=dict(tx.headers),
        labels=dict(tx.labels),
    )
    if tx.decision is not None:
        out.decision = _DECISIONS[tx.decision]
    return out


def _action(request: CallRequest) -> pb.BranchAction:
    branch, action = request.branch, request.branch.action
    assert action is not None
    out = pb.BranchAction(
        branch=branch.id,
        op=OPS[request.op],
        operation=action.operation_of(request.op),
        attempt=request.attempt,
        payload=branch.sent,
        content_type=action.content_type,
        call_deadline_us=request.deadline_us,
        headers=dict(action.headers),
        kind=_KINDS.get(branch.kind, c.KIND_UNSPECIFIED),
        step=action.name if request.op is not Op.CALLBACK else "",
    )
    if request.op is Op.CALLBACK:
        out.callback_id = action.name
        out.message_id = f"{request.tx.tx_id}.{action.name}"
        out.outcome.CopyFrom(_outcome(request.tx))
    if request.op in (Op.MESSAGE, Op.NOTIFY):
        out.message_id = request.message_id
    if request.op in (Op.CONFIRM, Op.CANCEL, Op.COMPENSATE):
        out.result = branch.result
        out.result_content_type = branch.result_type
    for other in action.results_of:
        found = request.tx.branch(other)
        if found is not None:
            out.results.append(
                pb.StepResult(
                    branch=found.id,
                    name=found.action.name if found.action is not None else "",
                    result=found.result,
                    content_type=found.result_type,
                )
            )
    return out


def _outcome(tx: Tx) -> c.Outcome:
    """How the whole ended."""
    committed = tx.decision is Decision.COMMIT
    return c.Outcome(
        tx_id=tx.tx_id,
        gid=tx.gid,
        state=c.STATE_COMMITTED if committed else c.STATE_ABORTED,
        decision=c.DECISION_COMMIT if committed else c.DECISION_ABORT,
        reason=tx.reason,
        decided_us=tx.decided_us,
        heuristic=tx.heuristic,
        result=tx.result,
    )


def key_of(answer: c.BranchAnswer) -> Key:
    """Which call is answered."""
    return answer.tx_id, answer.branch, answer.op


def answer_of(answer: c.BranchAnswer) -> Answer:
    """What was answered. A result that cannot be stored is none."""
    if len(answer.result) > MOST_RESULT:
        text = f"TOO_LARGE: the result has {len(answer.result)} bytes; at most {MOST_RESULT}"
        return Answer(AnswerKind.FAILED, reason=text)
    reason = f"{answer.reason}: {answer.message}" if answer.message else answer.reason
    return Answer(
        _ANSWERS.get(answer.kind, AnswerKind.FAILED),
        answer.result,
        answer.content_type[:255],
        reason[:500],
        max(answer.retry_after_us, 0) or (_REPORTED_US if answer.will_report else 0),
        answer.repeated_call,
    )
