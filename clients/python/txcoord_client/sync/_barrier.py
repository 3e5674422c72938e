# Made from txcoord_client/_barrier.py by scripts/sync; to change it, change that.
"""The barrier of a participant, in its own transaction over SQLAlchemy. What it means is in ``protocol.barrier``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from ..errors import Refused, Rejected
from ..protocol import barrier, marker, reasons


@dataclass(slots=True)
class Entered:
    """What the barrier says of a call."""

    first: bool
    """The work is to be done now."""
    result: bytes | None = None
    """What the try or action returned: of this very call when it is a repetition, else of the one before it."""


def enter(db: Any, tx_id: str, branch: str, op: str, not_after_us: int) -> Entered:
    """Say that this call is made now; ``db`` is a connection or session in a transaction. Raises Refused for a try that
    comes after its cancel, or too late."""
    statements = _statements(db)
    inserted = _insert(db, statements.enter(tx_id, branch, op, not_after_us))
    if op in barrier.UNDOING:
        if inserted != 1:
            return Entered(False)  # Nothing to undo, or undone before.
        return Entered(True, _result(db, statements, tx_id, branch, barrier.FIRST[op]))
    if op == "confirm":
        if not inserted:
            return Entered(False)
        return Entered(True, _result(db, statements, tx_id, branch, barrier.FIRST[op]))
    if inserted:
        return Entered(True)
    row = (db.execute(text(statements.read(tx_id, branch, op)))).first()
    if row is None:
        raise Refused(reasons.DEADLINE, f"the {op} came after its transaction's deadline")
    if row[0] == marker.TOMBSTONE:
        raise Refused(reasons.DECIDED, f"the {op} came after it was undone")
    return Entered(False, _bytes(row[1]))


def keep(db: Any, tx_id: str, branch: str, op: str, result: bytes) -> None:
    """Keep what the try or action returned."""
    db.execute(text(_statements(db).keep(tx_id, branch, op)), {"result": result})


def _insert(db: Any, sql: str) -> int:
    # A session has no driver's SQL of its own.
    connection = db if hasattr(db, "exec_driver_sql") else db.connection()
    refuse_autocommit(connection)
    return int((connection.exec_driver_sql(sql)).rowcount)


def refuse_autocommit(connection: Any) -> None:
    """Each statement for itself would be a barrier that says *done* of work that was never done. Raises Rejected."""
    connection = getattr(connection, "sync_connection", None) or connection
    level = connection.get_execution_options().get("isolation_level")
    if level is None:
        level = getattr(connection.dialect, "_on_connect_isolation_level", None)
    if level == "AUTOCOMMIT":
        raise Rejected(
            "the engine is in AUTOCOMMIT: the barrier and the work need one transaction",
            reason=reasons.NOT_SUPPORTED,
        )


def _result(db: Any, statements: barrier.Statements, tx_id: str, branch: str, op: str) -> bytes | None:
    row = (db.execute(text(statements.read(tx_id, branch, op)))).first()
    if row is None or row[0] != marker.DONE:
        # Its database has lost what it had promised, or the call came to another one.
        raise Rejected(
            f"branch {branch} of {tx_id}: there is no marker of its {op}", reason=reasons.NOT_FOUND
        )
    return _bytes(row[1])


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)


def _statements(db: Any) -> barrier.Statements:
    bind = db.get_bind() if hasattr(db, "get_bind") else db
    found = barrier.BY_FAMILY.get(bind.dialect.name)
    if found is None:
        raise Rejected(
            f"the barrier works on PostgreSQL, MariaDB and MySQL, not on {bind.dialect.name}",
            reason=reasons.NOT_SUPPORTED,
        )
    return found
