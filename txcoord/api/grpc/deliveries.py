"""What is delivered after the end of a transaction, between the wire and the core: messages, notifications and
completion callbacks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from google.protobuf.message import DecodeError

from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client.protocol import identifiers, marker, reasons

from ...core import answering, statements, topics
from ...core.action import Action, Delivery, Event
from ...core.errors import Refusal, Refused
from ...core.known import content_of, same_plan
from ...core.model import Branch, Kind, Tx
from ...core.targets import Targets
from ...core.words import storable
from .actions import (
    MOST_HEADERS,
    NO_RETRY,
    Wrong,
    bad,
    check_headers,
    check_operations,
    check_target,
    read_retry,
)

_CALLBACK_ID = re.compile(r"[A-Za-z0-9_.-]{1,48}")
_MESSAGE_ID = re.compile(r"[!-~]{1,128}")
_TOLD = frozenset({"target", "operation", "payload", "content_type", "headers"})
_DELIVERED = _TOLD | {
    "deliver_at_us",
    "message_id",
    "aborted_means_refused",
    "http_method",
    "cloud_event",
    "ordering_key",
}
_ON_TOPIC = frozenset(
    {
        "target",
        "payload",
        "content_type",
        "headers",
        "deliver_at_us",
        "message_id",
        "cloud_event",
        "partition_key",
        "ordering_key",
    }
)
_MOST_KEY = 1_000
_MOST_ORDER = 200
MOST_DELAY_US = 30 * 86_400_000_000
"""Of a delivery: its receiver's barrier remembers for 90 days what was done."""


def callback(item: c.Callback, sized: Callable[[bytes, str], None], targets: Targets) -> Branch:
    """One who asks to be told of the end. Raises Refused."""

    def wrong(message: str, reason: str = reasons.BAD_REQUEST, code: str = "INVALID_ARGUMENT") -> Refused:
        return Refused(Refusal(code, reason, f"callback {item.id[:80]!r}: {message}", True))

    if not _CALLBACK_ID.fullmatch(item.id):
        raise wrong("its id has 1 to 48 characters of [A-Za-z0-9_.-]")
    _check_known(wrong, item.delivery, _TOLD)
    _check_delivery(wrong, item.delivery, targets)
    sized(item.delivery.payload, f"payload of callback {item.id}")
    part = item.delivery
    action = Action(
        part.operation,
        item.id,
        part.content_type,
        headers=dict(part.headers),
        retry=read_retry(item.retry, wrong),
    )
    return Branch(f"c:{item.id}", Kind.CALLBACK, resource=part.target, payload=part.payload, action=action)


def delivery(
    item: c.Branch, kind: Kind, sized: Callable[[bytes, str], None], targets: Targets, now_us: int
) -> Branch:
    """A message or a notification. Raises Refused."""
    wrong, part = partial(bad, item), item.delivery
    if part.target.startswith(statements.PREFIX):
        return _sql(item, kind, sized)
    if item.vote or item.after:
        raise wrong("a delivery has no first phase to vote for, and comes after the end of the whole")
    if part.target.startswith(topics.PREFIX):
        _check_known(wrong, part, _ON_TOPIC)
        if len(part.partition_key) > _MOST_KEY:
            raise wrong(f"its key has {len(part.partition_key)} bytes; at most {_MOST_KEY}")
        _check_size(wrong, part)
        operation = topics.OPERATION
    else:
        _check_known(wrong, part, _DELIVERED)
        if part.http_method not in ("", "POST"):
            raise wrong(f"http_method {part.http_method[:20]!r}: POST only", reasons.NOT_SUPPORTED)
        _check_delivery(wrong, part, targets)
        operation = part.operation
    if part.ordering_key and kind is not Kind.MESSAGE:
        raise wrong("ordering_key: messages alone keep an order", reasons.NOT_SUPPORTED, "UNIMPLEMENTED")
    if len(part.ordering_key) > _MOST_ORDER or storable(part.ordering_key) != part.ordering_key:
        raise wrong(f"ordering_key: at most {_MOST_ORDER} characters, which can be stored")
    sized(part.payload, f"payload of branch {item.id}")
    if not 0 <= part.deliver_at_us <= now_us + MOST_DELAY_US:
        raise wrong(f"deliver_at_us: at most {MOST_DELAY_US // 86_400_000_000} days from now")
    if part.message_id and not _MESSAGE_ID.fullmatch(part.message_id):
        raise wrong("message_id: at most 128 visible characters of ASCII")
    if len(item.name) > 200:
        raise wrong("its name is too long", reasons.TOO_LARGE)
    action = Action(
        operation,
        item.name,
        part.content_type,
        headers=dict(part.headers),
        aborted_means_refused=part.aborted_means_refused,
        retry=read_retry(item.retry, wrong) if item.HasField("retry") else NO_RETRY,
        delivery=Delivery(
            part.message_id,
            part.deliver_at_us,
            _event(part, wrong, kind),
            part.ordering_key,
            part.partition_key,
        ),
    )
    return Branch(item.id, kind, resource=part.target, payload=part.payload, action=action)


