# Made from txcoord_client/_sources.py by scripts/sync; to change it, change that.
"""Which database a target is, by name. Drivers are imported only where they are used."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ..errors import Rejected, UnknownResource
from ..protocol import identifiers, reasons
from ._xa import known
from ._xa.held import Source


class Resources:
    """The names that a service gave its engines and pools."""

    def __init__(self, resources: Mapping[str, Any]) -> None:
        self._names: dict[int, str] = {}
        self._kept: list[Any] = []
        self._sources: dict[int, Source] = {}
        """Of the engines and pools that were named: they are asked for again and again."""
        self._aliases: dict[str, Source] = {}
        """Of Django databases."""
        for name, target in resources.items():
            self.name(name, target)

    def name(self, name: str, target: Any) -> None:
        """Give an engine or pool its name. Raises Rejected for what is none, or has another one."""
        if not identifiers.is_name(name):
            raise Rejected(
                f"resource name {name!r}: 1 to 63 characters of [A-Za-z0-9_.-]",
                reason=reasons.UNKNOWN_RESOURCE,
            )
        owner = _owner(target)
        if owner is None:
            raise Rejected(
                f"resource {name!r}: {known.NEEDED}, not {type(target).__name__}",
                reason=reasons.UNKNOWN_RESOURCE,
            )
        named = self._names.setdefault(id(owner), name)
        if named != name:
            raise Rejected(
                f"resources {named!r} and {name!r} are the same engine", reason=reasons.UNKNOWN_RESOURCE
            )
        # An id means something only while its object lives.
        self._kept += [owner, target]
        self._sources[id(target)] = _make(target, owner, name)

    def add(self, target: Any, source: Source, alias: str = "") -> None:
        """Take a target of a kind of its own, with where its connections come from; ``alias`` is Django's name."""
        self._kept.append(target)
        self._sources[id(target)] = source
        if alias:
            self._aliases[alias] = source

    def source(self, target: Any, resource: str = "") -> Source:
        """Where the connections of a target come from. Raises UnknownResource."""
        if isinstance(target, str):
            if target not in self._aliases:
                raise Rejected(
                    f"g.xa() takes {known.NEEDED}, or the alias of a Django database that coord.instrument() was "
                    f"told of, not {target!r}"
                )
            known_as = self._aliases[target]
            if resource in ("", known_as.resource):
                return known_as
            raise UnknownResource(f"this database is resource {known_as.resource!r}, not {resource!r}")
        made = self._sources.get(id(target))
        if made is not None and resource in ("", made.resource):
            return made
        owner = _owner(target)
        if owner is None and not known.is_known(target):
            raise Rejected(f"g.xa() takes {known.NEEDED}, not {type(target).__name__}")
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


def _owner(target: Any) -> Any:
    """The engine or pool that a target belongs to; None: none is known."""
    if known.is_known(target):
        return known.pool_of(target)
    if "sqlalchemy" not in sys.modules:
        return None
    from ._xa import sqlalchemy_

    return sqlalchemy_.engine_of(target) if sqlalchemy_.is_ours(target) else None


def _make(target: Any, owner: Any, name: str) -> Source:
    if known.is_known(target):
        return known.source_of(target, name)
    from ._xa import sqlalchemy_

    return sqlalchemy_.source_of(target, name, owner)
