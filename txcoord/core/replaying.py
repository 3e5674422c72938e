"""Replay: a job that retries parked branches at a pace, and stops where going on would only do harm."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

from .model import Audit, Branch, BranchState


class JobState(StrEnum):
    """Where a job stands."""

    RUNNING = "running"
    STOPPED = "stopped"
    """By a canary, or by too many failures: can be resumed."""
    CANCELLED = "cancelled"
    """By an operator: can be resumed."""
    DONE = "done"


class ItemState(StrEnum):
    """What became of one branch of a job."""

    WAITING = "waiting"
    TAKING = "taking"
    """Its order is being given. After a crash the audit trail says whether it was."""
    TAKEN = "taken"
    """It is on its way again."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """It was parked again."""
    REFUSED = "refused"
    """The order was refused: done already, past retention."""
    WOULD = "would"
    """A dry run: it would be retried."""


@dataclass(frozen=True, slots=True)
class Order:
    """What an operator has asked for."""

    filter: str = ""
    target: str = ""
    """Only branches for this target."""
    since_us: int = 0
    """Only those that were parked since."""
    limit: int = 0
    """At most so many branches; 0: all."""
    rate_per_s: float = 0.0
    """0: as fast as their targets allow, with a bounded number on their way."""
    canary: tuple[int, ...] = ()
    """Sizes of the first groups: each must end well before the next one begins."""
    max_failures: int = 0
    """So many, and it stops; 0: only a canary stops it."""
    dry_run: bool = False
    by_hand: bool = False
    """Also branches that an operator has parked."""


@dataclass(frozen=True, slots=True)
class Base:
    """What the counts were when a job was resumed last."""

    taken: int = 0
    failed: int = 0
    well: int = 0
    step: int = 0


_ORDERED = (ItemState.TAKING, ItemState.TAKEN, ItemState.SUCCEEDED, ItemState.FAILED)


@dataclass(frozen=True, slots=True)
class Replay:
    """A job."""

    id: str
    namespace: str
    order: Order
    actor: str
    reason: str
    state: JobState = JobState.RUNNING
    message: str = ""
    """Why it is not running any more, for people."""
    request_id: str | None = None
    owner: str = ""
    epoch: int = 0
    """Raised by each take-over, cancel and resume: whoever runs it writes only with the one that it knows."""
    lease_until_us: int = 0
    started_us: int = 0
    updated_us: int = 0
    ended_us: int = 0
    after: tuple[str, str] = ("", "")
    """Tx id and branch: all parked branches up to here are items."""
    listed: bool = False
    """All are."""
    canary_step: int = 0
    base: Base = field(default_factory=lambda: Base())
    counts: dict[ItemState, int] = field(default_factory=dict, compare=False)
    """Of its items. Read from them, never written."""

    def count(self, *states: ItemState) -> int:
        """How many items are in one of these states."""
        return sum(self.counts.get(state, 0) for state in states)

    @property
    def group(self) -> int | None:
        """How many items may have been taken by the end of the present canary; None: at full pace."""
        if self.canary_step >= len(self.order.canary):
            return None
        return self.base.taken + sum(self.order.canary[self.base.step : self.canary_step + 1])

    @property
    def taken(self) -> int:
        """How many orders were given."""
        return self.count(*_ORDERED)

    def begun_again(self) -> Replay:
        """Resumed: what has failed until now stops it no more."""
        base = Base(
            self.taken, self.count(ItemState.FAILED), self.count(ItemState.SUCCEEDED), self.canary_step
        )
        return replace(self, state=JobState.RUNNING, base=base, message="", ended_us=0)


@dataclass(frozen=True, slots=True)
class ReplayItem:
    """One branch of a job."""

    tx_id: str
    branch: str
    state: ItemState = ItemState.WAITING
    gid: str = ""
    reason: str = ""
    """Reason code, where it was refused or has failed."""
    message: str = ""


@dataclass(frozen=True, slots=True)
class ParkedBranch:
    """A parked branch, as groups of them are made of it."""

    tx_id: str
    gid: str
    branch: Branch
    parked_us: int
    """When it was parked last; 0: not known any more."""
    again: bool = False
    """An operator had retried it before."""


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which rows of the audit trail, newest first. What is empty is left open."""

    namespace: str
    tx_id: str = ""
    actor: str = ""
    action: str = ""
    replay: str = ""
    target: str = ""
    node: str = ""
    since_us: int = 0
    everywhere: bool = True
    """Also what was ordered about targets and nodes, which are of no namespace."""
    before: tuple[int, int] | None = None
    """Page on from the row with this time and ordinal (exclusive)."""
    limit: int = 100


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A row of the audit trail."""

    tx_id: str
    """Of an order about a job: the job's id; empty for a target or a node."""
    ordinal: int
    audit: Audit
    target: str = ""
    node: str = ""
    namespace: str = ""
    """In whose name a target's rule was changed; it holds for all."""
    identity: str = ""
    """Name of the token that was shown, where it is kept beside the actor."""


_MOST_OPEN = 500
"""Where no rate is given, so many are on their way at one time."""


def outcome(branch: Branch | None) -> ItemState:
    """What has become of a branch that was taken."""
    if branch is None:
        return ItemState.SUCCEEDED  # Its detail was pruned: it had ended.
    if branch.state is BranchState.PARKED:
        return ItemState.FAILED
    if branch.state in (BranchState.FINISHING, BranchState.UNDOING, BranchState.RUNNING):
        return ItemState.TAKEN
    return ItemState.SUCCEEDED


def room(replay: Replay, allowance: float) -> int:
    """How many items may be taken now. ``allowance``: what the rate has let together since the last one."""
    free = replay.count(ItemState.WAITING)
    if replay.order.rate_per_s:
        free = min(free, int(allowance))
    else:
        free = min(free, _MOST_OPEN - replay.count(ItemState.TAKING, ItemState.TAKEN))
    if replay.group is not None:
        free = min(free, replay.group - replay.taken)
    return max(0, free)


def stopped(replay: Replay, failing: int, example: str) -> str:
    """Why it must go no further; empty: it may. ``failing``: how many of those that are on their way have failed at
    least once since they were taken."""
    failed = replay.count(ItemState.FAILED) - replay.base.failed + failing
    if replay.group is not None and failed:
        return f"canary {replay.order.canary[replay.canary_step]}: {failed} failed: {example}"
    if replay.order.max_failures and failed >= replay.order.max_failures:
        return f"{failed} failed, {replay.order.max_failures} were allowed: {example}"
    return ""


def next_canary(replay: Replay) -> int:
    """The step of the canary after what has ended well until now."""
    step, well = replay.canary_step, replay.count(ItemState.SUCCEEDED) - replay.base.well
    canary = replay.order.canary
    while step < len(canary) and well >= sum(canary[replay.base.step : step + 1]):
        step += 1
    return step


def over(replay: Replay) -> bool:
    """Is there nothing left to do?"""
    return replay.listed and not replay.count(ItemState.WAITING, ItemState.TAKING, ItemState.TAKEN)
