# Made from txcoord_client/_answering.py by scripts/sync; to change it, change that.
"""A service tells what became of its own local transactions. What that means is in ``protocol.answering``."""

from __future__ import annotations

import secrets
from typing import Any

from .._pb import participant_pb2 as pb
from .._xa.drivers import errno_of, sqlstate_of
from ..errors import Rejected
from ..protocol import answering, mariadb, marker, postgresql, reasons
from ..protocol.replies import Reply
from ._db import kinds
from ._db.hands import Hand
from ._db.redis_ import RedisWork

_VERDICTS = {
    marker.DONE: pb.QUERY_BACK_VERDICT_COMMITTED,
    marker.TOMBSTONE: pb.QUERY_BACK_VERDICT_ABORTED,
}


def mark(db: Any, tx_id: str, not_after_us: int, schema: str) -> str:
    """Write the marker of a local transaction into it; ``schema`` is what :func:`home_of` has found. Gives the identity
    of the database that it is in. Raises Rejected for what cannot have one, and where it is too late."""
    hand = _hand(db)
    statements = _statements(hand)
    hand.refuse_autocommit()
    identity = _identity(hand, statements.identify(schema))
    if not identity:
        raise Rejected(
            "this transaction does not see which database it is in: another one than the participant's, or its "
            "snapshot is older than the identity that was written there just now; then begin it again",
            reason=reasons.RESOURCE_MISMATCH,
        )
    if hand.run(statements.mark(tx_id, not_after_us, schema)) != 1:
        raise Rejected("the deadline has passed: its messages cannot be sent", reason=reasons.DEADLINE)
    return identity


def asked(db: Any, tx_id: str, schema: str, identity: str = "") -> pb.QueryBackVerdict:
    """What became of a local transaction, in a transaction of its own that has to be committed before it is told.
    ``identity``: of the database that it was in; empty: not known. Raises Rejected in another one, of which nothing
    follows."""
    hand = _hand(db)
    statements = _statements(hand)
    hand.refuse_autocommit()
    own = _identity(hand, statements.identify(schema))
    if identity and own != identity:
        raise Rejected(
            f"this is another database than the sender's: its identity is {own or 'none'}, not {identity}",
            reason=reasons.RESOURCE_MISMATCH,
        )
    for statement in statements.impatient:
        hand.run(statement)
    row = hand.row(statements.look(tx_id, schema))
    if row is None:
        if hand.run(statements.bury(tx_id, schema)) == 1:
            return pb.QUERY_BACK_VERDICT_ABORTED
        row = hand.row(statements.look(tx_id, schema))
    return _VERDICTS.get(row[0], _OPEN_ENDED) if row is not None else _OPEN_ENDED


def verdict_of(error: BaseException) -> pb.QueryBackVerdict:
    """What the database's error says: the transaction is still open, or nothing."""
    meanings = (postgresql.meaning(sqlstate_of(error) or None), mariadb.meaning(errno_of(error)))
    return pb.QUERY_BACK_VERDICT_OPEN if Reply.LOCK_TIMEOUT in meanings else _OPEN_ENDED


def home_of(db: Any) -> tuple[str, bool]:
    """The schema that the connections of a database begin in, where that matters; and whether it has an identity."""
    hand = _hand(db)
    statements = _statements(hand)
    ask = statements.schema
    hand.refuse_autocommit()
    row = hand.row(ask) if ask else None
    if ask and (row is None or not row[0]):
        raise Rejected("its connections have no database selected: name one in its URL")
    schema = str(row[0]) if row is not None else ""
    return schema, bool(_identity(hand, statements.identify(schema)))


def claim(db: Any, schema: str) -> None:
    """Give the database an identity, unless it has one, in a transaction of its own."""
    hand = _hand(db)
    hand.refuse_autocommit()
    hand.run(_statements(hand).claim(secrets.token_hex(16), schema))


def _identity(hand: Hand, ask: str) -> str:
    row = hand.row(ask)
    return str(row[0] or "") if row is not None else ""


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
