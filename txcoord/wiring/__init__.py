"""Where everything is put together: the only room that knows all adapters."""

from .errors import ExitCode, StartError
from .node import Node

__all__ = ["ExitCode", "Node", "StartError"]
