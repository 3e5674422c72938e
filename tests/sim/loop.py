"""An event loop with virtual time on which many processes live, and can be killed or stopped between two steps.

A process is a context: every task and callback carries it. What belongs to a dead process is never run again, not
even its ``finally``; what belongs to a stopped one waits until it wakes. No thread, no socket, no clock of the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import heapq
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any

_AT_ONCE = 100_000
"""So many steps at one moment are a loop without end."""


class StandsStill(Exception):
    """Something is done again and again, and time does not go on."""


class State(Enum):
    """Of a process."""

    RUNNING = "running"
    STOPPED = "stopped"
    """It stands still, and does not know it (SIGSTOP)."""
    DEAD = "dead"


class Process:
    """What dies together."""

    def __init__(self, loop: SimLoop, name: str) -> None:
        self.name = name
        self.state = State.RUNNING
        self.frozen: deque[Handle] = deque()
        self.when_dead: list[Callable[[], None]] = []
        """What the world around sees: its connections break."""
        self._loop = loop
        self._context = contextvars.Context()
        self._context.run(PROCESS.set, self)

    @property
    def alive(self) -> bool:
        """Is it there, running or stopped?"""
        return self.state is not State.DEAD

    @property
    def context(self) -> contextvars.Context:
        """For callbacks that belong to it."""
        return self._context.copy()

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """A task of this process."""
        return self._loop.create_task(work, name=name, context=self.context)

    def kill(self) -> None:
        """As SIGKILL: nothing of it runs any more."""
        if self.state is State.DEAD:
            return
        self.state = State.DEAD
        self.frozen.clear()
        left, self.when_dead = self.when_dead, []
        for tell in left:
            # Whoever kills is not the world's fault.
            self._loop.outside(0.0, tell)

    def stop(self) -> None:
        """As SIGSTOP."""
        if self.state is State.RUNNING:
            self.state = State.STOPPED

    def wake(self) -> None:
        """As SIGCONT: what came meanwhile happens now, in its order."""
        if self.state is State.STOPPED:
            self.state = State.RUNNING
            self._loop.ready.extend(self.frozen)
            self.frozen.clear()


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("sim_process", default=None)


class Handle:
    """A callback that is to be run."""

    __slots__ = ("_when", "args", "callback", "context", "off")

    def __init__(
        self, callback: Callable[..., Any], args: Any, context: contextvars.Context, when: float
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.off = False
        self._when = when

    def cancel(self) -> None:
        self.off = True

    def cancelled(self) -> bool:
        return self.off

    def when(self) -> float:
        return self._when


class _Future(asyncio.Future[Any]):
    """One that knows whose it is."""

    process: Process | None = None


class SimLoop(asyncio.AbstractEventLoop):
    """Runs what is ready in its order; when nothing is, time jumps to what comes next."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ready: deque[Handle] = deque()
        self.errors: list[str] = []
        """Exceptions that nobody caught."""
        self.steps = 0
        self._timers: list[tuple[float, int, Handle]] = []
        self._count = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self._outside = contextvars.Context()

    # ---- what asyncio asks of a loop ----

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        handle = Handle(callback, args, contextvars.copy_context() if context is None else context, self.now)
        self.ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> Any:
        handle = Handle(callback, args, contextvars.copy_context() if context is None else context, when)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> Any:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        future = _Future(loop=self)
        future.process = PROCESS.get()
        return future

    def create_task(
        self, coro: Any, *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        if len(self._tasks) > 2_000:
            self._tasks = [t for t in self._tasks if not t.done()]
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        process = getattr(context.get("future"), "process", None)
        if process is not None and not process.alive:
            return  # Whoever was to be told has been killed in between.
        error = context.get("exception")
        self.errors.append(f"{context.get('message')}: {type(error).__name__}: {error}")

    # ---- the world's own ----

    def outside(self, delay: float, callback: Callable[..., Any], *args: Any) -> Handle:
        """Of no process: a message on its way, a server, a fault."""
        return self.call_at(self.now + delay, callback, *args, context=self._outside)  # type: ignore[no-any-return]

    def run(self, until: float) -> None:
        """Up to that time, or until nothing will ever happen. Raises StandsStill."""
        ready, timers = self.ready, self._timers
        moved_at, since = self.now, self.steps
        while True:
            if self.now > moved_at:
                moved_at, since = self.now, self.steps
            while ready:
                self._step(ready.popleft())
                if self.steps - since > _AT_ONCE:
                    raise StandsStill(f"{_AT_ONCE:,} steps at {self.now} s")
            while timers and timers[0][2].off:
                heapq.heappop(timers)
            if not timers or timers[0][0] > until:
                self.now = max(self.now, until)
                return
            when, _, handle = heapq.heappop(timers)
            self.now = max(self.now, when)
            ready.append(handle)

    def _step(self, handle: Handle) -> None:
        if handle.off:
            return
        process = handle.context.get(PROCESS)
        if process is not None and process.state is not State.RUNNING:
            if process.state is State.STOPPED:
                process.frozen.append(handle)
            return
        self.steps += 1
        try:
            handle.context.run(handle.callback, *handle.args)
        except Exception as error:
            self.errors.append(f"{type(error).__name__}: {error}")

    def bury(self) -> None:
        """The world is over: end every coroutine that is left, without a sound."""
        hook, sys.unraisablehook = sys.unraisablehook, _say_nothing
        try:
            self._bury()
        finally:
            sys.unraisablehook = hook

    def _bury(self) -> None:
        for task in self._tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            if task.done():
                if not task.cancelled():
                    task.exception()
                continue
            coro = task.get_coro()
            for _ in range(5):
                with contextlib.suppress(BaseException):
                    coro.close()  # type: ignore[union-attr]
                    break
        self._tasks.clear()
        self.ready.clear()
        self._timers.clear()
        gc.collect(1)


def _say_nothing(_: object) -> None:
    """What is left of a world has nothing to say."""
