"""What a node needs of its own machine: clock, randomness, tasks, and leases and a queue within one process."""

from .clock import SystemClock
from .leases import InProcessLeases
from .queue import EmbeddedQueue
from .randomness import SystemRandomness
from .tasks import Tasks, end

__all__ = ["EmbeddedQueue", "InProcessLeases", "SystemClock", "SystemRandomness", "Tasks", "end"]
