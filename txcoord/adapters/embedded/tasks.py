"""Tasks with an owner."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any

from ...observe import logs

log = logs.get("txcoord.tasks")

_AGAIN_S = 1.0


async def end(tasks: Collection[asyncio.Future[Any]], *, again_s: float = _AGAIN_S) -> None:
    """Cancel them, and wait until they have ended, however.

    What goes on is cancelled again after so many seconds: ``asyncio.wait_for`` of Python 3.11, with which drivers
    connect, forgets a cancel that comes in the moment of its answer.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        ended, left = await asyncio.wait(left, timeout=again_s)
        for task in ended:
            if not task.cancelled():
                task.exception()  # It is the task's own to tell: nothing is to be logged as never looked at.


class Tasks:
    """Keeps every task it has started: none is collected unfinished, none crashes unheard."""

    def __init__(self, *, again_s: float = _AGAIN_S) -> None:
        self._again_s = again_s
        """Whatever goes on although it was cancelled is cancelled once more after this time."""
        self._running: set[asyncio.Task[None]] = set()
        self.crashes = 0

    def __len__(self) -> int:
        return len(self._running)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def stop(self) -> None:
        """Cancel all, and wait until they have ended."""
        while self._running:
            running = list(self._running)
            await end(running, again_s=self._again_s)
            self._running.difference_update(running)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.crashes += 1
            log.error("task.crashed", task=task.get_name(), exc_info=error)
