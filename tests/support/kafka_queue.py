"""Queues on Kafka for tests: nodes without an engine, that note what they are to carry out."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import GroupCoordinatorNotAvailableError

from tests.support.kafka_server import KafkaServer
from txcoord.adapters.embedded import SystemClock, Tasks
from txcoord.adapters.kafka import KafkaConnection, KafkaQueue, KafkaQueueSettings, TopicSettings
from txcoord.ports import Due

TIERS_US = (200_000, 400_000, 800_000, 1_600_000)
_numbers = itertools.count(1)


def connection_to(kafka: KafkaServer) -> KafkaConnection:
    return KafkaConnection((kafka.address,))


def new_settings(**more: Any) -> KafkaQueueSettings:
    """A queue of its own, with small tiers."""
    prefix = f"t{next(_numbers)}"
    settings = KafkaQueueSettings(
        prefix, f"{prefix}.retry", TIERS_US, TopicSettings(partitions=2), session_s=6.0, look_s=0.5
    )
    return replace(settings, **more)


class Carried:
    """``carry`` that notes what came, and when. It waits as long as ``gate`` is closed."""

    def __init__(self, clock: SystemClock) -> None:
        self._clock = clock
        self.came: list[tuple[Due, int]] = []
        self.done: list[Due] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, batch: Sequence[Due]) -> None:
        self.came += [(due, self._clock.now_us()) for due in batch]
        await self.gate.wait()
        self.done += batch

    @property
    def early(self) -> list[tuple[Due, int]]:
        return [(due, at_us) for due, at_us in self.came if at_us < due.due_us]

    @property
    def ids(self) -> set[str]:
        return {due.tx_id for due in self.done}


class QueueNode:
    """A queue that runs."""

    def __init__(self, kafka: KafkaServer, settings: KafkaQueueSettings) -> None:
        self.clock = SystemClock()
        self.tasks = Tasks()
        self.carried = Carried(self.clock)
        self.queue = KafkaQueue(connection_to(kafka), settings, self.clock, self.tasks.spawn)

    def put(self, tx_id: str, delay_s: float, **more: Any) -> Due:
        due = Due(tx_id, 1, self.clock.now_us() + int(delay_s * 1_000_000), **more)
        self.queue.put(due)
        return due

    async def stop(self) -> None:
        await self.queue.stop()
        await self.tasks.stop()
        assert self.tasks.crashes == 0


class KafkaPlace:
    """For the contract of queues."""

    soon_s = 0.25
    most = 20
    keeps = True

    def __init__(self, kafka: KafkaServer) -> None:
        self.clock = SystemClock()
        self._tasks = Tasks()
        self._connection = connection_to(kafka)
        self._settings = new_settings(batch=7, width=self.most)

    async def queue(self) -> KafkaQueue:
        return KafkaQueue(self._connection, self._settings, self.clock, self._tasks.spawn)

    async def close(self) -> None:
        await self._tasks.stop()
        assert self._tasks.crashes == 0


@asynccontextmanager
async def queue_node(kafka: KafkaServer, settings: KafkaQueueSettings) -> AsyncIterator[QueueNode]:
    node = QueueNode(kafka, settings)
    await node.queue.start(node.carried)
    try:
        yield node
    finally:
        await node.stop()


async def until(condition: Callable[[], bool], limit_s: float = 45.0) -> None:
    """Wait for it."""
    async with asyncio.timeout(limit_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def records_of(kafka: KafkaServer, topic: str) -> list[Any]:
    """All records of a topic."""
    consumer = connection_to(kafka).consumer()
    await consumer.start()
    try:
        parts = [TopicPartition(topic, n) for n in await consumer._client._wait_on_metadata(topic)]
        consumer.assign(parts)
        ends = await consumer.end_offsets(parts)
        found = []
        while any([await consumer.position(part) < ends[part] for part in parts]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                found += records
        return found
    finally:
        await consumer.stop()


async def committed(kafka: KafkaServer, settings: KafkaQueueSettings) -> int:
    """How many records of all topics the group has said to be consumed."""
    admin = connection_to(kafka).admin()
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(settings.group)
        return sum(max(0, found.offset) for found in offsets.values())
    except GroupCoordinatorNotAvailableError:
        return 0  # nobody has ever read
    finally:
        await admin.close()


async def until_committed(kafka: KafkaServer, settings: KafkaQueueSettings, count: int) -> None:
    """Wait until the group has said so many to be consumed."""
    async with asyncio.timeout(45):
        while True:
            if await committed(kafka, settings) >= count:
                return
            await asyncio.sleep(0.1)
