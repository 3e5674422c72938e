"""A process that is forked after gRPC was used in it cannot use gRPC: neither what it inherited nor a channel that it
makes anew, which would wait for ever for threads that the fork did not take along."""

from __future__ import annotations

import os

from .errors import ForkedAfterUse

_used = False
_inherited = False


def use() -> None:
    """The SDK is about to use gRPC here. Raises ForkedAfterUse where that cannot work."""
    global _used
    check()
    _used = True


def check() -> None:
    """Raises ForkedAfterUse in a process that was forked after use."""
    if _inherited:
        raise ForkedAfterUse(
            "this process was forked after a Coordinator had been used: gRPC does not survive that. Make it where you "
            "like, but use it first in the child (gunicorn: not while --preload loads the application, but in "
            "post_fork or in the request)"
        )


def inherited() -> bool:
    """Was this process forked after use? What it has of gRPC is the parent's then."""
    return _inherited


def _in_child() -> None:
    global _inherited
    _inherited = _inherited or _used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
