"""The log: the durable truth."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..core.model import (
    Audit,
    Branch,
    BranchState,
    Change,
    HistoryEntry,
    Kind,
    Tx,
    TxState,
    WriteResult,
)


class LogUnavailable(Exception):
    """The log's database does not answer, or refuses to write. Whether a change in flight was written is
    unknown: read it again (a compare-and-set makes the second try harmless)."""


class SchemaMismatch(Exception):
    """The log has a schema that this version does not know: migrate, or use the right version."""

    def __init__(self, found: str | None, wanted: str, message: str) -> None:
        super().__init__(message)
        self.found = found
        self.wanted = wanted


@dataclass(frozen=True, slots=True)
class LogIdentity:
    """Which log this is."""

    log_id: str
    """Ten characters, made with the log, part of every xid."""
    incarnation: int
    """Raised by command when the log was restored from a backup."""
    earlier_log_ids: tuple[str, ...] = ()
    """Log ids of earlier incarnations: their undecided branches are parked, never presumed aborted."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which transactions to list, newest first."""

    namespace: str | None = None
    states: tuple[TxState, ...] = ()
    parked: bool | None = None
    heuristic: bool | None = None
    resource: str | None = None
    reason: str | None = None
    name: str | None = None
    kind: Kind | None = None
    """With a branch of it."""
    gid: str | None = None
    """A gid, or a tx id."""
    created_before_us: int | None = None
    created_after_us: int | None = None
    after_tx_id: str | None = None
    """Page on from here (exclusive): tx ids are in order of creation."""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Figures:
    """What the log says of itself for metrics. Counts of what grows are exact up to a limit of the log's own."""

    phase_two: int = 0
    """Transactions that are decided and not at their end, parked ones too. One that is COMMITTED or ABORTED is at it,
    whatever is still to be delivered."""
    oldest_decided_us: int = 0
    """When the oldest of those was decided; 0: there is none."""
    delivering: int = 0
    """Transactions that are COMMITTED or ABORTED, and of which something is still to be delivered."""
    parked: int = 0
    parked_deliveries: int = 0
    """Those of the parked ones that are COMMITTED or ABORTED: what is parked is a delivery."""
    heuristics: int = 0
    outbox: int = 0
    """Events that are not published yet."""
    oldest_event_us: int = 0
    """When the oldest of those happened; 0: there is none."""
    held: int = 0
    """Those that could not be published, and are tried again later."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Branches of decided transactions that wait for their next attempt at one target."""

    count: int
    oldest_due_us: int
    """When the first of them is due, or was."""


@dataclass(frozen=True, slots=True)
class DeliveryQuery:
    """Which messages and notifications to list, in the order in which their transactions began."""

    namespace: str
    target: str = ""
    """Empty: any."""
    since_us: int = 0
    """Of transactions that began since."""
    states: tuple[BranchState, ...] = ()
    after: tuple[str, str] = ("", "")
    """Page on from this tx id and branch (exclusive)."""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Turn:
    """The message whose turn it is, and how its transaction stands."""

    tx_id: str
    branch: str
    epoch: int
    owner: str
    decided: bool
    waits: bool
    """It says of itself that it waits for its turn."""


