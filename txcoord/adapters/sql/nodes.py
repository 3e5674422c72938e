"""The nodes of a log: who serves it, since when, and who is to take nothing new."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from ...ports import NodeOrder, NodeStatus
from .log import SqlLog
from .tables import lease, node, node_audit
from .upkeep import inserted

_KEEP_US = 24 * 3600 * 1_000_000
"""How long one is listed that was not heard of any more."""
_NAME_LEASE = "node:"


class SqlNodes:
    """``ports.Nodes`` beside an open log."""

    def __init__(self, log: SqlLog) -> None:
        self._store = log.store

    async def join(self, status: NodeStatus) -> None:
        """It has started, and takes new work."""

        def work(conn: Connection) -> None:
            now_us = self._store.clock(conn)
            conn.execute(delete(node).where(node.c.seen_us < now_us - _KEEP_US))
            fresh = _values(replace(status, started_us=now_us, seen_us=now_us, draining=False))
            if not conn.execute(update(node).where(node.c.name == status.name).values(fresh)).rowcount:
                inserted(conn, insert(node).values(name=status.name, **fresh))

        await self._store.changing(work)

    async def seen(self, name: str, live: int, clock_offset_us: int) -> bool:
        """It is there still. Is it to take nothing new?"""

        def work(conn: Connection) -> bool:
            values = {
                "seen_us": self._store.clock(conn),
                "live": live,
                "clock_offset_us": clock_offset_us,
            }
            conn.execute(update(node).where(node.c.name == name).values(values))
            draining = select(node.c.draining).where(node.c.name == name)
            return bool(conn.execute(draining).scalar_one_or_none())

        return await self._store.changing(work, relaxed=True)

    async def leave(self, name: str) -> None:
        """It has ended as it should."""
        await self._store.changing(
            lambda conn: conn.execute(delete(node).where(node.c.name == name)), relaxed=True
        )

    async def all(self) -> list[NodeStatus]:
        """All that are known, by name."""

        def work(conn: Connection) -> list[NodeStatus]:
            held = select(lease.c.owner, lease.c.duty).where(
                lease.c.until_us > self._store.clock(conn), lease.c.duty.not_like(f"{_NAME_LEASE}%")
            )
            duties: dict[str, list[str]] = {}
            for row in conn.execute(held.order_by(lease.c.duty)):
                duties.setdefault(row.owner, []).append(row.duty)
            return [
                _status(row, duties.get(row.name, ()))
                for row in conn.execute(select(node).order_by(node.c.name))
            ]

        return await self._store.reading(work)

    async def drain(self, name: str, draining: bool, order: NodeOrder) -> NodeStatus | None:
        """Say whether it is to take new work, with the audit row in one transaction; None: it is not known."""

        def work(conn: Connection) -> NodeStatus | None:
            now_us = self._store.clock(conn)
            conn.execute(update(node).where(node.c.name == name).values(draining=draining))
            row = conn.execute(select(node).where(node.c.name == name)).one_or_none()
            if row is None:
                return None
            conn.execute(
                insert(node_audit).values(
                    node=name,
                    at_us=now_us,
                    ordinal=secrets.randbits(62),
                    actor=order.actor,
                    identity=order.identity,
                    reason=order.reason,
                    action=order.action,
                )
            )
            return _status(row, ())

        return await self._store.changing(work)


def _values(status: NodeStatus) -> dict[str, Any]:
    return {
        "role": status.role,
        "address": status.address,
        "version": status.version,
        "started_us": status.started_us,
        "seen_us": status.seen_us,
        "live": status.live,
        "draining": status.draining,
        "clock_offset_us": status.clock_offset_us,
    }


def _status(row: Any, duties: Sequence[str]) -> NodeStatus:
    return NodeStatus(
        row.name,
        row.role,
        row.address,
        row.version,
        started_us=row.started_us,
        seen_us=row.seen_us,
        live=row.live,
        draining=bool(row.draining),
        clock_offset_us=row.clock_offset_us,
        duties=tuple(duties),
    )
