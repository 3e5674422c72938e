"""Which participants are to be called now, with what, and when again."""

from __future__ import annotations

from .action import Op, Retry
from .backoff import Backoff
from .events import Call
from .evolve import replace
from .model import Branch, BranchState, Kind, Tx, held_back

_OPS = {
    (Kind.TCC, BranchState.RUNNING): Op.TRY,
    (Kind.TCC, BranchState.FINISHING): Op.CONFIRM,
    (Kind.TCC, BranchState.UNDOING): Op.CANCEL,
    (Kind.SAGA, BranchState.RUNNING): Op.ACTION,
    (Kind.SAGA, BranchState.UNDOING): Op.COMPENSATE,
    (Kind.MESSAGE, BranchState.FINISHING): Op.MESSAGE,
    (Kind.NOTIFY, BranchState.FINISHING): Op.NOTIFY,
    (Kind.CALLBACK, BranchState.FINISHING): Op.CALLBACK,
}


def op_of(branch: Branch) -> Op | None:
    """What its participant is to do for it now, if anything."""
    return _OPS.get((branch.kind, branch.state))


def call_of(branch: Branch) -> Call | None:
    """The call that it needs now."""
    op = op_of(branch)
    return Call(branch, op, branch.attempts + 1, branch.next_attempt_us) if op is not None else None


def calls_of(tx: Tx) -> tuple[Call, ...]:
    """All calls that may be made now; asking twice asks for the same."""
    if tx.rests:
        return ()
    branches = [b for b in tx.branches if b.kind.is_delivery] if tx.ended else tx.branches
    found = (call_of(b) for b in branches if op_of(b) is not None and tx.may_go(b))
    return tuple(call for call in found if call is not None)


NOTIFY_SCHEDULE_US = tuple(
    seconds * 1_000_000 for seconds in (15, 30, 180, 600, 1_800, 3_600, 7_200, 21_600, 54_000)
)
"""Pauses after the attempts of a notification whose sender chose nothing else: ten attempts within about a day."""


def own_retry(branch: Branch) -> Retry:
    """What the branch says of when it is tried again; of a notification that says nothing, the usual."""
    own = branch.action.retry if branch.action is not None else Retry()
    if branch.kind is not Kind.NOTIFY or replace(own, call_timeout_us=0) != Retry():
        return own
    return replace(own, schedule_us=NOTIFY_SCHEDULE_US)


def pause_us(own: Retry, defaults: Retry, failures: int, draw: float) -> int:
    """How long to wait after so many failures in a row; ``draw`` is uniform in [0, 1)."""
    if own.schedule_us:
        return own.schedule_us[min(failures, len(own.schedule_us)) - 1]
    backoff = Backoff(
        own.first_us or defaults.first_us,
        own.factor or defaults.factor,
        own.cap_us or defaults.cap_us,
    )
    return backoff.delay_us(failures, draw)


def spent(branch: Branch, defaults: Retry, now_us: int) -> bool:
    """Is its budget of attempts used up?"""
    # A first phase has no limit of its own but what was asked for: its deadline ends it.
    return stuck(branch, Retry() if branch.state is BranchState.RUNNING else defaults, now_us)


def stuck(branch: Branch, defaults: Retry, now_us: int) -> bool:
    """Has it failed for as long as anything else is tried?"""
    own = own_retry(branch)
    if branch.state is not BranchState.RUNNING and branch.action is not None and branch.action.run_first:
        # Where the coordinator runs the action, a short budget is for that: what undoes it must come to its end.
        own = Retry()
    most = own.max_attempts or defaults.max_attempts
    # A schedule ends by itself: the usual time could cut it off.
    until = own.give_up_us or (0 if own.schedule_us else defaults.give_up_us)
    if most and branch.failures >= most:
        return True
    if own.schedule_us and branch.failures > len(own.schedule_us):
        return True
    return bool(until and branch.since_us and now_us - branch.since_us >= until)


def waits_for_target(branch: Branch) -> bool:
    """Does it wait since its calls have failed or were held back? Not since its participant has asked for it."""
    return op_of(branch) is not None and bool(
        branch.next_attempt_us and (branch.failures or held_back(branch.reason))
    )
