"""The few interfaces that the engine needs. Adapters implement them; each has one contract suite.

No implementation here, and nothing but the core is imported.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from .core.action import Answer, Op
from .core.instances import Instance
from .core.model import (
    Audit,
    Branch,
    BranchState,
    Change,
    HistoryEntry,
    Kind,
    TargetAudit,
    TargetRule,
    Tx,
    TxState,
    WriteResult,
)
from .core.replaying import AuditQuery, AuditRow, ItemState, JobState, ParkedBranch, Replay, ReplayItem
from .core.room import Room
from .core.targets import Target


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
    """Transactions that are decided and not at their end, parked ones too."""
    oldest_decided_us: int = 0
    """When the oldest of those was decided; 0: there is none."""
    parked: int = 0
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


class Finished(Enum):
    """What became of an attempt to finish a branch in its database."""

    DONE = "done"
    """Proven: the tag, or the marker."""
    RETRY = "retry"
    """Unreachable, busy or refused: try again."""
    HEURISTIC = "heuristic"
    """Someone else finished it, against the decision."""


@dataclass(frozen=True, slots=True)
class FinishResult:
    """What became of it, and why."""

    finished: Finished
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PreparedBranch:
    """One prepared transaction of this log, as its database lists it."""

    xid: str
    owner: str
    prepared_us: int


class Probed(Enum):
    """The database's answer to "was it committed in one phase?"."""

    COMMITTED = "committed"
    NEVER = "never"
    """A tombstone is there: it was not, and never will be."""
    OPEN = "open"
    """The local commit is still open: ask again."""
    TOO_LATE = "too_late"
    """After W nothing is written and nothing is known."""


class ResourceTrouble(Exception):
    """A resource cannot be used: unreachable, wrong credentials, wrong identity, not made ready."""

    def __init__(self, resource: str, reason: str, message: str) -> None:
        super().__init__(f"resource {resource!r}: {message}")
        self.resource = resource
        self.reason = reason
        self.message = message


class Finisher(Protocol):
    """Finishes XA branches straight on one resource's database."""

    name: str

    @property
    def engine(self) -> str:
        """``postgresql``, ``mariadb`` or ``mysql``: what it was when it was reached last."""
        ...

    @property
    def lists_server(self) -> bool:
        """Are the branches of other databases on the server among those that are listed?"""
        ...

    async def identity(self) -> str:
        """The identity row of the database. Raises ResourceTrouble."""
        ...

    async def finish(self, xid: str, commit: bool) -> FinishResult:
        """COMMIT or ROLLBACK the prepared branch, with proof; safe to repeat, and to race."""
        ...

    async def list_prepared(self, log_ids: Sequence[str]) -> list[PreparedBranch]:
        """Prepared transactions of these logs; never anyone else's. In this database, or, where
        ``lists_server``, on its whole server."""
        ...

    async def has_ended(self, xid: str, commit: bool) -> bool:
        """Has the session that prepared the branch finished it, as was decided? Changes nothing. Raises
        ResourceTrouble."""
        ...

    async def owns(self, xid: str) -> bool:
        """Is the prepared branch in this database, and not in another one of its server? Raises ResourceTrouble."""
        ...

    async def in_limbo(self) -> int:
        """How many prepared branches the server holds and cannot name any more. Raises ResourceTrouble."""
        ...

    async def probe_one_phase(self, tx_id: str, not_after_us: int) -> Probed:
        """Tombstone the one-phase marker key. Raises ResourceTrouble."""
        ...

    async def prune_markers(self, not_after_us: int, limit: int) -> int:
        """Delete a small batch of markers older than ``not_after_us``."""
        ...

    def by_hand(self, xid: str, commit: bool) -> str:
        """The statement with which a person finishes the branch there."""
        ...

    async def close(self) -> None: ...


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
class ResourceStatus:
    """A resource as this node sees it."""

    name: str
    engine: str
    identity: str = ""
    version: str = ""
    problem: str = ""
    """Why it cannot be used now, for people; empty when all is well."""


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

    def depth(self) -> Mapping[str, int]:
        """How many wait here, by tier or by another name that the adapter has for it."""
        ...

    async def stop(self) -> None:
        """End: what was taken and not consumed stays where it is."""
        ...


