"""What has become of a transaction, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ...core.model import FOREVER_US, Branch, BranchState, Decision, HistoryEntry, Kind, Tx
from .calls import OPS, Called
from .house import Note

_SAME_MOST = 3
"""So many lines that say the same are shown, the rest is counted."""


def name_of(tx: Tx) -> str:
    """As people call it."""
    return tx.gid or tx.tx_id


def state_of(tx: Tx) -> str:
    """``COMMITTED``, ``ABORTING (PARKED)`` …"""
    state = str(tx.state).upper()
    return f"{state} (PARKED)" if tx.shown_parked else state


def headline(tx: Tx) -> str:
    """In one line."""
    title = f"{name_of(tx)}" + (f" ({tx.name})" if tx.name and tx.name != "transaction" else "")
    why = f", {tx.reason}" if tx.reason else ""
    by = f" by {tx.decided_by}" if tx.decided_by is not None else ""
    verb = f": {tx.decision} was decided{by}{why}" if tx.decision is not None else ""
    return f"{title} is {state_of(tx)}{verb}"


def told(tx: Tx, history: Sequence[HistoryEntry], notes: Iterable[Note], now_us: int) -> str:
    """Its time line, and what it waits for."""
    lines = [(tx.created_us, f"begun{_deadline(tx)}")]
    lines += [(n.at_us, n.text) for n in notes if n.tx_id in ("", tx.tx_id) and n.at_us >= tx.created_us]
    shown = {"branch.failed", "branch.finished", "branch.refused", "branch.pending"}
    lines += [
        (h.at_us, " ".join(filter(None, (h.what, h.branch and f"branch {h.branch}", h.by, h.reason))))
        for h in history
        if h.what not in shown
    ]
    if tx.ended_us:
        lines.append((tx.ended_us, f"ended {state_of(tx)}"))
    out = [headline(tx)]
    seen: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for at_us, text in sorted(lines, key=lambda line: line[0]):
        kind = text.partition(", attempt ")[0]
        seen[kind] += 1
        if seen[kind] > _SAME_MOST:
            left[kind] += 1
            continue
        out.append(f"  {since(at_us - tx.created_us):>10}  {text}")
    out += [f"              … and {times} more: {kind}" for kind, times in left.items()]
    out += [f"  now {since(now_us - tx.created_us)}: {line}" for line in waits(tx, now_us)]
    return "\n".join(out)


def waits(tx: Tx, now_us: int) -> list[str]:
    """Why it has not ended."""
    if tx.ended:
        return []
    if tx.decision is None and tx.deadline_us != FOREVER_US and not any(b.action for b in tx.branches):
        return [f"nobody has decided; its deadline is in {since(tx.deadline_us - now_us)[1:]}"]
    found = []
    for b in tx.branches:
        if b.next_attempt_us > now_us:
            found.append(
                f"{what(b)} is {str(b.state).upper()}; it is asked again in {since(b.next_attempt_us - now_us)[1:]}: "
                "`await txcoord.settle()` goes there"
            )
        elif b.state is BranchState.PARKED:
            found.append(f"{what(b)} is PARKED, for a person: {b.reason}")
    if not found and tx.decision is None:
        found.append("it is not decided yet")
    elif not found:
        found.append("it is on its way: `await txcoord.settle()` lets it arrive")
    return found


def what(branch: Branch) -> str:
    """A branch, for people."""
    if branch.kind is Kind.XA:
        return f"branch {branch.id}, xa on {branch.resource}"
    operation = branch.action.operation if branch.action is not None else branch.resource
    return f"branch {branch.id}, {branch.kind} {operation}"


def since(us: int) -> str:
    """+0.120 s, +1 h 02 m"""
    seconds = us / 1e6
    if abs(seconds) < 120:
        return f"{seconds:+.3f} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600, 1)
    return f"{minutes:+d} min" if abs(minutes) < 120 else f"{hours:+g} h"


def _deadline(tx: Tx) -> str:
    if tx.deadline_us == FOREVER_US:
        return ", without a deadline"
    return f", to be done within {since(tx.deadline_us - tx.created_us)[1:]}"


def wrong_effects(tx: Tx, calls: Iterable[Called]) -> list[str]:
    """What was done more than once, or not at all, or half."""
    mine = [c for c in calls if c.tx_id == tx.tx_id]
    count = Counter((c.branch, c.op) for c in mine if c.effect)
    wrong: list[str] = []
    for b in tx.branches:
        if b.action is None or b.kind is Kind.CALLBACK:  # which has no barrier, and may come again
            continue
        wrong.extend(
            f"{what(b)}: its {op} took effect {count[b.id, op]} times" for op in OPS if count[b.id, op] > 1
        )
        if b.kind.is_delivery:
            came = count[b.id, str(b.kind)]
            if came and tx.decision is not Decision.COMMIT:
                wrong.append(f"{what(b)}: aborted, and it was delivered")
            if not came and b.state is BranchState.DONE:
                wrong.append(f"{what(b)}: delivered, and it never took effect")
            continue
        first = count[b.id, "try" if b.kind is Kind.TCC else "action"]
        undone = count[b.id, "cancel" if b.kind is Kind.TCC else "compensate"]
        if tx.decision is Decision.COMMIT:
            if not first:
                wrong.append(f"{what(b)}: committed, and it was never done")
            if b.kind is Kind.TCC and not count[b.id, "confirm"]:
                wrong.append(f"{what(b)}: committed, and it was never confirmed")
            if undone:
                wrong.append(f"{what(b)}: committed, and it was undone")
        else:
            if first and not undone:
                wrong.append(f"{what(b)}: aborted, and it was not undone")
            if undone and not first:
                wrong.append(f"{what(b)}: undone, and it was never done")
            if count[b.id, "confirm"]:
                wrong.append(f"{what(b)}: aborted, and it was confirmed")
    return wrong
