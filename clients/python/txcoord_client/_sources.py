"""Which database a target is, by name. Drivers are imported only where they are used."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ._xa.held import Source
from .errors import Rejected, UnknownResource
from .protocol import identifiers, reasons


class Resources:
    """The names that a service gave its engines and pools."""

    def __init__(self, resources: Mapping[str, Any]) -> None:
        self._names: dict[int, str] = {}
        self._kept: list[Any] = []
        self._sources: dict[int, Source] = {}
        """Of the engines and pools that were named: they are asked for again and again."""
        for name, target in resources.items():
            if not identifiers.is_name(name):
                raise Rejected(
                    f"resource name {name!r}: 1 to 63 characters of [A-Za-z0-9_.-]",
                    reason=reasons.UNKNOWN_RESOURCE,
                )
            owner = _owner(target)
            if owner is None:
                raise Rejected(
                    f"resource {name!r}: {_NEEDED}, not {type(target).__name__}",
                    reason=reasons.UNKNOWN_RESOURCE,
                )
            known = self._names.setdefault(id(owner), name)
            if known != name:
                raise Rejected(
                    f"resources {known!r} and {name!r} are the same engine", reason=reasons.UNKNOWN_RESOURCE
                )
            # An id means something only while its object lives.
            self._kept += [owner, target]
            self._sources[id(target)] = _make(target, owner, name)

    def source(self, target: Any, resource: str = "") -> Source:
        """Where the connections of a target come from. Raises UnknownResource."""
        known = self._sources.get(id(target))
        if known is not None and resource in ("", known.resource):
            return known
        owner = _owner(target)
        if owner is None and not _is_asyncpg(target, "Connection", "PoolConnectionProxy"):
            raise Rejected(f"g.xa() takes {_NEEDED}, not {type(target).__name__}")
        named = self._names.get(id(owner), "") if owner is not None else ""
        if resource and named and resource != named:
            raise UnknownResource(f"this engine is resource {named!r}, not {resource!r}")
        name = named or resource
        if not name:
            raise UnknownResource(
                "this database has no name: give it one in Coordinator(resources={'name': engine}), "
                "or say g.xa(target, resource='name')"
            )
        return _make(target, owner, name)


_NEEDED = "a SQLAlchemy AsyncEngine, AsyncConnection or AsyncSession, or an asyncpg Pool or Connection"


def _is_asyncpg(target: Any, *names: str) -> bool:
    for kind in type(target).__mro__:
        if kind.__module__.partition(".")[0] == "asyncpg" and (not names or kind.__name__ in names):
            return True
    return False


def _owner(target: Any) -> Any:
    """The engine or pool that a target belongs to; None: none is known."""
    if _is_asyncpg(target):
        return target if _is_asyncpg(target, "Pool") else None
    if "sqlalchemy" not in sys.modules:
        return None
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

    if isinstance(target, AsyncEngine | AsyncConnection | AsyncSession):
        from ._xa import sqlalchemy_

        return sqlalchemy_.engine_of(target)
    return None


def _make(target: Any, owner: Any, name: str) -> Source:
    return _asyncpg_source(target, name) if _is_asyncpg(target) else _sqlalchemy_source(target, name, owner)


def _asyncpg_source(target: Any, name: str) -> Source:
    from ._xa import asyncpg_

    if _is_asyncpg(target, "Pool"):
        return Source(
            key=id(target),
            resource=name,
            make=lambda: asyncpg_.AsyncpgPoolHeld(target),
            pool=id(target),
            pool_size=target.get_max_size() if hasattr(target, "get_max_size") else target._maxsize,
            identity_of=target,
        )
    return Source(key=id(target), resource=name, make=lambda: asyncpg_.AsyncpgHeld(target))


def _sqlalchemy_source(target: Any, name: str, engine: Any) -> Source:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from ._xa import sqlalchemy_

    sqlalchemy_.watch(engine)
    if isinstance(target, AsyncEngine):
        return Source(
            key=id(engine),
            resource=name,
            make=lambda: sqlalchemy_.make_held(target),
            pool=id(engine),
            pool_size=sqlalchemy_.pool_size(target),
            identity_of=engine,
        )
    return Source(
        key=id(target), resource=name, make=lambda: sqlalchemy_.make_held(target), identity_of=engine
    )
