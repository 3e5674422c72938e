"""For tests: the pytest plugin, with a coordinator in process. For the demo and the bench too: throw-away servers and
processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inprocess import Txcoord

__all__ = ["Txcoord"]


def __getattr__(name: str) -> Any:
    # pytest loads the plugin wherever txcoord is installed: nothing is imported before it is wanted.
    if name == "Txcoord":
        from .inprocess import Txcoord

        return Txcoord
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
