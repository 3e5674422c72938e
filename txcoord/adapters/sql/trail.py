"""The audit trail: what operators did to branches and jobs, to targets and to nodes, from three tables as one."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, or_, select

from ...core.model import Audit
from ...core.replaying import AuditQuery, AuditRow
from . import mapping
from .tables import audit, node_audit, target_audit

_DIGITS = 15
"""Of a target's audit row: its id begins with that many hexadecimal digits of its place within a microsecond."""


def page(conn: Connection, q: AuditQuery) -> list[AuditRow]:
    """A page of it, newest first."""
    found: list[AuditRow] = []
    if not q.target and not q.node:
        found.extend(_of_branches(conn, q))
    whole = q.everywhere and not (q.tx_id or q.replay)
    if whole and not q.node:
        found.extend(_of_targets(conn, q))
    if whole and not q.target:
        found.extend(_of_nodes(conn, q))
    found.sort(key=lambda row: (row.audit.at_us, row.ordinal), reverse=True)
    return found[: q.limit]


def _of_branches(conn: Connection, q: AuditQuery) -> list[AuditRow]:
    a = audit.c
    wanted = [a.namespace == q.namespace, *_common(q, audit, a.ordinal, _number(q))]
    wanted += [column == said for column, said in ((a.tx_id, q.tx_id), (a.replay, q.replay)) if said]
    rows = conn.execute(
        select(audit).where(*wanted).order_by(a.at_us.desc(), a.ordinal.desc()).limit(q.limit)
    )
    return [AuditRow(row.tx_id, row.ordinal, mapping.audit_from(row)) for row in rows]


def _of_targets(conn: Connection, q: AuditQuery) -> list[AuditRow]:
    """Whoever has asked for it: a target is every namespace's."""
    a = target_audit.c
    before = f"{q.before[1]:0{_DIGITS}x}" if q.before is not None else ""
    wanted = _common(q, target_audit, a.id, before)
    if q.target:
        wanted.append(a.target == q.target)
    rows = conn.execute(
        select(target_audit).where(*wanted).order_by(a.at_us.desc(), a.id.desc()).limit(q.limit)
    )
    return [
        AuditRow(
            "",
            int(row.id[:_DIGITS], 16),
            Audit(row.actor, row.reason, row.action, row.at_us, detail=row.detail),
            target=row.target,
            namespace=row.namespace,
        )
        for row in rows
    ]


def _of_nodes(conn: Connection, q: AuditQuery) -> list[AuditRow]:
    a = node_audit.c
    wanted = _common(q, node_audit, a.ordinal, _number(q))
    if q.node:
        wanted.append(a.node == q.node)
    rows = conn.execute(
        select(node_audit).where(*wanted).order_by(a.at_us.desc(), a.ordinal.desc()).limit(q.limit)
    )
    return [
        AuditRow(
            "",
            row.ordinal,
            Audit(row.actor, row.reason, row.action, row.at_us),
            node=row.node,
            identity=row.identity,
        )
        for row in rows
    ]


def _number(q: AuditQuery) -> int:
    return q.before[1] if q.before is not None else 0


def _common(q: AuditQuery, table: Table, place: Any, before: Any) -> list[ColumnElement[bool]]:
    a = table.c
    wanted: list[ColumnElement[bool]] = []
    if q.actor:
        wanted.append(a.actor == q.actor)
    if q.action:
        wanted.append(a.action == q.action)
    if q.since_us:
        wanted.append(a.at_us >= q.since_us)
    if q.before is not None:
        at_us = q.before[0]
        wanted.append(or_(a.at_us < at_us, and_(a.at_us == at_us, place < before)))
    return wanted
