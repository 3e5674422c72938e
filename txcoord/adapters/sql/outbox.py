"""The outbox: announcements are written with the changes that make them so (see the stores), and taken from here."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import Connection, Integer, bindparam, delete, exists, insert, select, update

from ...outgoing import Outgoing
from . import mapping, reading
from .log import SqlLog
from .tables import log_identity, outbox, outbox_held

Key = tuple[str, int, int]

_HELD = exists().where(outbox_held.c.tx_id == outbox.c.tx_id, outbox_held.c.until_us > bindparam("now_us"))
_NEXT = (
    select(outbox)
    .where(~_HELD)
    .order_by(outbox.c.tx_id, outbox.c.epoch, outbox.c.seq)
    .limit(bindparam("most", type_=Integer))
)


class SqlOutbox:
    """``outgoing.Outbox``, on the log's own connections."""

    def __init__(self, log_: SqlLog) -> None:
        self._log = log_

    async def take(self, published: Sequence[Key], limit: int) -> list[Outgoing]:
        """Delete what is published, answer what comes next."""
        return await self._log.upkeep(lambda conn, now_us: take(conn, now_us, published, limit))

    async def hold(self, tx_ids: Collection[str], hold_us: int) -> None:
        """Pass these by for a while."""
        await self._log.upkeep(lambda conn, now_us: hold(conn, now_us + hold_us, tx_ids))


def take(conn: Connection, now_us: int, published: Sequence[Key], limit: int) -> list[Outgoing]:
    """One SQL transaction, which is on disk when it ends, with all that it has seen."""
    places: dict[tuple[int, int], list[str]] = {}
    for tx_id, epoch, seq in published:
        places.setdefault((epoch, seq), []).append(tx_id)
    # There are few places. In one order everywhere: rows are locked in it.
    for (epoch, seq), tx_ids in sorted(places.items()):
        for some in reading.chunks(tx_ids):
            these = reading.named(conn, outbox.c.tx_id, some)
            conn.execute(delete(outbox).where(these, outbox.c.epoch == epoch, outbox.c.seq == seq))
    if not limit:
        return []
    rows = conn.execute(_NEXT, {"now_us": now_us, "most": limit}).all()
    if rows:
        conn.execute(delete(outbox_held).where(outbox_held.c.until_us <= now_us))
        # Some may have been written without being synced. Whoever writes after them, and is synced, syncs them too.
        conn.execute(
            update(log_identity).where(log_identity.c.id == 1).values(incarnation=log_identity.c.incarnation)
        )
    return [mapping.outgoing_from(row) for row in rows]


def hold(conn: Connection, until_us: int, tx_ids: Collection[str]) -> None:
    """Until then."""
    for some in reading.chunks(tx_ids):
        conn.execute(delete(outbox_held).where(outbox_held.c.tx_id.in_(some)))
        conn.execute(insert(outbox_held), [{"tx_id": tx_id, "until_us": until_us} for tx_id in some])
