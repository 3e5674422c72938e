"""The log's clock as this process knows it. Deadlines are stamped in it; every reply corrects it."""

from __future__ import annotations

import time
from collections.abc import Callable

_STEP_US = 1_000_000


class LogClock:
    """An offset between the log's clock and this process's monotonic one.

    A sample arrives late, so it says too little, never too much: the largest of them is the best. A much
    smaller one means that the log's clock was set back.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._offset_us: int | None = None

    def observe(self, log_time_us: int) -> None:
        """A reply has told the log's time."""
        if not log_time_us:
            return
        sample = log_time_us - int(self._monotonic() * 1e6)
        if self._offset_us is None or sample > self._offset_us or self._offset_us - sample > _STEP_US:
            self._offset_us = sample

    @property
    def known(self) -> bool:
        """Has the log's time been told yet?"""
        return self._offset_us is not None

    def now_us(self) -> int:
        """The log's time now, UTC microseconds."""
        assert self._offset_us is not None, "the log's time is told by Hello"
        return self._offset_us + int(self._monotonic() * 1e6)
