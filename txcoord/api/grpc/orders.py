"""Which branches of a transaction an operator's order is about, where he has not named them."""

from __future__ import annotations

from collections.abc import Collection

from ...core.model import Branch, BranchState, Tx, held_back
from ...ports import Query

_PARKED = frozenset({BranchState.PARKED})
_ON_ITS_WAY = frozenset({BranchState.FINISHING, BranchState.UNDOING})
_APPLIES = {
    "retry": _PARKED | _ON_ITS_WAY | {BranchState.RUNNING},
    "park": _ON_ITS_WAY,
    # What is on its way, or waits for its time, is given up by name only.
    "skip": _PARKED,
    "resolve": _PARKED,
    "not_done": frozenset[BranchState](),  # A person's word about one step, which he names.
}
HINTS = {
    "retry": "none is parked or failing",
    "park": "none is failing",
    "skip": "none is parked: name what is to be given up though it is on its way",
    "resolve": "none is parked: name what was settled though it is on its way",
    "not_done": "name it",
}
"""Why an order applies to no branch."""


def about(tx: Tx, action: str, named: Collection[str], query: Query | None) -> list[str]:
    """The branches, in their order. ``named``: only these, whether they are parked, failing or not."""
    if named and query is None:
        return list(named)
    found = [b for b in tx.branches if query is None or _matches(b, query)]
    if named:
        return [b.id for b in found if b.id in named]
    return [b.id for b in found if _applies(b, action)]


def _applies(branch: Branch, action: str) -> bool:
    if branch.state not in _APPLIES[action]:
        return False
    # What has not failed yet goes its way, or waits for its time.
    waits = action == "retry" and held_back(branch.reason)
    return bool(branch.state is BranchState.PARKED or branch.attempts or waits)


def _matches(branch: Branch, q: Query) -> bool:
    """Is it this branch for which the filter has found its transaction?"""
    return (
        (not q.parked or branch.state is BranchState.PARKED)
        and (not q.heuristic or branch.heuristic)
        and q.kind in (None, branch.kind)
        and q.resource in (None, branch.resource)
        and (q.reason is None or branch.reason == q.reason or branch.reason.startswith(f"{q.reason}:"))
    )
