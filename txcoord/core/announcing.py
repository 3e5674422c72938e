"""What the world outside may hear of a transaction: its decision, its end, branches that are parked or heuristic.

An announcement is made of what a change makes different, and is written with that change. Its place (epoch, seq) is its
transaction's own: it orders them, and is the same when a change is written once more after its reply was lost. What
raises the epoch comes before whatever else that epoch brings.
"""

from __future__ import annotations

import json
from typing import Any

from .evolve import replace
from .model import ENDED, Announcement, Branch, BranchState, Change, Decision, TargetRule, Topic, Tx

DECIDED = "transaction.decided"
COMMITTED = "transaction.committed"
ABORTED = "transaction.aborted"
PARKED = "branch.parked"
HEURISTIC = "branch.heuristic"

TARGET_DISABLED = "target.disabled"

_END = 9_999
_LATER = 10_000
"""From here on: what comes within an epoch, and did not raise it. At most a thousand branches, two places each."""
_BRANCHES = 200
_REASON = 500
_LABELS = 16_384
"""Announcements stay small whatever the transaction is: many brokers take a megabyte at most."""


def announced(old: Tx | None, change: Change, now_us: int, *, events: bool, dead_letters: bool) -> Change:
    """The change with what it has to announce. ``old`` is the row that it changes; None: it makes it."""
    new = change.tx
    topics = Topic.EVENTS if events else Topic(0)
    found: list[Announcement] = []
    if events and new.decision is not None and (old is None or old.decision is None):
        found.append(_of(new, 0, DECIDED, new.decided_us, topics))
    base = _LATER if old is not None and old.epoch == new.epoch else 0
    if new.decision is not None or events:
        for place, b in enumerate(new.branches):
            before = old.branch(b.id) if old is not None else None
            if before is b:
                continue
            at = base + 1 + 2 * place
            if events and b.heuristic and (before is None or not before.heuristic):
                found.append(_of(new, at, HEURISTIC, now_us, topics, b))
            # A step of a plan that is given up is compensated: nobody need come for it.
            parked = b.state is BranchState.PARKED and new.decision is not None
            if parked and (before is None or before.state is not BranchState.PARKED):
                to = topics | (Topic.DEAD_LETTERS if dead_letters else Topic(0))
                if to:
                    found.append(_of(new, at + 1, PARKED, now_us, to, b))
    if events and new.state in ENDED and (old is None or old.state not in ENDED):
        what = COMMITTED if new.decision is Decision.COMMIT else ABORTED
        found.append(_of(new, _END, what, now_us, topics))
    return replace(change, announcements=tuple(found)) if found else change


def target_disabled(rule: TargetRule) -> Announcement:
    """A target is disabled: no notification is sent to it any more. It is of no transaction."""
    data = {
        "target": rule.target,
        "reason": rule.reason[:_REASON],
        "failing_since_us": rule.failing_since_us,
        "disabled_us": rule.disabled_us,
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Announcement(0, 0, TARGET_DISABLED, "", rule.disabled_us, Topic.EVENTS, text)


def _of(tx: Tx, seq: int, what: str, at_us: int, topics: Topic, branch: Branch | None = None) -> Announcement:
    data: dict[str, Any] = {
        "namespace": tx.namespace,
        "gid": tx.gid or tx.tx_id,
        "name": tx.name,
        "labels": _labels(tx),
        "state": tx.state.value,
        "decision": tx.decision.value if tx.decision is not None else None,
        "decided_by": tx.decided_by.value if tx.decided_by is not None else None,
        "reason": tx.reason[:_REASON],
        "heuristic": tx.heuristic,
        "created_us": tx.created_us,
        "decided_us": tx.decided_us,
    }
    if branch is not None:
        data["branch"] = _shown(branch)
    data["branches"] = [_shown(b) for b in tx.branches[:_BRANCHES]]
    if len(tx.branches) > _BRANCHES:
        data["branches_left_out"] = len(tx.branches) - _BRANCHES
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Announcement(tx.epoch, seq, what, branch.id if branch is not None else "", at_us, topics, text)


def _shown(b: Branch) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": b.id,
        "kind": b.kind.value,
        "target": b.resource[:_REASON],
        "state": b.state.value,
    }
    if b.attempts:
        shown["attempts"] = b.attempts
    if b.reason:
        shown["reason"] = b.reason[:_REASON]
    if b.heuristic:
        shown["heuristic"] = True
    return shown


def _labels(tx: Tx) -> dict[str, str]:
    out, room = {}, _LABELS
    for key, value in tx.labels.items():
        room -= len(key) + len(value)
        if room >= 0:
            out[key] = value
    return out
