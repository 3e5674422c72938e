"""Transactions for people and for programs."""

from __future__ import annotations

from typing import Any

from txcoord_client._pb import common_pb2 as c

from . import console

_ENDED = frozenset(
    {"READ_ONLY", "REFUSED", "DONE", "UNDONE", "SKIPPED", "RESOLVED"},
)


def state(tx: Any) -> str:
    """The state as it is shown: what needs a person beside it."""
    name = c.State.Name(tx.outcome.state).removeprefix("STATE_")
    marks = []
    if tx.outcome.parked:
        marks.append("PARKED")
    if tx.outcome.parked_deliveries:
        marks.append(f"{console.plural(tx.outcome.parked_deliveries, 'delivery')} parked")
    if tx.outcome.heuristic:
        marks.append("HEURISTIC")
    return f"{name} ({', '.join(marks)})" if marks else name


def row(tx: Any, now_us: int) -> tuple[str, ...]:
    """A line of the list."""
    ended = sum(_branch_state(b) in _ENDED for b in tx.branches)
    branches = f"{ended} of {len(tx.branches)}" if tx.branches else "-"
    return (
        tx.tx_id,
        tx.gid or "-",
        tx.spec.name or "-",
        state(tx),
        branches,
        console.since(tx.created_us, now_us),
        tx.outcome.reason,
    )


def as_dict(tx: Any, audit: list[Any] | None = None) -> dict[str, Any]:
    """For ``--json``: names and times as everywhere, microseconds UTC."""
    outcome = tx.outcome
    found: dict[str, Any] = {
        "tx_id": tx.tx_id,
        "gid": tx.gid,
        "namespace": tx.namespace,
        "name": tx.spec.name,
        "state": c.State.Name(outcome.state).removeprefix("STATE_"),
        "decision": c.Decision.Name(outcome.decision).removeprefix("DECISION_") if outcome.decision else None,
        "decided_by": _decided_by(outcome) or None,
        "reason": outcome.reason,
        "parked": outcome.parked,
        "parked_deliveries": outcome.parked_deliveries,
        "heuristic": outcome.heuristic,
        "created_us": tx.created_us,
        "deadline_us": outcome.deadline_us,
        "decided_us": outcome.decided_us,
        "ended_us": outcome.ended_us,
        "owner": tx.owner,
        "epoch": tx.epoch,
        "labels": dict(tx.spec.labels),
        "branches": [
            {
                "branch": b.spec.id,
                "kind": _kind(b.spec.kind),
                "resource": b.status.target,
                "xid": b.spec.xa.xid,
                "connection_id": b.spec.xa.connection_id,
                "state": _branch_state(b),
                "attempts": b.status.attempts,
                "next_attempt_us": b.status.next_attempt_us,
                "heuristic": b.status.heuristic,
                "reason": b.status.message,
                **({"order_key": b.spec.delivery.ordering_key} if b.spec.delivery.ordering_key else {}),
            }
            for b in tx.branches
        ],
    }
    if audit is not None:
        found["timeline"] = [
            {"at_us": at, "event": event, "branch": branch, "by": by, "reason": reason}
            for at, event, branch, by, reason in timeline(tx, audit)
        ]
    return found


def page(tx: Any, audit: list[Any], now_us: int) -> None:
    """Everything about one transaction."""
    outcome = tx.outcome
    lines = [
        ("tx id", tx.tx_id),
        ("gid", tx.gid),
        ("name", tx.spec.name),
        ("state", state(tx)),
        ("decision", _decision(outcome)),
        ("begun", _when(tx.created_us, now_us)),
        ("deadline", _deadline(outcome, now_us)),
        ("ended", _when(outcome.ended_us, now_us)),
        ("owner", f"{tx.owner}, epoch {tx.epoch}" if tx.owner and not outcome.ended_us else ""),
        ("labels", ", ".join(f"{k}={v}" for k, v in tx.spec.labels.items())),
    ]
    for name, value in lines:
        if value:
            console.out(f"{name:<10}{value}")
    if tx.branches:
        console.out("\nbranches")
        for line in _branches(tx.branches):
            console.out(f"  {line}")
    console.out("\ntime line")
    for at, event, branch, by, reason in timeline(tx, audit):
        where = f" branch {branch}" if branch else ""
        if event in _ATTEMPTS and (op := _op_then(tx, branch, at)):
            where += f" ({op})"
        who = f" by {by}" if by else ""
        why = f": {reason}" if reason else ""
        console.out(f"  {console.moment(at)}  {event}{where}{who}{why}")
    waiting = waits_for(tx, now_us)
    if waiting:
        console.out("\nwaits for")
        for line in waiting:
            console.out(f"  {line}")


