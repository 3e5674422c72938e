"""What became of a local transaction, told by the service whose database it was in.

The transaction has a marker in it (op ``one``, branch ``0``, as one-phase branches have). The answer is found by
putting a tombstone at its key: inserted, and committed, it says that the transaction has not committed and never will,
since its marker cannot be inserted any more; a marker that is in the way says that it has. While the transaction is
open it holds the key, and the statement fails by its short lock time-out: that is no answer. That nothing is read never
is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import barrier, mariadb, marker, postgresql

_NEVER_LATE_US = 2**62
_KEY = (marker.ONE_BRANCH, marker.ONE)


@dataclass(frozen=True, slots=True)
class Statements:
    """The statements of one dialect. ``schema`` is of the marker table; empty: the session's."""

    before: tuple[str, ...]
    """To be sent first, in either transaction: what it commits is on disk when it is told."""
    impatient: tuple[str, ...]
    """To be sent before the tombstone: it does not wait for long."""
    mark: Callable[[str, int, str], str]
    """Of ``tx_id, not_after_us, schema``: insert the marker. No row: it is too late."""
    look: Callable[[str, str], str]
    """Of ``tx_id, schema``: the state that is there, as it is now."""
    bury: Callable[[str, str], str]
    """Of ``tx_id, schema``: insert the tombstone. No row: something is there."""
    schema: str = ""
    """Asks for the schema that the session is in; empty: it need not be known."""


def _pg(tx_id: str, state: int, not_after_us: int) -> str:
    insert = postgresql.insert_marker(tx_id, *_KEY, not_after_us, state)
    return f"{insert} WHERE c.now_us <= {int(not_after_us)} ON CONFLICT DO NOTHING"


def _lite(tx_id: str, state: int, not_after_us: int) -> str:
    return barrier.lite_insert(tx_id, marker.ONE_BRANCH, [(marker.ONE, state)], not_after_us)


_PG = Statements(
    (postgresql.FLUSHED,),
    ("SET LOCAL lock_timeout = '1s'",),
    lambda tx_id, not_after_us, _schema: _pg(tx_id, marker.DONE, not_after_us),
    lambda tx_id, _schema: postgresql.read_marker(tx_id, *_KEY),
    lambda tx_id, _schema: _pg(tx_id, marker.TOMBSTONE, _NEVER_LATE_US),
)
_MY = Statements(
    (),
    (),
    lambda tx_id, not_after_us, schema: mariadb.insert_marker(
        tx_id, *_KEY, not_after_us, marker.DONE, schema
    ),
    # It fails at once while the key is held. Where nothing is there it holds the gap: nobody comes in between.
    lambda tx_id, schema: f"{mariadb.read_marker(tx_id, *_KEY, schema)} FOR UPDATE NOWAIT",
    lambda tx_id, schema: mariadb.insert_marker(tx_id, *_KEY, _NEVER_LATE_US, marker.TOMBSTONE, schema),
    "SELECT DATABASE()",
)
BY_FAMILY = {
    "postgresql": _PG,
    "mysql": _MY,
    "mariadb": _MY,
    "sqlite": Statements(
        (),
        (),
        lambda tx_id, not_after_us, _schema: _lite(tx_id, marker.DONE, not_after_us),
        lambda tx_id, _schema: barrier.BY_FAMILY["sqlite"].read(tx_id, *_KEY),
        lambda tx_id, _schema: _lite(tx_id, marker.TOMBSTONE, 0),
    ),
}
"""By what SQLAlchemy calls the dialect."""
