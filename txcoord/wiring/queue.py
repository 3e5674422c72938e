"""The queue of a node, as its settings ask for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..adapters.embedded import EmbeddedQueue
from ..config import KafkaSettings, Settings
from ..ports import Clock, Queue, Spawn
from .errors import ExitCode, StartError

if TYPE_CHECKING:
    from ..adapters.kafka import KafkaConnection, KafkaQueueSettings


@dataclass(frozen=True, slots=True)
class Chosen:
    """A queue, and what the engine has to know of it."""

    queue: Queue
    overdue_us: int
    """What is not carried out so long after it was due has been lost by the queue: any node may take it over."""
    overdue_share: float = 0.0
    """And so much of the time that it was to wait: the queue may be that late."""
    overdue_most_us: int = 0
    """But no more than that for the time that it was to wait."""
    up: Callable[[], Mapping[str, bool]] = dict
    """By part, whether Kafka does what it is asked for; nothing without Kafka."""


def choose(settings: Settings, clock: Clock, spawn: Spawn) -> Chosen:
    """The queue that the settings ask for: Kafka, or timers in this process. Raises StartError."""
    if not settings.kafka.addresses:
        return Chosen(EmbeddedQueue(clock, spawn), overdue_us=500_000)
    connection = kafka_connection(settings.kafka, settings.node_name)
    from ..adapters.kafka import KafkaQueue

    tiers = kafka_queue(settings.kafka)
    queue = KafkaQueue(connection, tiers, clock, spawn)
    # A tier may be a quarter longer than the delay that was asked for, or than what is left of it after longer ones.
    longest_us = max(tiers.tiers_us)
    return Chosen(
        queue, overdue_us=1_000_000, overdue_share=0.25, overdue_most_us=longest_us // 4, up=queue.up
    )


def kafka_connection(settings: KafkaSettings, client_id: str) -> KafkaConnection:
    """How the brokers are reached. Raises StartError."""
    try:
        from ..adapters.kafka import KafkaConnection, tls
    except ImportError as error:
        raise StartError(
            ExitCode.CONFIG,
            "MISSING_PACKAGE",
            f"kafka.bootstrap_servers is set, and {error.name} is not installed: pip install 'txcoord[kafka]'",
        ) from error
    context = None
    try:
        if settings.security_protocol.endswith("SSL"):
            files = (settings.ca_file, settings.cert_file, settings.key_file)
            context = tls(*(None if file is None else str(file) for file in files))
        secret = settings.sasl_password
        password = secret.get_secret_value() if secret is not None else None
        if settings.sasl_password_file is not None:
            password = settings.sasl_password_file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise StartError(
            ExitCode.CONFIG, "BAD_CREDENTIALS", f"what Kafka is shown cannot be used: {error}"
        ) from error
    return KafkaConnection(
        settings.addresses,
        client_id=client_id,
        security_protocol=settings.security_protocol,
        ssl_context=context,
        sasl_mechanism=settings.sasl_mechanism,
        sasl_username=settings.sasl_username or None,
        sasl_password=password,
    )


def kafka_queue(settings: KafkaSettings) -> KafkaQueueSettings:
    """How the queue is laid out."""
    from ..adapters.kafka import KafkaQueueSettings, TopicSettings

    return KafkaQueueSettings(
        settings.prefix,
        settings.group_name,
        settings.tiers_us,
        TopicSettings(settings.partitions, settings.replication_factor, settings.min_insync_replicas),
        consume=settings.consume,
        session_s=settings.session_timeout.total_seconds(),
    )
