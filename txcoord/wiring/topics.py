"""Messages and notifications to topics of Kafka."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import Settings, items
from ..core.topics import Topics
from .queue import kafka_connection

if TYPE_CHECKING:
    from ..adapters.calling.topic_ import TopicCaller


def topics(settings: Settings) -> Topics:
    """On which something may be put."""
    kafka = settings.kafka
    return Topics(items(kafka.topics), own=kafka.prefix, there=bool(kafka.addresses))


def topic_caller(settings: Settings) -> TopicCaller | None:
    """What puts it there; None: there is no Kafka. Raises StartError."""
    if not settings.kafka.addresses:
        return None
    connection = kafka_connection(settings.kafka, f"{settings.node_name}-topics")
    from ..adapters.calling.topic_ import TopicCaller
    from ..adapters.kafka.delivering import KafkaTopicWriter

    return TopicCaller(KafkaTopicWriter(connection), topics(settings))
