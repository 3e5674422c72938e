"""The marker table as participants use it, on both kinds of simulated databases."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .postgres import Database, Key, Session, Wait

_ENTERS = re.compile(r"SELECT X?'(\w+)'(?:::uuid)?, '([\d.]+)', v\.op, v\.state")
_ROWS = re.compile(r"'(\w+)'(?: AS op)?, ([12])\b")
_LIMIT = re.compile(r" <= (\d+)")
_WHERE = re.compile(r"tx_id = X?'(\w+)'(?:::uuid)? AND branch = '([\d.]+)' AND op = '(\w+)'")
_RESULT = re.compile(r"result = (?:X|decode\()'(\w*)'")


def enters(sql: str) -> bool:
    """Is it the first statement of a call?"""
    return "v.op, v.state" in sql


def entered(database: Database, session: Session, sql: str) -> Generator[Wait, None, int]:
    """Insert what is not there yet, in the order of the statement; how many rows that were."""
    from .postgres import Wait

    tx, match, limit = session.tx, _ENTERS.search(sql), _LIMIT.search(sql)
    assert tx is not None
    assert match is not None
    if limit is not None and database.now_us() > int(limit[1]):
        return 0
    count = 0
    for op, state in _ROWS.findall(sql[match.end() :]):
        key = (match[1], match[2], op)
        while (holder := database.locks.get(key)) is not None and holder is not tx:
            yield Wait(key, tx.lock_timeout_s)
        if key in database.markers or key in tx.markers:
            continue
        database.locks[key] = tx
        tx.markers[key] = int(state)
        count += 1
    return count


def read(
    database: Database, session: Session, sql: str
) -> Generator[Wait, None, tuple[tuple[int, bytes | None, int], ...]]:
    """State, result and time of a row, as this session sees it."""
    from .postgres import Wait

    key, tx = _key(sql), session.tx
    if "FOR UPDATE" in sql:
        while (holder := database.locks.get(key)) is not None and holder is not tx:
            yield Wait(key, session.lock_timeout_s)
    if tx is not None and key in tx.markers:
        return ((tx.markers[key], tx.results.get(key), database.now_us()),)
    found = database.markers.get(key)
    return ((found[0], database.results.get(key), found[1]),) if found is not None else ()


def keep(session: Session, sql: str) -> None:
    """Keep a result in the row of this transaction."""
    match = _RESULT.search(sql)
    assert match is not None
    assert session.tx is not None
    session.tx.results[_key(sql)] = bytes.fromhex(match[1])


def _key(sql: str) -> Key:
    match = _WHERE.search(sql)
    assert match is not None
    return (match[1], match[2], match[3])
