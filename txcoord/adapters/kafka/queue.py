"""``ports.Queue`` on Apache Kafka: one topic for each delay."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...ports import Clock, Due, Spawn
from .connection import Health, KafkaConnection
from .lanes import Carry, Lanes
from .reading import Reader
from .records import encode
from .sending import MOST_BYTES, Sender
from .tiers import Tiers
from .topics import Topics, TopicSettings, WantedTopic

_DAY_MS = 24 * 3600 * 1000
_END_S = 15.0
"""Cancelled once more after this time: closing a client takes a while."""


@dataclass(frozen=True, slots=True)
class KafkaQueueSettings:
    """How the queue is laid out; the same for all nodes of a log."""

    prefix: str
    group: str
    tiers_us: tuple[int, ...]
    topics: TopicSettings = field(default_factory=TopicSettings)
    consume: bool = True
    """False: this node only hands off."""
    session_s: float = 10.0
    """A consumer that has not been heard of for so long is taken for dead."""
    send_s: float = 10.0
    """What cannot be sent within that time is given up."""
    look_s: float = 5.0
    """Between two looks whether the topics are there."""
    batch: int = 100
    """So many of one target are given out together."""
    width: int = 1_000
    """And so many of it at a time. When as many again wait, the others go back to a topic."""


class KafkaQueue:
    """``ports.Queue`` on Kafka. Whether Kafka is there or not, it starts, and takes; it connects in the background."""

    def __init__(
        self, connection: KafkaConnection, settings: KafkaQueueSettings, clock: Clock, spawn: Spawn
    ) -> None:
        self._s = settings
        self._now_us = clock.now_us
        self._spawn = spawn
        self._tiers = Tiers(settings.prefix, settings.tiers_us)
        self._sending = Health("send", monotonic=time.monotonic)
        self._consumes = Health("consume", monotonic=time.monotonic)
        topics = (*self._tiers.delay_us, poison_topic(settings.prefix))
        self._sender = Sender(
            connection, topics, self._sending, monotonic=time.monotonic, bound_s=settings.send_s
        )
        self._lanes = Lanes(spawn, batch=settings.batch, width=settings.width)
        self._reader = Reader(
            connection,
            self._tiers,
            self._sender,
            self._lanes,
            self._consumes,
            group=settings.group,
            poison=poison_topic(settings.prefix),
            session_s=settings.session_s,
            now_us=clock.now_us,
        )
        self._looking = Health("topics", monotonic=time.monotonic)
        self._topics = Topics(
            connection,
            wanted_topics(settings.prefix, settings.tiers_us),
            settings.topics,
            self._looking,
            every_s=settings.look_s,
            made=self._made_again,
        )
        self._consuming = False
        self._held = False
        self._stopped = False
        self._tasks: list[asyncio.Future[None]] = []
        self._last: list[asyncio.Future[None]] = []

    async def start(self, carry: Carry) -> None:
        """Begin; without waiting for Kafka."""
        self._begin(self._topics.run(), "queue:topics")
        self._last = [self._begin(self._sender.run(), "queue:sender")]
        if self._s.consume:
            self._consuming = True
            self._lanes.start(carry)
            self._begin(self._read(), "queue:reader")
            self._begin(self._reader.tell_time(), "queue:timer")

    def put(self, due: Due) -> None:
        """Take it."""
        if self._stopped:
            return
        now_us = self._now_us()
        topic = self._tiers.choose(due.due_us - now_us)
        if topic is not None:
            self._send(due, topic, now_us)
        elif self._consuming and not self._held:
            self._reader.put(due)
        else:
            self._send(due, self._tiers.shortest, now_us)

    def hold(self, yes: bool) -> None:
        """While it is held this node is no member of the group, and what waits in this process only is sent."""
        self._held = yes
        self._reader.hold(yes)
        if yes:
            self._send_what_waits_here()

    def up(self) -> Mapping[str, bool]:
        """What Kafka does of that which it is asked for."""
        up = {"send": self._sending.well, "topics": self._looking.well}
        return {**up, "consume": self._consumes.well} if self._consuming else up

    def depth(self) -> Mapping[str, int]:
        """By topic what waits for its delay, of what this node reads; ``here``: what waits in this process; ``due``:
        what is carried out; ``sending``: what is on its way to Kafka."""
        return {
            **(self._reader.depth() if self._consuming else {}),
            "here": self._reader.here,
            "due": self._lanes.count,
            "sending": self._sender.depth,
        }

    @property
    def dropped(self) -> int:
        """How many could not be sent, and are left to the log's sweep."""
        return self._sending.dropped

    @property
    def poisoned(self) -> int:
        """How many records could not be read, and were set aside."""
        return self._reader.poisoned

    async def stop(self) -> None:
        """End. What is consumed is said; what waits in this process only is sent, if Kafka takes it at once."""
        if self._stopped:
            return
        self._stopped = True
        tasks, self._tasks = [t for t in self._tasks if t not in self._last], []
        await _end(tasks)
        await self._lanes.stop()
        self._send_what_waits_here()
        await _end(self._last)

    async def _read(self) -> None:
        await self._topics.there.wait()
        await self._reader.run()

    def _made_again(self, topics: Sequence[str]) -> None:
        if self._consuming and any(topic in self._tiers.delay_us for topic in topics):
            self._reader.start_again()

    def _send_what_waits_here(self) -> None:
        for due in self._reader.give_back():
            self._send(due, self._tiers.shortest, self._now_us())

    def _send(self, due: Due, topic: str, now_us: int) -> None:
        self._sender.put(topic, due.tx_id.encode(), encode(due), now_us)

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Future[None]:
        task = self._spawn(work, name)
        assert isinstance(task, asyncio.Future)
        self._tasks.append(task)
        return task


def poison_topic(prefix: str) -> str:
    """Where records are kept that cannot be read."""
    return f"{prefix}.poison"


def dead_letter_topic(prefix: str) -> str:
    """Where branches are told that are parked."""
    return f"{prefix}.dead-letter"


def wanted_topics(prefix: str, tiers_us: Sequence[int]) -> list[WantedTopic]:
    """All topics of the queue. Retries are kept for a week beyond their delay, what people look at for thirty days."""
    retries = [
        WantedTopic(name, {"cleanup.policy": "delete", "retention.ms": str(7 * _DAY_MS + delay // 1000)})
        for name, delay in Tiers(prefix, tiers_us).delay_us.items()
    ]
    kept = {"cleanup.policy": "delete", "retention.ms": str(30 * _DAY_MS)}
    # Whatever could be put on a retry topic goes there, with what is said of it.
    roomy = {**kept, "max.message.bytes": str(2 * MOST_BYTES)}
    return [
        *retries,
        WantedTopic(poison_topic(prefix), roomy, 1, needed=False),
        WantedTopic(dead_letter_topic(prefix), kept, needed=False),
    ]


async def _end(tasks: Sequence[asyncio.Future[None]]) -> None:
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_END_S)
