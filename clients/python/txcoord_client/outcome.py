"""How a transaction ended, as the SDK tells it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ._pb import common_pb2 as c


class State(StrEnum):
    """Where a global transaction stands."""

    UNKNOWN = "UNKNOWN"
    ACTIVE = "ACTIVE"
    RUNNING = "RUNNING"
    COMMITTING = "COMMITTING"
    """Commit is decided, and will be carried out; some branch is not done yet."""
    COMMITTED = "COMMITTED"
    """Every branch is done."""
    ABORTING = "ABORTING"
    ABORTED = "ABORTED"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is known of a transaction."""

    state: State
    tx_id: str
    gid: str = ""
    decided_by: str = ""
    """``client``, ``deadline``, ``branch``, ``operator``, ``scanner`` or ``database``; empty: undecided."""
    reason: str = ""
    heuristic: bool = False
    """Some branch ended otherwise than decided, or was settled by hand."""
    parked: int = 0
    """How many branches need an operator."""
    retriable: bool = False
    result: bytes = b""
    delivered: bool = False
    """Have all its messages and notifications ended?"""
    parked_deliveries: int = 0
    """How many of them need an operator."""

    @property
    def committed(self) -> bool:
        """Is commit the decision?"""
        return self.state in (State.COMMITTING, State.COMMITTED)

    @property
    def aborted(self) -> bool:
        """Is abort the decision?"""
        return self.state in (State.ABORTING, State.ABORTED)


_STATE = {
    c.STATE_ACTIVE: State.ACTIVE,
    c.STATE_RUNNING: State.RUNNING,
    c.STATE_COMMITTING: State.COMMITTING,
    c.STATE_COMMITTED: State.COMMITTED,
    c.STATE_ABORTING: State.ABORTING,
    c.STATE_ABORTED: State.ABORTED,
}
_DECIDED_BY = {
    number: name.removeprefix("DECIDED_BY_").lower() for name, number in c.DecidedBy.items() if number
}


def from_pb(out: c.Outcome, *, tx_id: str = "", gid: str = "") -> Outcome:
    """An outcome from the wire; ``tx_id`` and ``gid`` are those that were asked for."""
    return Outcome(
        _STATE.get(out.state, State.UNKNOWN),
        out.tx_id or tx_id,
        out.gid or gid,
        _DECIDED_BY.get(out.decided_by, ""),
        out.reason,
        out.heuristic,
        out.parked,
        out.retriable,
        out.result,
        out.delivered,
        out.parked_deliveries,
    )
