"""The queue of a node, as its settings ask for it."""

from __future__ import annotations

from dataclasses import dataclass

from ..adapters.embedded import EmbeddedQueue
from ..config import Settings
from ..ports import Clock, Queue, Spawn


@dataclass(frozen=True, slots=True)
class Chosen:
    """A queue, and what the engine has to know of it."""

    queue: Queue
    overdue_us: int
    """What is not carried out so long after it was due has been lost by the queue: any node may take it over."""


def choose(settings: Settings, clock: Clock, spawn: Spawn) -> Chosen:
    """The queue that the settings ask for: timers in this process."""
    del settings
    return Chosen(EmbeddedQueue(clock, spawn), overdue_us=500_000)
