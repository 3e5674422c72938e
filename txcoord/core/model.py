"""What a transaction and a branch are.

All times are UTC microseconds by the log's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag, StrEnum

from .action import Action


class Kind(StrEnum):
    """What a branch's first phase is, and what commit and abort mean for it."""

    XA = "xa"
    TCC = "tcc"
    SAGA = "saga"
    MESSAGE = "message"
    NOTIFY = "notify"
    CALLBACK = "callback"
    """Somebody is told when the whole has ended, whichever way. Not a branch for clients: see *Callbacks*."""

    @property
    def is_delivery(self) -> bool:
        """Has it no first phase, and leaves only once the whole has ended?"""
        return self in _DELIVERIES


_DELIVERIES = (Kind.MESSAGE, Kind.NOTIFY, Kind.CALLBACK)


class TxState(StrEnum):
    """Where a global transaction stands."""

    ACTIVE = "active"
    RUNNING = "running"
    """Sealed: nothing may enlist; the steps of a submitted plan are on their way."""
    COMMITTING = "committing"
    COMMITTED = "committed"
    """Every xa, tcc and saga branch is done. Deliveries start only now."""
    ABORTING = "aborting"
    ABORTED = "aborted"


class Decision(StrEnum):
    """The one decision; it never changes."""

    COMMIT = "commit"
    ABORT = "abort"


class DecidedBy(StrEnum):
    """Who decided."""

    CLIENT = "client"
    DEADLINE = "deadline"
    BRANCH = "branch"
    OPERATOR = "operator"
    SCANNER = "scanner"
    """The recovery scanner fenced an orphan."""
    DATABASE = "database"
    """A one-phase branch: its own database's marker key decided."""


class BranchState(StrEnum):
    """Where a branch stands."""

    OPEN = "open"
    """Known; its first phase has not been reported."""
    RUNNING = "running"
    """The coordinator is running its first phase (saga action, coordinator-run try)."""
    READY = "ready"
    """First phase done: prepared, tried, or action done. Deliveries: waiting for COMMITTED."""
    READ_ONLY = "read_only"
    """Wrote nothing and dropped out at prepare."""
    REFUSED = "refused"
    """Its first phase said no."""
    FINISHING = "finishing"
    """Commit, confirm or delivery is being carried out."""
    UNDOING = "undoing"
    """Rollback, cancel or compensation is being carried out."""
    DONE = "done"
    UNDONE = "undone"
    PARKED = "parked"
    """Needs an operator."""
    SKIPPED = "skipped"
    """An operator gave it up."""
    RESOLVED = "resolved"
    """An operator settled it by hand."""


SETTLED_BRANCH = frozenset(
    {
        BranchState.READ_ONLY,
        BranchState.REFUSED,
        BranchState.DONE,
        BranchState.UNDONE,
        BranchState.SKIPPED,
        BranchState.RESOLVED,
    }
)
HELD_BACK = ("TARGET_PAUSED", "BREAKER_OPEN", "RATE_LIMITED")
"""Why a call that was due was not made: reasons of a branch that waits for no fault of its own."""
RUNNABLE_BRANCH = frozenset({BranchState.RUNNING, BranchState.FINISHING, BranchState.UNDOING})
_ACTED = frozenset({BranchState.READY, BranchState.DONE, BranchState.SKIPPED, BranchState.RESOLVED})
FOREVER_US = 253_370_764_800_000_000
"""The deadline of a plan that has none: the first day of the year 9999."""
_MANY = 8
ENDED = frozenset({TxState.COMMITTED, TxState.ABORTED})
TAKEN = 10
"""What taking a row over adds to its epoch, and an operator's order too. Whoever carries it out adds one with its
decision, its end and the end of its deliveries, and may do all three before the first is written: no two writers ever
mean the same state by one number, whatever the one who was cut off still writes."""


