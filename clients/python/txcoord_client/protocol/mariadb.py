"""MariaDB and MySQL: the statements of a branch and of its finisher, and what the replies mean.

Everything here is text; values are checked identifiers and integers, so they are written into the statement. Each
function gives one statement, or a list of them to be sent one after the other.

The order of a branch: ``XA START``, work, :func:`insert_marker` (exactly one row, else it is too late),
``XA END``, ``XA PREPARE``. The server itself refuses COMMIT, ROLLBACK and DDL in between (1399), so no guard is
needed. After a deadlock ``XA END`` fails too: only ``XA ROLLBACK`` is left.

Where they differ: a prepared branch of MariaDB can be finished only by the session that prepared it while that
lives; on MySQL (``xa_detach_on_prepare``) by any.

Measured on MariaDB 10.11 and MySQL 9.7; see `docs/explanation/xa-mariadb.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

from . import marker
from .identifiers import checked_branch, checked_op, checked_tx_id, is_tx_id
from .replies import Reply as Reply
from .xid import Xid
from .xid import parse as parse_xid

FORMAT_ID = 0x74786331
"""``txc1`` in ASCII. MariaDB takes at most 2³¹ - 1."""

NOW_US = "CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)"
"""The server's clock as it is evaluated; ``NOW()`` and ``UTC_TIMESTAMP()`` would be the statement's start, and what
``SET timestamp`` says. To be read in a session, or a statement, whose time zone is UTC: elsewhere an hour of autumn
has two meanings."""

# The time zone of this one statement, whatever the application has set in its session: MariaDB reads the first
# comment and skips the second, MySQL the other way round.
UTC = "/*M! SET STATEMENT time_zone = '+00:00' FOR */ "
UTC_HINT = " /*+ SET_VAR(time_zone = '+00:00') */"

READ_SERVER = "SELECT VERSION(), @@version_comment"
"""For :func:`flavour`."""
READ_CONNECTION_ID = "SELECT CONNECTION_ID()"
READ_NOW_US = f"{UTC}SELECT{UTC_HINT} {NOW_US}"
READ_DETACH = "SELECT @@SESSION.xa_detach_on_prepare"
"""MySQL: 1 when any session can finish a branch that is prepared in this one."""
SET_DETACH = "SET SESSION xa_detach_on_prepare = ON"


class Flavour(StrEnum):
    """Which of the two it is. Found out by asking: a URL's scheme says nothing."""

    MARIADB = "mariadb"
    MYSQL = "mysql"


def flavour(version: str, comment: str) -> Flavour | None:
    """Which server has answered :data:`READ_SERVER`; None for one that only speaks the same protocol."""
    both = f"{version} {comment}".lower()
    if "mariadb" in both:
        return Flavour.MARIADB
    if any(other in both for other in ("tidb", "vitess", "oceanbase", "doris", "starrocks", "dolt")):
        return None
    return Flavour.MYSQL if version_tuple(version) >= (5,) else None


def version_tuple(version: str) -> tuple[int, ...]:
    """``10.11.19-MariaDB`` is (10, 11, 19); empty when it is no version."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


# ---- tables ----


def ddl(schema: str = "") -> list[str]:
    """The tables that a resource needs; run by ``txcoord resource check --fix``. The same on both servers.

    ``schema``, here and below: the database that they are in; empty: the session's.
    """
    text = "CHARACTER SET ascii COLLATE ascii_bin"
    return [
        f"CREATE TABLE IF NOT EXISTS {_table(schema, marker.TABLE)} ("
        f" tx_id binary(16) NOT NULL, branch varchar(24) {text} NOT NULL, op varchar(10) {text} NOT NULL,"
        " state smallint NOT NULL, result blob, created_us bigint NOT NULL,"
        " PRIMARY KEY (tx_id, branch, op)) ENGINE=InnoDB",
        f"CREATE TABLE IF NOT EXISTS {_table(schema, marker.IDENTITY_TABLE)} ("
        " id smallint NOT NULL DEFAULT 1 PRIMARY KEY CHECK (id = 1),"
        f" identity char(32) {text} NOT NULL, created_us bigint NOT NULL) ENGINE=InnoDB",
    ]


def marker_table(schema: str = "") -> str:
    """The marker table's name, as it is written into a statement."""
    return _table(schema, marker.TABLE)


