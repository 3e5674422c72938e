"""Delay tiers: which topic a record that waits goes to."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

_SPARE = 1.25
"""A tier may be so much longer than the delay that is asked for; else shorter ones are taken one after the other."""


class Tiers:
    """One topic for each delay. All records of a topic wait equally long, so its heads are due first."""

    def __init__(self, prefix: str, delays_us: Sequence[int]) -> None:
        self._delays = sorted(delays_us)
        self._names = [f"{prefix}.retry.{shown(delay)}" for delay in self._delays]
        self.delay_us: Mapping[str, int] = dict(zip(self._names, self._delays, strict=True))
        """Of each topic, shortest first."""

    @property
    def shortest(self) -> str:
        """The topic with the shortest delay."""
        return self._names[0]

    def choose(self, delay_us: int) -> str | None:
        """The topic for a delay; None: it is shorter than all of them. What a topic's delay leaves over is waited for
        in a next one."""
        above = bisect_left(self._delays, delay_us)
        if above < len(self._delays) and self._delays[above] <= delay_us * _SPARE:
            return self._names[above]
        below = bisect_right(self._delays, delay_us) - 1
        return self._names[below] if below >= 0 else None


def shown(delay_us: int) -> str:
    """A delay as part of a topic's name: ``64s``, ``5m``, ``1h``, ``250ms``."""
    for unit, name in ((3_600_000_000, "h"), (60_000_000, "m"), (1_000_000, "s")):
        # 64s, not 1m4s; and 60s is 1m.
        if delay_us >= unit and delay_us % unit == 0:
            return f"{delay_us // unit}{name}"
    return f"{delay_us // 1_000}ms"