def held_back(reason: str) -> str:
    """The code of a branch's reason if it says that its call is held back; else empty."""
    code = reason.partition(":")[0]
    return code if code in HELD_BACK else ""


@dataclass(frozen=True, slots=True)
class Branch:
    """One participant's part in a global transaction."""

    id: str
    kind: Kind
    state: BranchState = BranchState.OPEN
    resource: str = ""
    """XA: the name of the database. Other kinds: the participant or target."""
    xid: str = ""
    """XA: the text under which it is prepared."""
    attempts: int = 0
    next_attempt_us: int = 0
    reason: str = ""
    """The last failure, refusal or heuristic: a reason code, perhaps followed by a text."""
    heuristic: bool = False
    """Someone else finished it, against or without the decision."""
    payload: bytes = b""
    result: bytes = b""
    action: Action | None = None
    """What its participant is called with, if it has one."""
    result_type: str = ""
    """Content type of the result; empty is application/json."""
    failures: int = 0
    """How many of the last attempts failed: an answer, *pending* too, begins anew."""
    since_us: int = 0
    """When the first attempt of this phase ended without success; 0: none has."""
    edited: bytes | None = None
    """What an operator has put in the place of the payload, which is kept; None: nothing."""

    @property
    def sent(self) -> bytes:
        """The payload that its participant is called with."""
        return self.payload if self.edited is None else self.edited

    def same_work(self, other: Branch) -> bool:
        """Is it the same branch, whatever became of it?"""
        return (self.kind, self.resource, self.xid, self.payload, self.action) == (
            other.kind,
            other.resource,
            other.xid,
            other.payload,
            other.action,
        )

    @property
    def has_holder(self) -> bool:
        """Was it prepared by a session that alone can finish it while it lives? Its xid ends in that session's id."""
        return "@" in self.xid


