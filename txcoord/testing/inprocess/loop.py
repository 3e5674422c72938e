"""The event loop of a coordinator in process: in a thread of its own, on virtual time.

Time stands still. It moves only while somebody waits for it and nothing else can happen: then it jumps to what is due
next. So a test never sleeps, and a slow machine, or a person in a debugger, changes nothing.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import math
import selectors
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")


BELONGS_TO: contextvars.ContextVar[set[asyncio.Task[Any]] | None] = contextvars.ContextVar(
    "txcoord_belongs_to", default=None
)
"""Where the tasks are kept that are started here: those of one node, which die together."""


def belonging_to(tasks: set[asyncio.Task[Any]]) -> contextvars.Context:
    """A context for what belongs there."""
    context = contextvars.Context()
    context.run(BELONGS_TO.set, tasks)
    return context


class _Selector(selectors.DefaultSelector):
    loop: Loop

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if found or (timeout is not None and timeout <= 0):
            return found
        to = self.loop.next_moment(math.inf if timeout is None else self.loop.now + timeout)
        if to is None:
            return super().select(None)  # Somebody outside is at work, or nobody wants anything.
        self.loop.now = max(to, self.loop.now)
        return []


class Push:
    """Somebody lets time go on until then, or until ``enough()``."""

    def __init__(self, until: float, enough: Callable[[], bool], future: asyncio.Future[None]) -> None:
        self.until = until
        self.enough = enough
        self.future = future


class Loop(asyncio.SelectorEventLoop):
    """Its time is virtual, and counts from 0."""

    def __init__(self) -> None:
        self.now = 0.0
        self.began_us = time.time_ns() // 1_000
        self.held = 0
        """Calls of code outside that are on their way: time stands still."""
        self.waiting = 0
        """How many wait for something of this loop that may take time."""
        self.pushes: list[Push] = []
        self._held_on: Counter[asyncio.AbstractEventLoop] = Counter()
        self._stills: list[tuple[asyncio.AbstractEventLoop | None, asyncio.Future[None]]] = []
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)
        self._clock_resolution = 1e-6

    def time(self) -> float:
        """Virtual seconds."""
        return self.now

    def now_us(self) -> int:
        """Virtual time, UTC microseconds. From any thread."""
        return self.began_us + round(self.now * 1_000_000)

    def next_moment(self, due: float) -> float | None:
        """Nothing can run now: to which moment may time go on? None: it may not."""
        if self._stills:
            # What waits for a loop that waits for us does not go on.
            still = [s for s in self._stills if not self._under_way(s[0])]
            for s in still:
                self._stills.remove(s)
                if not s[1].done():
                    s[1].set_result(None)
            if still:
                return self.now
        if self._under_way() if self.pushes else self.held:
            return None
        if self.pushes:
            push = self.pushes[0]
            if self.now >= push.until or push.enough():
                self.pushes.pop(0)
                if not push.future.done():
                    push.future.set_result(None)
                return self.now
            return min(due, push.until)
        return due if self.waiting and due < math.inf else None

    def _under_way(self, blocked: asyncio.AbstractEventLoop | None = None) -> int:
        """Calls of code outside that can come to an end: not those on ``blocked``, nor on a loop that does not run, as
        between a test that has failed and its fixtures' end. Whoever waited for these would wait for ever."""
        stuck = sum(n for loop, n in self._held_on.items() if loop is blocked or not loop.is_running())
        return self.held - stuck

    def create_task(self, coro: Any, **kwargs: Any) -> Any:
        """As always; it is kept with those it belongs to."""
        task = super().create_task(coro, **kwargs)
        context = kwargs.get("context")
        tasks = BELONGS_TO.get() if context is None else context.get(BELONGS_TO)
        if tasks is not None:
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        return task

    async def let_go_on(self, seconds: float, enough: Callable[[], bool] = lambda: False) -> None:
        """Let time go on, at most so many seconds."""
        push = Push(self.now + seconds, enough, self.create_future())
        self.pushes.append(push)
        try:
            await push.future
        finally:
            if push in self.pushes:
                self.pushes.remove(push)

    async def still(self, blocked: asyncio.AbstractEventLoop | None) -> None:
        """Wait until nothing more happens at this moment; ``blocked`` is a loop whose thread waits for that."""
        future: asyncio.Future[None] = self.create_future()
        self._stills.append((blocked, future))
        await future

    @contextmanager
    def holding(self, loop: asyncio.AbstractEventLoop | None = None) -> Iterator[None]:
        """Time stands still meanwhile: something outside goes on, on that loop where it is one."""
        self.held += 1
        if loop is not None:
            self._held_on[loop] += 1
        try:
            yield
        finally:
            self.held -= 1
            if loop is not None:
                self._held_on[loop] -= 1
                self._held_on += Counter()  # Drops those of which nothing is left.

    @contextmanager
    def somebody_waits(self) -> Iterator[None]:
        """Time may go on meanwhile."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1


def start_on(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
    """Run it on a loop of another thread, in a context of its own: nothing of the caller's goes along."""
    done: concurrent.futures.Future[T] = concurrent.futures.Future()

    def begin() -> None:
        task = loop.create_task(work)
        task.add_done_callback(ended)
        done.add_done_callback(lambda _: give_up(task))

    def give_up(task: asyncio.Task[T]) -> None:
        if not task.done():
            with suppress(RuntimeError):  # Its loop is closed.
                loop.call_soon_threadsafe(task.cancel)

    def ended(task: asyncio.Task[T]) -> None:
        if done.cancelled() or not done.set_running_or_notify_cancel():
            return
        if task.cancelled():
            done.set_exception(Gone("the coordinator in process has ended"))
        elif (error := task.exception()) is not None:
            done.set_exception(error)
        else:
            done.set_result(task.result())

    try:
        loop.call_soon_threadsafe(begin, context=contextvars.Context())
    except RuntimeError:
        work.close()
        done.set_exception(Gone("the event loop of that test is closed"))
    return done


class Gone(Exception):
    """Whoever should have done it is there no more."""


class LoopThread:
    """A loop in a thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self.loop = loop
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            asyncio.set_event_loop(None)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """From another thread: run it there, and wait for it."""
        return start_on(self.loop, work).result()

    def close(self) -> None:
        """End what is left, and the thread."""
        start_on(self.loop, self._end()).result(10.0)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10.0)
        self.loop.close()

    async def _end(self) -> None:
        left = asyncio.all_tasks(self.loop) - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self.loop.shutdown_asyncgens()
