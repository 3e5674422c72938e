"""Any unary gRPC method as an operation.

OK is *done*, and the reply is the result; FAILED_PRECONDITION is *refused*, ABORTED too where the target is declared
so; anything else is a failure, to be called again.
"""

from __future__ import annotations

import grpc

from ...core.action import Answer, AnswerKind
from ...core.targets import Targets
from ...ports import CallRequest
from . import plain

_RESERVED = ("grpc-", "te")


def metadata_of(request: CallRequest, targets: Targets) -> list[tuple[str, str | bytes]]:
    """Of whom and what it is called for. Headers that gRPC cannot carry, or that are not the transaction's to give,
    stay behind."""
    given = plain.carried(request, _RESERVED, targets)
    out: list[tuple[str, str | bytes]] = [(k, v) for k, v in given.items() if not k.endswith("-bin")]
    result = plain.result_of(request)
    if result and len(result) <= plain.MOST_CARRIED:
        out.append(("txcoord-result-bin", result))
    return out


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
