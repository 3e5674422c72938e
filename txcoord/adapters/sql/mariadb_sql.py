"""The statements of a flush to a log on MariaDB.

The rows of a statement come as one JSON text, which JSON_TABLE makes rows of again: so its text is short, and the
same for any number of rows. MariaDB does not tell which rows a statement has written. So a flush marks them with a
number of its own, ``flush_id``, and whatever goes beside a row goes by that mark.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from asyncmy.converters import escape_string

from . import mapping as m
from .batch import Item, Round

NOW = "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', SYSDATE(6))"
"""The clock, asked where it stands; the session's time zone is UTC."""
_NEVER_LATE = f"(i.not_after_us IS NULL OR {NOW} <= i.not_after_us)"
_NUMBERS = frozenset({"bigint", "integer", "smallint", "boolean"})
_MOST = 2**63


def flush(rounds: Sequence[Round], marks: Sequence[int]) -> bytes:
    """One message with all statements; a mark for each round. Raises ValueError, TypeError: what cannot be stored."""
    parts = ["START TRANSACTION"]
    for round_, mark in zip(rounds, marks, strict=True):
        parts += _round(round_, mark)
    parts.append("COMMIT")
    # Strictly: the driver would let half a character through.
    return ";".join(parts).encode()


def _round(round_: Round, mark: int) -> list[str]:
    for items in (round_.inserts, round_.amends, round_.progress, round_.orders, round_.releases):
        items.sort(key=_tx_id)  # all nodes lock rows in one order
    parts = []

    def add(statement: str, columns: Sequence[m.Col], rows: Iterable[m.Row]) -> None:
        listed = list(rows)
        if listed:
            table = (
                f"JSON_TABLE('{escape_string(_json(columns, listed))}', '$[*]' {_columns(tuple(columns))}) i"
            )
            parts.append(statement.replace("{rows}", table, 1).replace("{mark}", str(mark)))

    add(_INSERT, (*m.INSERT, m.NOT_AFTER), (m.insert_row(i.change) for i in round_.inserts))
    add(_AMEND, (*m.AMEND, m.EXPECTED, m.NOT_AFTER), (m.amend_row(i.change) for i in round_.amends))
    add(_PROGRESS, (*m.PROGRESS, m.EXPECTED), (m.progress_row(i.change) for i in round_.progress))
    if round_.orders:
        # Locked: whoever cancels one, or takes it over, waits until this is written.
        jobs = ",".join(
            sorted({f"'{escape_string(i.change.job[0])}'" for i in round_.orders if i.change.job})
        )
        parts.append(
            f"SELECT COUNT(*) INTO @txcoord_jobs FROM txcoord_replay WHERE id IN ({jobs}) LOCK IN SHARE MODE"
        )
    add(_ORDER, (*m.PROGRESS, m.EXPECTED, *m.JOB), (m.order_row(i.change) for i in round_.orders))
    add(_RELEASE, (*m.RELEASE, m.EXPECTED), (m.release_row(i.change) for i in round_.releases))
    items = round_.items
    add(_BRANCH, m.BRANCH, (row for i in items for row in m.branch_rows(i.change)))
    add(_HISTORY, m.HISTORY, (row for i in items for row in m.history_rows(i.change, i.ordinal)))
    add(_AUDIT, m.AUDIT, (row for i in items for row in m.audit_rows(i.change, i.ordinal)))
    add(_OUTBOX, m.OUTBOX, (row for i in items for row in m.outbox_rows(i.change)))
    add(_ORDERING, m.ORDERING, m.ordering_rows(i.change for i in items))
    keys = ",".join(f"X'{bytes.fromhex(i.change.tx.tx_id).hex()}'" for i in items)
    parts.append(f"SELECT tx_id FROM txcoord_tx WHERE tx_id IN ({keys}) AND flush_id = {mark}")
    parts.append(f"SELECT {NOW}")
    return parts


def _tx_id(item: Item) -> str:
    return item.change.tx.tx_id


def _json(columns: Sequence[m.Col], rows: list[m.Row]) -> str:
    kinds = [_KINDS.get(c.type, _as_text) for c in columns]
    return json.dumps(
        [[None if v is None else k(v) for k, v in zip(kinds, row, strict=True)] for row in rows],
        ensure_ascii=False,
        separators=(",", ":"),
    )


# JSON_TABLE takes what does not fit a number for the next one that does, and so on: it is refused here.


