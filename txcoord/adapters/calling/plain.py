"""The plain contract: any unary gRPC method is a participant's operation, without the SDK there.

The payload is the request, as it was enlisted; metadata says for what it is called. OK is *done*, and the reply is the
result; FAILED_PRECONDITION is *refused*, ABORTED too where the target is declared so; anything else is a failure, to be
called again. The method must bear repetition: ``txcoord-tx-id``, ``txcoord-branch`` and ``txcoord-op`` name the work.
"""

from __future__ import annotations

import grpc

from ...core.action import Answer, AnswerKind, Op
from ...ports import CallRequest
from .execute import MOST_RESULT


def method_of(request: CallRequest) -> str:
    """The method that does it; empty for a participant with the SDK."""
    operation = request.branch.action.operation_of(request.op) if request.branch.action is not None else ""
    return operation if operation.startswith("/") else ""


def metadata_of(request: CallRequest) -> list[tuple[str, str | bytes]]:
    """Of whom and what it is called for. Headers that gRPC cannot carry stay behind."""
    tx, branch = request.tx, request.branch
    headers = {**tx.headers, **(branch.action.headers if branch.action is not None else {})}
    out: list[tuple[str, str | bytes]] = [
        (key.lower(), value) for key, value in headers.items() if _is_carried(key.lower(), value)
    ]
    out += [
        ("txcoord-tx-id", tx.tx_id),
        ("txcoord-gid", tx.gid or tx.tx_id),
        ("txcoord-branch", branch.id),
        ("txcoord-op", str(request.op)),
        ("txcoord-attempt", str(request.attempt)),
    ]
    if branch.result and request.op in (Op.CONFIRM, Op.CANCEL, Op.COMPENSATE):
        out.append(("txcoord-result-bin", branch.result))
    return out


def _is_carried(key: str, value: str) -> bool:
    fine = key.replace("-", "").replace("_", "").replace(".", "").isalnum() and key.isascii()
    reserved = key.startswith(("grpc-", "txcoord-")) or key.endswith("-bin") or key == "te"
    return fine and not reserved and value.isascii() and value.isprintable()


def done(reply: bytes) -> Answer:
    """The reply is the result, if it can be stored."""
    if len(reply) > MOST_RESULT:
        text = f"TOO_LARGE: the reply has {len(reply)} bytes; at most {MOST_RESULT}"
        return Answer(AnswerKind.FAILED, reason=text)
    return Answer(AnswerKind.DONE, reply, "application/octet-stream")


def answer_of(error: grpc.aio.AioRpcError, request: CallRequest, timeout_s: float) -> Answer:
    """What an error means."""
    action = request.branch.action
    refused = [grpc.StatusCode.FAILED_PRECONDITION]
    if action is not None and action.aborted_means_refused:
        refused.append(grpc.StatusCode.ABORTED)
    if error.code() in refused:
        return Answer(AnswerKind.REFUSED, reason=f"BRANCH_REFUSED: {error.details()}"[:500])
    return Answer(AnswerKind.FAILED, reason=failure_of(error, timeout_s))


def failure_of(error: grpc.aio.AioRpcError, timeout_s: float) -> str:
    """Why a call failed."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"TIMED_OUT: no answer within {timeout_s:g} s"
    return f"{error.code().name}: {error.details()}"[:500]
