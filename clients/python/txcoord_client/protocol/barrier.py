"""The barrier: what a participant writes into the marker table, in its own transaction, before it does its work.

The first statement of each call says whether the work is to be done now:

- a try or action inserts its own row: one row means *do it*, none that it was done before or that it comes too late
  (:func:`read` tells);
- a cancel or compensation inserts its own row and, in the same statement, the row of the try or action as a tombstone:
  two rows mean that there is nothing to undo, and that the try, should it come now, does nothing; one row means *do
  it*; none that it was done before;
- a confirm inserts its own row: one row means *do it*.

What another transaction has inserted and not committed is waited for. Values are checked and written into the
statement; see the modules of the two dialects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import mariadb, marker, postgresql
from .identifiers import checked_branch, checked_op, checked_tx_id

FIRST = {"confirm": "try", "cancel": "try", "compensate": "action"}
"""Whose row a later operation reads."""
UNDOING = frozenset({"cancel", "compensate"})


@dataclass(frozen=True, slots=True)
class Statements:
    """The statements of one dialect."""

    enter: Callable[[str, str, str, int], str]
    """Of ``tx_id, branch, op, not_after_us``, 0: no limit. The number of rows that it inserts is the answer."""
    read: Callable[[str, str, str], str]
    """State and result of one row, as it is now."""
    keep: Callable[[str, str, str], str]
    """Keep a result, the parameter ``:result``, in the row."""


def _rows(op: str) -> list[tuple[str, int]]:
    rows = [(checked_op(op), marker.DONE)]
    if op in UNDOING:
        rows.append((FIRST[op], marker.TOMBSTONE))
    return rows


def _where(key: str, branch: str, op: str) -> str:
    return f"WHERE tx_id = {key} AND branch = '{checked_branch(branch)}' AND op = '{checked_op(op)}'"


# ---- PostgreSQL ----

# What is answered "done" must be on disk. Materialized and used, or it would not be evaluated.
_PG_CLOCK = (
    f"WITH c AS MATERIALIZED (SELECT {postgresql.NOW_US} AS now_us,"
    " CASE WHEN current_setting('synchronous_commit') = 'off'"
    " THEN set_config('synchronous_commit', 'on', true) ELSE '-' END AS synced)"
)


def _pg_key(tx_id: str) -> str:
    return f"'{checked_tx_id(tx_id)}'::uuid"


def _pg_enter(tx_id: str, branch: str, op: str, not_after_us: int) -> str:
    values = ", ".join(f"('{name}', {state})" for name, state in _rows(op))
    limit = f" AND c.now_us <= {int(not_after_us)}" if not_after_us else ""
    return (
        f"{_PG_CLOCK} INSERT INTO {marker.TABLE} (tx_id, branch, op, state, created_us)"
        f" SELECT {_pg_key(tx_id)}, '{checked_branch(branch)}', v.op, v.state, c.now_us"
        f" FROM c, (VALUES {values}) AS v (op, state) WHERE c.synced <> ''{limit} ON CONFLICT DO NOTHING"
    )


def _pg_read(tx_id: str, branch: str, op: str) -> str:
    return f"SELECT state, result FROM {marker.TABLE} {_where(_pg_key(tx_id), branch, op)}"


def _pg_keep(tx_id: str, branch: str, op: str) -> str:
    return f"UPDATE {marker.TABLE} SET result = :result {_where(_pg_key(tx_id), branch, op)}"


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
    return f"SELECT state, result FROM {marker.TABLE} {_where(_my_key(tx_id), branch, op)} FOR UPDATE"


def _my_keep(tx_id: str, branch: str, op: str) -> str:
    return f"UPDATE {marker.TABLE} SET result = :result {_where(_my_key(tx_id), branch, op)}"


BY_FAMILY = {
    "postgresql": Statements(_pg_enter, _pg_read, _pg_keep),
    "mysql": Statements(_my_enter, _my_read, _my_keep),
    "mariadb": Statements(_my_enter, _my_read, _my_keep),
}
"""By what SQLAlchemy calls the dialect."""