@dataclass(frozen=True, slots=True)
class Tx:
    """A global transaction: one decision over a list of branches."""

    tx_id: str
    namespace: str
    deadline_us: int
    gid: str = ""
    """The user's own name; empty when none was given (then the tx id serves)."""
    name: str = ""
    state: TxState = TxState.ACTIVE
    decision: Decision | None = None
    decided_by: DecidedBy | None = None
    reason: str = ""
    created_us: int = 0
    decided_us: int = 0
    ended_us: int = 0
    """When nothing was left to do, deliveries and callbacks included."""
    version: int = 0
    """Raised by each change of the undecided row; deciding requires the version that was read."""
    epoch: int = 0
    """Raised by each take-over in phase two; progress requires the epoch of the claim."""
    owner: str = ""
    lease_until_us: int = 0
    one_phase_resource: str = ""
    """The only resource where a single branch of this transaction may be committed in one phase."""
    labels: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    result: bytes = b""
    """What the caller stored with its commit."""
    branches: tuple[Branch, ...] = ()
    detail_pruned: bool = False
    in_doubt: bool = field(default=False, compare=False)
    """A running plan that was read from the log, and may have been COMMITTED and told so before: see *plans*."""
    unwanted: tuple[DecidedBy, str] | None = field(default=None, compare=False)
    """In doubt: who wants it aborted, and why, if its steps leave that open."""

    _by_id: tuple[object, dict[str, Branch]] | None = field(
        default=None, init=False, compare=False, repr=False
    )
    _followers: tuple[object, dict[str, list[Branch]]] | None = field(
        default=None, init=False, compare=False, repr=False
    )
    # Found at first use, each with the list that it was found in: a copy may have taken it along with another list.

    @property
    def ended(self) -> bool:
        """Is nothing left to do for the branches that have a first phase?"""
        return self.state in ENDED

    @property
    def heuristic(self) -> bool:
        """Did any branch end against or without the decision?"""
        return any(b.heuristic for b in self.branches)

    @property
    def parked(self) -> int:
        """How many branches need an operator."""
        return sum(b.state is BranchState.PARKED for b in self.branches)

    @property
    def shown_parked(self) -> bool:
        """Is the transaction itself to be shown as PARKED: phase two, parked branches, nothing runnable?"""
        return (
            self.state in (TxState.COMMITTING, TxState.ABORTING)
            and self.parked > 0
            and not any(b.state in RUNNABLE_BRANCH and self.may_go(b) for b in self.branches)
        )

    @property
    def rests(self) -> bool:
        """Is nothing carried out any more, for good or until an operator comes? Only deliveries go on after the end."""
        if not self.ended:
            return self.shown_parked
        return not any(b.kind.is_delivery and b.state is BranchState.FINISHING for b in self.branches)

    def may_go(self, branch: Branch, state: BranchState | None = None) -> bool:
        """Has everything happened that comes before what this branch has to do now?

        Actions come after those they name, confirms too; what is undone is undone in reverse. ``state``: as if it were
        in that.
        """
        if branch.action is None:
            return True
        state = state or branch.state
        if state is BranchState.UNDOING:
            return all(b.state in SETTLED_BRANCH for b in self._after(branch))
        before = [b for b in map(self.branch, branch.action.after) if b is not None]
        if state is BranchState.RUNNING:
            return branch.kind is not Kind.SAGA or all(b.state in _ACTED for b in before)
        return all(b.state in SETTLED_BRANCH for b in before)

    def _after(self, branch: Branch) -> list[Branch]:
        """Those of its kind that come after it."""
        found = self._followers
        if found is None or found[0] is not self.branches:
            following: dict[str, list[Branch]] = {}
            for b in self.branches:
                for name in b.action.after if b.action is not None else ():
                    following.setdefault(name, []).append(b)
            found = (self.branches, following)
            object.__setattr__(self, "_followers", found)
        return [b for b in found[1].get(branch.id, ()) if b.kind is branch.kind]

    def branch(self, branch_id: str) -> Branch | None:
        """The branch of that id."""
        if len(self.branches) < _MANY:
            return next((b for b in self.branches if b.id == branch_id), None)
        # Found once for all of them: a plan may have a thousand, and each answer looks for many.
        found = self._by_id
        if found is None or found[0] is not self.branches:
            found = (self.branches, {b.id: b for b in self.branches})
            object.__setattr__(self, "_by_id", found)
        return found[1].get(branch_id)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One thing that happened to a transaction beside its milestones (which are columns of its row)."""

    at_us: int
    what: str
    branch: str = ""
    by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Audit:
    """Who made an operator's change, and why. Written in the same SQL transaction as the change."""

    actor: str
    reason: str
    action: str
    at_us: int
    branch: str = ""
    replay: str = ""
    """The job that gave the order, if one did."""
    detail: str = ""
    """JSON: what was asked beside it; empty for nothing."""


class Topic(IntFlag):
    """Where an announcement goes."""

    EVENTS = 1
    DEAD_LETTERS = 2


@dataclass(frozen=True, slots=True)
class Announcement:
    """What the world outside is to hear of a transaction. Written in the same SQL transaction as the change that makes
    it so, and published from there."""

    epoch: int
    seq: int
    """Its place among those of its transaction, in order of (epoch, seq)."""
    what: str
    branch: str
    at_us: int
    topics: Topic
    data: str
    """JSON."""


