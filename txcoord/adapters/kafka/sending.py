"""Sends records, without anyone having to wait for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from aiokafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError

from ...observe import logs
from .connection import Health, KafkaConnection, close, start

log = logs.get("txcoord.kafka")

Headers = Sequence[tuple[str, bytes]]

MOST_BYTES: Final = 1024 * 1024
"""What brokers take of a record, where nothing else is set."""
_THE_RECORDS_OWN: Final = (MessageSizeTooLargeError, AssertionError, TypeError, ValueError)
"""What one record is refused for, and no other."""
_TOGETHER: Final = 500
_AGAIN_S: Final = 1.0
_FLUSH_S: Final = 1.0
_LOOK_S: Final = 0.25


@dataclass(slots=True)
class _Record:
    topic: str
    key: bytes | None
    value: bytes | None
    at_us: int
    headers: Headers
    until: float
    done: Callable[[bool], None] | None
    left: bool = False

    def answer(self, sent: bool) -> bool:
        """Tell whoever waits; False: somebody was told before."""
        if self.left:
            return False
        self.left = True
        if self.done is not None:
            self.done(sent)
        return True


class Sender:
    """One idempotent producer, made anew when it breaks.

    What cannot be sent within ``bound_s`` is given up, as is what comes while ``keep`` others wait.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Collection[str],
        health: Health,
        *,
        monotonic: Callable[[], float],
        bound_s: float = 10.0,
        keep: int = 100_000,
    ) -> None:
        self._connection = connection
        self._topics = set(topics)
        self._health = health
        self._monotonic = monotonic
        self._bound_s = bound_s
        self._keep = keep
        self._waiting: deque[_Record] = deque()
        self._more = asyncio.Event()
        self._under_way: set[asyncio.Future[Any]] = set()

    @property
    def depth(self) -> int:
        """How many records wait to be sent, or for the broker's word."""
        return len(self._waiting) + len(self._under_way)

    def put(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        at_us: int,
        *,
        headers: Headers = (),
        done: Callable[[bool], None] | None = None,
    ) -> None:
        """Send it, with that time as the record's; ``done`` hears whether the brokers have it. Never waits, never
        raises."""
        record = _Record(topic, key, value, at_us, headers, self._monotonic() + self._bound_s, done)
        if len(self._waiting) >= self._keep:
            self._give_up(record, f"{self._keep} records wait to be sent")
            return
        self._waiting.append(record)
        self._more.set()

    async def run(self) -> None:
        """Send, until it is cancelled; then what waits is sent, if that takes no time."""
        while True:
            producer = self._connection.producer(
                # One batch of a partition is filled at a time: room for what comes while one is on its way.
                max_batch_size=256 * 1024,
                max_request_size=2 * MOST_BYTES,
            )
            try:
                async with asyncio.timeout(self._bound_s):
                    await start(producer)
                    await producer.client.set_topics(self._topics)
                await self._send_all(producer)
            except (KafkaError, OSError, TimeoutError) as error:
                self._health.trouble(error)
                self._expire(error)
            except asyncio.CancelledError:
                await self._flush(producer)
                raise
            except Exception as error:
                log.exception("queue.sender_crashed")
                self._health.trouble(error)
            finally:
                await close(producer)
            await asyncio.sleep(_AGAIN_S)
            self._expire("the brokers are away")

    async def _send_all(self, producer: Any) -> None:
        while True:
            if not self._waiting:
                self._more.clear()
                await self._more.wait()
            try:
                async with asyncio.timeout(self._bound_s):
                    await self._send_some(producer)
            except (KafkaTimeoutError, TimeoutError) as error:
                # There is no room, or a topic is not there: a broker is away, and the producer waits for it.
                self._health.trouble(str(error) or "the brokers do not answer")
                self._expire("the brokers do not answer")

    async def _send_some(self, producer: Any) -> None:
        away = 0
        count = min(len(self._waiting), _TOGETHER)
        for _ in range(count):
            record = self._waiting[0]
            if record.until < self._monotonic():
                self._waiting.popleft()
                self._give_up(record, f"topic {record.topic}: the brokers do not answer")
                continue
            if producer.client.cluster.partitions_for_topic(record.topic) is None:
                # Its topic is not there. The producer would wait for it, with all others behind it.
                producer.client.add_topic(record.topic)
                self._waiting.rotate(-1)
                away += 1
                continue
            try:
                future = await producer.send(
                    record.topic,
                    record.value,
                    key=record.key,
                    timestamp_ms=-(-record.at_us // 1000),
                    headers=list(record.headers),
                )
            except _THE_RECORDS_OWN as error:
                self._waiting.popleft()
                self._give_up(record, error)
                continue
            self._waiting.popleft()
            self._under_way.add(future)
            future.add_done_callback(partial(self._heard, record))
        if away:
            producer.client.force_metadata_update()
            if away == count:
                await asyncio.sleep(_LOOK_S)

    def _heard(self, record: _Record, future: asyncio.Future[Any]) -> None:
        self._under_way.discard(future)
        error = None if future.cancelled() else future.exception()
        if error is None and not future.cancelled():
            self._health.fine()
            record.answer(True)
        else:
            self._give_up(record, error or "the producer was closed")

    def _give_up(self, record: _Record, reason: object) -> None:
        # Whoever waits for an answer is told, and has it still.
        if record.answer(False):
            self._health.trouble(reason, dropped=1 if record.done is None else 0)

    def _expire(self, reason: object) -> None:
        now = self._monotonic()
        while self._waiting and self._waiting[0].until < now:
            self._give_up(self._waiting.popleft(), reason)

    async def _flush(self, producer: Any) -> None:
        try:
            async with asyncio.timeout(_FLUSH_S):
                while self._waiting:
                    await self._send_some(producer)
                await producer.flush()
        except (KafkaError, OSError, TimeoutError) as error:
            self._health.trouble(error, dropped=self.depth)
