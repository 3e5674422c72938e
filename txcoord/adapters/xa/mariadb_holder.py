"""Ends the session that prepared a branch on MariaDB, so that another one may finish it.

An id of a session is unique until the server's restart, and a branch outlives that. So nothing is ended that is not
proven to hold the branch: by InnoDB, which says whose lock is on the branch's marker; or, where that may not be seen,
because the transaction began after the server did.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from txcoord_client.protocol import mariadb as my
from txcoord_client.protocol import marker, reasons
from txcoord_client.protocol import xid as xids

from ...observe import logs
from .mariadb_session import Session, StatementError

log = logs.get("txcoord.xa.mariadb")

_SKEW_S = 60.0
"""How far the clocks of the SDK and of the database may be apart."""
_GONE_EVERY_S = 0.02


class _Asks(Protocol):
    async def rows(self, statement: str) -> Sequence[Sequence[Any]]: ...


async def sessions_since_us(session: _Asks) -> int:
    """A transaction that began later than this was prepared by a session of now, not by one of the server's life
    before, whose numbers are given again."""
    uptime_s = int((await session.rows(my.READ_UPTIME_S))[0][1])
    now_us = int((await session.rows(my.READ_NOW_US))[0][0])
    return int(now_us + (_SKEW_S - uptime_s) * 1_000_000)


class Holders:
    """The sessions of one server that hold prepared branches."""

    def __init__(
        self,
        resource: str,
        schema: str,
        guard_s: float,
        timeout_s: float,
        second: Callable[[], AbstractAsyncContextManager[Session]],
    ) -> None:
        self._resource = resource
        self._schema = schema
        self._guard_s = guard_s
        self._timeout_s = timeout_s
        self._second = second
        self._snapshot = asyncio.Lock()

    async def end(self, s: Session, x: xids.Xid) -> str:
        """See to it that the session that prepared is gone, and has been for a while. Why it cannot be done now;
        empty: it is so."""
        if not self._guard_s:
            return ""
        if x.connection_id != s.connection_id and await self._lives(s, x):
            held = await self._holds(s, x)
            if held is None:
                return "BUSY: who holds the branch could not be seen: asked again"
            if held:
                why_not = await self._kill(s, x)
                if why_not:
                    return why_not
        # The server forgets a session a little before InnoDB lets go of it.
        await asyncio.sleep(self._guard_s)
        return ""

    @staticmethod
    async def _lives(s: Session, x: xids.Xid) -> bool:
        return bool(await s.rows(my.find_session(x.connection_id)))

    async def _kill(self, s: Session, x: xids.Xid) -> str:
        legacy = await s.rows(my.READ_ROLLBACK_AT_DISCONNECT)
        if legacy and str(legacy[0][1]).upper() not in ("OFF", "0"):
            return (
                f"{reasons.XA_ROLLBACK_AT_DISCONNECT}: session {x.connection_id} holds the branch and lives; ending it "
                "would roll the branch back. SET GLOBAL legacy_xa_rollback_at_disconnect = OFF"
            )
        try:
            await s.execute(my.kill(x.connection_id))
        except StatementError as error:
            if error.meaning is my.Reply.REFUSED:
                return (
                    f"{reasons.NOT_PERMITTED}: session {x.connection_id} holds the branch and lives, and this user may "
                    f"not end it (GRANT CONNECTION ADMIN ON *.*): {error}"
                )
            if error.meaning is not my.Reply.NO_SESSION:
                raise
        log.warning(
            "session.ended",
            resource=self._resource,
            connection_id=x.connection_id,
            tx_id=x.tx_id,
            branch=x.branch,
        )
        until = time.monotonic() + self._timeout_s
        while await self._lives(s, x):
            if time.monotonic() > until:
                return f"BUSY: session {x.connection_id} was ended and is still there"
            await asyncio.sleep(_GONE_EVERY_S)
        return ""

    async def _holds(self, s: Session, x: xids.Xid) -> bool | None:
        """Does the session of that id hold this branch? None: nobody can say now."""
        async with self._second() as waiter:
            waiting = asyncio.ensure_future(
                waiter.rows(my.lock_marker(x.tx_id, x.branch, marker.XA, self._schema))
            )
            try:
                blockers = await self._blockers(s, waiter, waiting)
            except StatementError as error:
                if error.meaning is not my.Reply.REFUSED:
                    raise
                return await self._began_since_start(s, x)
            finally:
                await self._interrupt(s, waiter, waiting)
        if blockers:
            return x.connection_id in blockers
        failure = waiting.exception()
        if failure is None:
            return False  # Nothing is locked: it was finished before.
        if isinstance(failure, StatementError) and failure.meaning is not my.Reply.UNREACHABLE:
            return None
        raise failure

    async def _blockers(self, s: Session, waiter: Session, waiting: asyncio.Future[Any]) -> set[int]:
        """The sessions that the waiter waits for; empty when it waits for none, or waits no more."""
        # One reader at a time, here and elsewhere: too many keep InnoDB from making the table anew.
        async with self._snapshot, self._turn(s) as ours:
            while ours and not waiting.done():
                await asyncio.wait({waiting}, timeout=my.HOLDERS_FRESH_S)
                if waiting.done():
                    break
                rows = await s.rows(my.find_blockers(waiter.connection_id))
                if rows:
                    return {int(row[0]) for row in rows}
        return set()

    @staticmethod
    @asynccontextmanager
    async def _turn(s: Session) -> AsyncIterator[bool]:
        """Is it this session's turn among all that look at this server?"""
        ours = await s.value(my.TAKE_TURN) == 1
        try:
            yield ours
        finally:
            if ours and s.usable:  # It ends with its session.
                await s.rows(my.END_TURN)

    @staticmethod
    async def _interrupt(s: Session, waiter: Session, waiting: asyncio.Future[Any]) -> None:
        """The waiter's statement has ended when this returns. It must wait no more: others would see its lock."""
        if not waiting.done():
            try:
                await s.execute(my.kill_query(waiter.connection_id))
            except StatementError:
                waiting.cancel()
            await asyncio.wait({waiting})
            waiter.close()  # The order may have come late, and would hit its next statement.
        if not waiting.cancelled():
            waiting.exception()  # Looked at, whoever needs it.

    @staticmethod
    async def _began_since_start(s: Session, x: xids.Xid) -> bool:
        """Without the right to look into InnoDB: a transaction that began after the server did was prepared by a
        session of now. If that is not sure, it is not ended; should it hold the branch, 1397 will say so."""
        return my.began_us(x) > await sessions_since_us(s)
