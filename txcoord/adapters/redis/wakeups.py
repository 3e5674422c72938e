"""Wake-ups over publish and subscribe."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial

from ...observe import logs
from ...ports import SharedLost, Spawn, Task
from .link import TROUBLE, RedisLink, told

log = logs.get("txcoord.redis")

_MOST = 10_000
"""Names that wait to be told, of each topic: what comes beyond them is not told."""
_PACE_S = 0.01
"""Between two messages: what comes meanwhile goes along with the next."""
_AGAIN_S = 1.0
_LONGEST = 4 * 1024 * 1024


class RedisWakeups:
    """``ports.Wakeups``. One message names many: topic and names, separated by spaces, topics by lines; the first line
    is its sender."""

    def __init__(self, link: RedisLink, *, node: str, spawn: Spawn) -> None:
        self._link = link
        self._node = node
        self._spawn = spawn
        self._channel = link.key("news")
        self._listeners: dict[str, Callable[[Sequence[str]], None]] = {}
        self._news: dict[str, dict[str, None]] = {}
        self._some = asyncio.Event()
        self._tasks: list[Task] = []
        self._stopped = False
        self.subscribed = asyncio.Event()
        """Set while others are heard."""

    def start(self) -> None:
        """Begin. What was told before goes out now."""
        self._tasks = [
            self._spawn(self._listen(), "wakeups:hear"),
            self._spawn(self._publish(), "wakeups:tell"),
        ]

    def stop(self) -> None:
        """Tell and hear nothing more."""
        self._stopped = True
        self._some.set()
        for task in self._tasks:
            task.cancel()

    def hear(self, topic: str, look: Callable[[Sequence[str]], None]) -> None:
        """Who looks at news of a topic."""
        self._listeners[topic] = look

    def tell(self, topic: str, name: str) -> None:
        """Soon."""
        names = self._news.setdefault(topic, {})
        if len(names) < _MOST:
            names[name] = None
            self._some.set()

    async def _publish(self) -> None:
        while not self._stopped:
            await self._some.wait()
            self._some.clear()
            news, self._news = self._news, {}
            lines = [self._node, *(f"{topic} {' '.join(names)}" for topic, names in news.items() if names)]
            publish = partial(self._link.client.publish, self._channel, "\n".join(lines))
            # While it is away this is old soon: it is not kept.
            with contextlib.suppress(SharedLost):
                await self._link.run(publish)
            await asyncio.sleep(_PACE_S)

    async def _listen(self) -> None:
        said = False
        while not self._stopped:
            try:
                async with self._link.listening.pubsub(ignore_subscribe_messages=True) as subscription:
                    await subscription.subscribe(self._channel)
                    self.subscribed.set()
                    said = False
                    # A time-out shorter than the checks of its health: a connection that is dead is found so.
                    while not self._stopped:
                        message = await subscription.get_message(timeout=2.0)
                        if message is not None:
                            self._heard(message["data"])
            except TROUBLE as error:
                if not said:
                    said = True
                    log.warning("redis.not_heard", reason=told(error))
            finally:
                self.subscribed.clear()
            await asyncio.sleep(_AGAIN_S)

    def _heard(self, data: object) -> None:
        """Whatever it is: names that nobody waits for change nothing."""
        if not isinstance(data, bytes) or len(data) > _LONGEST:
            return
        sender, *lines = data.decode("utf-8", "replace").split("\n")
        if sender == self._node:
            return
        for line in lines:
            topic, *names = line.split(" ")
            look = self._listeners.get(topic)
            if look is None:
                continue
            try:
                look(names)
            except Exception:
                log.exception("wakeups.failed", topic=topic)
