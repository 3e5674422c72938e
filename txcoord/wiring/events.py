"""Events: where they go, and who brings them there."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..adapters.events.cloudevents import record_of
from ..adapters.sql.leases import SqlLeases
from ..adapters.sql.log import SqlLog
from ..adapters.sql.outbox import SqlOutbox
from ..config import Settings
from ..core.model import Topic
from ..engine.coordinator import Coordinator
from ..engine.relay import DUTY, Relay
from ..observe import logs
from ..ports import Clock, LogUnavailable, Spawn, Task
from .queue import kafka_connection, kafka_queue

if TYPE_CHECKING:
    from ..adapters.kafka.connection import Health
    from ..adapters.kafka.publishing import KafkaPublisher

log = logs.get("txcoord.events")

_LOOK_S = 30.0
_KEPT_MS = 30 * 24 * 3600 * 1000
"""How long events stay on a topic that is made here."""


class Events:
    """What one node does for events; little, where it tells none."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._relay: Relay | None = None
        self._publisher: KafkaPublisher | None = None
        self._tasks: list[Task] = []
        self._health: Health | None = None

    def start(self, coordinator: Coordinator, log_: SqlLog, spawn: Spawn, *, shared: bool) -> None:
        """Publish, whenever it is this node's turn. Raises StartError where Kafka's settings cannot be used.

        Its lease is the log's: without the log there is nothing to publish."""
        s, clock = self._settings, coordinator.clock
        assert coordinator.identity is not None
        log_id = coordinator.identity.log_id
        leases = SqlLeases(log_)
        if not s.events.any:
            if shared:
                self._tasks.append(spawn(_watch_others(leases, coordinator, clock), "events"))
            return
        connection = kafka_connection(s.kafka, f"{s.node_name}-events")
        from ..adapters.kafka.connection import Health
        from ..adapters.kafka.publishing import KafkaPublisher
        from ..adapters.kafka.queue import dead_letter_topic
        from ..adapters.kafka.topics import Topics, WantedTopic

        self._health = Health("events", monotonic=time.monotonic)
        names = {
            Topic.EVENTS: f"{s.kafka.prefix}.events",
            Topic.DEAD_LETTERS: dead_letter_topic(s.kafka.prefix),
        }
        kept = {"cleanup.policy": "delete", "retention.ms": str(_KEPT_MS)}
        topics = Topics(
            connection,
            [WantedTopic(name, kept) for name in names.values()],
            kafka_queue(s.kafka).topics,
            self._health,
            every_s=_LOOK_S,
            made=_made_again,
        )
        self._publisher = KafkaPublisher(connection, names)
        self._relay = Relay(
            SqlOutbox(log_),
            self._publisher,
            leases,
            node=s.node_name,
            clock=clock,
            shown=lambda out, topic: record_of(log_id, out, topic),
            alarm=coordinator.alarm,
            published=coordinator.metrics.published,
        )
        self._tasks += [spawn(topics.run(), "events:topics"), spawn(self._relay.run(), "events:relay")]

    def up(self) -> dict[str, bool]:
        """Are their topics there? Nothing where this node tells none."""
        return {} if self._health is None else {"events": self._health.well}

    async def stop(self) -> None:
        """Publish no more; another node may go on at once. Never raises."""
        tasks, self._tasks = self._tasks, []
        relay, self._relay = self._relay, None
        publisher, self._publisher = self._publisher, None
        for task in tasks:
            task.cancel()
        ended: list[asyncio.Future[None]] = [task for task in tasks if isinstance(task, asyncio.Future)]
        await asyncio.gather(*ended, return_exceptions=True)
        if publisher is not None:
            await publisher.close()
        if relay is not None:
            with contextlib.suppress(LogUnavailable, TimeoutError):
                async with asyncio.timeout(1.0):
                    await relay.stop()


def _made_again(names: Sequence[str]) -> None:
    log.warning("events.topics_made_again", topics=list(names))


async def _watch_others(leases: SqlLeases, coordinator: Coordinator, clock: Clock) -> None:
    """What this node decides is not told: say so, while another node tells what it decides."""
    before: tuple[str, int] | None = None
    said = False
    while True:
        try:
            found = await leases.holder(DUTY)
        except LogUnavailable:
            found = before
        lives = before is not None and found is not None and found[0] != "" and found != before
        if lives and not said:
            assert found is not None
            coordinator.alarm(
                "events_differ", "", "", f"{found[0]} publishes events, and this node writes none"
            )
        said = lives
        before = found
        await clock.sleep(_LOOK_S)


__all__ = ["Events"]
