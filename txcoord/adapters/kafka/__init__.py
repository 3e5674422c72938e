"""Apache Kafka: the queue of transactions that wait, and the topics that go with it."""

from .connection import KafkaConnection, tls
from .queue import KafkaQueue, KafkaQueueSettings, dead_letter_topic, poison_topic
from .tiers import Tiers
from .topics import TopicSettings

__all__ = [
    "KafkaConnection",
    "KafkaQueue",
    "KafkaQueueSettings",
    "Tiers",
    "TopicSettings",
    "dead_letter_topic",
    "poison_topic",
    "tls",
]
