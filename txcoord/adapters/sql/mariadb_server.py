"""Connections to a MariaDB that is a log, and what it must be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import asyncmy
from asyncmy import errors
from asyncmy.constants import CLIENT
from sqlalchemy import URL
from sqlalchemy.dialects.mysql import asyncmy as dialect

from ...ports import LogUnavailable

OLDEST = (10, 6)
"""It can skip locked rows, and make a table of JSON."""
_REPLICATING = (
    "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'SLAVES_RUNNING'"
)
_GALERA = (
    "SELECT COUNT(*) FROM information_schema.GLOBAL_VARIABLES"
    " WHERE VARIABLE_NAME = 'WSREP_ON' AND VARIABLE_VALUE = 'ON'"
)


def code_of(error: BaseException) -> int:
    """The server's number for it; 0 if the server has not said it."""
    error = getattr(error, "orig", None) or error
    first = error.args[0] if error.args else None
    return first if isinstance(error, errors.Error) and isinstance(first, int) else 0


async def ask(conn: asyncmy.Connection, statement: str | bytes) -> list[tuple[Any, ...]]:
    """Run one statement and answer its rows."""
    cursor = conn.cursor()
    await cursor.execute(statement)
    return list(await cursor.fetchall() or ())


def options_of(url: URL) -> dict[str, Any]:
    """What asyncmy.connect takes, of a log's URL."""
    _, options = dialect.dialect().create_connect_args(url)
    return {**options, "charset": "utf8mb4", "binary_prefix": True}


def session(timeout_s: float) -> str:
    """What makes a session fit for a log, whatever the server's defaults are."""
    whole_s = max(1, math.ceil(timeout_s))
    settings = {
        # Strict: a value that does not fit is refused, never bent.
        "sql_mode": "'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION'",
        "time_zone": "'+00:00'",
        "max_statement_time": repr(timeout_s),
        "innodb_lock_wait_timeout": str(whole_s),
        "lock_wait_timeout": str(whole_s),
        "idle_transaction_timeout": str(whole_s + 1),
        "default_storage_engine": "InnoDB",
        "foreign_key_checks": "1",
        "unique_checks": "1",
        "sql_safe_updates": "0",
        "sql_notes": "0",
        "sql_select_limit": "DEFAULT",
    }
    return "SET " + ", ".join(f"SESSION {name} = {value}" for name, value in settings.items())


async def connect(
    options: Mapping[str, Any], timeout_s: float, isolation: str, **more: Any
) -> asyncmy.Connection:
    """A new connection with the session's settings. Raises LogUnavailable if it is not MariaDB's."""
    merged = {**options, "connect_timeout": min(timeout_s, 5.0), **more}
    try:
        conn = await asyncmy.connect(**merged)
    except RuntimeError as error:
        # What asyncmy says of a connection that was broken before it had set its options.
        raise ConnectionResetError(str(error)) from error
    try:
        await _check_product(conn)
        await ask(conn, session(timeout_s))
        await ask(conn, f"SET SESSION TRANSACTION ISOLATION LEVEL {isolation}")
    except BaseException:
        conn.close()
        raise
    return conn


async def _check_product(conn: asyncmy.Connection) -> None:
    """MySQL lacks much of what is asked here, so this comes first. A proxy may greet with any version."""
    if "mariadb" in str(conn.get_server_info()).lower():
        return
    ((version, comment),) = await ask(conn, "SELECT VERSION(), @@version_comment")
    if "mariadb" not in f"{version} {comment}".lower():
        raise LogUnavailable(f"this is MySQL ({version}), which cannot be a log: use MariaDB or PostgreSQL")


async def connect_flusher(options: Mapping[str, Any], timeout_s: float) -> asyncmy.Connection:
    """One that takes many statements in a message, and counts what it changed, not what it found."""
    flags = (int(options.get("client_flag", 0)) | CLIENT.MULTI_STATEMENTS) & ~CLIENT.FOUND_ROWS
    return await connect(options, timeout_s, "READ COMMITTED", client_flag=flags, autocommit=True)


