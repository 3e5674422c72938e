"""The log on SQLite.

One thread writes and one reads, each with a connection of its own. A flush is one function in the writing
thread, and as few statements as can be: around each one the thread gives the interpreter up and must get it
back from a busy event loop.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, StaticPool, create_engine, event
from sqlalchemy.exc import SQLAlchemyError

from ...core.model import WriteResult, Written
from ...ports import LogIdentity, LogUnavailable
from . import mapping as m
from . import schema
from .batch import Flushed, Item, Round
from .store import FlushRefused, ReplyLost, T, Work, shown

_TROUBLE = (OSError, sqlite3.Error, SQLAlchemyError)
_CONTENT = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
_LARGEST = 256
"""Rows in one statement. Batches are cut into powers of two, so that there are few texts to prepare."""


class _Singly(Exception):
    """Not every change of a statement took effect: do them one by one to see which."""


class SqliteStore:
    """A log database in a file, or in memory (then it lives as long as this object)."""

    own_machine = True

    def __init__(self, url: URL, *, statement_timeout_s: float) -> None:
        self._url = url
        self._timeout_s = statement_timeout_s
        self._path = path_of(url)
        self._file = 0
        self._writer: _Session | None = None
        self._reader: _Session | None = None

    async def open(self) -> None:
        """Open the file; a missing one is not made (``txcoord migrate`` makes it)."""
        if sqlite3.sqlite_version_info < (3, 35):
            raise LogUnavailable(
                f"SQLite 3.35 or newer is needed for a log, this is {sqlite3.sqlite_version}"
            )
        if self._path is not None and not self._path.exists():
            raise schema.absent()
        try:
            self._file = 0 if self._path is None else self._path.stat().st_ino
            self._writer = await _Session.start(self._connect, "txcoord-log-write", "IMMEDIATE")
            if self._path is None:
                self._reader = self._writer  # a database in memory belongs to its connection
            else:
                self._reader = await _Session.start(self._connect, "txcoord-log-read", "DEFERRED")
        except _TROUBLE as error:
            await self.close()
            raise self._unavailable(error) from error

    def expect(self, identity: LogIdentity) -> None:
        """The open file cannot become another one; that it is still the one at its path, each flush looks."""

    async def close(self) -> None:
        """Disconnect."""
        sessions = {self._reader, self._writer}
        self._reader = self._writer = None
        for session in sessions:
            if session is not None:
                await session.stop()

    def abandon(self) -> None:
        """Drop everything; what a thread has begun it ends, as the disk of a crashed process might."""
        sessions = {self._reader, self._writer}
        self._reader = self._writer = None
        for session in sessions:
            if session is not None:
                session.drop()

    def clock(self, conn: Connection) -> int:
        """The process's clock."""
        return now_us()

    async def reading(self, work: Work[T]) -> T:
        """Run ``work`` in the reading thread, as one transaction."""
        return await self._run(self._reader, work, False)

    async def changing(self, work: Work[T], *, relaxed: bool = False) -> T:
        """Run ``work`` in the writing thread, as one transaction."""
        return await self._run(self._writer, work, relaxed)

    async def _run(self, session: _Session | None, work: Work[T], relaxed: bool) -> T:
        if session is None:
            raise LogUnavailable("the log is not open")
        try:
            return await session.run(lambda: session.transaction(work, relaxed))
        except _TROUBLE as error:
            raise self._unavailable(error) from error

    async def write(self, rounds: Sequence[Round], relaxed: bool) -> Flushed:
        """Write a flush in the writing thread."""
        session = self._writer
        if session is None:
            raise LogUnavailable("the log is not open")
        try:
            return await session.run(lambda: self._flush_here(session, rounds, relaxed))
        except (*_CONTENT, OverflowError, TypeError, ValueError, AttributeError) as error:
            raise FlushRefused(f"{type(error).__name__}: {error}") from error
        except _TROUBLE as error:
            raise self._unavailable(error) from error

    def _flush_here(self, session: _Session, rounds: Sequence[Round], relaxed: bool) -> Flushed:
        # Moved away, or replaced by a backup: what is written to the open file now would be lost.
        if self._path is not None and self._path.stat().st_ino != self._file:
            raise OSError(f"{self._path} was replaced while it was open: restart this node")
        return _flush(session, rounds, relaxed)

    def _connect(self) -> sqlite3.Connection:
        target = ":memory:" if self._path is None else f"{self._path.absolute().as_uri()}?mode=rw"
        conn = sqlite3.connect(
            target,
            uri=self._path is not None,
            timeout=self._timeout_s,
            isolation_level=None,  # transactions are begun here by hand
            check_same_thread=False,  # opened, used and closed by one thread, but for a crash test
            cached_statements=512,
        )
        try:
            _await_wal(conn, self._timeout_s)
            conn.execute("PRAGMA synchronous = FULL")
            conn.execute("PRAGMA fullfsync = ON")  # where fsync alone does not reach the disk
        except BaseException:
            conn.close()
            raise
        return conn

    def _unavailable(self, error: BaseException) -> LogUnavailable:
        return LogUnavailable(f"{shown(self._url)}: {type(error).__name__}: {error}")


