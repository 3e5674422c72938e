"""Is a connection inside of a savepoint, whose rollback would take back what was written and not what was said?"""

from __future__ import annotations

from typing import Any

from .errors import Rejected
from .protocol import reasons


def depth(db: Any) -> int:
    """In how many blocks this connection or session is, as far as it tells: SQLAlchemy's, psycopg's and Django's do;
    asyncpg's and MySQL's drivers, and statements of the application's own, do not."""
    told = getattr(db, "in_nested_transaction", None)
    if told is not None:
        return int(bool(told()))
    return len(getattr(db, "savepoint_ids", ())) + int(getattr(db, "_num_transactions", 0))


def refuse(db: Any, at_first: int = 0) -> None:
    """A message cannot be taken back with a savepoint. ``at_first``: the depth without one. Raises Rejected."""
    if depth(db) > at_first:
        raise Rejected(
            "inside of a savepoint: if that is rolled back, what was written is undone, and a message would leave all "
            "the same; send it after the savepoint's end",
            reason=reasons.NOT_SUPPORTED,
        )
