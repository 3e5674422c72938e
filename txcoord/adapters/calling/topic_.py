"""Messages and notifications that are put on topics of Kafka."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from ...core.action import Answer, AnswerKind
from ...core.targets import NOT_ALLOWED
from ...core.topics import PREFIX, Topics
from ...outgoing import Publishing, TopicRecord, TopicWriter
from ...ports import CallRequest
from . import cloud_event

_SAME = ("txcoord-", "ce_", "content-type")
_ANSWERS = {Publishing.SENT: AnswerKind.DONE, Publishing.REFUSED: AnswerKind.REFUSED}


class TopicCaller:
    """``ports.Caller`` for targets ``topic:<name>``: done is what all replicas that must have it have."""

    def __init__(self, writer: TopicWriter, topics: Topics) -> None:
        self._writer = writer
        self._topics = topics

    async def call(
        self, target: str, requests: Sequence[CallRequest], timeout_s: float
    ) -> AsyncIterator[tuple[CallRequest, Answer]]:
        """All of them together."""
        topic = target.removeprefix(PREFIX)
        allowed = []
        for request in requests:
            why = self._topics.why_not(target, request.tx.namespace)
            if why is None:
                allowed.append(request)
            else:  # It was when it was taken, and may be again.
                yield request, Answer(AnswerKind.FAILED, reason=f"{NOT_ALLOWED}: {why.message}")
        told = await self._writer.write(topic, [record_of(request) for request in allowed], timeout_s)
        for request, (became, why_not) in zip(allowed, told, strict=True):
            kind = _ANSWERS.get(became, AnswerKind.FAILED)
            yield request, Answer(kind, reason="" if kind is AnswerKind.DONE else why_not[:500])

    async def close(self) -> None:
        """Disconnect."""
        await self._writer.close()


def record_of(request: CallRequest) -> TopicRecord:
    """The record of a delivery; as a CloudEvent it is as its Kafka protocol binding has it."""
    tx, branch, action = request.tx, request.branch, request.branch.action
    assert action is not None
    given = {**tx.headers, **action.headers}
    headers = {name.lower(): value for name, value in given.items() if not name.lower().startswith(_SAME)}
    kind, body = action.content_type or "application/json", branch.sent
    if (event := action.delivery.event) is not None:
        said = cloud_event.attributes(event, request)
        if event.structured:
            kind, body = cloud_event.STRUCTURED, cloud_event.structured(said, kind, body)
        else:
            headers |= {f"ce_{name}": value for name, value in said.items()}
    headers |= {
        "content-type": kind,
        "txcoord-message-id": request.message_id,
        "txcoord-namespace": tx.namespace,
        "txcoord-tx-id": tx.tx_id,
        "txcoord-gid": tx.gid or tx.tx_id,
        "txcoord-branch": branch.id,
        "txcoord-attempt": str(request.attempt),
    }
    key = action.delivery.partition_key or action.delivery.order_key.encode() or None
    return TopicRecord(key, body, tuple((name, value.encode()) for name, value in headers.items()))


__all__ = ["TopicCaller", "record_of"]