def path_of(url: URL) -> Path | None:
    """The file of a URL; None is memory."""
    return None if url.database in (None, "", ":memory:") else Path(str(url.database))


def now_us() -> int:
    """The log's clock."""
    return time.time_ns() // 1000


def _await_wal(conn: sqlite3.Connection, timeout_s: float) -> None:
    """Switch to write-ahead logging. SQLite does not wait for a lock here, so others who switch are waited for."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            conn.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(0.01)


class _Session:
    """A connection and the one thread that uses it."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self.raw: sqlite3.Connection
        self.engine: Engine
        self.relaxed = False

    @classmethod
    async def start(cls, connect: Callable[[], sqlite3.Connection], name: str, begin: str) -> _Session:
        session = cls(name)

        def opened() -> None:
            session.raw = connect()
            session.engine = create_engine("sqlite://", creator=lambda: session.raw, poolclass=StaticPool)
            event.listen(session.engine, "begin", lambda conn: conn.exec_driver_sql(f"BEGIN {begin}"))

        try:
            await session.run(opened)
        except BaseException:
            session._thread.shutdown(wait=False)
            raise
        return session

    async def run(self, work: Callable[[], T]) -> T:
        try:
            future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        except RuntimeError as error:
            raise LogUnavailable("the log is closed") from error
        return await future

    def transaction(self, work: Work[T], relaxed: bool) -> T:
        self.set_relaxed(relaxed)
        with self.engine.begin() as conn:
            return work(conn)

    def set_relaxed(self, relaxed: bool) -> None:
        """Relaxed: commits reach the file but are not synced. The next synced commit syncs the whole file, and
        so does a checkpoint before it copies anything: nothing synced ever depends on what was not."""
        if relaxed is not self.relaxed:
            self.raw.execute(f"PRAGMA synchronous = {'NORMAL' if relaxed else 'FULL'}")
            self.relaxed = relaxed

    async def stop(self) -> None:
        await self.run(self._close)
        self._thread.shutdown()

    def drop(self) -> None:
        self.raw.interrupt()
        self._thread.submit(self._close)
        self._thread.shutdown(wait=False)

    def _close(self) -> None:
        self.engine.dispose()
        self.raw.close()


# ---- the flush, in the writing thread ----


def _flush(session: _Session, rounds: Sequence[Round], relaxed: bool) -> Flushed:
    session.set_relaxed(relaxed)
    try:
        return _transaction(session.raw, rounds, singly=False)
    except _Singly:
        return _transaction(session.raw, rounds, singly=True)


def _transaction(raw: sqlite3.Connection, rounds: Sequence[Round], *, singly: bool) -> Flushed:
    flushed = Flushed()
    raw.execute("BEGIN IMMEDIATE")
    try:
        for each in rounds:
            _write_round(raw, each, flushed, 1 if singly else _LARGEST)
    except BaseException:
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        raise
    try:
        raw.execute("COMMIT")
    except sqlite3.Error as error:
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        raise ReplyLost(str(error)) from error
    return flushed


def _write_round(raw: sqlite3.Connection, each: Round, flushed: Flushed, largest: int) -> None:
    kinds: list[tuple[list[Item], Callable[[int], str], Callable[[Any], m.Row]]] = [
        (each.inserts, _insert, m.insert_row),
        (each.amends, _amend, m.amend_row),
        (each.progress, _progress, m.progress_row),
        (each.orders, _order, m.order_row),
        (each.releases, _release, m.release_row),
    ]
    for items, statement, row in kinds:
        for part in _parts(items, largest):
            now = now_us()
            values = [value for i in part for value in row(i.change)]
            done = raw.execute(statement(len(part)), (*values, now)).rowcount
            if done != len(part) and len(part) > 1:
                raise _Singly
            for item in part:
                limit = item.change.not_after_us
                if done == len(part):
                    what = Written.OK
                else:
                    what = Written.TOO_LATE if limit is not None and limit < now else Written.CONFLICT
                flushed[item] = WriteResult(what, now)
    written = [i for i in each.items if flushed[i].written is Written.OK]
    beside: list[tuple[str, Sequence[m.Col], list[m.Row], str]] = [
        ("txcoord_branch", m.BRANCH, [r for i in written for r in m.branch_rows(i.change)], _OVERWRITE),
        (
            "txcoord_history",
            m.HISTORY,
            [r for i in written for r in m.history_rows(i.change, i.ordinal)],
            _KEEP,
        ),
        ("txcoord_audit", m.AUDIT, [r for i in written for r in m.audit_rows(i.change, i.ordinal)], _KEEP),
        ("txcoord_outbox", m.OUTBOX, [r for i in written for r in m.outbox_rows(i.change)], _KEEP),
        ("txcoord_ordering", m.ORDERING, m.ordering_rows(i.change for i in written), _KEEP),
    ]
    for table, columns, rows, conflict in beside:
        for some in _parts(rows, largest):
            raw.execute(_beside(table, tuple(columns), len(some), conflict), [v for r in some for v in r])


