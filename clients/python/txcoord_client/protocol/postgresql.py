"""PostgreSQL: the statements of a branch and of its finisher, and what the replies mean.

Everything here is text; values are checked identifiers and integers, so they are written into the statement:
several of these must travel as *one* simple-query message, which takes no parameters.

Measured on PostgreSQL 15 to 18; see `docs/explanation/xa-postgresql.md`.
"""

from __future__ import annotations

from . import marker
from .identifiers import checked_branch, checked_op, checked_tx_id, is_tx_id
from .replies import Reply as Reply
from .xid import LOG_ID_LENGTH, PREFIX, is_log_id
from .xid import parse as parse_xid

NOW_US = "(extract(epoch from clock_timestamp())*1000000)::bigint"
"""The server's clock; ``now()`` would be the transaction's start and let a stalled one pass a limit."""

SAVEPOINT = "txc"
START_GUARD = f"SAVEPOINT {SAVEPOINT}"

DEFAULT_SCHEMA = "public"


def ddl(schema: str = DEFAULT_SCHEMA) -> list[str]:
    """The tables that a resource needs; run by ``txcoord resource check --fix``."""
    s = _ident(schema)
    return [
        f"CREATE TABLE IF NOT EXISTS {s}.{marker.TABLE} ("
        " tx_id uuid NOT NULL, branch varchar(24) NOT NULL, op varchar(10) NOT NULL,"
        " state smallint NOT NULL, result bytea, created_us bigint NOT NULL,"
        " PRIMARY KEY (tx_id, branch, op))",
        f"CREATE TABLE IF NOT EXISTS {s}.{marker.IDENTITY_TABLE} ("
        " id smallint PRIMARY KEY DEFAULT 1 CHECK (id = 1),"
        " identity char(32) NOT NULL, created_us bigint NOT NULL)",
    ]


def set_identity(identity: str, schema: str = DEFAULT_SCHEMA) -> str:
    """Give the database an identity, unless it has one."""
    if not is_tx_id(identity):
        raise ValueError("an identity is 32 hex digits")
    return (
        f"INSERT INTO {_ident(schema)}.{marker.IDENTITY_TABLE} (identity, created_us)"
        f" VALUES ('{identity}', {NOW_US}) ON CONFLICT DO NOTHING"
    )


def read_identity(schema: str = DEFAULT_SCHEMA) -> str:
    """Read the database's identity: no row or no table means that it was never made a resource."""
    return f"SELECT identity FROM {_ident(schema)}.{marker.IDENTITY_TABLE}"


def missing_rights(schema: str = DEFAULT_SCHEMA) -> str:
    """Which of SELECT, INSERT and DELETE the role lacks on the marker table; no row when there is no such table."""
    name = f"{_ident(schema)}.{marker.TABLE}".replace("'", "''")
    rights = ("SELECT", "INSERT", "DELETE")
    lacks = ", ".join(f"CASE WHEN NOT has_table_privilege(t, '{r}') THEN '{r}' END" for r in rights)
    return f"SELECT array_remove(ARRAY[{lacks}], NULL) FROM (SELECT to_regclass('{name}') AS t) x WHERE t IS NOT NULL"


def insert_marker(
    tx_id: str,
    branch: str,
    op: str,
    not_after_us: int,
    state: int = marker.DONE,
    schema: str = DEFAULT_SCHEMA,
) -> str:
    """Insert the marker, refused by its own statement (23502) after ``not_after_us`` of the server's clock."""
    return (
        f"INSERT INTO {_ident(schema)}.{marker.TABLE} (tx_id, branch, op, state, created_us)"
        f" SELECT '{checked_tx_id(tx_id)}'::uuid, '{checked_branch(branch)}', '{checked_op(op)}', {int(state)},"
        f" CASE WHEN c.now_us <= {int(not_after_us)} THEN c.now_us END FROM (SELECT {NOW_US} AS now_us) c"
    )


def prepare(tx_id: str, branch: str, xid: str, not_after_us: int, schema: str = DEFAULT_SCHEMA) -> str:
    """End the branch's work: guard, marker and PREPARE in one message.

    It fails (25P01, 3B001, 25P02) when anyone ended the transaction meanwhile. The last tag must be
    ``PREPARE TRANSACTION``: in a failed transaction PostgreSQL answers ``ROLLBACK``, without an error.
    """
    return "; ".join(
        [
            f"RELEASE SAVEPOINT {SAVEPOINT}",
            insert_marker(tx_id, branch, marker.XA, not_after_us, schema=schema),
            f"PREPARE TRANSACTION '{_xid(xid)}'",
        ]
    )


PREPARED_TAG = "PREPARE TRANSACTION"
COMMITTED_TAG = "COMMIT"
COMMIT_PREPARED_TAG = "COMMIT PREPARED"
ROLLBACK_PREPARED_TAG = "ROLLBACK PREPARED"

FLUSHED = (
    "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
)
"""An outcome that hangs on a local commit must be flushed; ``local``, ``remote_write`` and ``remote_apply`` are."""
FLUSHED_CLOCK = (
    f"WITH c AS MATERIALIZED (SELECT {NOW_US} AS now_us,"
    " CASE WHEN current_setting('synchronous_commit') = 'off'"
    " THEN set_config('synchronous_commit', 'on', true) ELSE '-' END AS synced)"
)
"""The same and the clock, to begin a statement: ``now_us`` and ``synced`` of ``c``. Materialized, and ``synced <> ''``
to be asked for, or it would not be evaluated."""


