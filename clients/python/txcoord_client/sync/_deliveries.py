# Made from txcoord_client/_deliveries.py by scripts/sync; to change it, change that.
"""Messages and notifications: what is said on the wire of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from .. import _values
from .._pb import common_pb2 as c
from ..errors import Rejected
from ..protocol import reasons
from ..retries import Retry
from ..webhooks import CloudEvent
from .participant import OPERATION, Operation

MOST_TOGETHER = 3 * 1024 * 1024
"""Bytes of all payloads of one transaction: they travel in one message."""
_MIN_US, _MAX_US = 0, 253_370_764_800_000_000


@dataclass(frozen=True, slots=True)
class Wish:
    """How something is to be delivered, as it was asked for."""

    operation: str = ""
    deliver_at: datetime | None = None
    delay: float | timedelta | None = None
    message_id: str = ""
    content_type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    retry: Retry | None = None
    event: CloudEvent | None = None
    key: str | bytes = b""
    order_key: str = ""


def part_of(
    target: Any, body: Any, wish: Wish, *, now_us: int, place: Callable[[str], str], most: int
) -> c.DeliveryPart:
    """The delivery. ``place``: what the target of a participant of that name is called. Raises Rejected for a target
    that is none, a body that does not fit it or is larger than ``most`` bytes, and times that contradict each other."""
    operation = getattr(target, OPERATION, None)
    if isinstance(operation, Operation):
        payload, kind = _arguments(operation, body), ""
        address, name = place(operation.participant), operation.full_name
    elif isinstance(target, str):
        payload, kind = _encoded(body)
        address, name = _address(target, wish.operation, place)
    else:
        raise Rejected(
            f"{target!r} is no target: an address, or a function decorated with @participant.message is needed"
        )
    if most and len(payload) > most:
        raise Rejected(f"the body has {len(payload)} bytes; at most {most}", reason=reasons.TOO_LARGE)
    return c.DeliveryPart(
        target=address,
        operation=name,
        payload=payload,
        content_type=wish.content_type or kind,
        headers=dict(wish.headers),
        deliver_at_us=due_us(wish, now_us),
        message_id=wish.message_id,
        cloud_event=_event(wish.event),
        ordering_key=wish.order_key,
        partition_key=wish.key.encode() if isinstance(wish.key, str) else wish.key,
    )


def _arguments(operation: Operation, body: Any) -> bytes:
    if operation.first != "message":
        raise Rejected(f"{operation.name} takes no messages: decorate it with @participant.message")
    payload = _values.encode({} if body is None else body)
    given = json.loads(payload)
    if not isinstance(given, dict):
        raise Rejected(
            f"{operation.full_name} takes arguments by name: a mapping, dataclass or model is needed"
        )
    names = _values.parameters(operation.attempt, 1)
    missing = [name for name, needed in names.items() if needed and name not in given]
    unknown = [] if _values.takes_anything(operation.attempt) else sorted(given.keys() - names.keys())
    if missing or unknown:
        raise Rejected(f"{operation.full_name}: arguments missing: {missing}, unknown: {unknown}")
    return payload


def _encoded(body: Any) -> tuple[bytes, str]:
    if isinstance(body, bytes):
        return body, "application/octet-stream"
    return (b"", "") if body is None else (_values.encode(body), "")


_SCHEMES = ("grpc", "grpcs", "http", "https")


def _address(target: str, operation: str, place: Callable[[str], str]) -> tuple[str, str]:
    scheme, found, rest = target.partition("://")
    if not found:
        return (target if ":" in target else place(target)), operation
    if scheme not in _SCHEMES:
        raise Rejected(f"{target!r}: an address begins with {', '.join(f'{s}://' for s in _SCHEMES)}")
    if operation:
        return target, operation
    host, _, path = rest.partition("/")
    if not path and scheme not in ("http", "https"):
        raise Rejected(f"{target!r}: its method is missing, such as /package.Service/Method, or operation=")
    return f"{scheme}://{host}", f"/{path}"


def _event(event: CloudEvent | None) -> c.CloudEvent | None:
    if event is None:
        return None
    return c.CloudEvent(
        type=event.type,
        source=event.source,
        subject=event.subject,
        data_schema=event.data_schema,
        structured=event.structured,
        extensions=dict(event.extensions or {}),
    )


def due_us(wish: Wish, now_us: int) -> int:
    """Not before this time; 0: at once. Raises Rejected."""
    if wish.deliver_at is not None and wish.delay is not None:
        raise Rejected("deliver_at and delay are two ways to say one thing")
    if wish.deliver_at is not None:
        if wish.deliver_at.tzinfo is None:
            raise Rejected("deliver_at has no time zone: datetime.now(UTC), for one, has")
        due_us = round(wish.deliver_at.timestamp() * 1e6)
    elif wish.delay is not None:
        seconds = wish.delay.total_seconds() if isinstance(wish.delay, timedelta) else wish.delay
        due_us = now_us + round(seconds * 1e6) if seconds >= 0 else -1
    else:
        return 0
    if not _MIN_US < due_us < _MAX_US:
        raise Rejected("deliver_at and delay are no times that can be waited for", reason=reasons.BAD_REQUEST)
    return due_us
