"""One Redis: commands with a short time-out, and a circuit, so that nothing ever waits for a Redis that is away.

After a failure it is left alone for a moment; then one command finds out, and all others are told that it is away.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from ...observe import logs
from ...ports import SharedLost

log = logs.get("txcoord.redis")

_AGAIN_S = 1.0
"""Between two looks at a Redis that is away."""
_SAY_S = 10.0
_MOST = 16
"""Connections for commands."""
R = TypeVar("R")
TROUBLE = (RedisError, OSError, TimeoutError, ValueError, EOFError)
"""What commands raise where Redis does not answer, or answers nonsense."""


class RedisLink:
    """A connection to Redis.

    ``url``: ``redis://``, ``rediss://`` for TLS, ``unix://``. ``prefix`` comes before each key and channel.
    ``timeout_s``: of one command.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        timeout_s: float = 0.25,
        ca_file: str = "",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.prefix = prefix
        self.timeout_s = timeout_s
        self._now = now
        # Everything here is repeated by whoever wants it still: what is late is worth nothing any more.
        options: dict[str, Any] = {
            "socket_connect_timeout": timeout_s,
            "socket_keepalive": not url.startswith("unix:"),
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 5,
        }
        if url.startswith("unix:"):
            del options["socket_keepalive"], options["socket_connect_timeout"]
        if ca_file:
            options["ssl_ca_certs"] = ca_file
        self.client = Redis(
            connection_pool=BlockingConnectionPool.from_url(
                url, max_connections=_MOST, timeout=timeout_s, **options
            )
        )
        self.listening = Redis.from_url(url, **options)
        """For subscriptions: reading from it takes as long as nobody publishes."""
        self._away_since: float | None = None
        self._next = 0.0
        self._said = 0.0

    def key(self, *parts: str) -> str:
        """A key of ours."""
        return ":".join((self.prefix, *parts))

    def script(self, text: str) -> Callable[[list[str], list[Any]], Awaitable[Any]]:
        """A script to run by :meth:`run`: it is sent once, and again when Redis does not know it any more."""
        script = self.client.register_script(text)

        async def run(keys: list[str], args: list[Any]) -> Any:
            return await self.run(lambda: script(keys, args))

        return run

    @property
    def away(self) -> bool:
        """Did the last command fail?"""
        return self._away_since is not None

    async def run(self, command: Callable[[], Awaitable[R]]) -> R:
        """Carry a command out. Raises SharedLost when Redis is away, at once while that is known."""
        now = self._now()
        if self._away_since is not None:
            if now < self._next:
                raise SharedLost("Redis is away")
            self._next = now + _AGAIN_S
        before = cancelled()
        try:
            async with asyncio.timeout(self.timeout_s):
                result = await command()
        except TROUBLE as error:
            if cancelled() > before:
                raise asyncio.CancelledError from error
            self.lost(error)
            raise SharedLost(f"Redis is away: {told(error)}") from error
        if cancelled() > before:
            raise asyncio.CancelledError
        self._well()
        return result

    def lost(self, error: BaseException) -> None:
        """It does not answer. Said once, then again now and then."""
        now = self._now()
        self._next = now + _AGAIN_S
        if self._away_since is None:
            self._away_since = self._said = now
            log.warning("redis.unavailable", reason=told(error))
        elif now - self._said >= _SAY_S:
            self._said = now
            log.warning("redis.unavailable", reason=told(error), for_s=round(now - self._away_since, 1))

    def _well(self) -> None:
        if self._away_since is not None:
            log.info("redis.back", after_s=round(self._now() - self._away_since, 1))
            self._away_since = None

    async def close(self) -> None:
        """Disconnect."""
        for client in (self.client, self.listening):
            try:
                async with asyncio.timeout(self.timeout_s):
                    await client.aclose(close_connection_pool=True)
            except TROUBLE:
                continue  # It is away: there is nothing to take leave of.


def cancelled() -> int:
    """How often this task was told to end. The client may swallow that while it connects or disconnects."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


def told(error: BaseException) -> str:
    """What is wrong, in one line."""
    return f"{type(error).__name__}: {error}"[:300] if str(error) else type(error).__name__