def may_be(
    items: Iterable[c.Branch], namespace: str, executes: Mapping[str, frozenset[str]], allowed: topics.Topics
) -> None:
    """Refuse statements for a resource on which none are run for this namespace, and topics that are not its own to
    put anything on. Raises Refused."""
    for item in items:
        target = item.delivery.target
        if target.startswith(topics.PREFIX):
            why = allowed.why_not(target, namespace)
            if why is not None:
                raise bad(item, why.message, why.reason, "PERMISSION_DENIED")
        if target.startswith(statements.PREFIX):
            name = item.delivery.target.removeprefix(statements.PREFIX)
            if not executes.get(name, frozenset()) & {namespace, "*"}:
                raise bad(
                    item,
                    f"no statements are run on {name[:80]!r} for namespace {namespace!r}: set "
                    "resources.<name>.execute_url and execute_namespaces",
                    reasons.TARGET_NOT_ALLOWED,
                    "PERMISSION_DENIED",
                )


def _sql(item: c.Branch, kind: Kind, sized: Callable[[bytes, str], None]) -> Branch:
    """Statements for a resource, run at best effort. Raises Refused."""
    wrong, part = partial(bad, item), item.delivery
    if kind is not Kind.NOTIFY:
        raise wrong(
            "statements are run at best effort: as a notification", reasons.NOT_SUPPORTED, "UNIMPLEMENTED"
        )
    if item.vote or item.after:
        raise wrong("a delivery has no first phase to vote for, and comes after the end of the whole")
    _check_known(wrong, part, frozenset({"target", "sql", "deliver_at_us"}))
    if why := _why_not(part.sql):
        raise wrong(why)
    payload = part.sql.SerializeToString(deterministic=True)
    sized(payload, f"statements of branch {item.id}")
    action = Action(
        statements.OPERATION,
        item.name[:200],
        statements.CONTENT_TYPE,
        retry=read_retry(item.retry, wrong) if item.HasField("retry") else NO_RETRY,
        delivery=Delivery("", part.deliver_at_us),
    )
    return Branch(item.id, kind, resource=part.target, payload=payload, action=action)


_MOST_STATEMENTS = 100


def _why_not(unit: c.SqlUnit) -> str:
    if not 1 <= len(unit.statements) <= _MOST_STATEMENTS:
        return f"between 1 and {_MOST_STATEMENTS} statements"
    return next((why for s in unit.statements if (why := statements.why_not(s.text, s.parameters))), "")


def check_edited(
    branch: Branch,
    payload: bytes,
    namespace: str,
    executes: Mapping[str, frozenset[str]],
    allowed: topics.Topics,
) -> None:
    """What an operator puts in the place of statements is held to the same as they were. Raises Refused."""
    if not branch.resource.startswith(statements.PREFIX):
        return
    item = c.Branch(id=branch.id)
    item.delivery.target = branch.resource
    try:
        item.delivery.sql.ParseFromString(payload)
    except DecodeError as error:
        raise bad(item, f"the payload is no txcoord.v1.SqlUnit: {error}") from error
    if why := _why_not(item.delivery.sql):
        raise bad(item, why)
    may_be([item], namespace, executes, allowed)


