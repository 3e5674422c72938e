"""How Kafka is reached: what all clients of it have in common."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from ...observe import logs

log = logs.get("txcoord.kafka")

REQUEST_S: Final = 15.0
"""Of one request. Longer than a group's session, since joining one waits for its other members."""
_CLOSE_S = 1.5
_START_S = 0.5


@dataclass(frozen=True, slots=True)
class KafkaConnection:
    """Where Kafka is, and who we are for it."""

    bootstrap_servers: tuple[str, ...]
    client_id: str = "txcoord"
    security_protocol: str = "PLAINTEXT"
    ssl_context: ssl.SSLContext | None = None
    sasl_mechanism: str = "PLAIN"
    sasl_username: str | None = None
    sasl_password: str | None = None

    def producer(self, **options: Any) -> Any:
        """A producer, not started: idempotent, and a record counts when all replicas that must have it do."""
        return AIOKafkaProducer(**self._common(), acks="all", enable_idempotence=True, **options)

    def consumer(self, **options: Any) -> Any:
        """A consumer, not started; offsets are committed by hand."""
        return AIOKafkaConsumer(
            **self._common(), enable_auto_commit=False, auto_offset_reset="earliest", **options
        )

    def admin(self) -> Any:
        """What makes topics, not started."""
        return AIOKafkaAdminClient(**self._common())

    def _common(self) -> dict[str, Any]:
        quiet()
        return {
            "bootstrap_servers": list(self.bootstrap_servers),
            "client_id": self.client_id,
            "request_timeout_ms": int(REQUEST_S * 1000),
            "retry_backoff_ms": 250,
            # A topic that went, or moved, is noticed by then.
            "metadata_max_age_ms": 10_000,
            "security_protocol": self.security_protocol,
            "ssl_context": self.ssl_context,
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.sasl_username,
            "sasl_plain_password": self.sasl_password,
        }


def tls(ca_file: str | None, cert_file: str | None, key_file: str | None) -> ssl.SSLContext:
    """TLS to the brokers. Raises OSError, ssl.SSLError for files that cannot be used."""
    context = ssl.create_default_context(cafile=ca_file)
    if cert_file is not None:
        context.load_cert_chain(cert_file, key_file)
    return context


def quiet() -> None:
    """The library complains several times a second while a broker is away: we say it once, in our own words."""
    of_library = logging.getLogger("aiokafka")
    if of_library.level == logging.NOTSET and not logging.getLogger().isEnabledFor(logging.DEBUG):
        of_library.setLevel(logging.CRITICAL)


async def start(client: Any) -> None:
    """Start a consumer, producer or admin client. If this is cancelled, it goes on for a moment: cancelled while it
    asks its first broker, the library would leave that connection open."""
    starting = asyncio.ensure_future(client.start())
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await asyncio.wait([starting], timeout=_START_S)
        starting.cancel()
        await asyncio.wait([starting], timeout=_START_S)
        if starting.done() and not starting.cancelled():
            starting.exception()
        raise


async def close(client: Any) -> None:
    """Close a consumer, producer or admin client, whatever state it is in; within a few seconds."""
    end = client.close if hasattr(client, "close") else client.stop
    inner = getattr(client, "_client", None) or client.client
    parts = [inner, *(getattr(client, name, None) for name in ("_sender", "_coordinator", "_fetcher"))]
    tasks = {task for part in parts if part is not None for task in _tasks_of(part)}
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_CLOSE_S):
            if hasattr(client, "flush"):
                # A producer's own end waits for what it cannot send, and cannot be cancelled.
                await client.flush()
            await end()
    client._closed = True
    # It waits for brokers that are away, and would for ever; and some of it forgets that it was cancelled.
    for _ in range(3):
        tasks = {task for task in tasks if not task.done()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_S / 3)
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_CLOSE_S):
            await inner.close()


def _tasks_of(part: Any) -> list[asyncio.Task[Any]]:
    return [value for value in vars(part).values() if isinstance(value, asyncio.Task)]


class Health:
    """Says once that something is away, then from time to time how it stands, and once that it is back."""

    def __init__(self, part: str, *, monotonic: Callable[[], float], every_s: float = 10.0) -> None:
        self._part = part
        self._monotonic = monotonic
        self._every_s = every_s
        self._since: float | None = None
        self._said = 0.0
        self.dropped = 0
        """Records that were given up; the log's sweep finds what they stood for."""
        self._told = 0

    @property
    def well(self) -> bool:
        """Is there no trouble that is known?"""
        return self._since is None

    def trouble(self, reason: object, *, dropped: int = 0) -> None:
        """It does not work."""
        self.dropped += dropped
        now = self._monotonic()
        if self._since is None:
            self._since = now
        elif now - self._said < self._every_s:
            return
        self._said = now
        more = {"dropped": self.dropped - self._told} if self.dropped > self._told else {}
        self._told = self.dropped
        text = str(reason) or ("no answer" if isinstance(reason, TimeoutError) else type(reason).__name__)
        log.warning("queue.unavailable", part=self._part, reason=text[:300], **more)

    def fine(self) -> None:
        """It works."""
        if self._since is None:
            return
        more = {"dropped": self.dropped - self._told} if self.dropped > self._told else {}
        self._told = self.dropped
        log.info("queue.back", part=self._part, after_s=round(self._monotonic() - self._since, 1), **more)
        self._since = None
