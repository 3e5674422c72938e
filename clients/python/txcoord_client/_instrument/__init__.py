"""``instrument``: code that opens sessions and transactions as it always did joins the current global transaction by
itself."""

from __future__ import annotations

import sys
from typing import Any, Literal

from ..errors import Rejected
from ..protocol import identifiers, reasons
from .home import Home

Outside = Literal["refuse", "local"]


def instrument(coordinator: Any, target: Any, *, resource: str, outside: Outside = "refuse") -> Any:
    """See ``Coordinator.instrument``."""
    if not identifiers.is_name(resource):
        raise Rejected(
            f"resource name {resource!r}: 1 to 63 characters of [A-Za-z0-9_.-]",
            reason=reasons.UNKNOWN_RESOURCE,
        )
    if outside not in ("refuse", "local"):
        raise Rejected(f"outside={outside!r}: 'refuse' or 'local' is needed")
    home = Home(coordinator, resource, refuses=outside == "refuse")
    is_async = hasattr(type(coordinator), "__aenter__")
    if "sqlalchemy" in sys.modules:
        from sqlalchemy.engine import Engine
        from sqlalchemy.ext.asyncio import AsyncEngine

        if isinstance(target, AsyncEngine | Engine):
            _same_kind(is_async, isinstance(target, AsyncEngine))
            from .sqlalchemy_ import InstrumentedEngine

            InstrumentedEngine(home, target).install()
            return target
    if isinstance(target, str):
        _same_kind(is_async, False)
        from .django_ import InstrumentedAlias

        return InstrumentedAlias(home, target).install()
    if _is_a(target, "asyncpg", "Pool"):
        _same_kind(is_async, True)
        from . import asyncpg_

        return asyncpg_.install(home, target)
    if "psycopg" in sys.modules:
        import psycopg

        if _is_a(target, "psycopg_pool", "ConnectionPool"):
            _same_kind(is_async, False)
            from .psycopg_ import InstrumentedPool

            return InstrumentedPool(home, target).install()
        if _is_a(target, "psycopg_pool", "AsyncConnectionPool"):
            _same_kind(is_async, True)
            from .psycopg_async import InstrumentedAsyncPool

            return InstrumentedAsyncPool(home, target).install()
        if target is psycopg:
            _same_kind(is_async, False)
            from .psycopg_ import InstrumentedConnect

            psycopg.connect = InstrumentedConnect(home, psycopg.connect).install()
            return psycopg
        if callable(target):
            _same_kind(is_async, False)
            from .psycopg_ import InstrumentedConnect

            return InstrumentedConnect(home, target).install()
    raise Rejected(
        "instrument() takes a SQLAlchemy engine, an asyncpg Pool, a pool of psycopg, psycopg or a function that "
        f"connects like psycopg.connect, or the alias of a Django database, not {type(target).__name__}"
    )


def _same_kind(coordinator: bool, target: bool) -> None:
    if coordinator and not target:
        raise Rejected(
            "this works in threads: instrument it with a Coordinator of txcoord_client.sync",
            reason=reasons.NOT_SUPPORTED,
        )
    if target and not coordinator:
        raise Rejected(
            "this works in an event loop: instrument it with the asynchronous Coordinator of txcoord_client",
            reason=reasons.NOT_SUPPORTED,
        )


def _is_a(target: Any, package: str, name: str) -> bool:
    return any(
        kind.__name__ == name and kind.__module__.partition(".")[0] == package
        for kind in type(target).__mro__
    )


__all__ = ["instrument"]
