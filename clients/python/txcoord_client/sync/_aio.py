"""What the SDK needs of threads, in the words of ``txcoord_client._aio``: see there.

A thread cannot be cancelled. What must end in time says how to stop it: ``late`` is called by a watchdog, and
breaks the connection that the thread waits for.
"""

from __future__ import annotations

import contextlib
import heapq
import inspect
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

T = TypeVar("T")

Lock = threading.Lock
sleep = time.sleep
now = time.monotonic


class Cancelled(BaseException):
    """Never raised: threads are not cancelled."""


class _Watchdog:
    """One thread that calls what is overdue."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._due: list[tuple[float, int, _Watch]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    def add(self, watch: _Watch) -> None:
        with self._lock:
            first = not self._due or watch.until < self._due[0][0]
            heapq.heappush(self._due, (watch.until, next(self._numbers), watch))
            if self._thread is None or not self._thread.is_alive():  # Also after a fork.
                self._thread = threading.Thread(target=self._run, name="txcoord.watchdog", daemon=True)
                self._thread.start()
            elif first:
                self._lock.notify()

    def _run(self) -> None:
        while True:
            with self._lock:
                while self._due and self._due[0][2].over:
                    heapq.heappop(self._due)
                if not self._due:
                    if not self._lock.wait(10.0) and not self._due:
                        self._thread = None
                        return
                    continue
                wait = self._due[0][0] - now()
                if wait > 0:
                    self._lock.wait(wait)
                    continue
                watch = heapq.heappop(self._due)[2]
            watch.fire()


class _Watch:
    def __init__(self, until: float, late: Callable[[], object]) -> None:
        self.until = until
        self.over = False
        self.fired = False
        self._late = late
        self._lock = threading.Lock()

    def fire(self) -> None:
        with self._lock:
            if self.over:
                return
            self.fired = True
            with contextlib.suppress(Exception):
                self._late()

    def end(self) -> None:
        with self._lock:
            self.over = True


_watchdog = _Watchdog()


@contextmanager
def timeout_at(until: float, late: Callable[[], object] | None = None) -> Iterator[None]:
    """``with timeout_at(until, stop)`` calls ``stop`` then, and raises TimeoutError for what that brings about."""
    if late is None:
        yield
        return
    watch = _Watch(until, late)
    try:
        _watchdog.add(watch)  # Here, so that it is ended also when a signal's handler raises.
        yield
    except Exception as error:
        watch.end()
        if watch.fired:
            raise TimeoutError from error
        raise
    finally:
        watch.end()


def timeout(
    seconds: float, late: Callable[[], object] | None = None
) -> contextlib.AbstractContextManager[None]:
    """As :func:`timeout_at`, so many seconds from now."""
    return timeout_at(now() + seconds, late)


def gather(calls: Iterable[Callable[[], T]]) -> list[T | BaseException]:
    """Make these calls one after another, on this thread; what each returned or raised."""
    out: list[T | BaseException] = []
    for call in calls:
        try:
            out.append(call())
        except Exception as error:
            out.append(error)
    return out


def refuse_wrong_kind(function: Callable[..., Any]) -> None:
    """A decorated function must not be asynchronous here. Raises TypeError."""
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{function!r} is async: use txcoord_client.Coordinator for it")


class PerLoop(Generic[T]):
    """A value for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._value: T | None = None

    def __len__(self) -> int:
        return int(self._value is not None)

    def get(self) -> T | None:
        """It."""
        return self._value

    def put(self, value: T) -> T:
        """Keep it, unless there is one by now; the one that is kept."""
        with self._lock:
            if self._value is None:
                self._value = value
            return self._value

    def pop(self) -> T | None:
        """Forget it."""
        with self._lock:
            value, self._value = self._value, None
            return value


class Task(Generic[T]):
    """Work that goes on by itself, in a thread."""

    def __init__(self, name: str, function: Callable[..., T], args: tuple[Any, ...]) -> None:
        self.name = name
        self._done = threading.Event()
        self._result: T | None = None
        self._error: BaseException | None = None
        self._work = (function, args)

    def start(self, then: Callable[[Task[Any]], None]) -> None:
        """Begin."""

        def run() -> None:
            function, args = self._work
            try:
                self._result = function(*args)
            except BaseException as error:
                self._error = error
            finally:
                self._done.set()
                then(self)

        threading.Thread(target=run, name=self.name, daemon=True).start()

    def wait(self, seconds: float) -> T | None:
        """Wait so long for it; what it returned, None when it has not ended. Raises what it raised."""
        if not self._done.wait(max(seconds, 0.0)):
            return None
        if self._error is not None:
            raise self._error
        return self._result


class Tasks:
    """The threads that a Coordinator owns."""

    def __init__(self) -> None:
        self._tasks: set[Task[Any]] = set()

    def __len__(self) -> int:
        """How many are under way, those apart that may go on for long."""
        return len(self._tasks)

    def spawn(self, name: str, function: Callable[..., T], *args: Any) -> Task[T]:
        """Start it."""
        task = Task(name, function, args)
        self._tasks.add(task)
        task.start(self._tasks.discard)
        return task

    def keep(self, name: str, function: Callable[..., None], *args: Any) -> None:
        """Start one that may go on for long: nobody waits for it in the end."""
        Task(name, function, args).start(lambda task: None)

    def shielded(self, name: str, function: Callable[..., T], *args: Any) -> T:
        """Do it: nobody cancels a thread. Who closes the Coordinator waits for it."""
        task = Task(name, function, args)
        self._tasks.add(task)
        try:
            return function(*args)
        finally:
            self._tasks.discard(task)
            task._done.set()

    def drain(self, seconds: float) -> list[str]:
        """Let what is under way end; the names of what has not."""
        until = now() + seconds
        while self._tasks and now() < until:
            for task in list(self._tasks):
                task._done.wait(max(until - now(), 0.0))
        return [task.name for task in list(self._tasks)]
