"""What the SDK needs of asyncio, in the few words that threads have too.

The synchronous SDK is made from the asynchronous one by ``scripts/sync``; it has a module of this name beside it
that says the same in threads, ``sync/_aio.py``.
"""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

Cancelled = asyncio.CancelledError
Lock = asyncio.Lock
sleep = asyncio.sleep


def now() -> float:
    """Seconds of the clock by which time-outs are judged."""
    return asyncio.get_running_loop().time()


def timeout_at(until: float, late: Callable[[], object] | None = None) -> asyncio.Timeout:
    """``async with timeout_at(until)`` raises TimeoutError then. ``late`` is for threads, which cannot be cancelled."""
    return asyncio.timeout_at(until)


def timeout(seconds: float, late: Callable[[], object] | None = None) -> asyncio.Timeout:
    """As :func:`timeout_at`, so many seconds from now."""
    return asyncio.timeout(seconds)


async def gather(calls: Iterable[Callable[[], Coroutine[Any, Any, T]]]) -> list[T | BaseException]:
    """Make these calls side by side (in a thread: one after another); what each returned or raised."""
    return await asyncio.gather(*(call() for call in calls), return_exceptions=True)


def refuse_wrong_kind(function: Callable[..., Any]) -> None:
    """A decorated function must be asynchronous here. Raises TypeError."""
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"an async function is needed here, {function!r} is none: see txcoord_client.sync")


class PerLoop(Generic[T]):
    """A value for each event loop (one for all threads)."""

    def __init__(self) -> None:
        self._values: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, T] = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._values)

    def get(self) -> T | None:
        """That of the running loop."""
        return self._values.get(asyncio.get_running_loop())

    def put(self, value: T) -> T:
        """Keep it for the running loop, unless there is one by now; the one that is kept."""
        return self._values.setdefault(asyncio.get_running_loop(), value)

    def pop(self) -> T | None:
        """Forget the running loop's."""
        return self._values.pop(asyncio.get_running_loop(), None)


class Task(Generic[T]):
    """Work that goes on by itself."""

    def __init__(self, task: asyncio.Task[T]) -> None:
        self._task = task

    async def wait(self, seconds: float) -> T | None:
        """Wait so long for it; what it returned, None when it has not ended. Raises what it raised."""
        await asyncio.wait({self._task}, timeout=max(seconds, 0.0))
        return self._task.result() if self._task.done() and not self._task.cancelled() else None

    async def ended(self) -> T:
        """Its end."""
        return await self._task


class Tasks:
    """The tasks that a Coordinator owns, in one event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._keepers: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        """How many are under way, those apart that may go on for long."""
        return len(self._tasks)

    def spawn(self, name: str, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> Task[T]:
        """Start it."""
        return Task(self._start(name, function(*args)))

    def keep(self, name: str, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Start one that may go on for long: nobody waits for it in the end."""
        task = asyncio.get_running_loop().create_task(function(*args), name=name)
        self._keepers.add(task)
        task.add_done_callback(self._keepers.discard)

    async def shielded(self, name: str, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Wait for work that goes on when the waiting is cancelled."""
        task = self._start(name, function(*args))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_retrieve)
            raise

    def _start(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def drain(self, seconds: float) -> list[str]:
        """Let what is under way end; the names of what was cancelled because it did not."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        # An end may leave a report behind: another task.
        while self._tasks and loop.time() < until:
            await asyncio.wait(self._tasks, timeout=until - loop.time())
        late = list(self._tasks)
        ending = [*late, *self._keepers]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        return [task.get_name() for task in late]


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
