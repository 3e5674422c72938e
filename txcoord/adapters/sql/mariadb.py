"""The log on MariaDB.

A flush is one message: BEGIN, one statement for each kind of change, a question what was written, COMMIT. So it is
one round trip and one fsync. The server runs nothing after a statement that failed, so an error before the COMMIT
proves that nothing is written. It goes through one connection that is kept for it. Everything else goes through
SQLAlchemy's pool.

MariaDB can leave commits unsynced for all sessions only: so every flush is synced, also a relaxed one.
"""

from __future__ import annotations

import asyncio
import secrets
import weakref
from collections.abc import Sequence
from typing import Any

import asyncmy
from asyncmy import errors
from sqlalchemy import URL, Connection, event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ...core.model import WriteResult, Written
from ...observe import logs
from ...ports import LogIdentity, LogUnavailable
from . import mariadb_server as server
from . import mariadb_sql as sql
from .batch import Flushed, Round
from .store import FlushRefused, ReplyLost, T, Work, shown

log = logs.get("txcoord.log.mariadb")

_CLIENT = (OSError, TimeoutError)
_TROUBLE = (*_CLIENT, errors.Error, SQLAlchemyError)
_AGAIN = frozenset({1213, 1020})
"""Deadlock; changed since it was read."""
_KEPT = frozenset({1205, 1317, 1969})
"""Lock time-out, interrupted, statement time-out: the connection is as good as before."""
_CONTENT = (errors.DataError, errors.IntegrityError)
_MORE_CONTENT = frozenset({1366, 1300, 1118, 1153})
"""Wrong value, wrong characters, row too large, message too large."""
_TRIES = 4
_NOW_STATEMENT = text(f"SELECT {sql.NOW}")
_READ_COMMITTED = text("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")


class _Refused(Exception):
    """Nothing of this flush was written, and the session is as before."""

    def __init__(self, error: errors.Error, code: int) -> None:
        super().__init__(str(error))
        self.error = error
        self.code = code