def timeline(tx: Any, audit: list[Any]) -> list[tuple[int, str, str, str, str]]:
    """What happened, oldest first: time, event, branch, by whom, why."""
    outcome = tx.outcome
    found = [(tx.created_us, "begun", "", "", "")]
    if outcome.decided_us:
        verb = c.Decision.Name(outcome.decision).removeprefix("DECISION_").lower()
        found.append((outcome.decided_us, f"decided {verb}", "", _decided_by(outcome), outcome.reason))
    orders = {(h.event.removeprefix("operator."), h.actor, h.message) for h in tx.history}
    found += [(h.at_us, h.event, h.branch, h.actor, h.message) for h in tx.history]
    found += [
        # An order is in the history too, with its branch; the audit trail may be kept for longer.
        (a.at_us, f"operator.{a.action}", a.branch, a.actor, a.reason)
        for a in audit
        if (a.action, a.actor, a.reason) not in orders
    ]
    if outcome.ended_us:
        found.append((outcome.ended_us, c.State.Name(outcome.state)[6:].lower(), "", "", ""))
    return sorted(found, key=lambda entry: entry[0])


def waits_for(tx: Any, now_us: int) -> list[str]:
    """Why it has not ended yet, and who can change that."""
    outcome = tx.outcome
    if outcome.ended_us and not outcome.parked_deliveries:
        return []
    if outcome.state == c.STATE_RUNNING:
        return [_step(b, now_us) for b in tx.branches if _branch_state(b) == "RUNNING"]
    if outcome.decision == c.DECISION_UNSPECIFIED:
        when = console.since(outcome.deadline_us, now_us)
        who = tx.spec.one_phase_resource
        if outcome.deadline_us <= now_us and who:
            name = "#".join(who.removeprefix("target:").split("#")[:2])  # Without its database's identity.
            return [
                f"{name}, which is asked since the deadline, {when}: has the local transaction there committed?"
            ]
        if outcome.deadline_us <= now_us:
            return [f"its deadline passed {when}: the abort is on its way"]
        return [f"the initiator's commit or rollback; its deadline is {when}, then it is aborted"]
    lines = []
    for b in tx.branches:
        name = _name(b)
        if _branch_state(b) == "PARKED":
            why = f" ({b.status.message})" if b.status.message else ""
            key = b.spec.delivery.ordering_key
            holds = f", and holds those behind it with order key {key!r}" if key else ""
            whose = f" --namespace {tx.namespace}" if tx.namespace not in ("", "default") else ""
            order = f"txcoord tx retry|resolve|skip {tx.tx_id} --branch {b.spec.id} --reason …{whose}"
            lines.append(f"an operator: {name} is parked{why}{holds}. `{order}`")
        elif _branch_state(b) in ("FINISHING", "UNDOING"):
            again = f", again {_due(b, now_us)}" if b.status.attempts else ""
            why = f": {b.status.message}" if b.status.message else ""
            op = _op(b.spec.kind, c.DECISION_COMMIT if _branch_state(b) == "FINISHING" else c.DECISION_ABORT)
            if not b.status.attempts and b.status.next_attempt_us > now_us:
                again = f", due {_due(b, now_us)}"
            lines.append(f"{op} of {name}{again}{why}")
    held = sum(_branch_state(b) == "READY" and b.spec.kind in _DELIVERIES for b in tx.branches)
    if held and lines:
        what = console.plural(held, "delivery")
        lines.append(f"the end of these, before COMMITTED: {what}")
    return lines


