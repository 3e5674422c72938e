"""One list of branches out of what several say of them."""

from __future__ import annotations

from .evolve import replace
from .kinds import RULES
from .model import Branch, BranchState

_WEIGHT = {
    BranchState.OPEN: 0,
    BranchState.RUNNING: 0,
    BranchState.READ_ONLY: 1,
    BranchState.READY: 2,
    BranchState.REFUSED: 3,
}


def says_more(new: Branch, old: Branch) -> bool:
    """Two reports of one branch (a call that ran twice): a no outweighs a yes, and a yes *I wrote nothing*.

    The order of their arrival must not matter, and no prepared branch may count as read-only.
    """
    return _WEIGHT.get(new.state, -1) > _WEIGHT.get(old.state, 3)


def is_called(b: Branch) -> bool:
    """Does a participant do its work? Then only the log knows whom to ask for confirm or cancel."""
    return RULES[b.kind].first_phase and RULES[b.kind].driven_by == "caller"


def only_named(b: Branch) -> bool:
    """Must it be in the log already? A delivery that says what it is need not be."""
    return is_called(b) or (b.kind.is_delivery and b.action is None)


def filled(b: Branch, old: Branch) -> Branch:
    """A branch that is enlisted is named by its number and kind, with its vote; the rest is in the log."""
    if old.action is None or b.action is not None or b.kind is not old.kind or b.resource or b.payload:
        return b
    kept = replace(old, state=b.state, reason=b.reason or old.reason)
    return replace(kept, result=b.result, result_type=b.result_type) if b.result else kept


def union(known: tuple[Branch, ...], asked: tuple[Branch, ...]) -> tuple[tuple[Branch, ...], str]:
    """The decided list is the union of Commit's list and what enlisted by itself."""
    merged = {b.id: b for b in known}
    for b in asked:
        old = merged.get(b.id)
        if old is not None:
            b = filled(b, old)
        if old is not None and not old.same_work(b):
            return known, b.id
        if old is None or says_more(b, old):
            merged[b.id] = b
    return tuple(merged.values()), ""
