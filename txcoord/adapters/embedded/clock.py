"""The log's clock as this node knows it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_WINDOW_US = 5_000_000


class SystemClock:
    """The log's clock = this machine's monotonic clock + an offset that every flush corrects.

    A reply of the log is late by the way back, never early, so of recent samples the greatest is the best. Two
    windows of five seconds are kept: a log whose clock was set back is followed once they have passed.
    """

    def __init__(
        self,
        *,
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1_000,
        monotonic_us: Callable[[], int] = lambda: time.monotonic_ns() // 1_000,
    ) -> None:
        self._wall_us = wall_us
        self._monotonic_us = monotonic_us
        # Until the log has said its time, this machine's clock must do.
        self._offset_us = wall_us() - monotonic_us()
        self._observed = False
        self._best_us = 0
        self._previous_us: int | None = None
        self._since_us = 0

    def now_us(self) -> int:
        """The log's time now, UTC microseconds."""
        return self._monotonic_us() + self._offset_us

    def observe(self, log_now_us: int) -> None:
        """The log has just said its time."""
        here_us = self._monotonic_us()
        sample_us = log_now_us - here_us
        if not self._observed:
            self._observed = True
            self._best_us, self._since_us = sample_us, here_us
        elif here_us - self._since_us >= _WINDOW_US:
            # After a silence the window before is too old to say anything.
            fresh = here_us - self._since_us < 2 * _WINDOW_US
            self._previous_us = self._best_us if fresh else None
            self._best_us, self._since_us = sample_us, here_us
        else:
            self._best_us = max(self._best_us, sample_us)
        previous = self._previous_us
        self._offset_us = self._best_us if previous is None else max(previous, self._best_us)

    @property
    def ahead_us(self) -> int:
        """This machine's wall clock minus the log's."""
        return self._wall_us() - self.now_us()

    def is_off(self, limit_us: int) -> bool:
        """Is this machine's wall clock further from the log's than that?

        It was set wrong, it jumped, or the machine slept: such a node should not judge others.
        """
        return abs(self.ahead_us) > limit_us

    def monotonic(self) -> float:
        """Seconds, for measuring."""
        return self._monotonic_us() / 1_000_000

    async def sleep(self, seconds: float) -> None:
        """Let others run."""
        await asyncio.sleep(seconds)
