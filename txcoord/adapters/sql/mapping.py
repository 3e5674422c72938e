"""Rows <-> what the core knows. Column lists are in the order of the tuples made here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...core.model import (
    Announcement,
    Audit,
    Branch,
    BranchState,
    Change,
    DecidedBy,
    Decision,
    HistoryEntry,
    Kind,
    Topic,
    Tx,
    TxState,
)
from ...core.ordering import places_of
from ...core.settle import read_back
from ...outgoing import Outgoing
from . import actions


@dataclass(frozen=True, slots=True)
class Col:
    """A column of a batch, and its type by PostgreSQL's name (other dialects need only know the blobs)."""

    name: str
    type: str = "text"


# What an INSERT carries. `not_after_us` and the like end each list: they are conditions, not content.
INSERT = (
    Col("tx_id", "uuid"),
    Col("namespace"),
    Col("gid"),
    Col("name"),
    Col("created_us", "bigint"),
    Col("deadline_us", "bigint"),
    Col("labels"),
    Col("headers"),
    Col("one_phase_resource"),
    Col("state"),
    Col("decision"),
    Col("decided_by"),
    Col("reason"),
    Col("decided_us", "bigint"),
    Col("ended_us", "bigint"),
    Col("version", "integer"),
    Col("epoch", "integer"),
    Col("owner"),
    Col("lease_until_us", "bigint"),
    Col("result", "bytea"),
    Col("parked", "integer"),
    Col("heuristic", "boolean"),
    Col("at_rest", "boolean"),
)
NOT_AFTER = Col("not_after_us", "bigint")
EXPECTED = Col("expected", "integer")
JOB = (Col("job"), Col("job_epoch", "integer"))
# An AMEND may set everything of these but the key; identity and deadline never change.
AMEND = (INSERT[0], *INSERT[8:])
# Phase two: the decision, who decided, why and when are not among them, and never may be.
PROGRESS = tuple(
    c
    for c in INSERT
    if c.name
    in {"tx_id", "state", "ended_us", "epoch", "owner", "lease_until_us", "parked", "heuristic", "at_rest"}
)
RELEASE = (INSERT[0],)  # and EXPECTED
BRANCH = (
    Col("tx_id", "uuid"),
    Col("id"),
    Col("position", "smallint"),
    Col("kind"),
    Col("state"),
    Col("resource"),
    Col("xid"),
    Col("attempts", "integer"),
    Col("next_attempt_us", "bigint"),
    Col("reason"),
    Col("heuristic", "boolean"),
    Col("payload", "bytea"),
    Col("result", "bytea"),
    Col("action"),
)
HISTORY = (
    Col("tx_id", "uuid"),
    Col("at_us", "bigint"),
    Col("ordinal", "bigint"),
    Col("what"),
    Col("branch"),
    Col("by_whom"),
    Col("reason"),
)
AUDIT = (
    Col("tx_id", "uuid"),
    Col("at_us", "bigint"),
    Col("ordinal", "bigint"),
    Col("actor"),
    Col("reason"),
    Col("action"),
    Col("namespace"),
    Col("branch"),
    Col("replay"),
    Col("detail"),
)
OUTBOX = (
    Col("tx_id", "uuid"),
    Col("epoch", "integer"),
    Col("seq", "integer"),
    Col("what"),
    Col("branch"),
    Col("at_us", "bigint"),
    Col("topics", "smallint"),
    Col("data"),
)

ORDERING = (
    Col("tx_id", "uuid"),
    Col("branch"),
    Col("position", "smallint"),
    Col("line"),
    Col("due_us", "bigint"),
)

Row = tuple[Any, ...]
_TOPICS = [Topic(number) for number in range(4)]  # To make one anew takes long.


def _amend_part(t: Tx) -> Row:
    return (
        t.one_phase_resource,
        t.state,
        t.decision,
        t.decided_by,
        t.reason,
        t.decided_us,
        t.ended_us,
        t.version,
        t.epoch,
        t.owner,
        t.lease_until_us,
        t.result,
        t.parked,
        t.heuristic,
        t.rests and not t.ended_us,
    )


def insert_row(change: Change) -> Row:
    t = change.tx
    return (
        t.tx_id,
        t.namespace,
        t.gid or None,
        t.name,
        t.created_us,
        t.deadline_us,
        _text(t.labels),
        _text(t.headers),
        *_amend_part(t),
        change.not_after_us,
    )


def amend_row(change: Change) -> Row:
    return (change.tx.tx_id, *_amend_part(change.tx), change.expected_version, change.not_after_us)


def progress_row(change: Change) -> Row:
    t = change.tx
    return (
        t.tx_id,
        t.state,
        t.ended_us,
        t.epoch,
        t.owner,
        t.lease_until_us,
        t.parked,
        t.heuristic,
        t.rests and not t.ended_us,
        change.expected_epoch,
    )


