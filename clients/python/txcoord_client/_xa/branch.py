"""An XA branch in this process: from BEGIN to PREPARE, or to COMMIT in one phase.

What the statements are and what the replies mean is in ``protocol.postgresql``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from enum import Enum

from .._pb import common_pb2 as c
from ..errors import Aborted, Rejected, ResourceBusy, TxcoordError
from ..protocol import marker, reasons
from ..protocol import postgresql as pg
from ..protocol.xid import Xid
from .held import Held, Source

log = logging.getLogger("txcoord.client")
_RELEASE_S = 3.0
"""A driver's pool may ask the database on release; one that does not answer holds nothing up."""


class Stage(Enum):
    """Where a branch stands in this process."""

    NEW = "new"
    OPEN = "open"
    PREPARED = "prepared"
    READ_ONLY = "read_only"
    """Wrote nothing: it dropped out."""
    COMMITTED = "committed"
    """In one phase."""
    ROLLED_BACK = "rolled_back"
    UNKNOWN = "unknown"
    """The reply to PREPARE or to the one-phase COMMIT was lost."""


class Failed(Exception):
    """The branch cannot vote yes. ``reason`` is a stable code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


_REASONS = {
    pg.Reply.ROLLED_BACK: reasons.SERIALIZATION_FAILURE,
    pg.Reply.GUARD: reasons.GUARD,
    pg.Reply.NOT_POSSIBLE: reasons.PREPARE_NOT_POSSIBLE,
    pg.Reply.PREPARE_DISABLED: reasons.PREPARE_DISABLED,
    pg.Reply.PREPARE_FULL: reasons.PREPARE_FULL,
    pg.Reply.TOO_LATE: reasons.DEADLINE,
    pg.Reply.DUPLICATE: reasons.DECIDED,
    pg.Reply.LOCK_TIMEOUT: reasons.DECIDED,
}
_HINTS = {
    reasons.PREPARE_DISABLED: "prepared transactions are switched off: set max_prepared_transactions "
    "in postgresql.conf (it is 0) and restart the server",
    reasons.PREPARE_FULL: "max_prepared_transactions of the server is used up",
    reasons.DECIDED: "its marker is taken: this call ran before, or the transaction was settled meanwhile",
    reasons.DEADLINE: "the deadline has passed",
    reasons.GUARD: "someone ended the branch's transaction (a COMMIT or ROLLBACK inside it); what was done before "
    "a stray COMMIT is in the database",
}


class Branch:
    """One branch on one connection."""

    def __init__(self, number: str, source: Source, xid: Xid, not_after_us: int) -> None:
        self.number = number
        self.resource = source.resource
        self.xid = xid
        self.stage = Stage.NEW
        self.blocks = 0
        """How many ``g.xa`` blocks on it are open."""
        self.failure: Failed | None = None
        self.held: Held = source.make()
        self.opening = asyncio.Lock()
        self.owned = source.pool is not None
        """Did the SDK take its connection from a pool?"""
        self.pool = source.pool
        self.released = False
        self.admitted = False
        self._source = source
        self._not_after_us = not_after_us
        self._ended_by_application = ""

    # ---- work ----

    async def open(self, check: Callable[[Held, Source], Awaitable[None]], until: float) -> None:
        """Get the connection, check that it is the right database, begin the branch."""
        try:
            async with asyncio.timeout_at(until):
                try:
                    await self.held.open()
                except TxcoordError:
                    raise
                except Exception as error:
                    if type(error).__name__ == "TimeoutError":  # SQLAlchemy's pool has its own
                        raise ResourceBusy(
                            f"the connection pool of {self.resource!r} gave no connection: {error}",
                            facts={"resource": self.resource},
                        ) from error
                    raise
                try:
                    await check(self.held, self._source)
                except BaseException:
                    await self.held.release(False)
                    raise
                try:
                    await self.held.start(self._refuse_end)
                except BaseException:
                    await self._discard()
                    raise
        except TimeoutError:
            raise ResourceBusy(
                f"no connection to {self.resource!r} until the deadline", facts={"resource": self.resource}
            ) from None
        self.stage = Stage.OPEN

    def _refuse_end(self, what: str) -> Exception:
        self._ended_by_application = what
        return Rejected(
            f"{what}() inside a global transaction: the branch on {self.resource!r} ends with the transaction. "
            "Leave the block to commit, raise to roll back; for a part of the work use a savepoint (begin_nested)",
            reason=reasons.GUARD,
        )

    # ---- ends ----

    async def prepare(self, until: float) -> None:
        """Guard, marker and PREPARE in one message. Raises Failed; then the branch is rolled back, or its stage
        is UNKNOWN."""
        try:
            _in_time(until)
            async with asyncio.timeout_at(until):
                await self._flush()
                if await self._dropped_out():
                    return
                sql = pg.prepare(self.xid.tx_id, self.number, str(self.xid), self._not_after_us)
                self.stage = Stage.UNKNOWN
                tag = await self.held.execute(sql)
        except BaseException as error:
            raise await self._failed(error) from error
        if tag != pg.PREPARED_TAG:
            # Without an error: what a failed transaction's PREPARE does.
            self.held.forget_transaction()
            self.stage = Stage.ROLLED_BACK
            raise Failed(
                reasons.SILENT_ROLLBACK, f"PostgreSQL answered {tag!r} to PREPARE on {self.resource!r}"
            )
        self.held.forget_transaction()
        self.stage = Stage.PREPARED

    async def commit_one_phase(self, until: float) -> None:
        """Commit the transaction's only branch. Raises Failed; stage UNKNOWN: ask by tombstone."""
        try:
            _in_time(until)
            async with asyncio.timeout_at(until):
                await self._flush()
                if await self._dropped_out():
                    return
                sql = pg.commit_one_phase(self.xid.tx_id, self._not_after_us)
                self.stage = Stage.UNKNOWN
                tag = await self.held.execute(sql)
        except BaseException as error:
            raise await self._failed(error) from error
        self.held.forget_transaction()
        if tag != pg.COMMITTED_TAG:
            self.stage = Stage.ROLLED_BACK
            raise Failed(
                reasons.SILENT_ROLLBACK, f"PostgreSQL answered {tag!r} to COMMIT on {self.resource!r}"
            )
        self.stage = Stage.COMMITTED

    async def rollback(self, until: float) -> None:
        """Roll back what is not prepared. Never raises: a broken connection rolls back by itself."""
        if self.stage is not Stage.OPEN:
            return
        self.stage = Stage.ROLLED_BACK
        if self.blocks or self._ended_by_application:
            # Somebody still works with it: his next statement must not run in a transaction of its own. Or he
            # tried to end it: its driver believes that nothing is open.
            await self._discard()
            return
        try:
            async with asyncio.timeout_at(until):
                if self.held.in_transaction:
                    await self.held.execute("ROLLBACK")
            self.held.forget_transaction()
        except Exception:
            await self._discard()
        except BaseException:
            await self._discard()
            raise

    async def release(self, committed: bool) -> None:
        """Give the connection back, once."""
        if self.stage is Stage.NEW or self.released:
            return
        self.released = True
        try:
            if self.stage is Stage.OPEN:
                raise RuntimeError("released before its end")
            async with asyncio.timeout(_RELEASE_S):
                await self.held.release(committed)
        except Exception as error:
            log.warning("a connection of %r is given up: %s: %s", self.resource, type(error).__name__, error)
            await self._discard()
        except BaseException:
            await self._discard()
            raise

    async def _flush(self) -> None:
        if self._ended_by_application:
            raise Failed(
                reasons.GUARD,
                f"{self._ended_by_application}() was called on {self.resource!r} inside the transaction",
            )
        await self.held.flush()

    async def _dropped_out(self) -> bool:
        """End it now if it wrote nothing. The guard counts here too: whoever ended the branch's transaction may
        have written before, and then it only looks as if nothing was."""
        if self.held.wrote or not await self.held.fetch_value(pg.IS_READ_ONLY):
            return False
        tag = await self.held.execute(pg.DROP_OUT)
        self.held.forget_transaction()
        if tag != pg.COMMITTED_TAG:
            raise Failed(
                reasons.SILENT_ROLLBACK, f"PostgreSQL answered {tag!r} to COMMIT on {self.resource!r}"
            )
        self.stage = Stage.READ_ONLY
        return True

    async def _failed(self, error: BaseException) -> Failed:
        """What an error at the end of the branch means; leaves no open transaction behind."""
        sqlstate = sqlstate_of(error)
        meaning = pg.meaning_of_prepare(sqlstate) if sqlstate else pg.Reply.UNREACHABLE
        asked = self.stage is Stage.UNKNOWN
        if isinstance(error, Failed):
            failed = error
        elif isinstance(error, TxcoordError):
            failed = Failed(error.reason, error.message)
        elif sqlstate == "25P02":
            failed = Failed(
                reasons.SILENT_ROLLBACK,
                f"a statement on {self.resource!r} had failed and its error was swallowed: nothing can be prepared",
            )
        elif sqlstate == "40P01":
            failed = Failed(reasons.DEADLOCK, str(error))
        elif not asked and sqlstate and meaning not in (pg.Reply.UNREACHABLE, pg.Reply.GUARD):
            # Of the application's own statements: what an ORM session had held back.
            failed = Failed(reason_of(error), f"{self.resource!r}: {type(error).__name__}: {error}")
        elif sqlstate in ("42P01", "42501") and marker.TABLE in str(error):
            failed = Failed(
                reasons.RESOURCE_NOT_PREPARED,
                f"{self.resource!r}: {error}. The service's role needs GRANT INSERT ON {marker.TABLE}; "
                f"a missing table is made by 'txcoord resource check {self.resource} --fix'",
            )
        elif meaning in _REASONS and not _of_another_table(error, meaning):
            reason = _REASONS[meaning]
            failed = Failed(reason, f"{self.resource!r}: {_HINTS.get(reason, str(error))}")
        elif sqlstate and meaning is not pg.Reply.UNREACHABLE:
            failed = Failed(reasons.APPLICATION_ERROR, f"{self.resource!r}: {error}")
        elif isinstance(error, TimeoutError) and not asked:
            failed = Failed(reasons.DEADLINE, f"no time was left to prepare on {self.resource!r}")
        elif (
            sqlstate
            or isinstance(error, OSError | TimeoutError | asyncio.CancelledError)
            or _is_driver(error)
        ):
            failed = Failed(reasons.CONNECTION_LOST, f"{self.resource!r}: {type(error).__name__}: {error}")
        else:
            # An ORM session that cannot flush, say: the application's own error.
            failed = Failed(reasons.APPLICATION_ERROR, f"{self.resource!r}: {type(error).__name__}: {error}")
        answered = bool(sqlstate) and meaning is not pg.Reply.UNREACHABLE
        if asked and not answered:
            # Without an answer the branch may be prepared: the connection is given up, its stage stays UNKNOWN.
            await self._discard()
        else:
            self.stage = Stage.OPEN
            await self.rollback(asyncio.get_running_loop().time() + 2.0)
        self.failure = failed
        return failed

    async def _discard(self) -> None:
        self.released = True
        # Whatever it says, nobody uses this connection again.
        with contextlib.suppress(Exception):
            await self.held.discard()

    # ---- the wire ----

    def to_pb(self) -> c.Branch:
        """The branch with its vote."""
        vote = {
            Stage.PREPARED: c.VOTE_PREPARED,
            Stage.READ_ONLY: c.VOTE_READ_ONLY,
            Stage.ROLLED_BACK: c.VOTE_NO,
        }.get(self.stage, c.VOTE_UNSPECIFIED)
        out = c.Branch(id=self.number, kind=c.KIND_XA, vote=vote)
        out.xa.resource = self.resource
        out.xa.xid = str(self.xid)
        if self.failure is not None:
            out.reason, out.message = self.failure.reason, self.failure.message
        return out

    def one_phase_report(self) -> c.BranchReport:
        """That it was committed in one phase."""
        report = c.BranchReport(branch=self.number, event=c.BRANCH_EVENT_ONE_PHASE_COMMITTED)
        report.xa.resource = self.resource
        report.xa.xid = str(self.xid)
        report.xa.one_phase = True
        return report


