"""Drivers' own connections and pools: which may be given to ``g.xa``, and where their branches come from."""

from __future__ import annotations

from typing import Any

from .held import Kind, Source
from .kinds import KINDS
from .kinds import NEEDED as NEEDED


def _kind(target: Any) -> Kind | None:
    for kind in type(target).__mro__:
        found = KINDS.get((kind.__module__.partition(".")[0], kind.__name__))
        if found is not None:
            return found
    return None


def is_known(target: Any) -> bool:
    """Is it such a connection or pool?"""
    return _kind(target) is not None


def pool_of(target: Any) -> Any:
    """The target, where it is a pool; else None."""
    kind = _kind(target)
    return target if kind is not None and kind.pool_size is not None else None


def source_of(target: Any, name: str) -> Source:
    """Where its connections come from."""
    kind = _kind(target)
    assert kind is not None
    pooled = kind.pool_size is not None
    return Source(
        key=id(target),
        resource=name,
        family=kind.family,
        make=lambda: kind.make(target),
        pool=id(target) if pooled else None,
        pool_size=kind.pool_size(target) if kind.pool_size is not None else 0,
        identity_of=target if pooled else None,
    )