class ChangeKind(StrEnum):
    """The kinds of change a log row can see; one SQL statement for each in a flush."""

    INSERT = "insert"
    """A new row with its branches; fails when the tx id or the gid is taken."""
    AMEND = "amend"
    """The undecided row (enlist, vote) or its decision; requires ``expected_version`` and no decision yet."""
    PROGRESS = "progress"
    """Phase two went on, or ended; requires ``expected_epoch``. Never changes the decision."""
    OPERATE = "operate"
    """An operator's change to a decided row: requires ``expected_epoch`` and takes the row over."""
    RELEASE_GID = "release_gid"
    """An aborted transaction gives its gid up, so that the same work can be tried again."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the log. ``tx`` is the row as it shall be."""

    kind: ChangeKind
    tx: Tx
    touched: tuple[Branch, ...] = ()
    """Branches to insert or overwrite."""
    expected_version: int = 0
    expected_epoch: int = 0
    not_after_us: int | None = None
    """The writing statement itself refuses after this time of the log's clock."""
    forced: bool = True
    """Must be on disk before anything acts on it. False: it may ride on a later flush."""
    soon: bool = False
    """Somebody waits for it: it goes with the next flush, though that need not be synced for its sake."""
    history: tuple[HistoryEntry, ...] = ()
    audit: Audit | None = None
    announcements: tuple[Announcement, ...] = ()
    job: tuple[str, int] | None = None
    """OPERATE: written only while this replay job runs, under this epoch. Else it is a conflict."""


class Written(StrEnum):
    """What became of a change."""

    OK = "ok"
    CONFLICT = "conflict"
    """Somebody was first: the key is taken, or version or epoch are not what was expected. Read again."""
    TOO_LATE = "too_late"
    """The log's clock was past ``not_after_us``; nothing was written."""


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of a change, and the log's clock at that moment."""

    written: Written
    now_us: int


@dataclass(frozen=True, slots=True)
class Windows:
    """How long what may be answered. See *Windows* in ``docs/explanation/windows.md``."""

    grace_us: int = 5_000_000
    retention_us: int = 90 * 86_400_000_000

    def marker_until(self, deadline_us: int) -> int:
        """H: no marker of this transaction is inserted later."""
        return deadline_us + self.grace_us

    def abort_until(self, deadline_us: int) -> int:
        """W: a first contact later than this gets EXPIRED and writes nothing."""
        return deadline_us + self.grace_us + self.retention_us // 2

    def keep_until(self, deadline_us: int) -> int:
        """P: the bare row of the tx id is kept until then."""
        return deadline_us + self.grace_us + self.retention_us


BY_ITSELF = "txcoord"
"""The actor of what no operator has ordered."""


@dataclass(frozen=True, slots=True)
class TargetRule:
    """What an operator has said about a target, and whether it was disabled; one that is as if nothing had been said
    limits nothing."""

    target: str
    paused: bool = False
    paused_until_us: int = 0
    """When the pause ends by itself; 0: when it is resumed."""
    rate_per_s: float = 0.0
    """Calls a second, by the whole fleet where it shares; 0: no limit. A call for one branch counts as one."""
    at_once: int = 0
    """Calls at one time; 0: no limit."""
    actor: str = ""
    reason: str = ""
    changed_us: int = 0
    disabled_us: int = 0
    """Since when no notification is sent to it, as nothing arrived for long; 0: it is."""
    failing_since_us: int = 0
    """Since when no notification has arrived, as far as that was noted; 0: some do."""
    alias_of: str = ""
    """Where its calls go instead; empty: to itself."""

    def is_paused(self, now_us: int) -> bool:
        """Are no calls made now?"""
        return self.paused and (not self.paused_until_us or now_us < self.paused_until_us)

    @property
    def says_something(self) -> bool:
        """Does it make a difference to calls?"""
        return self.paused or self.limits or bool(self.disabled_us or self.alias_of)

    @property
    def limits(self) -> bool:
        """Is there a limit?"""
        return bool(self.rate_per_s or self.at_once)


@dataclass(frozen=True, slots=True)
class TargetAudit:
    """Who changed a target's rule, and why. Written in the same SQL transaction as the change."""

    target: str
    action: str
    """``target.pause``, ``target.resume``, ``target.limit``, ``target.alias`` or ``target.disable``."""
    actor: str
    reason: str
    at_us: int
    namespace: str = ""
    """In whose name it was asked for; the rule holds for all."""
    detail: str = ""
    """JSON: the rule before and after."""
