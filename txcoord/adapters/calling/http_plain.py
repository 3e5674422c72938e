"""Any HTTP endpoint as an operation: a POST with the payload.

2xx is *done*, 202 too, and the body is the result, of its content type; 409 is *refused*, and a JSON object in its body
may say why (``reason``, ``detail``); 425 is *pending*, with Retry-After; anything else is a failure, to be called
again: a redirect too, which nobody follows.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from txcoord_client.protocol import reasons
from txcoord_client.protocol.over_http import media_type as media_type

from ...core.action import Answer, AnswerKind
from ...core.targets import Targets
from ...ports import CallRequest
from . import plain

RESERVED = (
    "accept-encoding", "connection", "content-", "expect", "host", "http2-settings", "keep-alive", "proxy-", "te",
    "trailer", "transfer-encoding", "upgrade",
)  # fmt: skip
"""What belongs to the message and its way, not to the transaction."""
_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,62}", re.ASCII)
_MOST_RETRY_S = 86_400.0 * 30
_RETRY_AFTER = (425, 429, 503)


def headers_of(request: CallRequest, targets: Targets) -> dict[str, str]:
    """Of whom and what it is called for. Headers that are not the transaction's to give stay behind."""
    out = plain.carried(request, RESERVED, targets)
    action = request.branch.action
    out["content-type"] = (action.content_type if action is not None else "") or "application/json"
    result = plain.result_of(request)
    if result and len(result) <= plain.MOST_CARRIED:
        out["txcoord-result-bin"] = base64.b64encode(result).decode()
    return out


def answer_of(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    """What a reply means."""
    content_type = headers.get("Content-Type", "")
    if 200 <= status < 300:
        return plain.done(body, content_type[:255] if content_type.isascii() else "")
    retry_us = int(_retry_after(headers.get("Retry-After", "")) * 1e6) if status in _RETRY_AFTER else 0
    if status == 409:
        return Answer(AnswerKind.REFUSED, reason=_reason(body, content_type))
    if status == 425:
        return Answer(AnswerKind.PENDING, reason=reasons.PENDING, retry_after_us=retry_us)
    return Answer(AnswerKind.FAILED, reason=failure_of(status, headers, body), retry_after_us=retry_us)


def failure_of(status: int, headers: Mapping[str, str], body: bytes) -> str:
    """Why a reply that is no answer is none."""
    if 300 <= status < 400:
        return f"HTTP_{status}: it points to {headers.get('Location', '')[:200]!r}, and is not followed"
    return f"HTTP_{status}: {_text(body)}"[:500]


def _reason(body: bytes, content_type: str) -> str:
    code, detail = reasons.BRANCH_REFUSED, ""
    kind = media_type(content_type)
    if kind == "application/json" or kind.endswith("+json"):
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            given = found.get("reason")
            code = given if isinstance(given, str) and _CODE.fullmatch(given) else code
            texts = [found.get(name) for name in ("detail", "message", "title")]
            detail = next((" ".join(t.split()) for t in texts if isinstance(t, str)), "")
    detail = detail or ("" if code != reasons.BRANCH_REFUSED else _text(body))
    return f"{code}: {detail}"[:500] if detail else code


def _text(body: bytes) -> str:
    return " ".join(body[:1000].decode("utf-8", "replace").split())[:300]


def _retry_after(value: str) -> float:
    """Seconds, or a date; what is neither is nothing."""
    value = value.strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        seconds = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return min(seconds, _MOST_RETRY_S) if seconds > 0 else 0.0
