"""Where code runs: what it may do outside of a transaction, and whether a branch is just being opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .errors import NotIdle

_opening: ContextVar[bool] = ContextVar("txcoord_opening", default=False)
_outside: ContextVar[bool] = ContextVar("txcoord_outside", default=False)


@contextmanager
def opening_a_branch() -> Iterator[None]:
    """What is checked out inside belongs to the branch itself: it is a real connection."""
    token = _opening.set(True)
    try:
        yield
    finally:
        _opening.reset(token)


def is_opening_a_branch() -> bool:
    """Is a branch being opened here?"""
    return _opening.get()


@contextmanager
def outside_on_purpose() -> Iterator[None]:
    """Local writes are meant: ``coord.outside()``."""
    token = _outside.set(True)
    try:
        yield
    finally:
        _outside.reset(token)


def is_outside_on_purpose() -> bool:
    """May code without a transaction write here?"""
    return _outside.get()


READY = "txcoord_ready"
"""In the ``info`` of an instrumented engine's connection: makes it fit for a branch; called with the pool's proxy."""


def made_ready(fairy: Any) -> Any:
    """A connection that the application opened outside is about to become a branch's. Raises NotIdle for one that
    belongs to a branch already."""
    if getattr(fairy, "is_unit", False):
        raise NotIdle(
            "this connection was opened inside a global transaction on an instrumented engine: it takes part"
        )
    ready = fairy.info.get(READY)
    if ready is not None:
        ready(fairy)
    return fairy