async def examine(conn: asyncmy.Connection, name: str) -> int:
    """Refuse what cannot be a log; answers the bytes of the largest message. Raises LogUnavailable."""
    ((version,),) = await ask(conn, "SELECT VERSION()")
    if _number(version) < OLDEST:
        raise LogUnavailable(f"MariaDB 10.6 or newer is needed for a log: {name} is {version}")
    ((read_only, binlog, binlog_format, packet),) = await ask(
        conn,
        "SELECT @@global.read_only, @@global.log_bin, @@session.binlog_format, @@global.max_allowed_packet",
    )
    if (await ask(conn, _GALERA))[0][0]:
        raise LogUnavailable(
            f"{name} is a node of a Galera cluster, which can lose what one node has committed"
        )
    if _on(read_only) or any(int(row[0]) for row in await ask(conn, _REPLICATING)):
        raise LogUnavailable(f"{name} is a replica: a log is read and written on its primary")
    if _on(binlog) and binlog_format == "STATEMENT":
        raise LogUnavailable(
            f"{name} has binlog_format = STATEMENT, which cannot carry a log's statements: set it to ROW or MIXED"
        )
    return int(packet)


async def unsafe(conn: asyncmy.Connection) -> list[tuple[str, str]]:
    """Settings with which a crash, or the loss of the machine, can lose decisions; and why."""
    ((at_commit, doublewrite, binlog, sync_binlog),) = await ask(
        conn,
        "SELECT @@global.innodb_flush_log_at_trx_commit, @@global.innodb_doublewrite, @@global.log_bin,"
        " @@global.sync_binlog",
    )
    found = []
    if at_commit not in (1, 3):
        why = "a crash can lose decisions: SET GLOBAL innodb_flush_log_at_trx_commit = 1"
        found.append(("innodb_flush_log_at_trx_commit", why))
    if _on(binlog) and sync_binlog != 1:
        found.append(("sync_binlog", "a crash of the machine can lose decisions: SET GLOBAL sync_binlog = 1"))
    if not _on(doublewrite):
        found.append(("innodb_doublewrite", "a crash of the machine can tear pages"))
    return found


def _on(value: object) -> bool:
    """Newer servers answer words where older ones have 0 and 1."""
    return str(value).upper() not in ("0", "OFF")


def _number(version: str) -> tuple[int, int]:
    """Of 10.11.19-MariaDB, or 5.5.5-10.11.19-MariaDB as old servers say it."""
    parts = version.removeprefix("5.5.5-").split(".")
    return int(parts[0]), int(parts[1])


# ---- the lock that tells whether a session lives ----


async def hold(conn: asyncmy.Connection, key: str) -> None:
    """Hold a lock as long as the session lives."""
    if (await ask(conn, f"SELECT GET_LOCK('{key}', 0)"))[0][0] != 1:
        raise LogUnavailable("the lock of a new session is taken")


async def lock_migrations(conn: asyncmy.Connection, patience_s: float) -> None:
    """One at a time in this database, until the session ends: a lock of rows would end with each statement that makes
    a table."""
    name = "CONCAT('txcoord.migrate.', MD5(DATABASE()))"
    if (await ask(conn, f"SELECT GET_LOCK({name}, {patience_s})"))[0][0] != 1:
        raise LogUnavailable("another migration is on its way")


async def outlive(conn: asyncmy.Connection, key: str, timeout_s: float) -> None:
    """End the session that holds this lock and wait until it is gone: it has rolled back then, or committed.
    Raises LogUnavailable if it does not end."""
    ((holder,),) = await ask(conn, f"SELECT IS_USED_LOCK('{key}')")
    if holder is not None:
        try:
            await ask(conn, f"KILL {int(holder)}")
        except errors.Error as error:
            if code_of(error) != _NO_SUCH_THREAD:  # it has just gone by itself
                raise
    if (await ask(conn, f"SELECT GET_LOCK('{key}', {timeout_s})"))[0][0] != 1:
        raise LogUnavailable("a session of this node that may still be writing does not end")
    await ask(conn, f"DO RELEASE_LOCK('{key}')")


_NO_SUCH_THREAD = 1094
ENDED = frozenset({1053, 1152, 1184, 1927, 2006, 2013, 2014, 2055, 4031})
"""The session is over: shutdown, aborted, killed, lost."""