def sqlstate_of(error: BaseException | None) -> str:
    """The SQLSTATE of a driver's error, also inside SQLAlchemy's; empty: none."""
    seen = 0
    while error is not None and seen < 5:
        for name in ("sqlstate", "pgcode"):
            state = getattr(error, name, None)
            if isinstance(state, str) and state:
                return state
        error = getattr(error, "orig", None) or error.__cause__
        seen += 1
    return ""


def _in_time(until: float) -> None:
    # A time-out that has passed already would cancel the statement only once it is on its way.
    if asyncio.get_running_loop().time() >= until:
        raise TimeoutError


def _of_another_table(error: BaseException, meaning: pg.Reply) -> bool:
    """Is it a deferred constraint of the application that fails at the end, and not the marker's?"""
    if meaning not in (pg.Reply.DUPLICATE, pg.Reply.TOO_LATE):
        return False
    return getattr(error, "table_name", marker.TABLE) != marker.TABLE


def _is_driver(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in ("asyncpg", "sqlalchemy")


def reason_of(error: BaseException | None) -> str:
    """The reason code of an abort that this error, raised inside the work, brings about."""
    if isinstance(error, TxcoordError):
        return error.reason
    known = {"40P01": reasons.DEADLOCK, "40001": reasons.SERIALIZATION_FAILURE}
    return known.get(sqlstate_of(error), reasons.APPLICATION_ERROR)


def worth_another_try(error: BaseException) -> bool:
    """Does the error say nothing about the business, so that the same work may succeed when run again?"""
    if isinstance(error, Aborted):
        return error.retriable
    return reason_of(error) in reasons.RETRYABLE_ABORTS