def _as_number(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    if not -_MOST <= value < _MOST:
        raise ValueError(f"{value} is too large")
    return int(value)


def _as_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return str(value)


def _as_hex(value: Any) -> str:
    return bytes(value).hex()


_KINDS = {"bytea": _as_hex, **dict.fromkeys(_NUMBERS, _as_number)}


@lru_cache(maxsize=16)
def _columns(columns: tuple[m.Col, ...]) -> str:
    """How JSON_TABLE makes columns of them; ids and bytes are hexadecimal there."""
    parts = (
        f"{c.name} {'BIGINT' if c.type in _NUMBERS else 'LONGTEXT CHARACTER SET utf8mb4'}"
        f" PATH '$[{n}]' ERROR ON EMPTY ERROR ON ERROR"
        for n, c in enumerate(columns)
    )
    return f"COLUMNS ({', '.join(parts)})"


def _names(columns: Sequence[m.Col]) -> str:
    return ", ".join(c.name for c in columns)


def _value(column: m.Col) -> str:
    return f"UNHEX(i.{column.name})" if column.type in ("uuid", "bytea") else f"i.{column.name}"


def _values(columns: Sequence[m.Col]) -> str:
    return ", ".join(map(_value, columns))


def _insert() -> str:
    return (
        f"INSERT INTO txcoord_tx ({_names(m.INSERT)}, detail_pruned, flush_id)"
        f" SELECT {_values(m.INSERT)}, 0, {{mark}} FROM {{rows}} WHERE {_NEVER_LATE}"
        " ON DUPLICATE KEY UPDATE tx_id = txcoord_tx.tx_id"  # not IGNORE: that would let bad values in
    )


def _update(columns: Sequence[m.Col], where: str) -> str:
    sets = ", ".join(
        # Of the claim whose epoch it names: it was renewed since, perhaps. Handed off it says when it is overdue, and
        # that is nobody's lease.
        f"t.{c.name} = CASE WHEN i.owner = '' OR t.owner = '' THEN i.{c.name}"
        f" ELSE GREATEST(t.{c.name}, i.{c.name}) END"
        if c.name == "lease_until_us"
        else f"t.{c.name} = {_value(c)}"
        # From left to right, and what is set is read so from then on: the lease needs the owner as it was.
        for c in sorted(columns[1:], key=lambda c: c.name != "lease_until_us")
    )
    return (
        "UPDATE {rows} STRAIGHT_JOIN txcoord_tx t ON t.tx_id = UNHEX(i.tx_id)"
        f" SET {sets}, t.flush_id = {{mark}} WHERE {where}"
    )


def _beside(table: str, columns: Sequence[m.Col], conflict: str) -> str:
    return (
        f"INSERT INTO {table} ({_names(columns)}) SELECT {_values(columns)} FROM {{rows}}"
        " STRAIGHT_JOIN txcoord_tx t ON t.tx_id = UNHEX(i.tx_id) AND t.flush_id = {mark}"
        f" ON DUPLICATE KEY UPDATE {conflict}"
    )


_INSERT = _insert()
_AMEND = _update(m.AMEND, f"t.version = i.expected AND t.decision IS NULL AND {_NEVER_LATE}")
_CARRIED_OUT = "t.epoch = i.expected AND (t.decision IS NOT NULL OR t.state = 'running')"
_PROGRESS = _update(m.PROGRESS, _CARRIED_OUT)
_ORDER = _update(
    m.PROGRESS,
    f"{_CARRIED_OUT} AND EXISTS (SELECT 1 FROM txcoord_replay r WHERE r.id = i.job COLLATE utf8mb4_bin"
    " AND r.epoch = i.job_epoch AND r.state = 'running')",
)
_RELEASE = (
    "UPDATE {rows} STRAIGHT_JOIN txcoord_tx t ON t.tx_id = UNHEX(i.tx_id) SET t.gid = NULL, t.flush_id = {mark}"
    " WHERE t.version = i.expected AND t.decision = 'abort'"
)
_BRANCH = _beside("txcoord_branch", m.BRANCH, ", ".join(f"{c.name} = VALUES({c.name})" for c in m.BRANCH[2:]))
_HISTORY = _beside("txcoord_history", m.HISTORY, "ordinal = txcoord_history.ordinal")
_AUDIT = _beside("txcoord_audit", m.AUDIT, "ordinal = txcoord_audit.ordinal")
_OUTBOX = _beside("txcoord_outbox", m.OUTBOX, "seq = txcoord_outbox.seq")
# Numbered in the order of the rows, since the loop over them is the outer one. ORDER BY, which would say so, makes
# MariaDB read empty ids from its temporary table.
_ORDERING = _beside("txcoord_ordering", m.ORDERING, "branch = txcoord_ordering.branch")
