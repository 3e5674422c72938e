"""The plain contract: a gRPC method or an HTTP path as a participant's operation, without the SDK there.

The payload is the request, as it was enlisted; metadata, or headers, of the same names say for what it is called. Such
an operation must bear repetition: ``txcoord-tx-id``, ``txcoord-branch`` and ``txcoord-op`` name the work.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...core.action import Answer, AnswerKind, Op
from ...core.model import FOREVER_US, Decision
from ...core.targets import Targets, plain_name
from ...ports import CallRequest
from .execute import MOST_RESULT

MOST_CARRIED = 4096
"""Bytes of the first call's result that a confirm, cancel or compensation is given: servers take 8 KiB of headers."""


def method_of(request: CallRequest) -> str:
    """The method or path that does it; empty for a participant with the SDK."""
    operation = request.branch.action.operation_of(request.op) if request.branch.action is not None else ""
    return operation if operation.startswith("/") else ""


def carried(request: CallRequest, reserved: Iterable[str], targets: Targets) -> dict[str, str]:
    """Of whom and what it is called for, by lower-case names. Headers that cannot be carried, or that are not a
    client's to give, stay behind."""
    tx, branch, action = request.tx, request.branch, request.branch.action
    headers = {**tx.headers, **(action.headers if action is not None else {})}
    out = {
        key.lower(): value
        for key, value in headers.items()
        if is_carried(key.lower(), value, tuple(reserved)) and not targets.reserves(key)
    }
    out |= {
        "txcoord-namespace": tx.namespace,
        "txcoord-tx-id": tx.tx_id,
        "txcoord-gid": tx.gid or tx.tx_id,
        "txcoord-branch": branch.id,
        "txcoord-op": str(request.op),
        "txcoord-attempt": str(request.attempt),
    }
    # As for the SDK: what is never undone goes on after the deadline, and what ends a branch may come at any time.
    forward = action is not None and action.forward
    if request.op in (Op.TRY, Op.ACTION) and not forward and tx.deadline_us != FOREVER_US:
        out["txcoord-deadline-us"] = str(tx.deadline_us)
    if request.deadline_us:
        out["txcoord-call-deadline-us"] = str(request.deadline_us)
    if len(result_of(request)) > MOST_CARRIED:
        out["txcoord-result-too-large"] = str(len(branch.result))
    if request.op in (Op.MESSAGE, Op.NOTIFY):
        out["txcoord-message-id"] = request.message_id
    if request.op is Op.CALLBACK and action is not None:
        out["txcoord-callback-id"] = action.name
        out["txcoord-outcome"] = "committed" if tx.decision is Decision.COMMIT else "aborted"
    return out


def result_of(request: CallRequest) -> bytes:
    """What the first call returned, for those that come after it."""
    return request.branch.result if request.op in (Op.CONFIRM, Op.CANCEL, Op.COMPENSATE) else b""


def is_carried(key: str, value: str, reserved: tuple[str, ...]) -> bool:
    """May a header of this lower-case name be sent? ``reserved``: names, and beginnings that end in a dash."""
    fine = key.replace("-", "").replace("_", "").replace(".", "").isalnum() and key.isascii()
    name = plain_name(key)
    kept = name.startswith(("txcoord-", *(r for r in reserved if r.endswith("-")))) or name in reserved
    return fine and not kept and value.isascii() and value.isprintable()


def done(reply: bytes, content_type: str) -> Answer:
    """The reply is the result, if it can be stored."""
    if len(reply) > MOST_RESULT:
        text = f"TOO_LARGE: the reply has {len(reply)} bytes; at most {MOST_RESULT}"
        return Answer(AnswerKind.FAILED, reason=text)
    return Answer(AnswerKind.DONE, reply, content_type)
