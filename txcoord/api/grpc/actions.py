"""The participant's part of a branch, between the wire and the core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from txcoord_client._pb import common_pb2 as c
from txcoord_client.protocol import identifiers, reasons

from ...core.action import Action, Retry
from ...core.errors import Refusal, Refused

_MOST_HEADERS = 8 * 1024
_MOST_ATTEMPTS = 1_000_000
_LONGEST_CALL_US = 600_000_000


def bad(
    item: c.Branch, message: str, reason: str = reasons.BAD_BRANCH, code: str = "INVALID_ARGUMENT"
) -> Refused:
    """A refusal of a branch: nothing was written."""
    return Refused(Refusal(code, reason, f"branch {item.id}: {message}", True))


def read(item: c.Branch, sized: Callable[[bytes, str], None]) -> dict[str, Any]:
    """The fields of a branch with a participant. Raises Refused."""
    part = item.action
    sized(part.payload, f"payload of branch {item.id}")
    if not _is_target(part.target):
        raise bad(
            item,
            f"target {part.target[:120]!r}: an address such as grpc://host:port is needed",
            reasons.UNKNOWN_PARTICIPANT,
        )
    if not part.operation or len(part.operation) > 200:
        raise bad(item, "its operation has a name of 1 to 200 characters")
    for special in (part.first_operation, part.commit_operation, part.abort_operation):
        if special:
            raise bad(
                item,
                "operations of their own are not carried out yet",
                reasons.NOT_SUPPORTED,
                "UNIMPLEMENTED",
            )
    if item.HasField("callback"):
        raise bad(
            item, "completion callbacks are not carried out yet", reasons.NOT_SUPPORTED, "UNIMPLEMENTED"
        )
    size = sum(len(k) + len(v) for k, v in part.headers.items())
    if size > _MOST_HEADERS or len(item.name) > 200 or len(part.content_type) > 255:
        raise bad(item, f"name, content type or headers ({size} bytes) are too long", reasons.TOO_LARGE)
    if item.id in item.after or not all(map(identifiers.is_branch, [*item.after, *part.results_of])):
        raise bad(item, "after and results_of name other branches")
    action = Action(
        operation=part.operation,
        name=item.name,
        content_type=part.content_type,
        run_first=part.run_first,
        forward=part.forward,
        no_undo=part.no_undo,
        after=tuple(item.after),
        results_of=tuple(part.results_of),
        aborted_means_refused=part.aborted_means_refused,
        headers=dict(part.headers),
        retry=_retry(item),
    )
    return {"resource": part.target, "payload": part.payload, "action": action}


def _is_target(text: str) -> bool:
    scheme, _, address = text.partition("://")
    return scheme == "grpc" and 0 < len(address) <= 240 and address.isprintable() and " " not in address


def _retry(item: c.Branch) -> Retry:
    r = item.retry
    times = (r.call_timeout_us, r.initial_us, r.cap_us, r.give_up_us, *r.schedule_us)
    if any(t < 0 for t in times) or r.call_timeout_us > _LONGEST_CALL_US:
        raise bad(item, "times of its retry policy: from 0, a call at most 10 minutes")
    if r.multiplier and not 1.0 <= r.multiplier <= 100.0:
        raise bad(item, "multiplier of its retry policy: from 1 to 100")
    if r.max_attempts > _MOST_ATTEMPTS or len(r.schedule_us) > 100:
        raise bad(item, "its retry policy is too long")
    return Retry(
        r.call_timeout_us,
        r.initial_us,
        r.multiplier,
        r.cap_us,
        r.max_attempts,
        r.give_up_us,
        tuple(r.schedule_us),
    )


def write(out: c.Branch, action: Action, target: str) -> None:
    """A branch for people: without its payload."""
    out.name = action.name
    out.after.extend(action.after)
    out.action.target = target
    out.action.operation = action.operation
    out.action.content_type = action.content_type
    out.action.run_first = action.run_first
    out.action.forward = action.forward
    out.action.no_undo = action.no_undo
