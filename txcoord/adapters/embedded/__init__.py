"""What a node needs of its own machine: clock, randomness, tasks, and leases within one process."""

from .clock import SystemClock
from .leases import InProcessLeases
from .randomness import SystemRandomness
from .tasks import Tasks, end

__all__ = ["InProcessLeases", "SystemClock", "SystemRandomness", "Tasks", "end"]
