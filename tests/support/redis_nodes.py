"""Links of several nodes to one Redis or Valkey."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from tests.support.redis_server import RedisServer
from txcoord.adapters.redis.link import RedisLink


class Nodes:
    """They live as long as the test."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self._links: list[RedisLink] = []
        self._tasks: list[asyncio.Task[None]] = []

    def link(self, *, timeout_s: float = 5.0, prefix: str = "t") -> RedisLink:
        """One more. Its time-out is long: the machine may be busy."""
        self._links.append(link := RedisLink(self.server.url, prefix=prefix, timeout_s=timeout_s))
        return link

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        self._tasks.append(task := asyncio.create_task(work, name=name))
        return task

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError), result
        for link in self._links:
            await link.close()


@asynccontextmanager
async def nodes_of(server: RedisServer) -> AsyncIterator[Nodes]:
    nodes = Nodes(server)
    try:
        yield nodes
    finally:
        await nodes.close()
