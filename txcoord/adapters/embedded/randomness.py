"""Random draws."""

from __future__ import annotations

import random


class SystemRandomness:
    """From the operating system's source: what two nodes draw must differ, also after a fork."""

    def __init__(self) -> None:
        self._source = random.SystemRandom()

    def random(self) -> float:
        """Uniform in [0, 1)."""
        return self._source.random()

    def getrandbits(self, k: int, /) -> int:
        """``k`` random bits."""
        return self._source.getrandbits(k)
