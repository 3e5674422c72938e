# Made from txcoord_client/_xa/mariadb.py by scripts/sync; to change it, change that.
"""Branches on MariaDB and MySQL. What the statements are and what the replies mean is in ``protocol.mariadb``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from ..._xa.drivers import errno_of, is_driver
from ...errors import Rejected
from ...protocol import mariadb as my
from ...protocol import marker, reasons
from ...protocol.replies import Reply
from ...protocol.xid import Xid
from .dialect import HINTS, Failed
from .held import Held, RefusedEnd

_ONE_ROW = "1"


class MariaDB:
    """The session that prepared must finish: it is kept until the decision."""

    holds = True
    identity = my.READ_IDENTITY_AND_SCHEMA

    def begin(self, held: Held, xid: Xid, refused: RefusedEnd, *, read_only: bool) -> Xid:
        row = held.fetch_row(my.READ_CONNECTION_ID)
        assert row is not None
        xid = replace(xid, connection_id=int(row[0]))
        self._start(held, xid, refused, read_only)
        return xid

    def _start(self, held: Held, xid: Xid, refused: RefusedEnd, read_only: bool) -> None:
        if read_only:
            # Of the next transaction: the server itself refuses what writes.
            held.execute("SET TRANSACTION READ ONLY")
        held.start(my.xa_start(str(xid)), refused)

    def drop_out(self, held: Held, xid: Xid, *, read_only: bool) -> bool:
        # Only where that was declared: nothing tells whether rows were locked, and its locks would go too early.
        if not read_only:
            return False
        held.execute(my.xa_end(str(xid)))
        held.execute(my.xa_commit_one_phase(str(xid)))
        held.forget_transaction()
        return True

    def prepare(self, held: Held, xid: Xid, not_after_us: int, asked: Callable[[], object]) -> None:
        sql = my.insert_marker(xid.tx_id, xid.branch, marker.XA, not_after_us, schema=held.schema)
        self._mark(held, sql)
        held.execute(my.xa_end(str(xid)))
        asked()
        held.execute(my.xa_prepare(str(xid)))

    def commit_one_phase(self, held: Held, xid: Xid, not_after_us: int, asked: Callable[[], object]) -> None:
        sql = my.insert_marker(xid.tx_id, marker.ONE_BRANCH, marker.ONE, not_after_us, schema=held.schema)
        self._mark(held, sql)
        held.execute(my.xa_end(str(xid)))
        asked()
        held.execute(my.xa_commit_one_phase(str(xid)))

    @staticmethod
    def _mark(held: Held, sql: str) -> None:
        try:
            rows = held.execute(sql)
        except Exception as error:
            if my.meaning(errno_of(error)) in (Reply.DUPLICATE, Reply.LOCK_TIMEOUT):
                raise Failed(reasons.DECIDED, HINTS[reasons.DECIDED]) from error
            raise
        if rows != _ONE_ROW:
            raise Failed(reasons.DEADLINE, HINTS[reasons.DEADLINE])

    def rollback(self, held: Held, xid: Xid) -> None:
        # XA END fails where the server has rolled back already (a deadlock), or where it was sent before.
        with contextlib.suppress(Exception):
            held.execute(my.xa_end(str(xid)))
        held.execute(my.xa_rollback(str(xid)))

    def finish(self, held: Held, xid: Xid, commit: bool) -> None:
        held.execute(my.xa_commit(str(xid)) if commit else my.xa_rollback(str(xid)))

    def reply(self, error: BaseException, *, asked: bool) -> Reply | None:
        number = errno_of(error)
        if number:
            reply = my.meaning(number)
            # Who does not know the number does not know what became of the branch: the marker's key does.
            return Reply.UNREACHABLE if asked and reply is Reply.OTHER else reply
        return Reply.UNREACHABLE if is_driver(error) and _says_nothing(error) else None

    def failed(self, error: BaseException, resource: str, *, asked: bool) -> Failed | None:
        number = errno_of(error)
        if number in (1213, 1614) or (number == 1399 and "ROLLBACK ONLY" in str(error)):
            # In the last two the error itself, of an earlier statement, was swallowed.
            return Failed(reasons.DEADLOCK, f"{resource!r}: {error}")
        if marker.TABLE in str(error) and my.meaning(number) in (Reply.NO_TABLE, Reply.REFUSED):
            return Failed(
                reasons.RESOURCE_NOT_PREPARED,
                f"{resource!r}: {error}. The service's user needs GRANT INSERT ON {marker.TABLE}; "
                f"a missing table is made by 'txcoord resource check {resource} --fix'",
            )
        return None


class MySQL(MariaDB):
    """Any session can finish a prepared transaction: the coordinator does (8.0.29 and later)."""

    holds = False

    def begin(self, held: Held, xid: Xid, refused: RefusedEnd, *, read_only: bool) -> Xid:
        row = held.fetch_row(my.READ_DETACH)
        if row is None or not int(row[0]):
            raise Rejected(
                "this connection has xa_detach_on_prepare = OFF: its prepared branches could be finished by nobody "
                "else. SET GLOBAL xa_detach_on_prepare = ON, and open new connections",
                reason=reasons.NOT_SUPPORTED,
            )
        self._start(held, xid, refused, read_only)
        return xid


def _says_nothing(error: BaseException) -> bool:
    """A driver's error without a number, of a connection that is gone (InterfaceError(0, ''))."""
    return not errno_of(error)