def set_identity(identity: str, schema: str = "") -> str:
    """Give the database an identity, unless it has one."""
    if not is_tx_id(identity):
        raise ValueError("an identity is 32 hex digits")
    return (
        f"{UTC}INSERT{UTC_HINT} INTO {_table(schema, marker.IDENTITY_TABLE)} (id, identity, created_us)"
        f" VALUES (1, '{identity}', {NOW_US}) ON DUPLICATE KEY UPDATE id = id"
    )


def read_identity(schema: str = "") -> str:
    """Read the database's identity: no row or no table means that it was never made a resource."""
    return f"SELECT identity FROM {_table(schema, marker.IDENTITY_TABLE)}"


READ_IDENTITY_AND_SCHEMA = f"SELECT identity, DATABASE() FROM {marker.IDENTITY_TABLE}"
"""The same in the session's database, and its name: a ``USE`` may have led elsewhere by the time of the marker."""


def missing_rights(schema: str = "") -> Mapping[str, str]:
    """By right, a statement that changes nothing and is refused (:attr:`Reply.REFUSED`) without that right on the
    marker table; :attr:`Reply.NO_TABLE` when there is no such table."""
    t = _table(schema, marker.TABLE)
    return {
        "SELECT": f"SELECT state FROM {t} WHERE 1 = 0",
        "INSERT": f"INSERT INTO {t} (tx_id, branch, op, state, created_us)"
        " SELECT X'00', '', '', 0, 0 FROM DUAL WHERE 1 = 0",
        "DELETE": f"DELETE FROM {t} WHERE 1 = 0",
    }


# ---- a branch ----


def xa_start(xid: str) -> str:
    """Begin the branch. 1400 when the session is in a transaction, 1440 when the name is taken."""
    return f"XA START {_name(xid)}"


def xa_end(xid: str) -> str:
    """End the branch's work; fails when the transaction is gone (deadlock): then :func:`xa_rollback`."""
    return f"XA END {_name(xid)}"


def xa_prepare(xid: str) -> str:
    """Prepare the branch. An error reply other than :attr:`Reply.UNREACHABLE` means that nothing is prepared."""
    return f"XA PREPARE {_name(xid)}"


def xa_commit(xid: str) -> str:
    """Outside a transaction. OK is the proof of commit on the session that prepared, and on no other."""
    return f"XA COMMIT {_name(xid)}"


def xa_commit_one_phase(xid: str) -> str:
    """After ``XA END``, on its own session, with the marker of :data:`marker.ONE` in it."""
    return f"XA COMMIT {_name(xid)} ONE PHASE"


def xa_rollback(xid: str) -> str:
    """After ``XA END``, or outside a transaction when it is prepared."""
    return f"XA ROLLBACK {_name(xid)}"


def insert_marker(
    tx_id: str,
    branch: str,
    op: str,
    not_after_us: int,
    state: int = marker.DONE,
    schema: str = "",
) -> str:
    """Insert the marker, unless the server's clock is past ``not_after_us`` as this very statement runs.

    Exactly one affected row, or it was too late: whatever the session's ``sql_mode``, time zone and ``timestamp``.
    (A NULL in a NOT NULL column would be refused by a strict session only.)
    """
    return (
        f"{UTC}INSERT{UTC_HINT} INTO {_table(schema, marker.TABLE)} (tx_id, branch, op, state, created_us)"
        f" SELECT X'{checked_tx_id(tx_id)}', '{checked_branch(branch)}', '{checked_op(op)}', {int(state)}, {NOW_US}"
        f" FROM DUAL WHERE {NOW_US} <= {int(not_after_us)}"
    )


