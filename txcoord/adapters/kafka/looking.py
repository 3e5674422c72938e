"""What is on the topics, for people."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from aiokafka import errors
from aiokafka.structs import TopicPartition

from .connection import KafkaConnection, close, start
from .queue import KafkaQueueSettings, dead_letter_topic, poison_topic, wanted_topics
from .tiers import Tiers
from .topics import describe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

_READ_S = 1.0
_AGAIN_S = 0.25
_TIMES = 40

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TopicStatus:
    """How it is with one topic."""

    topic: str
    what: str
    """``retry``, ``poison`` or ``dead-letter``."""
    partitions: int
    """0: it is not there."""
    records: int
    """How many are kept."""
    behind: int = 0
    """Of a retry topic: how many of them the group has not consumed."""


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """How it is with those who read the retry topics."""

    group: str
    state: str
    members: tuple[str, ...]
    """Client ids: names of nodes."""


@dataclass(frozen=True, slots=True)
class Poisoned:
    """A record that could not be read."""

    partition: int
    offset: int
    """On the topic where it is kept."""
    at_us: int
    """When it was set aside."""
    topic: str
    """Where it came from."""
    from_partition: str
    from_offset: str
    reason: str
    key: bytes | None
    value: bytes | None


@asynccontextmanager
async def _open(client: Any) -> AsyncIterator[Any]:
    try:
        await start(client)
        yield client
    finally:
        await close(client)


async def status(
    connection: KafkaConnection, settings: KafkaQueueSettings
) -> tuple[list[TopicStatus], GroupStatus]:
    """Topics, shortest delay first, and the group. Raises KafkaError, OSError."""
    tiers = Tiers(settings.prefix, settings.tiers_us).delay_us
    names = [topic.name for topic in wanted_topics(settings.prefix, settings.tiers_us)]
    kinds = {poison_topic(settings.prefix): "poison", dead_letter_topic(settings.prefix): "dead-letter"}
    async with _open(connection.admin()) as admin, _open(connection.consumer()) as consumer:
        parts: dict[str, list[TopicPartition]] = {}
        for found in await describe(admin, set(names) & set(await admin.list_topics())):
            parts[found["topic"]] = [
                TopicPartition(found["topic"], p["partition"]) for p in found["partitions"]
            ]
        every = [at for each in parts.values() for at in each]
        first = await consumer.beginning_offsets(every) if every else {}
        last = await consumer.end_offsets(every) if every else {}
        said = await _retried(lambda: admin.list_consumer_group_offsets(settings.group))
        topics = []
        for name in names:
            at = parts.get(name, [])
            behind = 0
            if name in tiers:
                marks = {one: said[one].offset if one in said else -1 for one in at}
                behind = sum(last[one] - max(first[one], marks[one]) for one in at)
            records = sum(last[one] - first[one] for one in at)
            topics.append(TopicStatus(name, kinds.get(name, "retry"), len(at), records, max(0, behind)))
        return topics, await _group(admin, settings.group)


async def _retried(ask: Callable[[], Awaitable[T]]) -> T:
    """The brokers get ready for groups when they are first asked for one."""
    for _ in range(_TIMES):
        try:
            return await ask()
        except errors.GroupCoordinatorNotAvailableError:
            await asyncio.sleep(_AGAIN_S)
    return await ask()


async def _group(admin: Any, group: str) -> GroupStatus:
    for answer in await _retried(lambda: admin.describe_consumer_groups([group])):
        for found in answer.to_object()["groups"]:
            members = tuple(sorted(member["client_id"] for member in found["members"]))
            return GroupStatus(group, found["state"], members)
    return GroupStatus(group, "", ())


async def poison(connection: KafkaConnection, prefix: str, limit: int) -> list[Poisoned]:
    """The records that could not be read, the last ``limit`` of them, oldest first. Raises KafkaError, OSError."""
    topic = poison_topic(prefix)
    async with _open(connection.admin()) as admin:
        found = await describe(admin, {topic} & set(await admin.list_topics()))
    if not found:
        return []
    at = [TopicPartition(topic, part["partition"]) for part in found[0]["partitions"]]
    async with _open(connection.consumer()) as consumer:
        consumer.assign(at)
        first, last = await consumer.beginning_offsets(at), await consumer.end_offsets(at)
        for one in at:
            consumer.seek(one, max(first[one], last[one] - limit))
        records: list[Any] = []
        while any([await consumer.position(one) < last[one] for one in at]):
            async with asyncio.timeout(30):
                got = await consumer.getmany(timeout_ms=int(_READ_S * 1000))
            records += [record for each in got.values() for record in each]
    records.sort(key=lambda record: (record.timestamp, record.offset))
    return list(_shown(records[-limit:]))


def _shown(records: list[Any]) -> Iterator[Poisoned]:
    for record in records:
        said = {name: value.decode(errors="replace") for name, value in record.headers if value is not None}
        yield Poisoned(
            record.partition,
            record.offset,
            record.timestamp * 1000,
            said.get("txcoord-topic", ""),
            said.get("txcoord-partition", ""),
            said.get("txcoord-offset", ""),
            said.get("txcoord-reason", ""),
            record.key,
            record.value,
        )
