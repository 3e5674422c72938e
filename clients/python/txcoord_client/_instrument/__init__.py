"""``instrument``: code that opens sessions and transactions as it always did joins the current global transaction by
itself."""

from __future__ import annotations

import sys
from typing import Any, Literal

from ..errors import Rejected
from ..protocol import identifiers, reasons
from .home import Coordinator, Home

Outside = Literal["refuse", "local"]


def instrument(coordinator: Coordinator, target: Any, *, resource: str, outside: Outside = "refuse") -> Any:
    """See ``Coordinator.instrument``."""
    if not identifiers.is_name(resource):
        raise Rejected(
            f"resource name {resource!r}: 1 to 63 characters of [A-Za-z0-9_.-]",
            reason=reasons.UNKNOWN_RESOURCE,
        )
    if outside not in ("refuse", "local"):
        raise Rejected(f"outside={outside!r}: 'refuse' or 'local' is needed")
    home = Home(coordinator, resource, refuses=outside == "refuse")
    if "sqlalchemy" in sys.modules:
        from sqlalchemy.engine import Engine
        from sqlalchemy.ext.asyncio import AsyncEngine

        if isinstance(target, AsyncEngine | Engine):
            from .sqlalchemy_ import InstrumentedEngine

            InstrumentedEngine(home, target).install()
            return target
    raise Rejected(f"instrument() takes a SQLAlchemy engine, not {type(target).__name__}")


__all__ = ["instrument"]
