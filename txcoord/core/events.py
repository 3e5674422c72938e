"""What can happen to a transaction, and what has to be done about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .action import Answer, Op, Retry
from .errors import Refusal
from .model import Audit, Branch, Change, DecidedBy, Tx

# ---- events ----


@dataclass(frozen=True, slots=True)
class Begin:
    """A transaction is announced (forced, because it carries a gid)."""

    tx: Tx


@dataclass(frozen=True, slots=True)
class Enlist:
    """Branches join an undecided transaction from another process, with or without their vote."""

    tx: Tx
    """The transaction as the caller knows it; written when the log has never heard of it."""
    branches: tuple[Branch, ...]
    run: bool = False
    """Those that are steps are run at once."""


@dataclass(frozen=True, slots=True)
class Submit:
    """A whole plan is handed over: its steps are run, and decide."""

    tx: Tx


@dataclass(frozen=True, slots=True)
class StepsSettled:
    """The steps of a plan may have decided: all are done, or one said no."""


@dataclass(frozen=True, slots=True)
class Commit:
    """The caller asks for commit and gives its whole branch list, votes included."""

    tx: Tx
    begun: bool = False
    """The caller knows of a row. When there is none, a log has been lost: that is an abort."""


@dataclass(frozen=True, slots=True)
class Rollback:
    """Somebody asks for abort."""

    tx: Tx
    """Identity, deadline and the branches that the caller knows of."""
    by: DecidedBy = DecidedBy.CLIENT
    reason: str = "ROLLED_BACK_BY_CLIENT"
    sealed: bool = False
    """The initiator asks, no commit (a local one-phase COMMIT counts) was ever sent, and none will be."""
    logged: bool = True
    """False: may stay unlogged when sealed and the log has no row."""
    probed: bool = False
    """Every resource where a one-phase commit may have happened has answered: it did not, and never will."""
    resources: tuple[str, ...] = ()
    """Where a one-phase commit may have happened, as the asker knows; none named: all of the namespace."""


@dataclass(frozen=True, slots=True)
class OnePhaseDone:
    """The transaction's database has committed its only branch in one phase."""

    tx: Tx


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """Time is up for an undecided transaction."""

    probed: bool = False


@dataclass(frozen=True, slots=True)
class OrphanFound:
    """A prepared branch of which the log has never heard, past its deadline and grace."""

    tx: Tx


@dataclass(frozen=True, slots=True)
class BranchFinished:
    """Phase two of a branch is done, with proof."""

    branch_id: str


@dataclass(frozen=True, slots=True)
class BranchFailed:
    """An attempt at phase two failed; it will be tried again."""

    branch_id: str
    reason: str
    retry_at_us: int


@dataclass(frozen=True, slots=True)
class HeuristicSeen:
    """Someone else finished the branch, against the decision."""

    branch_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class HolderReported:
    """The session that prepared a branch says what it has done with it."""

    branch_id: str
    resource: str
    xid: str
    committed: bool | None
    """True: committed, False: rolled back, None: nothing, and it will do nothing any more."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A participant has answered a call, or failed to."""

    branch_id: str
    op: Op
    attempt: int
    answer: Answer
    draw: float = 1.0
    """Uniform in [0, 1): when to call again."""
    defaults: Retry = field(default_factory=Retry)
    """What holds where the branch says nothing else."""
    sent: bytes | None = None
    """The payload that it was called with; None: that is not known."""


@dataclass(frozen=True, slots=True)
class Deferred:
    """A call that was due is not made now: its target is paused, dead or has no room. It is nobody's failure."""

    branch_id: str
    op: Op
    attempt: int
    until_us: int
    """When it is due again."""
    reason: str
    """``TARGET_PAUSED``, ``BREAKER_OPEN`` or ``RATE_LIMITED``, perhaps followed by a text."""


@dataclass(frozen=True, slots=True)
class NotSent:
    """A delivery that was due is not sent, now or later: its target is disabled. It is parked; no attempt was made."""

    branch_id: str
    op: Op
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Operate:
    """An operator's order about one branch: ``retry``, ``park``, ``skip``, ``resolve`` or ``not_done``."""

    action: str
    branch_id: str
    audit: Audit
    payload: bytes | None = None
    """``retry`` of a parked delivery: sent from now on instead of its own, which is kept."""
    reset: bool = False
    """``retry``: attempts are counted from 0 again, and its whole budget is there again. Of a parked one always."""
    parked: bool = False
    """Only if it is parked: as it was when it was chosen."""
    early: bool = False
    """``retry``: a delivery is sent at once also if its time has not come."""
    job_epoch: int = 0
    """Of a replay's order: it counts only while its job runs under this epoch."""


Event = (
    Begin
    | Enlist
    | Submit
    | StepsSettled
    | Commit
    | Rollback
    | OnePhaseDone
    | DeadlinePassed
    | OrphanFound
    | BranchFinished
    | BranchFailed
    | HeuristicSeen
    | HolderReported
    | Answered
    | Deferred
    | NotSent
    | Operate
)

# ---- effects: to be carried out after the verdict's change is written ----


@dataclass(frozen=True, slots=True)
class Finish:
    """Carry phase two of a branch out: commit it, or undo it."""

    branch: Branch
    commit: bool
    at_us: int = 0
    """Not before; 0 is at once."""
    held: bool = False
    """The session that prepared it may live, and finishes it by itself: give it some time first."""


@dataclass(frozen=True, slots=True)
class Call:
    """Call the participant of a branch."""

    branch: Branch
    op: Op
    attempt: int
    """From 1, in this phase."""
    at_us: int = 0
    """Not before; 0 is at once."""


@dataclass(frozen=True, slots=True)
class Decide:
    """The steps have decided: send :class:`StepsSettled`, again until it is written."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask these resources, by tombstone, whether a one-phase commit happened; then send the event again,
    ``probed``, or :class:`OnePhaseDone`. No resources named: all of the namespace."""

    resources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """The transaction has ended, or nothing more happens without an operator: tell who waits."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that a person must see."""

    kind: str
    branch_id: str = ""
    detail: str = ""


Effect = Finish | Call | Decide | Probe | Settled | Alarm


@dataclass(frozen=True, slots=True)
class Verdict:
    """What :func:`txcoord.core.machine.decide` answers."""

    tx: Tx
    """The transaction as it is once ``change`` is written."""
    change: Change | None = None
    effects: tuple[Effect, ...] = ()
    refusal: Refusal | None = None
    """Nothing is written and this is answered."""
    unlogged: bool = field(default=False)
    """The answer is final though no row says it (presumed abort)."""