def _event(part: c.DeliveryPart, wrong: Wrong, kind: Kind) -> Event | None:
    if not part.HasField("cloud_event"):
        return None
    e = part.cloud_event
    webhook = kind is Kind.NOTIFY and part.operation.startswith("/") and part.target.startswith("http")
    if not webhook and not part.target.startswith(topics.PREFIX):
        text = "a CloudEvent is a notification over HTTP, or is put on a topic"
        raise wrong(text, reasons.NOT_SUPPORTED, "UNIMPLEMENTED")
    if not e.type:
        raise wrong("a CloudEvent has a type")
    texts = (e.type, e.source, e.subject, e.data_schema, *e.extensions.values())
    if any(len(text) > 1000 or not text.isprintable() for text in texts) or len(e.extensions) > 20:
        raise wrong(
            "attributes of a CloudEvent are printable, at most 1,000 characters each, at most 20 extensions"
        )
    if not all(_EXTENSION.fullmatch(name) and name not in _ATTRIBUTES for name in e.extensions):
        raise wrong("extensions of a CloudEvent have names of 1 to 20 lower-case letters and digits")
    return Event(e.type, e.source, e.subject, e.data_schema, e.structured, dict(e.extensions))


_EXTENSION = re.compile(r"[a-z0-9]{1,20}")
_ATTRIBUTES = frozenset(
    {"specversion", "id", "type", "source", "time", "subject", "dataschema", "datacontenttype", "data"}
)


def _check_known(wrong: Wrong, part: c.DeliveryPart, known: frozenset[str]) -> None:
    if unknown := sorted({field.name for field, _ in part.ListFields()} - known):
        raise wrong(
            f"{', '.join(unknown)}: not carried out by this version", reasons.NOT_SUPPORTED, "UNIMPLEMENTED"
        )


def _check_delivery(wrong: Wrong, part: c.DeliveryPart, targets: Targets) -> None:
    check_target(wrong, part.target, targets)
    if not part.operation or len(part.operation) > 200:
        raise wrong("its operation has a name of 1 to 200 characters")
    if part.operation.startswith("/"):
        check_operations(wrong, part.target, [part.operation], targets)
        check_headers(wrong, part.headers, targets)
    _check_size(wrong, part)


def _check_size(wrong: Wrong, part: c.DeliveryPart) -> None:
    size = sum(len(k) + len(v) for k, v in part.headers.items())
    if size > MOST_HEADERS or len(part.content_type) > 255:
        raise wrong(f"content type or headers ({size} bytes) are too long", reasons.TOO_LARGE)


def asked(check: pb.MessageCheck, resource: Callable[[str], str], targets: Targets) -> str:
    """Who is asked what became of a sender's local transaction, as its row says it. Raises Refused."""

    def wrong(message: str, reason: str = reasons.BAD_REQUEST, code: str = "INVALID_ARGUMENT") -> Refused:
        return Refused(Refusal(code, reason, f"check: {message}", True))

    if bool(check.resource) == bool(check.target):
        raise wrong("a resource, or a target that answers for its own database: one of them")
    if check.branch not in ("", marker.ONE_BRANCH):
        text = f"the marker's key is op {marker.ONE!r}, branch {marker.ONE_BRANCH!r}"
        raise wrong(text, reasons.BAD_BRANCH)
    if check.interval_us or check.headers:
        raise wrong(
            "intervals and headers of its own are not carried out: the transaction's headers are sent",
            reasons.NOT_SUPPORTED,
            "UNIMPLEMENTED",
        )
    if check.identity and (check.resource or not identifiers.is_name(check.identity)):
        raise wrong("an identity is of a target's database, 1 to 63 characters of [A-Za-z0-9_.-]")
    if check.resource:
        return resource(check.resource)
    check_target(wrong, check.target, targets)
    if check.participant and not identifiers.is_name(check.participant):
        raise wrong(f"participant {check.participant[:80]!r}: 1 to 63 characters of [A-Za-z0-9_.-]")
    said = answering.by_target(check.target, check.participant, check.identity)
    if len(said) > answering.MOST:
        raise wrong(f"target {check.target[:80]!r}: it is too long", reasons.TOO_LARGE)
    return said


def must_be_same(row: Tx, asked: Tx, branches: tuple[Branch, ...]) -> None:
    """Is what was prepared what is asked for, and nothing else? A row that was begun without saying who is asked about
    it would be aborted at its deadline without a question. Raises Refused."""
    known = replace(asked, branches=branches)
    if content_of(row) != content_of(known) or not same_plan(row, known):
        text = "this transaction was begun, or prepared, with other content"
        raise Refused(Refusal("ALREADY_EXISTS", reasons.CONTENT_MISMATCH, text, True, {"tx_id": row.tx_id}))
