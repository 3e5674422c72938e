"""Puts deliveries on topics of the users' own: at least once, acknowledged by all replicas that must have them.

One producer serves all topics. When anything goes wrong with it, it is let go at once, so that nothing that counts as
failed leaves later than it must; those who use it still have their answers, and the next one makes another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from aiokafka import errors
from aiokafka.errors import KafkaConnectionError, KafkaError

from ...observe import logs
from ...outgoing import Publishing, TopicRecord
from .connection import KafkaConnection, close, start

log = logs.get("txcoord.kafka")

Told = tuple[Publishing, str]

_SENT: Final[Told] = (Publishing.SENT, "")
_TOO_LARGE: Final = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)
_REFUSED: Final = (*_TOO_LARGE, errors.InvalidMessageError, errors.PolicyViolationError)
"""Said of a batch, for one record in it."""
_BATCH: Final = 128 * 1024
_MOST: Final = 64 * 1024 * 1024
"""How large a request may be here: brokers say what is too large for them."""
_SPARE_S: Final = 0.5
"""So long before its caller gives up it is known what became of a record."""
_LOOKS: Final = 3
_LOOK_S: Final = 0.25


class _Shared:
    """A producer, and how many use it now."""

    def __init__(self, producer: Any) -> None:
        self.producer = producer
        self.started: asyncio.Task[None] | None = None
        self.users = 0

    async def start(self) -> None:
        """Wait until it has started; whoever waits for that no longer lets others wait on."""
        if self.started is None:
            self.started = asyncio.ensure_future(start(self.producer))
        await asyncio.shield(self.started)

    async def close(self) -> None:
        if self.started is not None and not self.started.done():
            self.started.cancel()
            await asyncio.wait([self.started])
        if self.started is not None and not self.started.cancelled():
            self.started.exception()  # Somebody has looked at it.
        await close(self.producer)


class KafkaTopicWriter:
    """``outgoing.TopicWriter`` on Kafka."""

    def __init__(self, connection: KafkaConnection) -> None:
        self._connection = connection
        self._shared: _Shared | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def write(self, topic: str, records: Sequence[TopicRecord], timeout_s: float) -> Sequence[Told]:
        """All at once; what is refused, once more and alone: it may have shared a batch with the culprit."""
        until = asyncio.get_running_loop().time() + max(timeout_s - _SPARE_S, timeout_s / 2)
        shared = self._shared
        if shared is None:
            shared = self._shared = self._made()
        shared.users += 1
        try:
            told = await self._write(shared, topic, records, until)
        except BaseException:
            self._retire(shared)
            raise
        finally:
            shared.users -= 1
            self._close_unused(shared)
        refused = [n for n, (became, _) in enumerate(told) if became is Publishing.REFUSED]
        for n in refused if len(records) > 1 or shared.users else ():
            alone = self._made()
            try:
                (told[n],) = await self._write(alone, topic, [records[n]], until)
            finally:
                self._close(alone)
        return told

    async def close(self) -> None:
        """Disconnect."""
        shared, self._shared = self._shared, None
        if shared is not None:
            await shared.close()
        if self._closing:
            await asyncio.wait(self._closing)

    async def _write(
        self, shared: _Shared, topic: str, records: Sequence[TopicRecord], until: float
    ) -> list[Told]:
        sent: list[asyncio.Future[Any] | Told] = []
        why = "UNAVAILABLE: the brokers do not answer"
        try:
            async with asyncio.timeout_at(until):
                await shared.start()
                missing = await _missing(shared.producer.client, topic)
                if missing:
                    return [(Publishing.AWAY, missing)] * len(records)
                for record in records:
                    one = await self._send(shared.producer, topic, record)
                    sent.append(one)
                under_way = [one for one in sent if isinstance(one, asyncio.Future)]
                if under_way:
                    await asyncio.wait(under_way)
        except TimeoutError:
            pass
        except (KafkaError, OSError) as error:
            why = _shown(error)
        told = [_heard(one, why) for one in sent]
        told += [(Publishing.AWAY, why)] * (len(records) - len(sent))
        if any(one is not _SENT for one in told):
            # What it has may leave still, and be sent again by another. And a batch that was refused has a number that
            # its broker waits for from then on: it would take nothing more.
            self._retire(shared)
        return told

    async def _send(self, producer: Any, topic: str, record: TopicRecord) -> asyncio.Future[Any] | Told:
        try:
            future: asyncio.Future[Any] = await producer.send(
                topic, record.value, key=record.key, headers=list(record.headers)
            )
        except _REFUSED as error:
            return (Publishing.REFUSED, _shown(error))
        return future

    def _made(self) -> _Shared:
        return _Shared(self._connection.producer(max_batch_size=_BATCH, max_request_size=_MOST))

    def _retire(self, shared: _Shared) -> None:
        """Nobody begins to use it any more."""
        if self._shared is shared:
            self._shared = None

    def _close_unused(self, shared: _Shared) -> None:
        if shared is not self._shared and not shared.users:
            self._close(shared)

    def _close(self, shared: _Shared) -> None:
        task = asyncio.ensure_future(shared.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


async def _missing(client: Any, topic: str) -> str:
    """Why nothing can be put on a topic that is not there; the producer would wait for it. Empty: it is there."""
    for look in range(_LOOKS):
        if client.cluster.partitions_for_topic(topic):
            return ""
        if topic in client.cluster.unauthorized_topics:
            return f"TOPIC_NOT_AUTHORIZED: the brokers do not let this coordinator see or write topic {topic}"
        if look:
            await asyncio.sleep(_LOOK_S)
        client.add_topic(topic)
        if not await client.force_metadata_update():
            raise KafkaConnectionError("no broker answers")
    if client.cluster.partitions_for_topic(topic):
        return ""
    return f"UNKNOWN_TOPIC: there is no topic {topic}: make it; deliveries make none"


def _heard(one: asyncio.Future[Any] | Told, why: str) -> Told:
    if not isinstance(one, asyncio.Future):
        return one
    if not one.done() or one.cancelled():
        # Nobody looks at it any more.
        one.add_done_callback(lambda future: future.cancelled() or future.exception())
        return (Publishing.AWAY, why)
    error = one.exception()
    if error is None:
        return _SENT
    became = Publishing.REFUSED if isinstance(error, _REFUSED) else Publishing.AWAY
    return (became, _shown(error))


def _shown(error: BaseException) -> str:
    match error:
        case errors.MessageSizeTooLargeError() | errors.RecordListTooLargeError():
            code = "TOO_LARGE"
        case errors.InvalidMessageError() | errors.PolicyViolationError():
            code = "KAFKA_REFUSED"
        case errors.TopicAuthorizationFailedError() | errors.ClusterAuthorizationFailedError():
            code = "TOPIC_NOT_AUTHORIZED"
        case _:
            code = "UNAVAILABLE"
    return f"{code}: {type(error).__name__}: {error}"[:400]


__all__ = ["KafkaTopicWriter"]
