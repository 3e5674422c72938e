"""Reads topics of events, as a consumer that passes by what it has seen."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka_event

from tests.support.kafka_server import KafkaServer


class Event:
    """One of them, by the CloudEvents SDK."""

    def __init__(self, record: Any) -> None:
        headers: Mapping[str, bytes] = dict(record.headers)
        self.key: str = record.key.decode()
        self._event = from_kafka_event(KafkaMessage(dict(headers), record.key, record.value))
        self.id: str = self._event.get_id()
        self.type: str = self._event.get_type()
        self.source: str = self._event.get_source()
        self.subject = self._event.get_subject()
        self.time = self._event.get_time()
        self.data: dict[str, Any] = self._event.get_data()  # type: ignore[assignment]


async def replay(kafka: KafkaServer, topic: str) -> list[Event]:
    """All that is on a topic, from its start to its present end, partition by partition."""
    for _ in range(20):
        if found := await _replay(kafka, topic):
            return found
        # A broker that others keep busy may not know of a topic's partitions, or of their ends, at the first question.
        await asyncio.sleep(0.2)
    return []


async def _replay(kafka: KafkaServer, topic: str) -> list[Event]:
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.address, enable_auto_commit=False)
    await consumer.start()
    try:
        parts = [TopicPartition(topic, n) for n in sorted(consumer.partitions_for_topic(topic) or ())]
        if not parts:
            parts = [TopicPartition(topic, p) for p in await _partitions(consumer, topic)]
        consumer.assign(parts)
        ends = await consumer.end_offsets(parts)
        await consumer.seek_to_beginning(*parts)
        found: list[Event] = []
        for part in parts:
            while await consumer.position(part) < ends[part]:
                batch = await consumer.getmany(part, timeout_ms=1000)
                found += [Event(record) for records in batch.values() for record in records]
        return found
    finally:
        await consumer.stop()


async def _partitions(consumer: Any, topic: str) -> list[int]:
    await consumer._client.force_metadata_update()
    await consumer._client._wait_on_metadata(topic)
    return sorted(consumer.partitions_for_topic(topic) or ())


def told(events: list[Event]) -> dict[str, list[Event]]:
    """Of each transaction in order, each event once."""
    out: dict[str, list[Event]] = {}
    seen: set[tuple[str, str]] = set()
    for event in events:
        if (event.source, event.id) not in seen:
            seen.add((event.source, event.id))
            out.setdefault(event.key, []).append(event)
    return out
