"""Branches of one transaction that are enlisted at the same time travel in one request, and make one forced write.

``sync/_enlisting.py`` says the same for threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ._pb import common_pb2 as c

_TURNS = 3
"""Turns of the loop before they leave: what is ready in them travels along."""


class Enlister:
    """While one request is on its way the next one fills."""

    def __init__(self, send: Callable[[list[c.Branch]], Awaitable[None]]) -> None:
        self._send = send
        self._waiting: list[tuple[c.Branch, asyncio.Future[None]]] = []
        self._runner: asyncio.Task[None] | None = None

    async def enlist(self, branch: c.Branch) -> None:
        """Returns when it is durable. Raises what sending raised."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((branch, future))
        if self._runner is None:
            self._runner = asyncio.get_running_loop().create_task(self._run(), name="txcoord.enlist")
        await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
                taken, self._waiting = self._waiting, []
                try:
                    await self._send([branch for branch, _ in taken])
                except Exception as error:
                    for _, future in taken:
                        if not future.done():
                            future.set_exception(error)
                else:
                    for _, future in taken:
                        if not future.done():
                            future.set_result(None)
        finally:
            self._runner = None
