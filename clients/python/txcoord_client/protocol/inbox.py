"""The inbox: a row for each message that a receiver has taken, in the receiver's own database and written in the
transaction of what it did. Pure: statements as text.

``txcoord_inbox(source, id)``: the source is the receiver's word for where messages come from, the id is the message's.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from . import mariadb, postgresql
from .barrier import DAY_US as DAY_US
from .barrier import LITE_NOW_US

TABLE = "txcoord_inbox"
DONE, REFUSED = 1, 2
_SOURCE = re.compile(r"[A-Za-z0-9_.-]{1,63}", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9_.:/@+=-]{1,128}", re.ASCII)
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Statements:
    """Of one family of databases."""

    enter: Callable[[str, str, int, str], str]
    """Of ``source, id, state, reason``: insert the row; it counts 1 if there was none."""
    read: Callable[[str, str], str]
    """Its state and reason."""
    prune: Callable[[str, int, int], str]
    """Of ``source, keep_us, limit``: delete so many of those that are older."""
    ddl: str


def checked_source(text: str) -> str:
    """Raises ValueError."""
    if not _SOURCE.fullmatch(text):
        raise ValueError(f"source {text[:80]!r}: 1 to 63 characters of [A-Za-z0-9_.-]")
    return text


def key_of(message_id: str) -> str:
    """What is kept of an id: itself; its hash where it is long or has other characters. Raises ValueError for none."""
    if not message_id:
        raise ValueError("a message without an id cannot be told from another")
    if _ID.fullmatch(message_id) and not message_id.startswith("sha256:"):
        return message_id
    return f"sha256:{hashlib.sha256(message_id.encode()).hexdigest()}"


def code_of(reason: str) -> str:
    """A reason that can be kept."""
    return reason if _REASON.fullmatch(reason) else "REFUSED"


def _where(source: str, key: str) -> str:
    return f"WHERE source = '{checked_source(source)}' AND id = '{_checked(key)}'"


def _checked(key: str) -> str:
    if not _ID.fullmatch(key):
        raise ValueError(f"{key[:80]!r} is no key")
    return key


def _values(source: str, key: str, state: int, reason: str) -> str:
    return (
        f"'{checked_source(source)}', '{_checked(key)}', {int(state)}, '{code_of(reason) if reason else ''}'"
    )


_COLUMNS = "(source, id, state, reason, created_us)"
_BODY = (
    " (source varchar(63){0} NOT NULL, id varchar(128){0} NOT NULL, state smallint NOT NULL,"
    " reason varchar(63){0} NOT NULL, created_us bigint NOT NULL, PRIMARY KEY (source, id))"
)


def _pg_prune(source: str, keep_us: int, limit: int) -> str:
    return (
        f"DELETE FROM {TABLE} WHERE ctid IN (SELECT ctid FROM {TABLE} WHERE source = '{checked_source(source)}'"
        f" AND created_us < {postgresql.NOW_US} - {int(keep_us)} LIMIT {int(limit)} FOR UPDATE SKIP LOCKED)"
    )


def _lite_prune(source: str, keep_us: int, limit: int) -> str:
    return (
        f"DELETE FROM {TABLE} WHERE rowid IN (SELECT rowid FROM {TABLE} WHERE source = '{checked_source(source)}'"
        f" AND created_us < {LITE_NOW_US} - {int(keep_us)} LIMIT {int(limit)})"
    )


_MY = Statements(
    # IGNORE is for the key only: nothing else here can be wrong.
    lambda s, k, state, reason: (
        f"{mariadb.UTC}INSERT{mariadb.UTC_HINT} IGNORE INTO {TABLE} {_COLUMNS}"
        f" SELECT {_values(s, k, state, reason)}, {mariadb.NOW_US}"
    ),
    # Not of the transaction's snapshot: the row that was in the way may be younger. Shared, as those who ran into it
    # hold it already: two who wanted more would wait for each other.
    lambda s, k: f"SELECT state, reason FROM {TABLE} {_where(s, k)} LOCK IN SHARE MODE",
    lambda s, keep_us, limit: (
        f"{mariadb.UTC}DELETE{mariadb.UTC_HINT} FROM {TABLE} WHERE source = '{checked_source(s)}'"
        f" AND created_us < {mariadb.NOW_US} - {int(keep_us)} LIMIT {int(limit)}"
    ),
    f"CREATE TABLE IF NOT EXISTS {TABLE}{_BODY.format(' CHARACTER SET ascii COLLATE ascii_bin')} ENGINE=InnoDB",
)
BY_FAMILY = {
    "postgresql": Statements(
        lambda s, k, state, reason: (
            # What is said to be done must be on disk, whatever the role's or the database's settings.
            f"{postgresql.FLUSHED_CLOCK} INSERT INTO {TABLE} {_COLUMNS}"
            f" SELECT {_values(s, k, state, reason)}, c.now_us FROM c WHERE c.synced <> '' ON CONFLICT DO NOTHING"
        ),
        lambda s, k: f"SELECT state, reason FROM {TABLE} {_where(s, k)}",
        _pg_prune,
        f"CREATE TABLE IF NOT EXISTS {TABLE}{_BODY.format('')}",
    ),
    "mysql": _MY,
    "mariadb": _MY,
    "sqlite": Statements(
        lambda s, k, state, reason: (
            f"INSERT OR IGNORE INTO {TABLE} {_COLUMNS} VALUES ({_values(s, k, state, reason)}, {LITE_NOW_US})"
        ),
        lambda s, k: f"SELECT state, reason FROM {TABLE} {_where(s, k)}",
        _lite_prune,
        f"CREATE TABLE IF NOT EXISTS {TABLE}{_BODY.format('')}",
    ),
}
"""By what SQLAlchemy calls the dialect."""
