"""Refusals from the wire -> the SDK's errors."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import DecodeError

from . import outcome as outcomes
from ._pb import common_pb2 as c
from .errors import (
    AlreadyAborted,
    AlreadyCommitted,
    InProgress,
    OutcomeUnknown,
    Rejected,
    TxcoordError,
    Unavailable,
    UnknownResource,
)
from .protocol import reasons

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_TRY_AGAIN = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    }
)
NOT_LET_IN = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})


def error_of(status: c.Status, *, tx_id: str = "", gid: str = "") -> TxcoordError:
    """The error that a refusal in a Session or Batch means."""
    error = _error_of(status, tx_id, gid)
    if status.HasField("outcome"):
        error.outcome = outcomes.from_pb(status.outcome, tx_id=error.tx_id, gid=gid)
    return error


def _error_of(status: c.Status, tx_id: str, gid: str) -> TxcoordError:
    facts = dict(status.facts)
    reason, message = status.reason, status.message
    tx_id = facts.get("tx_id", tx_id)
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    if reason == reasons.ALREADY_COMMITTED:
        return AlreadyCommitted(message, tx_id=tx_id, gid=gid)
    if reason == reasons.ALREADY_ABORTED:
        cause = facts.get("cause", "")
        return AlreadyAborted(
            message, reason=cause, tx_id=tx_id, gid=gid, retriable=cause in reasons.RETRYABLE_ABORTS
        )
    if reason == reasons.IN_PROGRESS and "deadline_us" in facts:
        return InProgress(message, tx_id=tx_id, gid=gid, deadline_us=int(facts["deadline_us"]))
    if reason == reasons.EXPIRED:
        # A refusal for lateness is never an abort.
        return OutcomeUnknown(message, tx_id=tx_id, gid=gid)
    if reason == reasons.UNKNOWN_RESOURCE and status.definite:
        return UnknownResource(message, tx_id=tx_id, gid=gid, facts=facts)
    if code in _TRY_AGAIN:
        return Unavailable(
            message,
            reason=reason,
            definite=status.definite,
            retry_after=status.retry_after_us / 1e6,
            tx_id=tx_id,
            gid=gid,
            facts=facts,
        )
    return Rejected(message, reason=reason, definite=status.definite, tx_id=tx_id, gid=gid, facts=facts)


def error_of_call(error: grpc.aio.AioRpcError) -> TxcoordError:
    """The error that a failed gRPC call means."""
    status = _status_of(error)
    if status is not None:
        return error_of(status)
    if error.code() in _TRY_AGAIN:
        return Unavailable(text_of(error), definite=False)
    return Rejected(error.details() or "the call failed", reason=error.code().name, definite=False)


def error_of_stream(error: grpc.aio.AioRpcError) -> TxcoordError:
    """The error that the end of a stream means to what was sent on it, which may have been done."""
    found = error_of_call(error)
    found.definite = False
    return found


def text_of(error: grpc.aio.AioRpcError) -> str:
    """What a failed call says, for Unavailable: whose reason says that code already."""
    details = error.details() or "the call failed"
    if "handshake failed" in details.lower() and "certificate" in details.lower():
        # It is there: waiting for it does not help.
        details = (
            f"the coordinator's certificate is not accepted (tls=TLS(ca_file), TXCOORD_CA_FILE): {details}"
        )
    return details if error.code() is grpc.StatusCode.UNAVAILABLE else f"{error.code().name}: {details}"


def _status_of(error: grpc.aio.AioRpcError) -> c.Status | None:
    """The txcoord.v1.Status among the details of a google.rpc.Status."""
    metadata: Any = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            return _find(value)
    return None


def _find(data: bytes) -> c.Status | None:
    # google.rpc.Status, read without its package: 3 is `repeated Any details`, whose 1 is the type and 2 the value.
    for number, detail in _fields(data):
        if number != 3:
            continue
        parts = dict(_fields(detail))
        if parts.get(1, b"").endswith(b"/txcoord.v1.Status"):
            try:
                return c.Status.FromString(parts.get(2, b""))
            except DecodeError:
                return None
    return None


def _fields(data: bytes) -> list[tuple[int, bytes]]:
    """The length-delimited fields of a protobuf message; others are passed over."""
    out: list[tuple[int, bytes]] = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire_type = key & 7
        if wire_type == 2:
            size, at = _varint(data, at)
            out.append((key >> 3, data[at : at + size]))
            at += size
        elif wire_type == 0:
            _, at = _varint(data, at)
        elif wire_type == 1:
            at += 8
        elif wire_type == 5:
            at += 4
        else:
            break
    return out


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, at
