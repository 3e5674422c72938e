"""Whom to ask what became of a sender's local transaction, where no resource of the coordinator's can tell.

A row names whoever decides it in one place, ``one_phase_resource``: a resource, or after :data:`PREFIX`, which no
resource's name can begin with, a participant or address and, each after a ``#``, the name under which it is asked there
and the identity of the sender's database, which it is to compare with that of its own.
"""

from __future__ import annotations

PREFIX = "target:"
MOST = 255
"""Characters: so many a row has room for."""


def by_target(target: str, participant: str, identity: str = "") -> str:
    """What a row says of whoever answers."""
    return f"{PREFIX}{target}#{participant}#{identity}".rstrip("#")


def target_of(one_phase_resource: str) -> str:
    """The participant or address that answers; empty where a resource does."""
    if not one_phase_resource.startswith(PREFIX):
        return ""
    return one_phase_resource[len(PREFIX) :].partition("#")[0]


def participant_of(one_phase_resource: str) -> str:
    """The name under which it is asked there; empty for an address that has only one."""
    target, _, more = one_phase_resource[len(PREFIX) :].partition("#")
    return more.partition("#")[0] or ("" if "://" in target else target)


def identity_of(one_phase_resource: str) -> str:
    """The identity of the sender's database; empty: not known."""
    return one_phase_resource.partition("#")[2].partition("#")[2]
