"""Messages that leave one after the other: those of one namespace, target and key.

A message takes its place with the write after which its transaction can be committed without asking: the decision, or
the row that is forced before a local COMMIT. So what was committed before another commit was asked for is before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

from .model import SETTLED_BRANCH, Branch, Change, ChangeKind, Decision, Tx

WAITS = "ORDER_WAITS"
"""Why a message that is due is not sent: another one of its key comes first."""


@dataclass(frozen=True, slots=True)
class Place:
    """A message's place among those of its key."""

    branch: str
    position: int
    """Of the branch in its transaction: what one transaction sends stays in its order."""
    line: str
    due_us: int
    """Nobody waits for it before then."""


def line_of(namespace: str, branch: Branch) -> str:
    """What names those that leave one after the other; empty: it has no order."""
    key = branch.action.delivery.order_key if branch.action is not None else ""
    if not key:
        return ""
    return blake2b(f"{namespace}\0{branch.resource}\0{key}".encode(), digest_size=16).hexdigest()


def lines_of(tx: Tx) -> Iterator[tuple[Branch, str]]:
    """Its branches that have an order, with their lines."""
    for branch in tx.branches:
        if branch.action is not None and branch.action.delivery.order_key:
            yield branch, line_of(tx.namespace, branch)


def places_of(change: Change) -> tuple[Place, ...]:
    """The places that are taken with this change; those that are taken already stay as they are."""
    tx = change.tx
    if change.kind not in (ChangeKind.INSERT, ChangeKind.AMEND):
        return ()
    if tx.decision is not Decision.COMMIT and not (tx.decision is None and tx.one_phase_resource):
        return ()
    return tuple(
        Place(b.id, position, line_of(tx.namespace, b), b.action.delivery.deliver_at_us)
        for position, b in enumerate(tx.branches)
        if b.action is not None and b.action.delivery.order_key
    )


def ended(tx: Tx) -> dict[str, str]:
    """The branches that nobody waits for any more, with their lines."""
    aborted = tx.decision is Decision.ABORT
    return {b.id: line for b, line in lines_of(tx) if aborted or b.state in SETTLED_BRANCH}