def _parts(items: list[T], largest: int) -> list[list[T]]:
    """Cut a list into pieces whose lengths are powers of two."""
    out = []
    at = 0
    while at < len(items):
        size = min(largest, 1 << ((len(items) - at).bit_length() - 1))
        out.append(items[at : at + size])
        at += size
    return out


# ---- the statements ----


def _names(columns: Sequence[m.Col]) -> str:
    return ", ".join(c.name for c in columns)


def _values(columns: Sequence[m.Col], count: int) -> str:
    row = f"({', '.join('?' * len(columns))})"
    return f"VALUES {', '.join([row] * count)}"


def _at(columns: Sequence[m.Col], name: str) -> str:
    """What SQLite calls this column of a VALUES list."""
    return f"column{[c.name for c in columns].index(name) + 1}"


# `?` stands for the clock: the last parameter of all, whatever the length of the list.
def _never_late(columns: Sequence[m.Col]) -> str:
    return f"({_at(columns, 'not_after_us')} IS NULL OR ? <= {_at(columns, 'not_after_us')})"


_ANY_TIME = "? IS NOT NULL"
_CARRIED_OUT = "(decision IS NOT NULL OR txcoord_tx.state = 'running')"
_OVERWRITE = "(tx_id, id) DO UPDATE SET " + ", ".join(f"{c.name} = excluded.{c.name}" for c in m.BRANCH[2:])
_KEEP = "DO NOTHING"


@lru_cache(maxsize=64)
def _insert(count: int) -> str:
    columns = (*m.INSERT, m.NOT_AFTER)
    content = ", ".join(_at(columns, c.name) for c in m.INSERT)
    return (
        f"INSERT INTO txcoord_tx ({_names(m.INSERT)}, detail_pruned) SELECT {content}, 0"
        f" FROM ({_values(columns, count)}) WHERE {_never_late(columns)} ON CONFLICT DO NOTHING"
    )


def _update(columns: Sequence[m.Col], conditions: Sequence[m.Col], count: int, where: str) -> str:
    every = (*columns, *conditions)
    sets = ", ".join(
        # Of the claim whose epoch it names: it was renewed since, perhaps. Handed off it says when it is overdue, and
        # that is nobody's lease.
        f"{c.name} = CASE WHEN i.{_at(every, 'owner')} = '' OR txcoord_tx.owner = '' THEN i.{_at(every, c.name)}"
        f" ELSE max(txcoord_tx.{c.name}, i.{_at(every, c.name)}) END"
        if c.name == "lease_until_us"
        else f"{c.name} = i.{_at(every, c.name)}"
        for c in columns[1:]
    )
    return (
        f"UPDATE txcoord_tx SET {sets} FROM ({_values(every, count)}) AS i"
        f" WHERE txcoord_tx.tx_id = i.column1 AND {where}"
    )


@lru_cache(maxsize=64)
def _amend(count: int) -> str:
    every = (*m.AMEND, m.EXPECTED, m.NOT_AFTER)
    where = f"version = i.{_at(every, 'expected')} AND decision IS NULL AND {_never_late(every)}"
    return _update(m.AMEND, every[len(m.AMEND) :], count, where)


@lru_cache(maxsize=64)
def _progress(count: int) -> str:
    every = (*m.PROGRESS, m.EXPECTED)
    where = f"epoch = i.{_at(every, 'expected')} AND {_CARRIED_OUT} AND {_ANY_TIME}"
    return _update(m.PROGRESS, (m.EXPECTED,), count, where)


@lru_cache(maxsize=64)
def _order(count: int) -> str:
    every = (*m.PROGRESS, m.EXPECTED, *m.JOB)
    running = (
        f"EXISTS (SELECT 1 FROM txcoord_replay AS r WHERE r.id = i.{_at(every, 'job')}"
        f" AND r.epoch = i.{_at(every, 'job_epoch')} AND r.state = 'running')"
    )
    where = f"txcoord_tx.epoch = i.{_at(every, 'expected')} AND {_CARRIED_OUT} AND {running} AND {_ANY_TIME}"
    return _update(m.PROGRESS, (m.EXPECTED, *m.JOB), count, where)


@lru_cache(maxsize=64)
def _release(count: int) -> str:
    every = (*m.RELEASE, m.EXPECTED)
    return (
        f"UPDATE txcoord_tx SET gid = NULL FROM ({_values(every, count)}) AS i"
        f" WHERE txcoord_tx.tx_id = i.column1 AND version = i.{_at(every, 'expected')}"
        f" AND decision = 'abort' AND {_ANY_TIME}"
    )


@lru_cache(maxsize=128)
def _beside(table: str, columns: tuple[m.Col, ...], count: int, conflict: str) -> str:
    return f"INSERT INTO {table} ({_names(columns)}) {_values(columns, count)} ON CONFLICT {conflict}"
