"""The barrier: what a participant writes into the marker table, in its own transaction, before it does its work.

The first statement of each call says whether the work is to be done now:

- a try or action inserts its own row: one row means *do it*, none that it was done before or that it comes too late
  (:func:`read` tells);
- a cancel or compensation inserts its own row and, in the same statement, the row of the try or action as a tombstone:
  two rows mean that there is nothing to undo, and that the try, should it come now, does nothing; one row means *do
  it*; none that it was done before;
- a confirm, message or notification inserts its own row: one row means *do it*.

What another transaction has inserted and not committed is waited for. Values are checked and written into the
statement; see the modules of the two dialects.

Rows go some day. No row then proves nothing any more, so each statement is also told until when it does:
:func:`known_until_us`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from . import mariadb, marker, postgresql
from .identifiers import checked_branch, checked_op, checked_tx_id

FIRST = {"confirm": "try", "cancel": "try", "compensate": "action"}
"""Whose row a later operation reads."""
UNDOING = frozenset({"cancel", "compensate"})
OPS = ("try", "confirm", "cancel", "action", "compensate", "message", "notify")

DAY_US = 86_400_000_000
LEAST_DAYS = 2
"""Markers are kept longer than a deadline can be away (one day) and clocks be wrong (the other)."""


def begun_us(tx_id: str) -> int:
    """When the transaction began, by its initiator's clock: a tx id starts with its time."""
    return int(checked_tx_id(tx_id)[:12], 16) * 1000


def known_until_us(tx_id: str, keep_days: int) -> int:
    """Until then, by the database's clock, a row that is not there was never there. A day is left for clocks."""
    return begun_us(tx_id) + (keep_days - 1) * DAY_US


@dataclass(frozen=True, slots=True)
class Statements:
    """The statements of one dialect."""

    enter: Callable[[str, str, str, int], str]
    """Of ``tx_id, branch, op, not_after_us``, 0: no limit. The number of rows that it inserts is the answer."""
    read: Callable[[str, str, str], str]
    """State and result of one row, as it is now."""
    keep: Callable[[str, str, str, bytes], str]
    """Keep a result in the row."""
    now: str
    """The database's clock, µs."""
    prune: Callable[[int, int], str]
    """Of ``before_us, limit``: delete the rows of so many branches, all of them older. A try that has neither been
    confirmed nor cancelled stays: what it holds is still to be given back."""
    ddl: list[str]
    """What makes the table."""


def _rows(op: str) -> list[tuple[str, int]]:
    rows = [(checked_op(op), marker.DONE)]
    if op in UNDOING:
        rows.append((FIRST[op], marker.TOMBSTONE))
    return rows


def _where(key: str, branch: str, op: str) -> str:
    return f"WHERE tx_id = {key} AND branch = '{checked_branch(branch)}' AND op = '{checked_op(op)}'"


def _ended(before_us: int) -> str:
    """Of a group of rows of one branch."""
    tried = f"MAX(CASE WHEN op = 'try' AND state = {marker.DONE} THEN 1 ELSE 0 END)"
    ended = "MAX(CASE WHEN op IN ('confirm', 'cancel') THEN 1 ELSE 0 END)"
    return f"MAX(created_us) < {int(before_us)} AND {tried} <= {ended}"


def _begun_before(before_us: int) -> str:
    """A tx id that began then: the primary key finds the older ones."""
    return f"{max(before_us, 0) // 1000 & 0xFFFF_FFFF_FFFF:012x}".ljust(32, "0")


def _old(key: str, before_us: int, limit: int) -> str:
    """The branches whose rows can go; all that is written after ``before_us`` began before it."""
    return (
        f"SELECT tx_id, branch FROM {marker.TABLE} WHERE tx_id < {key} AND op IN {OPS}"
        f" GROUP BY tx_id, branch HAVING {_ended(before_us)} ORDER BY tx_id LIMIT {int(limit)}"
    )


# ---- PostgreSQL ----


def _pg_key(tx_id: str) -> str:
    return f"'{checked_tx_id(tx_id)}'::uuid"


def _pg_enter(tx_id: str, branch: str, op: str, not_after_us: int) -> str:
    values = ", ".join(f"('{name}', {state})" for name, state in _rows(op))
    limit = f" AND c.now_us <= {int(not_after_us)}" if not_after_us else ""
    return (
        f"{postgresql.FLUSHED_CLOCK} INSERT INTO {marker.TABLE} (tx_id, branch, op, state, created_us)"
        f" SELECT {_pg_key(tx_id)}, '{checked_branch(branch)}', v.op, v.state, c.now_us"
        f" FROM c, (VALUES {values}) AS v (op, state) WHERE c.synced <> ''{limit} ON CONFLICT DO NOTHING"
    )


def _pg_read(tx_id: str, branch: str, op: str) -> str:
    return f"SELECT state, result, created_us FROM {marker.TABLE} {_where(_pg_key(tx_id), branch, op)}"


def _pg_keep(tx_id: str, branch: str, op: str, result: bytes) -> str:
    value = f"decode('{result.hex()}', 'hex')"
    return f"UPDATE {marker.TABLE} SET result = {value} {_where(_pg_key(tx_id), branch, op)}"


