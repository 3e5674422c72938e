"""Puts records on topics of Kafka: idempotent, acknowledged by all replicas that must have them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiokafka import errors
from aiokafka.errors import KafkaError

from ...core.model import Topic
from ...observe import logs
from ...outgoing import Publishing, Record
from .connection import KafkaConnection, close, start

log = logs.get("txcoord.events")

Told = tuple[Publishing, str]

_SENT: Final[Told] = (Publishing.SENT, "")
_REFUSED: Final = (
    errors.MessageSizeTooLargeError,
    errors.RecordListTooLargeError,
    errors.InvalidMessageError,
    errors.PolicyViolationError,
)
"""Said of a batch, for one record in it. Everything else is said of the broker, of the topic, or of who we are."""
_BATCH: Final = 128 * 1024


class KafkaPublisher:
    """``outgoing.Publisher`` on Kafka."""

    def __init__(
        self, connection: KafkaConnection, topics: Mapping[Topic, str], *, timeout_s: float = 20.0
    ) -> None:
        self._connection = connection
        self._topics = topics
        self._timeout_s = timeout_s
        self._producer: Any = None

    async def publish(self, records: Sequence[Record]) -> Sequence[Told]:
        """All at once; what is refused, once more and alone, for it may have shared a batch with the culprit."""
        told = await self._publish(records)
        refused = [n for n, (answer, _) in enumerate(told) if answer is Publishing.REFUSED]
        if len(refused) > 1:
            for n in refused:
                (told[n],) = await self._publish([records[n]])
        return told

    async def close(self) -> None:
        """Leave."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await close(producer)

    async def _publish(self, records: Sequence[Record]) -> list[Told]:
        sent: list[asyncio.Future[Any] | Told] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                producer = await self._started()
                for record in records:
                    one = await self._send(producer, record)
                    sent.append(one)
                await asyncio.wait([one for one in sent if isinstance(one, asyncio.Future)] or [_nothing()])
        except (KafkaError, OSError, TimeoutError) as error:
            why = str(error) or "no answer in time"
            told = [self._heard(one, why) for one in sent]
            told += [(Publishing.AWAY, why)] * (len(records) - len(sent))
        else:
            told = [self._heard(one, "no answer") for one in sent]
        if any(told_one is not _SENT for told_one in told):
            # What it has may leave still, twice perhaps. And a batch that was refused has a number that its broker
            # waits for from then on: it would take nothing more.
            await self.close()
        return told

    async def _started(self) -> Any:
        if self._producer is None:
            self._producer = self._connection.producer(max_batch_size=_BATCH)
            await start(self._producer)
        return self._producer

    async def _send(self, producer: Any, record: Record) -> asyncio.Future[Any] | Told:
        try:
            future: asyncio.Future[Any] = await producer.send(
                self._topics[record.topic],
                record.value,
                key=record.key.encode(),
                headers=list(record.headers),
            )
        except _REFUSED as error:
            return (Publishing.REFUSED, _shown(error))
        return future

    @staticmethod
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
        if isinstance(error, _REFUSED):
            return (Publishing.REFUSED, _shown(error))
        return (Publishing.AWAY, _shown(error))


def _nothing() -> asyncio.Future[Any]:
    nothing: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    nothing.set_result(None)
    return nothing


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


__all__ = ["KafkaPublisher"]
