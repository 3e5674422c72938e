"""The topics: made at the start, looked at from time to time, made again when somebody has deleted them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import errors
from aiokafka.admin import NewTopic
from aiokafka.errors import KafkaError

from ...observe import logs
from .connection import Health, KafkaConnection, close, start

log = logs.get("txcoord.kafka")

_LOOK_S: Final = 20.0
_MOST_REPLICAS: Final = 3


@dataclass(frozen=True, slots=True)
class TopicSettings:
    """How topics are made."""

    partitions: int = 4
    replication_factor: int = 0
    """0: as many as there are brokers, at most three."""
    min_insync_replicas: int = 0
    """0: one less than there are replicas, at least one."""


@dataclass(frozen=True, slots=True)
class WantedTopic:
    """A topic, and what is special about it."""

    name: str
    configs: Mapping[str, str] = field(default_factory=dict)
    partitions: int = 0
    """0: as the settings say."""
    needed: bool = True
    """Can there be no work without it?"""


class Topics:
    """Keeps these topics there. ``made`` hears of those that went while this node ran, and were made again."""

    def __init__(
        self,
        connection: KafkaConnection,
        wanted: Sequence[WantedTopic],
        settings: TopicSettings,
        health: Health,
        *,
        every_s: float,
        made: Callable[[Sequence[str]], None],
    ) -> None:
        self._connection = connection
        self._wanted = {topic.name: topic for topic in wanted}
        self._s = settings
        self._health = health
        self._every_s = every_s
        self._made = made
        self._told: set[str] = set()
        self._seen: set[str] = set()
        self.there = asyncio.Event()
        """Those that are needed have been seen."""

    async def run(self) -> None:
        """Look, until it is cancelled."""
        admin: Any = None
        try:
            while True:
                try:
                    async with asyncio.timeout(_LOOK_S):
                        if admin is None:
                            admin = self._connection.admin()
                            await start(admin)
                        await self._look(admin)
                except (KafkaError, OSError, TimeoutError) as error:
                    self._health.trouble(error)
                    await close(admin)
                    admin = None
                else:
                    self._health.fine()
                await asyncio.sleep(self._every_s if admin is not None else 1.0)
        finally:
            if admin is not None:
                await close(admin)

    async def _look(self, admin: Any) -> None:
        # Asked for by name, some brokers would make them, in their own way.
        there = self._wanted.keys() & set(await admin.list_topics())
        missing = sorted(self._wanted.keys() - there)
        for topic in await describe(admin, there):
            self._compare(topic["topic"], len(topic["partitions"]))
        try:
            if missing:
                await self._make(admin, missing)
        finally:
            # One that is not needed, and cannot be made, holds nothing up.
            if all(self._wanted[name].needed is False for name in missing):
                self.there.set()
        again = [name for name in missing if name in self._seen]
        if again:
            log.warning("queue.topics_made_again", topics=again)
            self._made(again)
        self._seen |= self._wanted.keys()
        self.there.set()

    def _compare(self, name: str, partitions: int) -> None:
        """One that somebody else has made is taken as it is."""
        wanted = self._wanted[name].partitions or self._s.partitions
        if partitions < wanted and name not in self._told:
            self._told.add(name)
            log.warning("queue.topic_differs", topic=name, partitions=partitions, wanted=wanted)

    async def _make(self, admin: Any, missing: Sequence[str]) -> None:
        replicas = self._s.replication_factor
        if not replicas:
            replicas = min(_MOST_REPLICAS, len((await admin.describe_cluster())["brokers"]))
        insync = self._s.min_insync_replicas or max(1, replicas - 1)
        configs = {"min.insync.replicas": str(insync), "message.timestamp.type": "CreateTime"}
        made = await admin.create_topics(
            [
                NewTopic(
                    name,
                    num_partitions=self._wanted[name].partitions or self._s.partitions,
                    replication_factor=replicas,
                    topic_configs={**configs, **self._wanted[name].configs},
                )
                for name in missing
            ]
        )
        for name, code, *text in made.topic_errors:
            error = errors.for_code(code)
            # Another node may have been quicker.
            if error not in (errors.NoError, errors.TopicAlreadyExistsError):
                raise error(f"topic {name} cannot be made: {text[0] if text and text[0] else error.__name__}")


async def describe(admin: Any, names: Collection[str]) -> list[Any]:
    """Topics that are there, with their partitions. Raises KafkaError."""
    if not names:
        return []
    found = []
    for topic in await admin.describe_topics(sorted(names)):
        error = errors.for_code(topic["error_code"])
        if error is errors.NoError:
            found.append(topic)
        elif error not in (errors.UnknownTopicOrPartitionError, errors.LeaderNotAvailableError):
            raise error(topic["topic"])
    return found
