# Made from txcoord_client/_scope.py by scripts/sync; to change it, change that.
"""Where code runs: what it may do outside of a transaction, and whether a branch is just being opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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