class MariaDBStore:
    """A log database on MariaDB 10.6 or newer."""

    own_machine = False

    def __init__(self, url: URL, *, statement_timeout_s: float, pool_size: int) -> None:
        self._url = url
        self._options = server.options_of(url)
        self._timeout_s = statement_timeout_s
        self._pool_size = pool_size
        self._engine: AsyncEngine | None = None
        self._flusher: asyncmy.Connection | None = None
        self._pooled: weakref.WeakSet[asyncmy.Connection] = weakref.WeakSet()
        self._expected: LogIdentity | None = None
        self._largest = 0
        """Bytes in one message to the server."""
        self._key = ""
        """Of the lock that the flushing session holds while it lives."""
        self._lost: list[str] = []
        """Keys of sessions that may still be writing a flush whose reply was lost."""

    async def open(self) -> None:
        """Connect, and refuse what cannot be a log."""
        self._engine = create_async_engine(
            self._url,
            pool_size=self._pool_size,
            max_overflow=0,
            pool_timeout=self._timeout_s,
            async_creator=self._connect,
        )
        event.listen(
            self._engine.sync_engine, "connect", lambda conn, _: self._pooled.add(conn.driver_connection)
        )
        try:
            async with self._limit():
                conn = await self._hot()
                for setting, why in await server.unsafe(conn):
                    log.warning("log.unsafe", setting=setting, reason=why)
        except _TROUBLE as error:
            await self.close()
            raise self._unavailable(error) from error
        except LogUnavailable:
            await self.close()
            raise

    def expect(self, identity: LogIdentity) -> None:
        """Each new connection for flushes makes sure of it."""
        self._expected = identity

    async def close(self) -> None:
        """Disconnect."""
        self._expected = None
        flusher, self._flusher = self._flusher, None
        if flusher is not None:
            try:
                async with self._limit():
                    await flusher.ensure_closed()
            except _TROUBLE:
                flusher.close()
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    def abandon(self) -> None:
        """Drop all connections, without a word to the server."""
        flusher, self._flusher = self._flusher, None
        for conn in [*self._pooled, *([flusher] if flusher is not None else [])]:
            conn.close()
        if self._engine is not None:
            self._engine.sync_engine.dispose(close=False)
            self._engine = None

    def clock(self, conn: Connection) -> int:
        """The database's clock; not that of the transaction's start."""
        return int(conn.execute(_NOW_STATEMENT).scalar_one())

    async def reading(self, work: Work[T]) -> T:
        """Run ``work`` on one snapshot: a row and its branches belong together."""
        return await self._run(work, changes=False)

    async def changing(self, work: Work[T], *, relaxed: bool = False) -> T:
        """Run ``work`` as one transaction. It is always synced: MariaDB knows no relaxed ones."""
        return await self._run(work, changes=True)

    async def _run(self, work: Work[T], *, changes: bool) -> T:
        stale_before = False
        for attempt in range(_TRIES):
            begun = False
            if self._engine is None:
                raise LogUnavailable("the log is not open")
            try:
                async with self._limit(), self._engine.connect() as conn:
                    if changes:
                        await conn.execute(_READ_COMMITTED)
                        begun = True
                    out = await conn.run_sync(work)
                    begun = True
                    await conn.commit()
                    return out
            except _TROUBLE as error:
                stale = isinstance(error, DBAPIError) and error.connection_invalidated
                if stale and not begun and not stale_before:
                    # Pooled connections may be stale since the database was restarted: all are made anew.
                    stale_before = True
                elif server.code_of(error) not in _AGAIN or attempt == _TRIES - 1:
                    raise self._unavailable(error) from error
        raise AssertionError("unreachable")

    # ---- the flush ----

    async def write(self, rounds: Sequence[Round], relaxed: bool) -> Flushed:
        """One message for all rounds."""
        try:
            tokens = [secrets.randbits(62) for _ in rounds]
            message = sql.flush(rounds, tokens)
        except (TypeError, ValueError, AttributeError) as error:
            raise FlushRefused(f"{type(error).__name__}: {error}") from error
        try:
            async with self._limit():
                conn = await self._hot()
        except _TROUBLE as error:
            raise self._unavailable(error) from error  # nothing has been sent
        if not rounds:
            return Flushed()
        if len(message) + 1 > self._largest:
            raise FlushRefused(f"{len(message)} bytes are more than max_allowed_packet has: {self._largest}")
        for attempt in range(_TRIES):
            try:
                async with self._limit():
                    return await self._send(conn, message, rounds)
            except _Refused as refused:
                why = refused.error
                if refused.code in _AGAIN and attempt < _TRIES - 1:
                    continue
                if isinstance(why, _CONTENT) or refused.code in _MORE_CONTENT:
                    raise FlushRefused(f"{refused.code}: {why}") from why
                if refused.code not in _KEPT | _AGAIN:
                    # Read-only, perhaps: this server is a replica now; the next connection looks.
                    self._drop(conn)
                raise self._unavailable(why) from why
            except Exception as error:  # whatever a driver makes of a broken connection
                self._drop(conn)
                raise ReplyLost(f"{type(error).__name__}: {error}") from error
            except BaseException:
                self._drop(conn)
                raise
        raise AssertionError("unreachable")

    async def _send(self, conn: asyncmy.Connection, message: bytes, rounds: Sequence[Round]) -> Flushed:
        """Raises _Refused when nothing was written and the session can go on."""
        cursor = conn.cursor()
        answers: list[list[tuple[Any, ...]]] = []
        try:
            await cursor.execute(message)
            more = True
            while more:
                if cursor.description is not None:
                    answers.append(list(await cursor.fetchall()))
                more = bool(await cursor.nextset())
        except errors.Error as error:
            code = server.code_of(error)
            # After the last answer comes the COMMIT: an error of its own proves nothing, nor does a session's end.
            if not code or code in server.ENDED or not conn.connected or len(answers) == 2 * len(rounds):
                raise
            await server.ask(conn, "ROLLBACK")
            raise _Refused(error, code) from error
        flushed = Flushed()
        for round_, written_rows, clock in zip(rounds, answers[::2], answers[1::2], strict=True):
            written = {row[0].hex() for row in written_rows}
            now_us = int(clock[0][0])
            for item in round_.items:
                limit = item.change.not_after_us
                if item.change.tx.tx_id in written:
                    what = Written.OK
                elif limit is not None and limit < now_us:
                    what = Written.TOO_LATE
                else:
                    what = Written.CONFLICT
                flushed[item] = WriteResult(what, now_us)
        return flushed

    # ---- connections ----

    async def _connect(self) -> asyncmy.Connection:
        """One for the pool."""
        return await server.connect(self._options, self._timeout_s, "REPEATABLE READ")

    async def _hot(self) -> asyncmy.Connection:
        """The flushing connection."""
        if self._flusher is not None and self._flusher.connected:
            return self._flusher
        if self._engine is None:
            raise LogUnavailable("the log is not open")
        conn = await server.connect_flusher(self._options, self._timeout_s)
        try:
            self._largest = await server.examine(conn, shown(self._url))
            if self._expected is not None:
                rows = await server.ask(conn, "SELECT log_id, incarnation FROM txcoord_log_identity")
                if rows != [(self._expected.log_id, self._expected.incarnation)]:
                    raise LogUnavailable(f"{shown(self._url)} is another log than before: restart this node")
            for key in list(self._lost):
                await server.outlive(conn, key, self._timeout_s)
                self._lost.remove(key)
            self._key = f"txcoord.{secrets.token_hex(12)}"
            await server.hold(conn, self._key)
        except BaseException:
            conn.close()
            raise
        self._flusher = conn
        return conn

    def _drop(self, conn: asyncmy.Connection) -> None:
        self._lost.append(self._key)
        self._flusher = None
        conn.close()

    def _limit(self) -> asyncio.Timeout:
        """The driver itself waits for ever. The server's own limits come first, if it lives."""
        return asyncio.timeout(self._timeout_s + 2.0)

    def _unavailable(self, error: BaseException) -> LogUnavailable:
        return LogUnavailable(f"{shown(self._url)}: {type(error).__name__}: {error}")


__all__ = ["MariaDBStore"]
