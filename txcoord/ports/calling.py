"""Participants, and what waits for its next attempt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..core.action import Answer, Op
from ..core.model import (
    Branch,
    Tx,
)


@dataclass(frozen=True, slots=True)
class CallRequest:
    """What a participant is to do for one branch."""

    tx: Tx
    """As it stands, with the results of its branches."""
    branch: Branch
    op: Op
    attempt: int
    """From 1, in this phase of the branch."""
    deadline_us: int
    """When its answer is waited for no longer, by the log's clock."""

    @property
    def message_id(self) -> str:
        """Of a delivery: its receiver's key to drop repeats."""
        own = self.branch.action.delivery.message_id if self.branch.action is not None else ""
        return own or f"{self.tx.tx_id}.{self.branch.id}"


class Caller(Protocol):
    """Calls participants."""

    def call(
        self, target: str, requests: Sequence[CallRequest], timeout_s: float
    ) -> AsyncIterator[tuple[CallRequest, Answer]]:
        """Call one target for many branches; each answer comes as soon as it is there.

        Never raises for what the target does: a branch that it could not be asked for is answered FAILED, and what
        is not answered when it ends has failed. Whoever calls limits the time too.
        """
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Due:
    """A transaction in phase two that waits for its next attempt, and that no node carries out until then.

    It names one state of its row: whoever claims the row raises the epoch, so a duplicate, or one that has been
    overtaken (pulled forward, taken over, resolved by hand), claims nothing.
    """

    tx_id: str
    epoch: int
    """Of the row as it was handed off: only the row with this epoch is claimed."""
    due_us: int
    """Not before this time of the log's clock."""
    namespace: str = ""
    target: str = ""
    """Whom the branch that is due first is for: a participant, or the resource of an XA branch."""
    branch: str = ""
    attempt: int = 0
    """Of that branch, the one that comes next: for people and for the queue's records, not for fencing."""


class Queue(Protocol):
    """Hands transactions that wait to a node when they are due. Carries no promise: what it loses, the log's sweep
    finds when it is overdue."""

    async def start(self, carry: Callable[[Sequence[Due]], Awaitable[None]]) -> None:
        """Begin. ``carry`` is called with what is due, never early, several calls at a time; it returns when the
        outcome of these attempts is in the log (or they were claimed by nobody), and only then they count as consumed.
        A node that only hands off (no worker) is never called."""
        ...

    def put(self, due: Due) -> None:
        """Take it. Coalesced; never waits, never raises."""
        ...

    def hold(self, yes: bool) -> None:
        """This node carries nothing out until it is said again: what others can carry out is left to them."""
        ...

    def depth(self) -> Mapping[str, int]:
        """How many wait here, by tier or by another name that the adapter has for it."""
        ...

    async def stop(self) -> None:
        """End: what was taken and not consumed stays where it is."""
        ...