def _pg_prune(before_us: int, limit: int) -> str:
    old = _old(f"'{_begun_before(before_us)}'::uuid", before_us, limit)
    return (
        f"WITH old AS MATERIALIZED ({old}) DELETE FROM {marker.TABLE} AS t USING old"
        f" WHERE t.tx_id = old.tx_id AND t.branch = old.branch AND t.op IN {OPS}"
    )


# ---- MariaDB and MySQL ----


def _my_key(tx_id: str) -> str:
    return f"X'{checked_tx_id(tx_id)}'"


def _my_enter(tx_id: str, branch: str, op: str, not_after_us: int) -> str:
    # IGNORE is for the key only: nothing else here can be wrong. It counts what was inserted, whatever the
    # connection's flags; ON DUPLICATE KEY counts what it found.
    rows = " UNION ALL ".join(f"SELECT '{name}' AS op, {state} AS state" for name, state in _rows(op))
    limit = f" WHERE {mariadb.NOW_US} <= {int(not_after_us)}" if not_after_us else ""
    return (
        f"{mariadb.UTC}INSERT{mariadb.UTC_HINT} IGNORE INTO {marker.TABLE} (tx_id, branch, op, state, created_us)"
        f" SELECT {_my_key(tx_id)}, '{checked_branch(branch)}', v.op, v.state, {mariadb.NOW_US}"
        f" FROM ({rows}) AS v{limit}"
    )


def _my_read(tx_id: str, branch: str, op: str) -> str:
    # Not of the transaction's snapshot: the row that was in the way may be younger.
    return f"SELECT state, result, created_us FROM {marker.TABLE} {_where(_my_key(tx_id), branch, op)} FOR UPDATE"


def _my_keep(tx_id: str, branch: str, op: str, result: bytes) -> str:
    return f"UPDATE {marker.TABLE} SET result = X'{result.hex()}' {_where(_my_key(tx_id), branch, op)}"


def _my_prune(before_us: int, limit: int) -> str:
    old = _old(f"X'{_begun_before(before_us)}'", before_us, limit)
    return (
        f"DELETE t FROM {marker.TABLE} AS t JOIN ({old}) AS old"
        f" ON t.tx_id = old.tx_id AND t.branch = old.branch WHERE t.op IN {OPS}"
    )


# ---- SQLite ----

# One writer at a time: who comes second waits for the first one's end, or fails with "database is locked".
LITE_NOW_US = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
_LITE_DDL = [
    f"CREATE TABLE IF NOT EXISTS {marker.TABLE} ("
    " tx_id text NOT NULL, branch text NOT NULL, op text NOT NULL,"
    " state integer NOT NULL, result blob, created_us integer NOT NULL,"
    " PRIMARY KEY (tx_id, branch, op)) WITHOUT ROWID"
]


def _lite_key(tx_id: str) -> str:
    return f"'{checked_tx_id(tx_id)}'"


def _lite_enter(tx_id: str, branch: str, op: str, not_after_us: int) -> str:
    return lite_insert(tx_id, branch, _rows(op), not_after_us)


def lite_insert(tx_id: str, branch: str, states: Iterable[tuple[str, int]], not_after_us: int) -> str:
    """SQLite: insert rows of one branch, by op; no limit of time where that is 0."""
    rows = " UNION ALL ".join(f"SELECT '{name}' AS op, {state} AS state" for name, state in states)
    limit = f"{LITE_NOW_US} <= {int(not_after_us)}" if not_after_us else "true"
    return (
        f"INSERT INTO {marker.TABLE} (tx_id, branch, op, state, created_us)"
        f" SELECT {_lite_key(tx_id)}, '{checked_branch(branch)}', v.op, v.state, {LITE_NOW_US}"
        f" FROM ({rows}) AS v WHERE {limit} ON CONFLICT DO NOTHING"
    )


def _lite_read(tx_id: str, branch: str, op: str) -> str:
    return f"SELECT state, result, created_us FROM {marker.TABLE} {_where(_lite_key(tx_id), branch, op)}"


def _lite_keep(tx_id: str, branch: str, op: str, result: bytes) -> str:
    return f"UPDATE {marker.TABLE} SET result = X'{result.hex()}' {_where(_lite_key(tx_id), branch, op)}"


def _lite_prune(before_us: int, limit: int) -> str:
    old = _old(f"'{_begun_before(before_us)}'", before_us, limit)
    return f"DELETE FROM {marker.TABLE} WHERE op IN {OPS} AND (tx_id, branch) IN ({old})"


_MY = Statements(_my_enter, _my_read, _my_keep, mariadb.READ_NOW_US, _my_prune, mariadb.ddl()[:1])
BY_FAMILY = {
    "postgresql": Statements(
        _pg_enter, _pg_read, _pg_keep, f"SELECT {postgresql.NOW_US}", _pg_prune, postgresql.ddl()[:1]
    ),
    "mysql": _MY,
    "mariadb": _MY,
    "sqlite": Statements(
        _lite_enter, _lite_read, _lite_keep, f"SELECT {LITE_NOW_US}", _lite_prune, _LITE_DDL
    ),
}
"""By what SQLAlchemy calls the dialect."""
