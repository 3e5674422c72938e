"""When to try again: exponential back-off with full jitter and a cap.

Full jitter: a uniform draw from the whole interval (AWS Architecture Blog, "Exponential Backoff And Jitter").
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """A retry policy. Times in microseconds."""

    first_us: int = 500_000
    factor: float = 2.0
    cap_us: int = 60_000_000
    floor_us: int = 20_000
    """Never sooner than this: a full-jitter draw of zero would be a busy loop."""

    def delay_us(self, attempt: int, draw: float) -> int:
        """How long to wait after failed attempt number ``attempt`` (from 1); ``draw`` is uniform in [0, 1)."""
        if attempt < 1:
            raise ValueError("attempts count from 1")
        try:
            ceiling = min(self.first_us * self.factor ** (attempt - 1), self.cap_us)
        except OverflowError:
            ceiling = self.cap_us
        return max(self.floor_us, int(ceiling * draw))