def read_marker(tx_id: str, branch: str, op: str, schema: str = "") -> str:
    """Read the marker's state: :data:`marker.DONE`, :data:`marker.TOMBSTONE` or no row (which proves nothing).

    In autocommit, or it is as old as the session's snapshot.
    """
    return (
        f"SELECT state FROM {_table(schema, marker.TABLE)}"
        f" WHERE tx_id = X'{checked_tx_id(tx_id)}' AND branch = '{checked_branch(branch)}' AND op = '{checked_op(op)}'"
    )


def lock_marker(tx_id: str, branch: str, op: str, schema: str = "") -> str:
    """As :func:`read_marker`, but it waits while an open or prepared branch holds the key; 1205: it still does."""
    return f"{read_marker(tx_id, branch, op, schema)} LOCK IN SHARE MODE"


def try_marker(tx_id: str, branch: str, op: str, flavour: Flavour, schema: str = "") -> str:
    """As :func:`lock_marker`, without waiting: it fails (:attr:`Reply.LOCK_TIMEOUT`) while the key is held."""
    lock = "LOCK IN SHARE MODE" if flavour is Flavour.MARIADB else "FOR SHARE"
    return f"{read_marker(tx_id, branch, op, schema)} {lock} NOWAIT"


def read_markers(keys: Iterable[tuple[str, str]], op: str, schema: str = "") -> str:
    """The markers at these keys (tx id, branch) that exist: tx id as lower-case hex digits, branch, state."""
    wanted = ", ".join(f"(X'{checked_tx_id(tx_id)}', '{checked_branch(branch)}')" for tx_id, branch in keys)
    return (
        f"SELECT LOWER(HEX(tx_id)), branch, state FROM {_table(schema, marker.TABLE)}"
        f" WHERE (tx_id, branch) IN ({wanted}) AND op = '{checked_op(op)}'"
    )


PROBE_START = [
    "SET @txcoord_lock_wait = CAST(IFNULL(@txcoord_lock_wait, @@SESSION.innodb_lock_wait_timeout) AS UNSIGNED)",
    "SET SESSION innodb_lock_wait_timeout = 1",
]
PROBE_END = "SET SESSION innodb_lock_wait_timeout = @txcoord_lock_wait, @txcoord_lock_wait = NULL"
"""To be sent after a probe, however it went. A connection of the prober's own may keep the short one."""


def probe(tx_id: str, branch: str, op: str, not_after_us: int, schema: str = "") -> list[str]:
    """Put a tombstone at the key, in a transaction of its own: the last two of these statements.

    Send :func:`read_marker` first, :data:`PROBE_END` afterwards. One row inserted and committed means "it never
    committed, and never will"; no row means "too late to ask" (:attr:`Reply.TOO_LATE`); 1062 means "a row is there:
    read it"; 1205 (lock time-out) means "still open: ask again".
    """
    insert = insert_marker(tx_id, branch, op, not_after_us, marker.TOMBSTONE, schema)
    return [*PROBE_START, insert, "COMMIT"]


def delete_old_markers(not_after_us: int, limit: int, schema: str = "") -> str:
    """Delete a small batch of markers of XA branches made before ``not_after_us``.

    A tx id starts with its time, so the primary key finds the old ones: the table has no other index.
    """
    begun_before = f"{max(not_after_us, 0) // 1000 & 0xFFFF_FFFF_FFFF:012x}".ljust(32, "0")
    return (
        f"DELETE FROM {_table(schema, marker.TABLE)}"
        f" WHERE tx_id < X'{begun_before}' AND op IN {marker.XA_OPS} AND created_us < {int(not_after_us)}"
        f" ORDER BY tx_id LIMIT {int(limit)}"
    )


# ---- a finisher ----

XA_RECOVER: Mapping[Flavour, str] = {
    Flavour.MARIADB: "XA RECOVER FORMAT = 'SQL'",
    Flavour.MYSQL: "XA RECOVER CONVERT XID",
}
"""All prepared branches of the *server*. In the form that is text: a foreign name may be any bytes."""