class Clock(Protocol):
    """Time. ``now_us`` is the log's clock as this node knows it; ``monotonic`` is for measuring."""

    def now_us(self) -> int: ...

    def observe(self, log_now_us: int) -> None:
        """A flush has told the log's clock: correct the offset."""
        ...

    def monotonic(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class Randomness(Protocol):
    """Random draws, seeded in simulations."""

    def random(self) -> float: ...

    def getrandbits(self, k: int, /) -> int: ...


Spawn = Callable[[Coroutine[Any, Any, None], str], "Task"]
"""Start a task that its owner keeps; the second argument names it."""


class Task(Protocol):
    """What Spawn gives."""

    def cancel(self) -> object: ...

    def done(self) -> bool: ...


class Leases(Protocol):
    """Leases for singleton duties, such as one recovery scanner per resource."""

    async def acquire(self, duty: str, owner: str, ttl_us: int) -> int | None:
        """A fencing token that only grows, or None while another owner holds it."""
        ...

    async def release(self, duty: str, owner: str) -> None: ...


class Failpoints(Protocol):
    """Named places where tests make things break. In production ``reach`` does nothing."""

    async def reach(self, name: str) -> None: ...


class SharedLost(Exception):
    """What nodes share is away: each judges for itself until it is back. Nothing is lost by that but time."""


class SharedGate(Protocol):
    """What the nodes of a fleet tell each other of targets: which are dead, who probes, and how much room is left.

    May forget everything at any moment (an empty restart): the next calls find it out again. Each method raises
    SharedLost when it is away, and says so soon. Targets are addresses, of no namespace.
    """

    async def opened(self, target: str, reason: str, ttl_us: int) -> None:
        """This target was found dead: all nodes hold their calls back. Forgotten after ``ttl_us`` unless said again."""
        ...

    async def closed(self, target: str) -> None:
        """It has answered."""
        ...

    async def dead(self) -> Mapping[str, str]:
        """The targets that are known to be dead, each with the reason that was given last."""
        ...

    async def probe(self, target: str, every_us: int) -> bool:
        """May this node make a probe now? True at most once in ``every_us``, whoever asks (all ask with the same)."""
        ...

    async def admit(
        self, target: str, wanted: int, *, rate_per_s: float, at_once: int, lease_us: int
    ) -> Room:
        """Take room for calls, at most ``wanted`` (from 1). ``rate_per_s``: tokens a second, of which a tenth of a
        second's worth is kept, at least one; 0: no such limit. ``at_once``: calls at one time; 0: no such limit. What
        is not given back is free again after ``lease_us``."""
        ...

    async def leave(self, target: str, ticket: str, count: int) -> None:
        """So many calls of this ticket have ended. One that is not known any more changes nothing."""
        ...


class Wakeups(Protocol):
    """Tells the other nodes of a fleet that there is news, so that they look now and not only when they would have.

    Lossy: what is told may arrive late, twice or never. Whoever hears it reads the log, which alone knows.
    """

    def hear(self, topic: str, look: Callable[[Sequence[str]], None]) -> None:
        """Call ``look`` with the names that other nodes tell of this topic. To be said before anything is told."""
        ...

    def tell(self, topic: str, name: str) -> None:
        """There is news of this: a tx id, or another name without spaces. Coalesced; never waits, never raises."""
        ...


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A coordinator or worker, as it last said of itself."""

    name: str
    role: str
    """``coordinator``, ``worker`` or ``dev``."""
    address: str
    version: str
    started_us: int = 0
    seen_us: int = 0
    """When it was heard of last, by the log's clock."""
    live: int = 0
    """Transactions that it carries out."""
    draining: bool = False
    """It takes nothing new."""
    clock_offset_us: int = 0
    """Its clock minus the log's."""
    duties: tuple[str, ...] = ()
    """Singleton duties of which it has the lease."""


@dataclass(frozen=True, slots=True)
class NodeOrder:
    """What an operator did to a node."""

    action: str
    actor: str
    reason: str
    identity: str = ""
    """Name of the token that was shown; empty where none is needed."""
    at_us: int = 0


class Nodes(Protocol):
    """The nodes of a log."""

    async def join(self, status: NodeStatus) -> None:
        """It has started, and takes new work: a restart ends a drain. Raises LogUnavailable, as all of these do."""
        ...

    async def seen(self, name: str, live: int, clock_offset_us: int) -> bool:
        """It is there still. Is it to take nothing new?"""
        ...

    async def leave(self, name: str) -> None:
        """It has ended as it should."""
        ...

    async def all(self) -> list[NodeStatus]:
        """All that are known, by name; one that died stays for a day."""
        ...

    async def drain(self, name: str, draining: bool, order: NodeOrder) -> NodeStatus | None:
        """Say whether it is to take new work, with the audit row in one transaction; None: it is not known."""
        ...

    async def orders(self, name: str) -> list[NodeOrder]:
        """What operators did to it, oldest first."""
        ...


class Replays(Protocol):
    """Jobs that retry parked branches, kept beside the log. All raise LogUnavailable."""

    async def create(self, replay: Replay) -> Replay:
        """Write it with its audit row, or answer the one that the same request has made before."""
        ...

    async def get(self, namespace: str, replay_id: str) -> Replay | None:
        """One job, with its counts."""
        ...

    async def page(self, namespace: str, before: str, limit: int) -> list[Replay]:
        """A page, newest first, from before this id on; empty: from the newest."""
        ...

    async def items(self, replay_id: str, after: tuple[str, str], limit: int) -> list[ReplayItem]:
        """A page of its items, by tx id and branch, after this one."""
        ...

    async def pick(self, replay_id: str, states: Collection[ItemState], limit: int) -> list[ReplayItem]:
        """The first items in one of these states."""
        ...

    async def turn(
        self, namespace: str, replay_id: str, state: JobState, order: Audit, rate_per_s: float
    ) -> Replay | None:
        """Cancel a job, or resume it, with the audit row in the same SQL transaction; how it is then. One that is so
        already, or is done, stays as it is. None: there is none."""
        ...

    async def claim(self, owner: str, lease_us: int, mine: Collection[str]) -> list[Replay]:
        """Take over running jobs that nobody runs: their lease is over, or they carry this owner's name and are none
        of ``mine``."""
        ...

    async def save(
        self, replay: Replay, lease_us: int, items: Sequence[ReplayItem] = (), new: Sequence[ReplayItem] = ()
    ) -> Replay | None:
        """Write where it stands, with what became of items and with new ones, in one SQL transaction; answers it with
        its counts. None: it is this owner's no more, and nothing was written."""
        ...

    async def parked(
        self, query: Query, since_us: int, after: tuple[str, str], limit: int
    ) -> list[ParkedBranch]:
        """Parked branches of the transactions that the query finds, those for its resource, kind and reason, parked
        since then, by tx id and branch, after this one."""
        ...

    async def audits(self, query: AuditQuery) -> list[AuditRow]:
        """A page of the audit trail, newest first."""
        ...


class Registry(Protocol):
    """The live instances of participants, as they have registered themselves, each with signs of life.

    May forget everything at any moment: the next signs of life fill it again. Nothing here raises or waits for long.
    """

    @property
    def ttl_us(self) -> int:
        """How long an instance counts as live after a sign of life."""
        ...

    async def register(self, one: Instance) -> bool:
        """It is there. Known on this node at once, on others soon. False: there are too many."""
        ...

    async def beat(self, key: tuple[str, str, str]) -> bool:
        """Namespace, participant, instance: it is still there. False: it is not known, it has to register again."""
        ...

    async def leave(self, key: tuple[str, str, str]) -> None:
        """It is called no more."""
        ...

    def is_known(self, participant: str) -> bool:
        """Has one of this name registered, in whatever namespace?"""
        ...

    def places(self, namespace: str, participant: str) -> Sequence[Target]:
        """Where to call it, in the order in which to try them; empty if none is known."""
        ...

    def instances(self) -> Sequence[tuple[Instance, int]]:
        """Each that is known, and until when it is live, by this node's clock; the past for those that may be gone."""
        ...


class TargetRules(Protocol):
    """What operators have said about targets, kept beside the log. Each method raises LogUnavailable."""

    async def all(self) -> Sequence[TargetRule]:
        """All rules, also those that limit nothing any more."""
        ...

    async def change(self, audit: TargetAudit, edit: Callable[[TargetRule], TargetRule]) -> TargetRule:
        """Change the rule of the target that the audit names (one that limits nothing, if it has none) and write the
        audit, both or neither. ``edit`` may be called more than once; who, why and when are the audit's, and the
        log's clock."""
        ...

    async def audits(self, target: str, limit: int) -> Sequence[TargetAudit]:
        """Who has changed it, the latest first."""
        ...
