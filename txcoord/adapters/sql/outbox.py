"""The outbox: announcements are written with the changes that make them so (see the stores), and taken from here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from sqlalchemy import Connection, delete, exists, insert, select, tuple_, update

from ...outgoing import Outgoing
from . import mapping, reading
from .log import SqlLog
from .tables import log_identity, outbox, outbox_held

_KEY = tuple_(outbox.c.tx_id, outbox.c.epoch, outbox.c.seq)
Key = tuple[str, int, int]


class SqlOutbox:
    """``ports.Outbox``, on the log's own connections."""

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
    for some in _chunks(published):
        ids = sorted({key[0] for key in some})
        conn.execute(delete(outbox).where(outbox.c.tx_id.in_(ids), _KEY.in_(some)))
        conn.execute(delete(outbox_held).where(outbox_held.c.tx_id.in_(ids)))
    if not limit:
        return []
    held = exists().where(outbox_held.c.tx_id == outbox.c.tx_id, outbox_held.c.until_us > now_us)
    rows = conn.execute(
        select(outbox).where(~held).order_by(outbox.c.tx_id, outbox.c.epoch, outbox.c.seq).limit(limit)
    ).all()
    if rows:
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


def _chunks(keys: Sequence[Key]) -> Iterator[list[Key]]:
    ordered = sorted(keys)
    for at in range(0, len(ordered), reading.CHUNK):
        yield ordered[at : at + reading.CHUNK]