_QUOTED = re.compile(r"(X?)'([^']*)'")


def recovered(rows: Iterable[Sequence[object]]) -> list[Xid]:
    """The branches of txcoord, of any log, in the reply to :data:`XA_RECOVER`; foreign ones are passed by."""
    out: list[Xid] = []
    for format_id, gtrid_length, bqual_length, data in rows:
        if int(str(format_id)) != FORMAT_ID:
            continue
        lengths = int(str(gtrid_length)), int(str(bqual_length))
        raw = _bytes(data.decode("ascii", "replace") if isinstance(data, bytes) else str(data))
        if raw is None or len(raw) != sum(lengths):
            continue
        gtrid, bqual = (part.decode("ascii", "replace") for part in (raw[: lengths[0]], raw[lengths[0] :]))
        x = parse_xid(f"{gtrid}.{bqual}")
        # One text has one way to be split: a dot in another place is somebody else's name.
        if x is not None and (x.gtrid, x.bqual) == (gtrid, bqual):
            out.append(x)
    return out


def _bytes(data: str) -> bytes | None:
    """gtrid and bqual in a row: MySQL gives both as one ``0x…``, MariaDB each as ``'…'`` or ``X'…'``."""
    try:
        if data[:2].lower() == "0x":
            return bytes.fromhex(data[2:])
        parts = _QUOTED.findall(data)
        if len(parts) != 2:
            return None
        return b"".join(bytes.fromhex(text) if x else text.encode() for x, text in parts)
    except ValueError:
        return None


def find_session(connection_id: int) -> str:
    """User, host, command and seconds in it, of the session of that id; no row when it is gone, or hidden (without
    PROCESS only those of the same user are seen)."""
    return (
        "SELECT USER, HOST, COMMAND, TIME FROM information_schema.PROCESSLIST"
        f" WHERE ID = {_connection(connection_id)}"
    )


def kill(connection_id: int) -> str:
    """End that session. Needs CONNECTION ADMIN when it is another user's; 1094 when it is gone."""
    return f"KILL CONNECTION {_connection(connection_id)}"


READ_ROLLBACK_AT_DISCONNECT = "SHOW GLOBAL VARIABLES LIKE 'legacy_xa_rollback_at_disconnect'"
"""MariaDB: name and value; ``ON`` rolls a prepared branch back when its session ends. No row: it never does."""

READ_UPTIME_S = "SHOW GLOBAL STATUS LIKE 'Uptime'"
"""Name and value: how many seconds the server runs. Ids of sessions begin anew with it."""

READ_HOLDERS = (
    "SELECT trx_mysql_thread_id FROM information_schema.INNODB_TRX"
    " WHERE trx_state = 'RUNNING' AND trx_started < NOW() - INTERVAL 10 SECOND"
)
"""For each old transaction in InnoDB its session, 0 for one that has none: prepared and detached. Needs PROCESS.
More zeros than :data:`XA_RECOVER` has rows: one is in limbo, prepared in InnoDB and unknown to ``XA COMMIT``.

InnoDB makes this table, and that of :func:`find_blockers`, anew only when nobody has read it for 0.1 s."""

HOLDERS_FRESH_S = 0.13

TAKE_TURN = "SELECT GET_LOCK('txcoord.holders', 1)"
"""1: it is this session's turn to read those tables, until :data:`END_TURN` or its end. For all coordinators of the
server: those that read again and again, out of step, would keep each other from ever seeing anything new."""
END_TURN = "SELECT RELEASE_LOCK('txcoord.holders')"


def limbo(rows: Sequence[Sequence[object]], holders: Sequence[int], since_us: int) -> int:
    """How many of the transactions behind :data:`READ_HOLDERS` are prepared and not in the reply to
    :data:`XA_RECOVER`.

    A branch that is listed may still have its session, and is no zero then: but only if its transaction began after
    ``since_us``, the server's start and some time for clocks that differ. Before that a session of now has only the
    same number.
    """
    attached = {x.connection_id for x in recovered(rows) if began_us(x) > since_us} & set(holders) - {0}
    return max(0, holders.count(0) - (len(rows) - len(attached)))


