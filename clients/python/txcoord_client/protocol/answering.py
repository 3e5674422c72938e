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
from .identifiers import checked_tx_id

_NEVER_LATE_US = 2**62
_KEY = (marker.ONE_BRANCH, marker.ONE)
_IDENTITY_KEY = f"'{marker.ONE_BRANCH}', '{marker.IDENTITY}'"
_OF_IDENTITY = f"branch = '{marker.ONE_BRANCH}' AND op = '{marker.IDENTITY}'"
_COLUMNS = "(tx_id, branch, op, state, result, created_us)"


@dataclass(frozen=True, slots=True)
class Statements:
    """The statements of one dialect. ``schema`` is of the marker table; empty: the session's."""

    identify: Callable[[str], str]
    """Of ``schema``: the database's identity, empty or no row: it has none. To be sent first in either transaction: on
    PostgreSQL it also sees to it that what is committed is on disk when it is told."""
    claim: Callable[[str, str], str]
    """Of ``identity, schema``: give the database this identity, unless it has one."""
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
    lambda _schema: (
        f"SELECT (SELECT encode(result, 'hex') FROM {postgresql.DEFAULT_SCHEMA}.{marker.TABLE}"
        f" WHERE tx_id = '{marker.IDENTITY_TX_ID}' AND {_OF_IDENTITY}), ({postgresql.FLUSHED})"
    ),
    lambda identity, _schema: (
        f"{postgresql.FLUSHED_CLOCK} INSERT INTO {postgresql.DEFAULT_SCHEMA}.{marker.TABLE} {_COLUMNS}"
        f" SELECT '{marker.IDENTITY_TX_ID}'::uuid, {_IDENTITY_KEY}, {marker.DONE},"
        f" decode('{checked_tx_id(identity)}', 'hex'), c.now_us FROM c WHERE c.synced <> '' ON CONFLICT DO NOTHING"
    ),
    ("SET LOCAL lock_timeout = '1s'",),
    lambda tx_id, not_after_us, _schema: _pg(tx_id, marker.DONE, not_after_us),
    lambda tx_id, _schema: postgresql.read_marker(tx_id, *_KEY),
    lambda tx_id, _schema: _pg(tx_id, marker.TOMBSTONE, _NEVER_LATE_US),
)
_MY = Statements(
    # Not of the transaction's snapshot, which may be older.
    lambda schema: (
        f"SELECT LOWER(HEX(result)) FROM {mariadb.marker_table(schema)}"
        f" WHERE tx_id = X'{marker.IDENTITY_TX_ID}' AND {_OF_IDENTITY} LOCK IN SHARE MODE"
    ),
    lambda identity, schema: (
        f"{mariadb.UTC}INSERT{mariadb.UTC_HINT} IGNORE INTO {mariadb.marker_table(schema)} {_COLUMNS}"
        f" SELECT X'{marker.IDENTITY_TX_ID}', {_IDENTITY_KEY}, {marker.DONE}, X'{checked_tx_id(identity)}',"
        f" {mariadb.NOW_US}"
    ),
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
        lambda _schema: (
            f"SELECT lower(hex(result)) FROM {marker.TABLE} WHERE tx_id = '{marker.IDENTITY_TX_ID}' AND {_OF_IDENTITY}"
        ),
        lambda identity, _schema: (
            f"INSERT OR IGNORE INTO {marker.TABLE} {_COLUMNS} VALUES ('{marker.IDENTITY_TX_ID}', {_IDENTITY_KEY},"
            f" {marker.DONE}, X'{checked_tx_id(identity)}', {barrier.LITE_NOW_US})"
        ),
        (),
        lambda tx_id, not_after_us, _schema: _lite(tx_id, marker.DONE, not_after_us),
        lambda tx_id, _schema: barrier.BY_FAMILY["sqlite"].read(tx_id, *_KEY),
        lambda tx_id, _schema: _lite(tx_id, marker.TOMBSTONE, 0),
    ),
}
"""By what SQLAlchemy calls the dialect."""
