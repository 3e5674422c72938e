"""Whom to ask what became of a sender's local transaction, where no resource of the coordinator's can tell.

A row names whoever decides it in one place, ``one_phase_resource``: a resource, or after :data:`PREFIX`, which no
resource's name can begin with, a participant or address and, after a ``#``, the name under which it is asked there.
"""

from __future__ import annotations

PREFIX = "target:"
MOST = 255
"""Characters: so many a row has room for."""


def by_target(target: str, participant: str) -> str:
    """What a row says of whoever answers."""
    return f"{PREFIX}{target}#{participant}" if participant else PREFIX + target


def target_of(one_phase_resource: str) -> str:
    """The participant or address that answers; empty where a resource does."""
    if not one_phase_resource.startswith(PREFIX):
        return ""
    return one_phase_resource[len(PREFIX) :].partition("#")[0]


def participant_of(one_phase_resource: str) -> str:
    """The name under which it is asked there; empty for an address that has only one."""
    target, _, name = one_phase_resource[len(PREFIX) :].partition("#")
    return name or ("" if "://" in target else target)