def began_us(x: Xid) -> int:
    """When the transaction began, by the clock of its initiator: a tx id starts with its time."""
    return int(x.tx_id[:12], 16) * 1000


def find_blockers(connection_id: int) -> str:
    """MariaDB: the sessions whose locks that session waits for; 0 for a prepared and detached one. Needs PROCESS."""
    return (
        "SELECT b.trx_mysql_thread_id FROM information_schema.INNODB_LOCK_WAITS w"
        " JOIN information_schema.INNODB_TRX r ON r.trx_id = w.requesting_trx_id"
        " JOIN information_schema.INNODB_TRX b ON b.trx_id = w.blocking_trx_id"
        f" WHERE r.trx_mysql_thread_id = {_connection(connection_id)}"
    )


def kill_query(connection_id: int) -> str:
    """Interrupt what that session is doing (1317 there)."""
    return f"KILL QUERY {_connection(connection_id)}"


# ---- replies ----

_MEANING = {
    1397: Reply.UNKNOWN_XID,
    1440: Reply.DUPLICATE_XID,
    1400: Reply.NOT_IDLE,
    1568: Reply.NOT_IDLE,  # SET TRANSACTION
    1399: Reply.GUARD,
    1402: Reply.ROLLED_BACK,
    1613: Reply.ROLLED_BACK,
    1614: Reply.ROLLED_BACK,
    1213: Reply.ROLLED_BACK,
    1020: Reply.ROLLED_BACK,
    1062: Reply.DUPLICATE,
    1205: Reply.LOCK_TIMEOUT,
    3572: Reply.LOCK_TIMEOUT,
    1094: Reply.NO_SESSION,
    1146: Reply.NO_TABLE,
    # Rights, credentials, a server that is read-only.
    1044: Reply.REFUSED,
    1045: Reply.REFUSED,
    1095: Reply.REFUSED,
    1142: Reply.REFUSED,
    1143: Reply.REFUSED,
    1227: Reply.REFUSED,
    1290: Reply.REFUSED,
    1698: Reply.REFUSED,
    1836: Reply.REFUSED,
    # XAER_RMERR, XA_RETRY, an error in COMMIT: nobody knows.
    1401: Reply.UNREACHABLE,
    3197: Reply.UNREACHABLE,
    1180: Reply.UNREACHABLE,
    # Too many connections, blocked, shutting down, killed, interrupted, timed out, not ready.
    1040: Reply.UNREACHABLE,
    1047: Reply.UNREACHABLE,
    1053: Reply.UNREACHABLE,
    1129: Reply.UNREACHABLE,
    1203: Reply.UNREACHABLE,
    1226: Reply.UNREACHABLE,
    1317: Reply.UNREACHABLE,
    1927: Reply.UNREACHABLE,
    1969: Reply.UNREACHABLE,
    3024: Reply.UNREACHABLE,
    4031: Reply.UNREACHABLE,
}


def meaning(errno: int | None) -> Reply:
    """What an error number means for a branch; None: no reply came."""
    if errno is None or 2000 <= errno < 3000 or 1152 <= errno <= 1161:
        return Reply.UNREACHABLE
    return _MEANING.get(errno, Reply.OTHER)


def _name(xid: str) -> str:
    x = parse_xid(xid)
    if x is None:
        raise ValueError(f"not an xid of txcoord: {xid!r}")
    return f"'{x.gtrid}', '{x.bqual}', {FORMAT_ID}"


def _connection(value: int) -> int:
    if value <= 0:
        raise ValueError(f"not a connection id: {value!r}")
    return int(value)


def _table(schema: str, name: str) -> str:
    return "`" + schema.replace("`", "``") + f"`.{name}" if schema else name