def order_row(change: Change) -> Row:
    assert change.job is not None
    return (*progress_row(change), *change.job)


def release_row(change: Change) -> Row:
    return (change.tx.tx_id, change.expected_version)


def branch_rows(change: Change) -> Iterable[Row]:
    if not change.touched:
        return
    places = {b.id: i for i, b in enumerate(change.tx.branches)}
    for b in change.touched:
        yield (
            change.tx.tx_id,
            b.id,
            places.get(b.id, 0),
            b.kind,
            b.state,
            b.resource,
            b.xid,
            b.attempts,
            b.next_attempt_us,
            b.reason,
            b.heuristic,
            b.payload,
            b.result,
            actions.to_text(b),
        )


def history_rows(change: Change, ordinal: int) -> Iterable[Row]:
    for i, h in enumerate(change.history):
        yield (change.tx.tx_id, h.at_us, ordinal + i, h.what, h.branch, h.by, h.reason)


def audit_rows(change: Change, ordinal: int) -> Iterable[Row]:
    a = change.audit
    if a is not None:
        namespace = change.tx.namespace
        yield (
            change.tx.tx_id,
            a.at_us,
            ordinal,
            a.actor,
            a.reason,
            a.action,
            namespace,
            a.branch,
            a.replay,
            a.detail,
        )


def outbox_rows(change: Change) -> Iterable[Row]:
    for a in change.announcements:
        yield (change.tx.tx_id, a.epoch, a.seq, a.what, a.branch, a.at_us, int(a.topics), a.data)


def ordering_rows(items: Iterable[Change]) -> list[Row]:
    """In the order in which their places are to be taken."""
    found = [
        (change.tx.tx_id, place.branch, place.position, place.line, place.due_us)
        for change in items
        for place in places_of(change)
    ]
    return sorted(found, key=lambda row: (row[0], row[2]))


def outgoing_from(row: Any) -> Outgoing:
    """An announcement as it is read back."""
    topics = _TOPICS[row.topics]
    return Outgoing(
        row.tx_id, Announcement(row.epoch, row.seq, row.what, row.branch, row.at_us, topics, row.data)
    )


def _text(pairs: Mapping[str, str]) -> str:
    return json.dumps(dict(pairs), ensure_ascii=False, sort_keys=True) if pairs else ""


def _pairs(text: str) -> dict[str, str]:
    return dict(json.loads(text)) if text else {}


def branch_from(row: Any) -> Branch:
    return Branch(
        id=row.id,
        kind=Kind(row.kind),
        state=BranchState(row.state),
        resource=row.resource,
        xid=row.xid,
        attempts=row.attempts,
        next_attempt_us=row.next_attempt_us,
        reason=row.reason,
        heuristic=row.heuristic,
        payload=bytes(row.payload),
        result=bytes(row.result),
        **actions.from_text(row.action),
    )


def tx_from(row: Any, branches: Iterable[Branch]) -> Tx:
    return read_back(
        Tx(
            tx_id=row.tx_id,
            namespace=row.namespace,
            deadline_us=row.deadline_us,
            gid=row.gid or "",
            name=row.name,
            state=TxState(row.state),
            decision=None if row.decision is None else Decision(row.decision),
            decided_by=None if row.decided_by is None else DecidedBy(row.decided_by),
            reason=row.reason,
            created_us=row.created_us,
            decided_us=row.decided_us,
            ended_us=row.ended_us,
            version=row.version,
            epoch=row.epoch,
            owner=row.owner,
            lease_until_us=row.lease_until_us,
            one_phase_resource=row.one_phase_resource,
            labels=_pairs(row.labels),
            headers=_pairs(row.headers),
            result=bytes(row.result),
            branches=tuple(branches),
            detail_pruned=bool(row.detail_pruned),
        )
    )


def history_from(row: Any) -> HistoryEntry:
    return HistoryEntry(row.at_us, row.what, row.branch, row.by_whom, row.reason)


def audit_from(row: Any) -> Audit:
    return Audit(
        actor=row.actor,
        reason=row.reason,
        action=row.action,
        at_us=row.at_us,
        branch=row.branch,
        replay=row.replay,
        detail=row.detail,
    )


def is_own_row(change: Change, found: Tx) -> bool:
    """Is what the log has exactly what this change would have written? Then an earlier try has written it."""
    ours = replace(change.tx, branches=(), lease_until_us=0)
    theirs = replace(found, branches=(), lease_until_us=0)
    if ours != theirs:
        return False
    known = {b.id: b for b in found.branches}
    wanted = read_back(replace(change.tx, branches=change.touched)).branches
    return all(known.get(b.id) == b for b in wanted)
