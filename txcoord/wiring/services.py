"""Looks at Kafka and Redis, where the settings name them: do they let us in, and are the topics there?"""

from __future__ import annotations

import asyncio
import contextlib

from txcoord_client.protocol import reasons

from ..adapters.xa.checks import Finding, error, ok, warning
from ..config import Settings, redacted
from .diagnosis import Diagnosis
from .errors import StartError
from .queue import kafka_connection, kafka_queue
from .shared import link_of

_LOOK_S = 10.0


async def look(settings: Settings) -> list[Diagnosis]:
    """Changes nothing."""
    found = []
    if settings.kafka.addresses:
        found.append(
            Diagnosis("kafka", ",".join(settings.kafka.addresses), findings=await _at_kafka(settings))
        )
    if url := settings.redis.url.get_secret_value():
        found.append(Diagnosis("redis", redacted(url), findings=await _at_redis(settings)))
    return found


async def _at_kafka(settings: Settings) -> list[Finding]:
    try:
        connection = kafka_connection(settings.kafka, "txcoord-doctor")
    except StartError as trouble:
        return [error(trouble.reason, trouble.message, "no coordinator starts with these settings")]
    from ..adapters.kafka.connection import close
    from ..adapters.kafka.queue import dead_letter_topic, wanted_topics

    admin = connection.admin()
    try:
        async with asyncio.timeout(_LOOK_S):
            await admin.start()
            there = set(await admin.list_topics())
    except Exception as trouble:  # the library raises errors of its own, and those of sockets and TLS
        text = f"it does not answer, or does not let us in: {str(trouble) or type(trouble).__name__}"
        means = "retries and events are late; all else goes on"
        remedy = "# is it up, and are kafka.bootstrap_servers, security_protocol and credentials right?"
        return [error(reasons.KAFKA_UNAVAILABLE, text[:400], means, remedy)]
    finally:
        with contextlib.suppress(Exception):
            await close(admin)
    queue = kafka_queue(settings.kafka)
    wanted = {topic.name for topic in wanted_topics(queue.prefix, queue.tiers_us)}
    if settings.events.any:
        wanted |= {f"{queue.prefix}.events", dead_letter_topic(queue.prefix)}
    if missing := sorted(wanted - there):
        text = f"topics are not there: {', '.join(missing)}"
        means = "the first coordinator that starts makes them, if it may"
        return [warning(reasons.KAFKA_UNAVAILABLE, text, means, "txcoord queue status")]
    return [ok("kafka", f"it answers, and its {len(wanted)} topics are there")]


async def _at_redis(settings: Settings) -> list[Finding]:
    try:
        redis = link_of(settings, "doctor")
    except StartError as trouble:
        return [error(trouble.reason, trouble.message, "no coordinator starts with these settings")]
    try:
        async with asyncio.timeout(_LOOK_S):
            await redis.client.ping()
    except Exception as trouble:  # as above
        text = f"it does not answer, or does not let us in: {str(trouble) or type(trouble).__name__}"
        means = "each coordinator goes on by itself, and slower"
        return [error(reasons.REDIS_UNAVAILABLE, text[:400], means, "# is it up, and is redis.url right?")]
    finally:
        await redis.close()
    return [ok("redis", "it answers")]
