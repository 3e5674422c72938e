"""A coordinator in the process of a test: the real engine on virtual time, a log in memory, no port."""

from .world import Txcoord

__all__ = ["Txcoord"]
