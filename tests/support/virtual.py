"""An event loop whose time jumps to whatever comes next: hours pass in milliseconds, and always alike."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH_US = 1_700_000_000_000_000


class Deadlock(Exception):
    """Everybody waits, and nothing will ever happen."""


class _Jump(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise Deadlock
        self.loop.now += max(timeout, 0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time stands still while anything can run."""

    def __init__(self) -> None:
        self.now = 0.0
        selector = _Jump()
        selector.loop = self
        super().__init__(selector)
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self.now


class VirtualClock:
    """``ports.Clock`` on the running loop's time."""

    def now_us(self) -> int:
        return EPOCH_US + round(asyncio.get_running_loop().time() * 1_000_000)

    def observe(self, log_now_us: int) -> None:
        pass

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a test on virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


async def eventually(condition: Any, *, within_s: float = 60.0, step_s: float = 0.01) -> None:
    """Wait, on the running loop's time, until ``condition()`` holds."""
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    while not condition():
        assert loop.time() < until, f"not within {within_s} s: {condition}"
        await asyncio.sleep(step_s)
