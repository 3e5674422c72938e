# Made from txcoord_client/_xa/postgresql.py by scripts/sync; to change it, change that.
"""Branches on PostgreSQL. What the statements are and what the replies mean is in ``protocol.postgresql``."""

from __future__ import annotations

from collections.abc import Callable

from ..._xa.drivers import sqlstate_of
from ...protocol import marker, reasons
from ...protocol import postgresql as pg
from ...protocol.replies import Reply
from ...protocol.xid import Xid
from .dialect import Failed
from .held import Held, RefusedEnd


class PostgreSQL:
    """Any session can finish a prepared transaction: the coordinator does."""

    holds = False
    identity = pg.read_identity()

    def begin(self, held: Held, xid: Xid, refused: RefusedEnd, *, read_only: bool) -> Xid:
        first = f"SET TRANSACTION READ ONLY; {pg.START_GUARD}" if read_only else pg.START_GUARD
        held.start(first, refused)
        return xid

    def drop_out(self, held: Held, xid: Xid, *, read_only: bool) -> bool:
        # The guard counts here too: whoever ended the branch's transaction may have written before, and then it
        # only looks as if nothing was.
        if held.wrote:
            return False
        row = held.fetch_row(pg.IS_READ_ONLY)
        if row is None or not row[0]:
            return False
        tag = held.execute(pg.DROP_OUT)
        held.forget_transaction()
        _must_be(tag, pg.COMMITTED_TAG, "COMMIT")
        return True

    def prepare(self, held: Held, xid: Xid, not_after_us: int, asked: Callable[[], object]) -> None:
        sql = pg.prepare(xid.tx_id, xid.branch, str(xid), not_after_us)
        asked()
        tag = held.execute(sql)
        held.forget_transaction()
        # Without an error: what a failed transaction's PREPARE does.
        _must_be(tag, pg.PREPARED_TAG, "PREPARE")

    def commit_one_phase(self, held: Held, xid: Xid, not_after_us: int, asked: Callable[[], object]) -> None:
        sql = pg.commit_one_phase(xid.tx_id, not_after_us)
        asked()
        tag = held.execute(sql)
        held.forget_transaction()
        _must_be(tag, pg.COMMITTED_TAG, "COMMIT")

    def rollback(self, held: Held, xid: Xid) -> None:
        if held.in_transaction:
            held.execute("ROLLBACK")
        held.forget_transaction()

    def finish(self, held: Held, xid: Xid, commit: bool) -> None:
        raise AssertionError("the coordinator finishes it")

    def reply(self, error: BaseException, *, asked: bool) -> Reply | None:
        sqlstate = sqlstate_of(error)
        if not sqlstate:
            return None
        reply = pg.meaning_of_prepare(sqlstate)
        if reply in (Reply.DUPLICATE, Reply.TOO_LATE) and _table_of(error) != marker.TABLE:
            return Reply.OTHER  # A deferred constraint of the application that fails at the end.
        return reply

    def failed(self, error: BaseException, resource: str, *, asked: bool) -> Failed | None:
        sqlstate = sqlstate_of(error)
        if sqlstate == "25P02":
            return Failed(
                reasons.SILENT_ROLLBACK,
                f"a statement on {resource!r} had failed and its error was swallowed: nothing can be prepared",
            )
        if sqlstate == "40P01":
            return Failed(reasons.DEADLOCK, str(error))
        if sqlstate in ("42P01", "42501") and marker.TABLE in str(error):
            return Failed(
                reasons.RESOURCE_NOT_PREPARED,
                f"{resource!r}: {error}. The service's role needs GRANT INSERT ON {marker.TABLE}; "
                f"a missing table is made by 'txcoord resource check {resource} --fix'",
            )
        return None


def _must_be(tag: str, wanted: str, statement: str) -> None:
    if tag != wanted:
        raise Failed(reasons.SILENT_ROLLBACK, f"PostgreSQL answered {tag!r} to {statement}")


def _table_of(error: BaseException | None) -> str:
    """Of a violated constraint; where the driver does not tell, the marker's."""
    seen = 0
    while error is not None and seen < 5:
        diag = getattr(error, "diag", None)  # psycopg
        name = getattr(error, "table_name", None) or getattr(diag, "table_name", None)
        if isinstance(name, str) and name:
            return name
        error = getattr(error, "orig", None) or error.__cause__
        seen += 1
    return marker.TABLE
