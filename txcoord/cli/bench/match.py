"""Two contenders that take turns, and what each of them did."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import text

ACCOUNTS: Final = 10_000
UPDATE: Final = text("UPDATE account SET balance = balance + :cents WHERE id = :id")
XA, BARE = "xa", "bare-2pc"
_SLICES = 6
"""How often the two take turns."""
_WARM_UP_S = 0.5

Row = dict[str, Any]


@dataclass(slots=True)
class Sample:
    """What one contender did."""

    durations: list[float] = field(default_factory=list)
    seconds: float = 0.0
    errors: int = 0

    def failed(self, error: Exception) -> None:
        """Count it; the first ones are told."""
        self.errors += 1
        if self.errors <= 3:
            print(f"bench: {type(error).__name__}: {error}", file=sys.stderr)

    def row(self, kind: str, concurrency: int) -> Row:
        """One line of the report."""
        ordered = sorted(self.durations)
        return {
            "kind": kind,
            "concurrency": concurrency,
            "tps": round(len(ordered) / self.seconds, 1) if self.seconds else 0.0,
            "p50_ms": round(statistics.median(ordered) * 1000, 2) if ordered else None,
            "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1000, 2) if ordered else None,
            "errors": self.errors,
        }


@dataclass(frozen=True, slots=True)
class Turn:
    """One contender is to work for so long."""

    kind: str
    seconds: float
    sample: Sample
    seed: int


class Match:
    """Who works when. ``seconds`` for each contender, in slices."""

    def __init__(self, seconds: float, ours: str = XA, bare: str = BARE) -> None:
        self._seconds = seconds
        self._ours, self._bare = ours, bare
        self.samples = {ours: Sample(), bare: Sample()}
        self._ratios: list[float] = []

    def turns(self) -> Iterator[Turn]:
        """To be carried out one after the other."""
        ours, bare = self._ours, self._bare
        for kind in (bare, ours):  # connections, caches, code
            yield Turn(kind, min(_WARM_UP_S, self._seconds), Sample(), 0)
        for number in range(_SLICES):
            before = {kind: len(sample.durations) for kind, sample in self.samples.items()}
            for kind in (bare, ours) if number % 2 == 0 else (ours, bare):
                yield Turn(kind, self._seconds / _SLICES, self.samples[kind], number * 1_000_003)
            done = {kind: len(sample.durations) - before[kind] for kind, sample in self.samples.items()}
            if done[bare]:
                self._ratios.append(done[ours] / done[bare])

    def rows(self, callers: int) -> list[Row]:
        """What came of it."""
        ours, bare = (self.samples[kind].row(kind, callers) for kind in (self._ours, self._bare))
        ours["ratio"] = round(ours["tps"] / bare["tps"], 3) if bare["tps"] else None
        ours["ratio_of_slices"] = [round(ratio, 2) for ratio in self._ratios]
        bare["ratio"] = 1.0
        return [ours, bare]
