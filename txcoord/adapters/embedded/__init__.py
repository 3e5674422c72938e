"""What a node needs of its own machine: clock, randomness, tasks; and what is shared within one process: leases,
a queue, what is known of targets, and who has registered."""

from .clock import SystemClock
from .gate import InProcessGate
from .leases import InProcessLeases
from .queue import EmbeddedQueue
from .randomness import SystemRandomness
from .registry import InProcessRegistry
from .tasks import Tasks, end

__all__ = [
    "EmbeddedQueue",
    "InProcessGate",
    "InProcessLeases",
    "InProcessRegistry",
    "SystemClock",
    "SystemRandomness",
    "Tasks",
    "end",
]
