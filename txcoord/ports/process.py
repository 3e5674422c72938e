"""What a node needs of its process, and of tests."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol


class Clock(Protocol):
    """Time. ``now_us`` is the log's clock as this node knows it; ``monotonic`` is for measuring."""

    def now_us(self) -> int: ...

    def observe(self, log_now_us: int) -> None:
        """A flush has told the log's clock: correct the offset."""
        ...

    def monotonic(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class Randomness(Protocol):
    """Random draws, seeded in simulations."""

    def random(self) -> float: ...

    def getrandbits(self, k: int, /) -> int: ...


Spawn = Callable[[Coroutine[Any, Any, None], str], "Task"]
"""Start a task that its owner keeps; the second argument names it."""


class Task(Protocol):
    """What Spawn gives."""

    def cancel(self) -> object: ...

    def done(self) -> bool: ...


class Failpoints(Protocol):
    """Named places where tests make things break. In production ``reach`` does nothing."""

    async def reach(self, name: str) -> None: ...
