"""A service tells what became of its own local transactions. What that means is in ``protocol.answering``."""

from __future__ import annotations

from typing import Any

from ._db import kinds
from ._db.hands import Hand
from ._db.redis_ import RedisWork
from ._pb import participant_pb2 as pb
from ._xa.drivers import errno_of, sqlstate_of
from .errors import Rejected
from .protocol import answering, mariadb, marker, postgresql, reasons
from .protocol.replies import Reply

_VERDICTS = {
    marker.DONE: pb.QUERY_BACK_VERDICT_COMMITTED,
    marker.TOMBSTONE: pb.QUERY_BACK_VERDICT_ABORTED,
}


async def mark(db: Any, tx_id: str, not_after_us: int, schema: str) -> None:
    """Write the marker of a local transaction into it; ``schema`` is what :func:`schema_of` has found. Raises Rejected
    for what cannot have one, and where it is too late."""
    hand = _hand(db)
    statements = _statements(hand)
    await hand.refuse_autocommit()
    for statement in statements.before:
        await hand.run(statement)
    if await hand.run(statements.mark(tx_id, not_after_us, schema)) != 1:
        raise Rejected("the deadline has passed: its messages cannot be sent", reason=reasons.DEADLINE)


async def asked(db: Any, tx_id: str, schema: str) -> pb.QueryBackVerdict:
    """What became of a local transaction, in a transaction of its own that has to be committed before it is told."""
    hand = _hand(db)
    statements = _statements(hand)
    await hand.refuse_autocommit()
    for statement in (*statements.before, *statements.impatient):
        await hand.run(statement)
    row = await hand.row(statements.look(tx_id, schema))
    if row is None:
        if await hand.run(statements.bury(tx_id, schema)) == 1:
            return pb.QUERY_BACK_VERDICT_ABORTED
        row = await hand.row(statements.look(tx_id, schema))
    return _VERDICTS.get(row[0], _OPEN_ENDED) if row is not None else _OPEN_ENDED


def verdict_of(error: BaseException) -> pb.QueryBackVerdict:
    """What the database's error says: the transaction is still open, or nothing."""
    meanings = (postgresql.meaning(sqlstate_of(error) or None), mariadb.meaning(errno_of(error)))
    return pb.QUERY_BACK_VERDICT_OPEN if Reply.LOCK_TIMEOUT in meanings else _OPEN_ENDED


async def schema_of(db: Any) -> str:
    """The schema that the connections of a database begin in, where that matters."""
    hand = _hand(db)
    ask = _statements(hand).schema
    await hand.refuse_autocommit()
    row = await hand.row(ask) if ask else None
    if ask and (row is None or not row[0]):
        raise Rejected("its connections have no database selected: name one in its URL")
    return str(row[0]) if row is not None else ""


_OPEN_ENDED = pb.QUERY_BACK_VERDICT_UNSPECIFIED


def _hand(db: Any) -> Hand:
    if isinstance(db, RedisWork):
        raise Rejected("a Redis has no transaction to send messages with", reason=reasons.NOT_SUPPORTED)
    return kinds.hand_of(db)


def _statements(hand: Hand) -> answering.Statements:
    found = answering.BY_FAMILY.get(hand.family)
    if found is None:
        raise Rejected(
            f"it works on PostgreSQL, MariaDB, MySQL and SQLite, not on {hand.family}",
            reason=reasons.NOT_SUPPORTED,
        )
    return found