class Log(Protocol):
    """The durable truth.

    ``write`` calls of many callers are coalesced: while one flush is in flight, the next fills; one bad change
    fails alone. It returns when the change is durable (``forced``) or when the flush that took it is done.
    """

    async def open(self) -> LogIdentity:
        """Connect and check the schema. Raises SchemaMismatch, LogUnavailable."""
        ...

    async def close(self) -> None:
        """Flush what is lazy, then disconnect."""
        ...

    async def write(self, change: Change) -> WriteResult:
        """Write one change. Raises LogUnavailable."""
        ...

    def write_lazily(self, change: Change, done: Callable[[WriteResult], None] | None = None) -> None:
        """Write a change with some later flush; ``done`` hears what became of it. Never raises; a change that
        is lost with a crash is one whose repetition is harmless."""
        ...

    async def settle(self) -> None:
        """Write what waits lazily now: whoever reads after this sees it."""
        ...

    async def read(self, tx_ids: Sequence[str]) -> dict[str, Tx]:
        """Rows with their branches, those that exist."""
        ...

    async def news(
        self, undecided: Sequence[str], unended: Sequence[str]
    ) -> tuple[Collection[str], Collection[str]]:
        """Of the first tx ids those that are decided by now; of the second those that have ended, or rest until an
        operator comes. For thousands at a time: no row is read."""
        ...

    async def read_gid(self, namespace: str, gid: str) -> Tx | None:
        """The transaction that a gid names now."""
        ...

    async def history(self, tx_id: str) -> list[HistoryEntry]:
        """What happened to it, oldest first (milestones are columns of the row)."""
        ...

    async def audits(self, tx_id: str) -> list[Audit]:
        """What operators did to it, oldest first."""
        ...

    async def query(self, query: Query) -> list[Tx]:
        """A page of transactions, newest first, with their branches."""
        ...

    async def deliveries(self, query: DeliveryQuery) -> list[tuple[Tx, Branch]]:
        """A page of deliveries, each with its transaction."""
        ...

    async def overdue(self, limit: int) -> list[Tx]:
        """Undecided transactions past their deadline by the log's clock, oldest first."""
        ...

    async def claim(self, owner: str, lease_us: int, limit: int, *, all_of_owner: bool = False) -> list[Tx]:
        """Take over transactions in phase two whose lease has run out: owner, lease and epoch are written,
        rows that someone else is taking are passed by. ``all_of_owner`` also takes those that carry this
        owner's name (after its restart)."""
        ...

    async def claim_due(self, owner: str, lease_us: int, due: Sequence[tuple[str, int]]) -> list[Tx]:
        """Take over these transactions, each given by its tx id and the epoch that its row must still have: as
        :meth:`claim`, and only those in phase two that no node carries out."""
        ...

    async def claim_waiting(self, owner: str, lease_us: int, target: str, limit: int) -> list[Tx]:
        """Pull work for this target forward: take over, as :meth:`claim_due`, transactions of which a branch waits for
        its next attempt there, those that are due first first. In them that branch is due at once; which others are
        due later still are."""
        ...

    async def turns(self, lines: Collection[str]) -> Mapping[str, Turn]:
        """Whose turn it is in each of these lines (:mod:`..core.ordering`): the message that keeps it until it has
        ended; then the first that is due and has taken its place. A line without one is not answered. What is answered
        stays so whatever crashes: nothing that was before it comes back."""
        ...

    async def ahead(self, keys: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], int]:
        """How many, up to a limit, are before each of these messages, by tx id and branch; one that has no place in a
        line is not answered."""
        ...

    async def hasten(self, keys: Collection[tuple[str, str]]) -> None:
        """These messages go before the time that their senders have chosen: in their lines they count as due."""
        ...

    async def backlog(self) -> Mapping[str, Backlog]:
        """What waits for its next attempt, by target: a participant, or the resource of an XA branch."""
        ...

    async def renew(self, owner: str, tx_ids: Sequence[str], lease_us: int) -> Collection[str]:
        """Keep the lease of transactions that this node is still carrying out. Those that are its own still: another
        one may have taken them over, or they rest or have ended."""
        ...

    async def now_us(self) -> int:
        """The log's clock, asked now."""
        ...

    async def resource_identity(self, name: str) -> str | None:
        """The identity that the database of this name had when it was first seen."""
        ...

    async def remember_resource(self, name: str, identity: str, *, replace: bool = False) -> str:
        """Remember it unless one is known; answer the one that is known."""
        ...

    async def prune(self, owner: str, limit: int) -> int:
        """Delete a small batch of what retention allows to go (detail first, then bare rows). How many."""
        ...

    async def figures(self) -> Figures:
        """For metrics: a few small questions."""
        ...

    async def flushes(self) -> tuple[int, int]:
        """How many forced and how many lazy-only flushes this node has made."""
        ...
