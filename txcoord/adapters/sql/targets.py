"""What operators have said about targets, in the log's own database and by its clock."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from txcoord_client.protocol import identifiers

from ...core import announcing
from ...core.model import Announcement, BranchState, TargetAudit, TargetRule
from . import upkeep
from .log import SqlLog
from .tables import PARKED, branch, outbox, tx
from .tables import target as rules
from .tables import target_audit as audits

_MOST_PARKED = 10_000
_FIELDS = [column.name for column in rules.columns]
_SHOWN = ("paused", "paused_until_us", "rate_per_s", "at_once", "disabled_us", "alias_of")


class SqlTargets:
    """``ports.TargetRules`` beside an open log. ``events``: that one is disabled is announced."""

    def __init__(self, log: SqlLog, *, events: bool = False) -> None:
        self._store = log.store
        self._events = events

    async def all(self) -> list[TargetRule]:
        """All rules."""
        return await self._store.reading(
            lambda c: [_rule(row) for row in c.execute(select(rules).order_by(rules.c.target))]
        )

    async def change(self, audit: TargetAudit, edit: Callable[[TargetRule], TargetRule]) -> TargetRule:
        """Change one rule and write who did it, in one transaction."""

        def work(conn: Connection) -> TargetRule:
            before, after = _change(conn, self._store.clock(conn), audit, edit)
            if self._events and after.disabled_us and not before.disabled_us:
                _announce(conn, announcing.target_disabled(after))
            return after

        return await self._store.changing(work)

    async def parked(self) -> Mapping[str, int]:
        """How many parked branches each target has."""
        return await self._store.reading(_parked)

    async def note(self, target: str, edit: Callable[[TargetRule], TargetRule]) -> TargetRule:
        """Change what is noted of it, by nobody's order."""
        return await self._store.changing(lambda c: _edit(c, target, edit)[1])


def _change(
    conn: Connection, now_us: int, audit: TargetAudit, edit: Callable[[TargetRule], TargetRule]
) -> tuple[TargetRule, TargetRule]:
    before, after = _edit(
        conn,
        audit.target,
        lambda rule: replace(edit(rule), actor=audit.actor, reason=audit.reason, changed_us=now_us),
    )
    detail = {
        name: {key: getattr(rule, key) for key in _SHOWN}
        for name, rule in (("before", before), ("after", after))
    }
    conn.execute(
        insert(audits).values(
            id=secrets.token_hex(16),
            target=audit.target,
            at_us=now_us,
            namespace=audit.namespace,
            action=audit.action,
            actor=audit.actor,
            reason=audit.reason,
            detail=json.dumps(detail, separators=(",", ":")),
        )
    )
    return before, after


def _parked(conn: Connection) -> dict[str, int]:
    few = (
        select(branch.c.resource)
        .join_from(tx, branch, branch.c.tx_id == tx.c.tx_id)
        .where(PARKED.of(conn), branch.c.state == str(BranchState.PARKED))
        .limit(_MOST_PARKED)
        .subquery()
    )
    rows = conn.execute(select(few.c.resource, func.count()).group_by(few.c.resource))
    return {target: int(count) for target, count in rows}


def _announce(conn: Connection, a: Announcement) -> None:
    """Of no transaction: under an id of its own."""
    conn.execute(
        insert(outbox).values(
            tx_id=identifiers.new_tx_id(a.at_us, secrets.randbits),
            epoch=a.epoch,
            seq=a.seq,
            what=a.what,
            branch=a.branch,
            at_us=a.at_us,
            topics=int(a.topics),
            data=a.data,
        )
    )


def _edit(
    conn: Connection, target: str, edit: Callable[[TargetRule], TargetRule]
) -> tuple[TargetRule, TargetRule]:
    """How it was, and how it is."""
    # So that there is a row to lock: two who change it at the same time do so one after the other.
    if conn.execute(select(rules.c.target).where(rules.c.target == target)).first() is None:
        upkeep.inserted(conn, insert(rules).values(**_values(TargetRule(target))))
    row = conn.execute(select(rules).where(rules.c.target == target).with_for_update()).one()
    before = _rule(row)
    after = edit(before)
    if after != before:
        conn.execute(update(rules).where(rules.c.target == target).values(**_values(after)))
    return before, after


def _values(rule: TargetRule) -> dict[str, Any]:
    return {name: getattr(rule, name) for name in _FIELDS}


def _rule(row: Any) -> TargetRule:
    return TargetRule(
        **{name: getattr(row, name) for name in _FIELDS if name != "paused"}, paused=bool(row.paused)
    )
