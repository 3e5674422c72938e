"""The names of wait levels."""

from __future__ import annotations

from ._pb import common_pb2 as c
from .errors import Rejected
from .protocol import reasons


def wait_level(name: str) -> c.WaitLevel:
    """The wire's name of a wait level."""
    try:
        return _LEVELS[name]
    except KeyError:
        known = ", ".join(_LEVELS)
        raise Rejected(f"wait={name!r}: one of {known}", reason=reasons.BAD_REQUEST) from None


_LEVELS: dict[str, c.WaitLevel] = {
    "accepted": c.WAIT_LEVEL_ACCEPTED,
    "decided": c.WAIT_LEVEL_DECIDED,
    "committed": c.WAIT_LEVEL_COMMITTED,
    "delivered": c.WAIT_LEVEL_DELIVERED,
}
