"""Refusals on the wire: google.rpc.Status with ErrorInfo for everyone, txcoord.v1.Status beside it."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from txcoord_client._pb import common_pb2 as c
from txcoord_client.protocol import reasons

from ...core.errors import Refusal, Refused
from ...observe import logs
from ...ports import LogUnavailable

log = logs.get("txcoord.api")
DOMAIN = "txcoord"


def refusal_of(error: Exception) -> Refusal:
    """What to answer when an operation raised this."""
    if isinstance(error, Refused):
        return error.refusal
    if isinstance(error, LogUnavailable):
        return Refusal(
            "UNAVAILABLE",
            reasons.LOG_UNAVAILABLE,
            # Where it is stands in this node's own log: who asks need not know.
            "the log's database does not answer; the coordinator's own log says why",
            False,
            retry_after_us=500_000,
        )
    log.error("api.crashed", exc_info=error)
    return Refusal("INTERNAL", "INTERNAL", f"a bug: {type(error).__name__}: {error}", False)


def of(error: Exception) -> c.Status:
    """What an operation in a Batch or Session is answered when it raised this."""
    return to_pb(refusal_of(error), getattr(error, "outcome", None))


def to_pb(refusal: Refusal, outcome: c.Outcome | None = None) -> c.Status:
    """A refusal, with what is known of the transaction."""
    return c.Status(
        outcome=outcome,
        code=grpc.StatusCode[refusal.code].value[0],
        reason=refusal.reason,
        message=refusal.message,
        definite=refusal.definite,
        retry_after_us=refusal.retry_after_us,
        facts=dict(refusal.facts),
    )


async def abort(context: Any, error: Exception) -> NoReturn:
    """End a unary call whose operation raised this."""
    refusal = refusal_of(error)
    code = grpc.StatusCode[refusal.code]
    rich = status_pb2.Status(code=code.value[0], message=refusal.message)
    info = error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN, metadata=dict(refusal.facts))
    info.metadata["definite"] = "true" if refusal.definite else "false"
    details = [info, to_pb(refusal, getattr(error, "outcome", None))]
    if refusal.retry_after_us:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMicroseconds(refusal.retry_after_us)
        details.append(retry)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        rich.details.append(packed)
    await context.abort(
        code, f"{refusal.reason}: {refusal.message}", (("grpc-status-details-bin", rich.SerializeToString()),)
    )
    raise AssertionError("abort raises")
