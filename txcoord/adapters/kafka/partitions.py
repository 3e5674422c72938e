"""What a consumer holds of one partition, and how far it has been consumed."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

from ...ports import Due


@dataclass(slots=True)
class Partition:
    """One partition, as long as it is assigned to us. After a rebalance it is a new one."""

    at: Any
    """Topic and number, as the library has it."""
    delay_us: int
    waiting: deque[tuple[int, int, Due]] = field(default_factory=deque)
    """Read and not ready: since when it may be taken, by the log's clock, its offset, and what it says. In order."""
    position: int = -1
    """The offset after the last one that was read; -1: none was."""
    committed: int = -1
    """As far as this consumer has said."""
    paused: bool = False
    gone: bool = False
    """It was taken away from us: nothing that we did counts any more."""
    _open: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def read(self, offset: int) -> None:
        """The record at this offset has been read."""
        self._open[offset] = None
        self.position = offset + 1

    def consumed(self, offset: int) -> None:
        """Its outcome is in the log, or it is on another topic: it need not be read again."""
        self._open.pop(offset, None)

    @property
    def open(self) -> int:
        """How many were read and are not consumed."""
        return len(self._open)

    @property
    def mark(self) -> int:
        """All before this offset are consumed; -1: nothing was read."""
        return next(iter(self._open), self.position)
