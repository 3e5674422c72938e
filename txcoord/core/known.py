"""What is known already: is it asked for again, or is it other work under the same name?"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from .action import Op
from .deciding import expired, refuse, too_late
from .errors import Refusal
from .events import Verdict
from .model import SETTLED_BRANCH, Branch, BranchState, Decision, Tx, Windows

_JSON = "application/json"
_ASK_AGAIN_US = 500_000


def content_of(tx: Tx) -> tuple[object, ...]:
    """What a transaction was begun with."""
    return (tx.namespace, tx.gid, tx.name, dict(tx.labels), dict(tx.headers), tx.one_phase_resource)


def same_plan(tx: Tx, asked: Tx) -> bool:
    """Has it the steps that are asked for, as they are asked for?"""
    return len(tx.branches) == len(asked.branches) and all(
        old is not None and old.same_work(b) for b in asked.branches for old in [tx.branch(b.id)]
    )


def _differs(tx: Tx, new: Tx) -> str:
    """How a plan that has the gid of an earlier one differs from it. Where its participants are, and how often they
    are tried, may have changed since."""
    known = {b.id: b for b in tx.branches}
    if known.keys() != {b.id for b in new.branches}:
        return "it has other steps"
    for b in new.branches:
        old = known[b.id]
        if _work(old) != _work(b):
            return f"step {b.id} is another one"
        if old.payload != b.payload and not _same_value(old, b):
            return f"step {b.id} is given other data"
    return ""


def _work(b: Branch) -> tuple[object, ...]:
    a = b.action
    if a is None:
        return (b.kind, b.resource)
    # By their names at the participant: a default that is spelt out is the same.
    operations = tuple(map(a.operation_of, (Op.ACTION, Op.CONFIRM, Op.CANCEL)))
    kind = a.content_type or _JSON
    return (b.kind, operations, kind, a.name, a.after, a.results_of, a.forward, a.no_undo, a.run_first)


def _same_value(one: Branch, other: Branch) -> bool:
    try:
        return bool(_value(one) == _value(other))
    except RecursionError:
        return False  # Nested too deeply to be looked into: its bytes differ.


def _value(b: Branch) -> Any:
    """JSON by what it says, anything else by its bytes."""
    if b.action is not None and b.action.content_type in ("", _JSON):
        try:
            # In Python 1 is True and 1.0, and large decimals are the same float: not for who is to be paid.
            return json.loads(
                b.payload,
                parse_int=lambda text: ("int", int(text)),
                parse_float=lambda text: ("float", Decimal(text)),
                object_pairs_hook=_object,
            )
        except (ValueError, ArithmeticError):
            pass
    return b.payload


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice: which one counts is its reader's to say")
    return found


def gid_names(tx: Tx, new: Tx, windows: Windows) -> Verdict:
    """What is begun anew has the gid of another transaction. Is it other work, then *done before* would be a false
    success."""
    # Whoever aborted may not have known what it was, and what retention has stripped tells nothing.
    if tx.decision is not Decision.ABORT and not tx.detail_pruned:
        differs = ""
        if tx.name != new.name:
            differs = f"it was begun as {tx.name!r}, not {new.name!r}"
        elif new.branches:
            differs = _differs(tx, new)
        if differs:
            text = f"gid {tx.gid!r} names other work: {differs}"
            return refuse(tx, "ALREADY_EXISTS", "CONTENT_MISMATCH", text)
    return gid_taken(tx, windows)


def gid_taken(tx: Tx, windows: Windows) -> Verdict:
    """Its gid is held by this one."""
    if tx.decision is None:
        return refuse(
            tx,
            "ALREADY_EXISTS",
            "IN_PROGRESS",
            f"gid {tx.gid!r} is in progress as {tx.tx_id}",
            deadline_us=str(tx.deadline_us),
        )
    return already_decided(tx, windows)


def already_decided(tx: Tx, windows: Windows) -> Verdict:
    """It was decided before."""
    if expired(tx, windows):
        return too_late(tx)
    reason = "ALREADY_COMMITTED" if tx.decision is Decision.COMMIT else "ALREADY_ABORTED"
    return refuse(
        tx,
        "ALREADY_EXISTS",
        reason,
        f"{tx.gid or tx.tx_id!r} was decided before: {tx.state}",
        cause=tx.reason,
    )


def being_undone(tx: Tx) -> Refusal | None:
    """An aborted attempt keeps its gid while a participant may be asked to undo its part: one that goes by the gid
    would undo the next attempt's."""
    left = [
        b
        for b in tx.branches
        if b.action is not None and not b.kind.is_delivery and b.state not in SETTLED_BRANCH
    ]
    if tx.ended or not left:
        return None
    parked = next((b for b in left if b.state is BranchState.PARKED), None)
    b = parked or next((b for b in left if tx.may_go(b)), left[0])
    how = "is parked: an operator has to settle it" if parked else f"is to be undone at {b.resource!r}"
    text = f"the attempt {tx.tx_id} keeps gid {tx.gid!r} until it is undone: its branch {b.id} {how}"
    if b.reason:
        text += f" ({b.reason[:200]})"
    facts = {"tx_id": tx.tx_id, "branch": b.id}
    return Refusal("UNAVAILABLE", "BEING_UNDONE", text, True, facts, _ASK_AGAIN_US)
