"""Errors as RFC 9457 problems: the same codes and reasons as over gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from txcoord_client.protocol import reasons

from ...core.errors import Refusal, Refused
from ..grpc import status
from . import mapping

TYPE = "application/problem+json"
STATUS = {
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "FAILED_PRECONDITION": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""The status of a gRPC code, but for reasons that HTTP knows better."""
_BY_REASON = {
    # draft-ietf-httpapi-idempotency-key-header: a key that is used again with other content.
    reasons.CONTENT_MISMATCH: 422,
}


class HttpRefused(Refused):
    """A request that is no request of this API: nothing was done."""

    def __init__(
        self,
        http_status: int,
        message: str,
        *,
        reason: str = reasons.BAD_HTTP,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(Refusal("INVALID_ARGUMENT", reason, message, True))
        self.http_status = http_status
        self.headers = headers or {}


def problem(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """The status, the problem and further headers for what an operation raised."""
    refusal = status.refusal_of(error)
    number = _BY_REASON.get(refusal.reason) or STATUS.get(refusal.code, 500)
    headers: dict[str, str] = {}
    if refusal.code == "UNAUTHENTICATED":
        headers["WWW-Authenticate"] = 'Bearer realm="txcoord"'
    if isinstance(error, HttpRefused):
        number = error.http_status
        headers = dict(error.headers)
    out: dict[str, Any] = {
        "type": f"urn:txcoord:reason:{refusal.reason}",
        "title": refusal.reason.replace("_", " ").capitalize(),
        "status": number,
        "detail": refusal.message,
        "reason": refusal.reason,
        "code": refusal.code,
        "definite": refusal.definite,
    }
    if refusal.retry_after_us:
        out["retryAfterUs"] = str(refusal.retry_after_us)
        headers["Retry-After"] = str(-(-refusal.retry_after_us // 1_000_000))
    if refusal.facts:
        out["facts"] = dict(refusal.facts)
    outcome = getattr(error, "outcome", None)
    if outcome is not None:
        out["outcome"] = mapping.write(outcome)
    return number, out, headers
