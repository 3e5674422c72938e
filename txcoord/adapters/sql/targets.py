"""What operators have said about targets, in the log's own database and by its clock."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, insert, select, update

from ...core.model import TargetAudit, TargetRule
from . import upkeep
from .log import SqlLog
from .tables import target as rules
from .tables import target_audit as audits

_FIELDS = [column.name for column in rules.columns]
_SHOWN = ("paused", "paused_until_us", "rate_per_s", "at_once")


class SqlTargets:
    """``ports.TargetRules`` beside an open log."""

    def __init__(self, log: SqlLog) -> None:
        self._store = log.store

    async def all(self) -> list[TargetRule]:
        """All rules."""
        return await self._store.reading(
            lambda c: [_rule(row) for row in c.execute(select(rules).order_by(rules.c.target))]
        )

    async def change(self, audit: TargetAudit, edit: Callable[[TargetRule], TargetRule]) -> TargetRule:
        """Change one rule and write who did it, in one transaction."""
        return await self._store.changing(lambda c: _change(c, self._store.clock(c), audit, edit))

    async def audits(self, target: str, limit: int) -> Sequence[TargetAudit]:
        """Who has changed it, the latest first."""
        found = select(audits).where(audits.c.target == target).order_by(audits.c.at_us.desc()).limit(limit)
        return await self._store.reading(lambda c: [_audit(row) for row in c.execute(found)])


def _change(
    conn: Connection, now_us: int, audit: TargetAudit, edit: Callable[[TargetRule], TargetRule]
) -> TargetRule:
    none = TargetRule(audit.target)
    # So that there is a row to lock: two who change it at the same time do so one after the other.
    if conn.execute(select(rules.c.target).where(rules.c.target == audit.target)).first() is None:
        upkeep.inserted(conn, insert(rules).values(**_values(none)))
    row = conn.execute(select(rules).where(rules.c.target == audit.target).with_for_update()).one()
    before = _rule(row)
    after = replace(edit(before), actor=audit.actor, reason=audit.reason, changed_us=now_us)
    conn.execute(update(rules).where(rules.c.target == audit.target).values(**_values(after)))
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
    return after


def _values(rule: TargetRule) -> dict[str, Any]:
    return {name: getattr(rule, name) for name in _FIELDS}


def _rule(row: Any) -> TargetRule:
    return TargetRule(
        **{name: getattr(row, name) for name in _FIELDS if name != "paused"}, paused=bool(row.paused)
    )


def _audit(row: Any) -> TargetAudit:
    return TargetAudit(row.target, row.action, row.actor, row.reason, row.at_us, row.namespace, row.detail)