def commit_one_phase(tx_id: str, not_after_us: int, schema: str = DEFAULT_SCHEMA) -> str:
    """Commit a transaction's only branch in one phase; its marker key decides. The tag must be ``COMMIT``."""
    return "; ".join(
        [
            f"RELEASE SAVEPOINT {SAVEPOINT}",
            FLUSHED,
            insert_marker(tx_id, marker.ONE_BRANCH, marker.ONE, not_after_us, schema=schema),
            "COMMIT",
        ]
    )


def probe(tx_id: str, branch: str, op: str, not_after_us: int, schema: str = DEFAULT_SCHEMA) -> str:
    """Put a tombstone at the key and commit, in one message (its own transaction).

    Send :func:`read_marker` first. Success means "it never committed, and never will"; 23505 means "a row is
    there: read it"; 55P03 (lock time-out) means "still open: ask again"; 23502 means "too late to ask".
    """
    return "; ".join(
        [
            "BEGIN",
            FLUSHED,
            "SET LOCAL lock_timeout = '1s'",
            insert_marker(tx_id, branch, op, not_after_us, marker.TOMBSTONE, schema),
            "COMMIT",
        ]
    )


def read_marker(tx_id: str, branch: str, op: str, schema: str = DEFAULT_SCHEMA) -> str:
    """Read the marker's state: :data:`marker.DONE`, :data:`marker.TOMBSTONE` or no row (which proves nothing)."""
    return (
        f"SELECT state FROM {_ident(schema)}.{marker.TABLE}"
        f" WHERE tx_id = '{checked_tx_id(tx_id)}' AND branch = '{checked_branch(branch)}' AND op = '{checked_op(op)}'"
    )


IS_READ_ONLY = "SELECT pg_current_xact_id_if_assigned() IS NULL"
"""True when the transaction wrote nothing and locked no row: it may drop out. True also where there is none."""

DROP_OUT = f"RELEASE SAVEPOINT {SAVEPOINT}; COMMIT"
"""End a transaction that wrote nothing, in one message. It fails as :func:`prepare` does when anyone ended it before.
It is a commit, since what a serializable transaction has read counts only then."""


def commit_prepared(xid: str) -> str:
    """Outside a transaction. Tag ``COMMIT PREPARED`` is the proof of commit."""
    return f"COMMIT PREPARED '{_xid(xid)}'"


def rollback_prepared(xid: str) -> str:
    """Outside a transaction."""
    return f"ROLLBACK PREPARED '{_xid(xid)}'"


def list_prepared(log_id: str) -> str:
    """Prepared transactions of this log in this database: gid, owner, prepared (µs). Never anyone else's."""
    if not is_log_id(log_id):
        raise ValueError("not a log id")
    start = f"{PREFIX}.{log_id}."
    return (
        "SELECT gid, owner, (extract(epoch from prepared)*1000000)::bigint FROM pg_prepared_xacts"
        f" WHERE database = current_database() AND left(gid, {len(PREFIX) + 2 + LOG_ID_LENGTH}) = '{start}'"
    )


def delete_old_markers(not_after_us: int, limit: int, schema: str = DEFAULT_SCHEMA) -> str:
    """Delete a small batch of markers of XA branches made before ``not_after_us``.

    A tx id starts with its time, so the primary key finds the old ones: the table has no other index.
    """
    t = f"{_ident(schema)}.{marker.TABLE}"
    begun_before = f"{max(not_after_us, 0) // 1000 & 0xFFFF_FFFF_FFFF:012x}".ljust(32, "0")
    return (
        f"DELETE FROM {t} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {t}"
        f" WHERE tx_id < '{begun_before}'::uuid AND op IN {marker.XA_OPS} AND created_us < {int(not_after_us)}"
        f" ORDER BY tx_id LIMIT {int(limit)}))"
    )


_MEANING = {
    "42704": Reply.UNKNOWN_XID,
    "42501": Reply.REFUSED,
    "0A000": Reply.NOT_POSSIBLE,
    "23505": Reply.DUPLICATE,
    "23502": Reply.TOO_LATE,
    "55P03": Reply.LOCK_TIMEOUT,
    "40001": Reply.ROLLED_BACK,
    "40P01": Reply.ROLLED_BACK,
    "25P01": Reply.GUARD,
    "25P02": Reply.GUARD,
    "3B001": Reply.GUARD,
    "53200": Reply.PREPARE_FULL,
    "55000": Reply.BUSY,
}


def meaning(sqlstate: str | None) -> Reply:
    """What an SQLSTATE means for a branch. 55000 is *busy* for a finisher, *disabled* for a PREPARE."""
    if sqlstate is None or (sqlstate[:2] in ("08", "57", "53", "58", "XX") and sqlstate != "53200"):
        return Reply.UNREACHABLE
    return _MEANING.get(sqlstate, Reply.OTHER)


def meaning_of_prepare(sqlstate: str | None) -> Reply:
    """As :func:`meaning`, for the message that ends in PREPARE TRANSACTION."""
    return Reply.PREPARE_DISABLED if sqlstate == "55000" else meaning(sqlstate)


def _xid(value: str) -> str:
    if parse_xid(value) is None:
        raise ValueError(f"not an xid of txcoord: {value!r}")
    return value


def _ident(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'