_OPS = {
    c.KIND_XA: ("", "COMMIT PREPARED", "ROLLBACK PREPARED"),
    c.KIND_TCC: ("try", "confirm", "cancel"),
    c.KIND_SAGA: ("action", "action", "compensate"),
    c.KIND_MESSAGE: ("delivery", "delivery", "delivery"),
    c.KIND_NOTIFY: ("delivery", "delivery", "delivery"),
    c.KIND_UNSPECIFIED: ("callback", "callback", "callback"),
}
"""What is asked of a branch: before the decision, after a commit, after an abort."""
_DELIVERIES = (c.KIND_MESSAGE, c.KIND_NOTIFY)
_ATTEMPTS = frozenset(
    {"branch.failed", "branch.pending", "branch.refused", "branch.given_up", "branch.finished"}
)


def _op(kind: c.Kind, decision: c.Decision) -> str:
    return _OPS[kind][decision]


def _op_then(tx: Any, branch: str, at_us: int) -> str:
    """What was asked of a branch at that time."""
    outcome = tx.outcome
    # What is refused or given up is a first phase, and may be the decision itself.
    decided = outcome.decided_us and at_us > outcome.decided_us
    kind = next((b.spec.kind for b in tx.branches if b.spec.id == branch), None)
    return "" if kind is None else _op(kind, outcome.decision if decided else c.DECISION_UNSPECIFIED)


def _operation(b: Any) -> str:
    return str(b.spec.delivery.operation if b.spec.kind in _DELIVERIES else b.spec.action.operation)


def _name(b: Any) -> str:
    operation = _operation(b)
    return f"branch {b.spec.id}{f', {operation} at' if operation else ' on'} {b.status.target}"


def _step(b: Any, now_us: int) -> str:
    again = f", again {_due(b, now_us)}" if b.status.attempts else ""
    why = f": {b.status.message}" if b.status.message else ""
    op = _op(b.spec.kind, c.DECISION_UNSPECIFIED)
    return f"{op} of step {b.spec.id}, {b.spec.action.operation} at {b.status.target}{again}{why}"


def _due(b: Any, now_us: int) -> str:
    return console.since(b.status.next_attempt_us, now_us) if b.status.next_attempt_us > now_us else "now"


def _branches(branches: Any) -> list[str]:
    rows = [(b.spec.id, _kind(b.spec.kind), _where(b), _said(b)) for b in branches]
    widths = [max(len(row[n]) for row in rows) for n in range(3)]
    return ["  ".join([*map(str.ljust, row, widths), row[3]]) for row in rows]


def _where(b: Any) -> str:
    operation = _operation(b)
    return f"{operation} at {b.status.target}" if operation else str(b.status.target)


def _said(b: Any) -> str:
    text = _branch_state(b)
    if b.status.heuristic:
        text += " HEURISTIC"
    if b.status.attempts:
        text += f" {console.plural(b.status.attempts, 'attempt')}"
    if b.status.message and _branch_state(b) == "DONE":
        text += f"; before that: {b.status.message}"
    elif b.status.message:
        # No attempt at undoing it failed: what is kept is why it said no.
        text += f"{', had voted no' if text == 'UNDONE' else ''}: {b.status.message}"
    return text


def _branch_state(b: Any) -> str:
    return c.BranchState.Name(b.status.state).removeprefix("BRANCH_STATE_")


def _decided_by(outcome: Any) -> str:
    if not outcome.decided_by:
        return ""
    return c.DecidedBy.Name(outcome.decided_by).removeprefix("DECIDED_BY_").lower()


def _decision(outcome: Any) -> str:
    if not outcome.decision:
        return "none yet"
    verb = c.Decision.Name(outcome.decision).removeprefix("DECISION_").lower()
    why = f": {outcome.reason}" if outcome.reason else ""
    return f"{verb}, by {_decided_by(outcome)}{why}"


def _when(us: int, now_us: int) -> str:
    return f"{console.moment(us)} ({console.since(us, now_us)})" if us else ""


def _deadline(outcome: Any, now_us: int) -> str:
    if outcome.deadline_us and outcome.ended_us:
        return console.moment(outcome.deadline_us)  # It is of no account any more.
    return _when(outcome.deadline_us, now_us)


def _kind(kind: c.Kind) -> str:
    # The wire has no kind for those who asked to be told of the end.
    return c.Kind.Name(kind).removeprefix("KIND_").lower() if kind else "callback"
