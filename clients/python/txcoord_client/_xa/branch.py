"""An XA branch in this process: from its begin to PREPARE, or to COMMIT in one phase; on MariaDB to its end.

What the statements are and what the replies mean is the dialect's: see ``dialect``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import NoReturn

from .. import _aio
from .._pb import common_pb2 as c
from ..errors import Aborted, NotIdle, Rejected, ResourceBusy, TxcoordError
from ..protocol import reasons
from ..protocol.replies import Reply
from ..protocol.xid import Xid
from .dialect import Dialect, Failed, of_reply
from .drivers import errno_of, is_driver, sqlstate_of
from .held import Held, Source

log = logging.getLogger("txcoord.client")
_STALE = 10
"""So many connections of a pool without a limit may have died before one is refused."""
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


class Branch:
    """One branch on one connection."""

    def __init__(
        self,
        number: str,
        source: Source,
        xid: Xid,
        not_after_us: int,
        dialect: Dialect,
        *,
        read_only: bool = False,
    ) -> None:
        self.number = number
        self.resource = source.resource
        self.xid = xid
        self.stage = Stage.NEW
        self.blocks = 0
        """How many ``g.xa`` blocks on it are open."""
        self.joined = False
        """Is it the transaction's, who will see to its end?"""
        self.failure: Failed | None = None
        self.held: Held = source.make()
        self.opening = _aio.Lock()
        self.owned = source.pool is not None
        """Did the SDK take its connection from a pool?"""
        self.pool = source.pool
        self.released = False
        self.admitted = False
        self.read_only = read_only
        """Was it declared to write nothing?"""
        self._source = source
        self._dialect = dialect
        self._not_after_us = not_after_us
        self._ended_by_application = ""

    @property
    def holds(self) -> bool:
        """Is it on a database where the session that prepared must finish?"""
        return self._dialect.holds

    @property
    def kept(self) -> bool:
        """Is it prepared, on a database where this very session must finish it?"""
        return self._dialect.holds and self.stage is Stage.PREPARED and not self.released

    # ---- work ----

    async def open(self, check: Callable[[Held, Source, Dialect], Awaitable[None]], until: float) -> None:
        """Get the connection, check that it is the right database, begin the branch. A connection that died in its
        pool is replaced: nothing was done on it yet."""
        tries = max(self._source.pool_size, _STALE) + 1 if self.owned else 1
        try:
            async with _aio.timeout_at(until, self._abort):
                while not await self._opened(check, last=tries <= 1 or _aio.now() >= until):
                    tries -= 1
                    self.held = self._source.make()
                    self.released = False
        except TimeoutError:
            raise ResourceBusy(
                f"no connection to {self.resource!r} until the deadline", facts={"resource": self.resource}
            ) from None
        self.stage = Stage.OPEN

    def _abort(self) -> None:
        self.held.abort()

    async def _opened(self, check: Callable[[Held, Source, Dialect], Awaitable[None]], *, last: bool) -> bool:
        """Try it. False: the connection was a dead one, and is given up."""
        try:
            await self.held.open()
        except TxcoordError:
            raise
        except Exception as error:
            if type(error).__name__ in ("TimeoutError", "PoolTimeout"):  # The pools' own.
                raise ResourceBusy(
                    f"the connection pool of {self.resource!r} gave no connection: {error}",
                    facts={"resource": self.resource},
                ) from error
            raise
        try:
            await check(self.held, self._source, self._dialect)
        except BaseException as error:
            if self._died(error):
                await self._discard()
                if not last:
                    return False
            else:
                await self.held.release(False)
            raise
        try:
            self.xid = await self._dialect.begin(
                self.held, self.xid, self._refuse_end, read_only=self.read_only
            )
        except BaseException as error:
            await self._discard()
            if self._dialect.reply(error, asked=False) is Reply.NOT_IDLE:
                raise NotIdle(f"the connection to {self.resource!r} is in a transaction: {error}") from error
            if not last and self._died(error):
                return False
            raise
        return True

    def _died(self, error: BaseException) -> bool:
        """Does it say that the connection is gone?"""
        if isinstance(error, TxcoordError) or not isinstance(error, Exception):
            return False
        reply = self._dialect.reply(error, asked=False)
        return reply is Reply.UNREACHABLE or (
            reply is None and (isinstance(error, OSError) or is_driver(error))
        )

    def _refuse_end(self, what: str) -> Exception:
        self._ended_by_application = what
        return Rejected(
            f"{what}() inside a global transaction: the branch on {self.resource!r} ends with the transaction. "
            "Leave the block to commit, raise to roll back; for a part of the work use a savepoint (begin_nested)",
            reason=reasons.GUARD,
        )

    # ---- ends ----

    async def prepare(self, until: float) -> None:
        """Guard, marker and PREPARE. Raises Failed; then the branch is rolled back, or its stage is UNKNOWN."""
        try:
            _in_time(until)
            async with _aio.timeout_at(until, self.held.abort):
                await self._flush()
                if not await self._dropped_out():
                    await self._dialect.prepare(self.held, self.xid, self._not_after_us, self._asked)
        except BaseException as error:
            await self._failed_by(error)
        if self.stage is not Stage.READ_ONLY:
            self.held.forget_transaction()
            self.stage = Stage.PREPARED

    async def commit_one_phase(self, until: float) -> None:
        """Commit the transaction's only branch. Raises Failed; stage UNKNOWN: ask by tombstone."""
        try:
            _in_time(until)
            async with _aio.timeout_at(until, self.held.abort):
                await self._flush()
                if not await self._dropped_out():
                    await self._dialect.commit_one_phase(self.held, self.xid, self._not_after_us, self._asked)
        except BaseException as error:
            await self._failed_by(error)
        if self.stage is not Stage.READ_ONLY:
            self.held.forget_transaction()
            self.stage = Stage.COMMITTED

    def _asked(self) -> None:
        """From now on a lost reply leaves it open what became of the branch."""
        self.stage = Stage.UNKNOWN

    async def finish(self, commit: bool, seconds: float) -> bool:
        """Carry the decision out on the session that prepared, which has to do that on MariaDB. False: the session
        is lost, and given up; the coordinator will see to the branch."""
        try:
            async with _aio.timeout(seconds, self.held.abort):
                await self._dialect.finish(self.held, self.xid, commit)
        except Exception as error:
            log.warning(
                "the branch on %r is left to the coordinator: %s: %s",
                self.resource,
                type(error).__name__,
                error,
            )
            await self._discard()
            return False
        except BaseException:
            await self._discard()
            raise
        self.held.forget_transaction()
        self.stage = Stage.COMMITTED if commit else Stage.ROLLED_BACK
        return True

    async def lives(self, seconds: float) -> bool:
        """Is the session of a prepared branch there? It may refuse the question, but then it has answered."""
        try:
            async with _aio.timeout(seconds, self.held.abort):
                await self.held.fetch_row("SELECT 1")
        except Exception as error:
            return self._dialect.reply(error, asked=True) not in (None, Reply.UNREACHABLE)
        return True

    async def give_up(self) -> None:
        """Let a prepared branch's session go: the coordinator will see to the branch."""
        await self._discard()

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
            async with _aio.timeout_at(until, self.held.abort):
                await self._dialect.rollback(self.held, self.xid)
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
            async with _aio.timeout(_RELEASE_S, self.held.abort):
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
        """End it now if it wrote nothing."""
        if not await self._dialect.drop_out(self.held, self.xid, read_only=self.read_only):
            return False
        self.stage = Stage.READ_ONLY
        return True

    async def _failed_by(self, error: BaseException) -> NoReturn:
        failed = await self._failed(error)
        if not isinstance(error, Exception | _aio.Cancelled):
            raise error  # A thread was interrupted: that is for whoever runs the whole.
        raise failed from error

    async def _failed(self, error: BaseException) -> Failed:
        """What an error at the end of the branch means; leaves no open transaction behind."""
        asked = self.stage is Stage.UNKNOWN
        reply = self._dialect.reply(error, asked=asked)
        told = reply is not None and reply is not Reply.UNREACHABLE
        failed = self._meaning(error, reply, asked)
        if asked and not told and not isinstance(error, Failed):
            # Without an answer the branch may be prepared: the connection is given up, its stage stays UNKNOWN.
            await self._discard()
        else:
            self.stage = Stage.OPEN
            await self.rollback(_aio.now() + 2.0)
        self.failure = failed
        return failed

    def _meaning(self, error: BaseException, reply: Reply | None, asked: bool) -> Failed:
        named = f"{self.resource!r}: {type(error).__name__}: {error}"
        told = reply is not None and reply is not Reply.UNREACHABLE
        if isinstance(error, Failed):
            return error
        if isinstance(error, TxcoordError):
            return Failed(error.reason, error.message)
        own = self._dialect.failed(error, self.resource, asked=asked)
        if own is not None:
            return own
        if told and not asked and reply is not Reply.GUARD:
            # Of the application's own statements: what an ORM session had held back.
            return Failed(reason_of(error), named)
        known = of_reply(reply, self.resource, str(error)) if reply is not None else None
        if known is not None:
            return known
        if told:
            return Failed(reasons.APPLICATION_ERROR, f"{self.resource!r}: {error}")
        if isinstance(error, TimeoutError) and not asked:
            return Failed(reasons.DEADLINE, f"no time was left to prepare on {self.resource!r}")
        if (
            reply is not None
            or isinstance(error, OSError | TimeoutError | _aio.Cancelled)
            or is_driver(error)
        ):
            return Failed(reasons.CONNECTION_LOST, named)
        # An ORM session that cannot flush, say: the application's own error.
        return Failed(reasons.APPLICATION_ERROR, named)

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
        self._describe(out.xa)
        out.xa.held = self.kept
        if self.failure is not None:
            out.reason, out.message = self.failure.reason, self.failure.message
        return out

    def report(self, event: c.BranchEvent) -> c.BranchReport:
        """What has become of it."""
        report = c.BranchReport(branch=self.number, event=event)
        self._describe(report.xa)
        report.xa.one_phase = event == c.BRANCH_EVENT_ONE_PHASE_COMMITTED
        return report

    def _describe(self, part: c.XaPart) -> None:
        part.resource = self.resource
        part.xid = f"{self.xid.gtrid}.{self.xid.branch}"
        part.connection_id = self.xid.connection_id


def _in_time(until: float) -> None:
    # A time-out that has passed already would cancel the statement only once it is on its way.
    if _aio.now() >= until:
        raise TimeoutError


_ABORTS = {
    "40P01": reasons.DEADLOCK,
    "40001": reasons.SERIALIZATION_FAILURE,
    1213: reasons.DEADLOCK,
    "55P03": reasons.LOCK_TIMEOUT,
    1205: reasons.LOCK_TIMEOUT,
    1020: reasons.SERIALIZATION_FAILURE,  # MariaDB's snapshot isolation
}


def reason_of(error: BaseException | None) -> str:
    """The reason code of an abort that this error, raised inside the work, brings about."""
    if isinstance(error, TxcoordError):
        return error.reason
    return _ABORTS.get(errno_of(error) or sqlstate_of(error), reasons.APPLICATION_ERROR)


def worth_another_try(error: BaseException) -> bool:
    """Does the error say nothing about the business, so that the same work may succeed when run again?"""
    if isinstance(error, Aborted):
        return error.retriable
    return reason_of(error) in reasons.RETRYABLE_ABORTS


__all__ = ["Branch", "Failed", "Stage", "reason_of", "sqlstate_of", "worth_another_try"]
