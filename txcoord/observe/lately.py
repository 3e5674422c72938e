"""How calls went lately: what has been counted since a while ago. The counts themselves are never looked at more often
than somebody asks, or the window moves on."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

EVERY_S = 15.0
"""The window moves on so often."""
_KEPT = 4
"""So many times a quarter of a minute: a window of up to a minute."""
_Counts = Mapping[tuple[str, str], tuple[float, ...]]


class Counted(Protocol):
    """Where the counts are."""

    @property
    def bounds(self) -> tuple[float, ...]:
        """Upper ends of the buckets, in seconds."""
        ...

    def counts(self) -> dict[tuple[str, str], tuple[float, ...]]:
        """By target and outcome: how many in each bucket, and beyond the last; then the sum of seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Rates:
    """Of one target."""

    calls_per_s: float = 0.0
    failures_per_s: float = 0.0
    p99_us: int = 0
    """Of the bucket that has it the upper end, as far as that is known; 0: there was no call."""


class Lately:
    """A window over counts."""

    def __init__(self, counted: Counted) -> None:
        self._counted = counted
        self._before: deque[tuple[float, _Counts]] = deque(maxlen=_KEPT)

    def move(self, now_s: float) -> None:
        """The window begins later from now on."""
        self._before.append((now_s, self._counted.counts()))

    def of(self, now_s: float) -> dict[str, Rates]:
        """Of each target with calls in the window."""
        if not self._before:
            return {}
        then_s, before = self._before[0]
        seconds = max(now_s - then_s, 0.001)
        buckets: dict[str, list[float]] = {}
        failed: dict[str, float] = {}
        for (target, outcome), counts in self._counted.counts().items():
            old = before.get((target, outcome), (0.0,) * len(counts))
            new = [a - b for a, b in zip(counts[:-1], old[:-1], strict=True)]
            whole = buckets.setdefault(target, [0.0] * len(new))
            buckets[target] = [a + b for a, b in zip(whole, new, strict=True)]
            if outcome == "failed":
                failed[target] = sum(new)
        return {
            target: Rates(sum(counts) / seconds, failed.get(target, 0.0) / seconds, self._at(counts, 0.99))
            for target, counts in buckets.items()
            if any(counts)
        }

    def _at(self, counts: list[float], part: float) -> int:
        so_far, sums = 0.0, []
        for count in counts:
            so_far += count
            sums.append(so_far)
        bounds = self._counted.bounds
        place = min(bisect_left(sums, part * so_far), len(bounds) - 1)
        return int(bounds[place] * 1_000_000)
