"""The log on PostgreSQL.

A flush is one statement, whatever kinds of change are in it: each kind is a part of a WITH, and the statement is
a transaction of its own, so one round trip and one fsync carry everything. It goes through one asyncpg connection
that is kept for it. Everything else goes through SQLAlchemy's pool.
"""

from __future__ import annotations

import asyncio
import secrets
import weakref
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import asyncpg
from sqlalchemy import URL, Connection, event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from ...core.model import WriteResult, Written
from ...observe import logs
from ...ports import LogIdentity, LogUnavailable
from . import mapping as m
from .batch import Flushed, Item, Round
from .store import FlushRefused, ReplyLost, T, Work, shown

log = logs.get("txcoord.log.postgresql")

_NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_NOW_STATEMENT = text(f"SELECT {_NOW}")
# asyncpg says InternalClientError of a connection on which the server has said goodbye.
_CLIENT = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)
_TROUBLE = (*_CLIENT, asyncpg.PostgresError, SQLAlchemyError)
_AGAIN = frozenset({"40001", "40P01", "55P03"})  # serialization, deadlock, lock not available
_TRIES = 4
# The content of a change is at fault: data, constraint, cardinality, limit of the program.
_CONTENT = ("21", "22", "23", "54")
# Fatal, or not sure to be before the commit: the reply proves nothing.
_NO_PROOF = ("08", "57P", "58", "XX", "F0")
# A flush is planned once. What was planned for a small table reads all of it, and is forgotten as the table grows.
_SIZE = "SELECT pg_relation_size('txcoord_tx') / 8192"
_GROWN = 1000
"""Pages: beyond this every plan goes by the key."""
_LOOK_AFTER = 1024
_LOOK_EVERY_S = 1.0
_HOT = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_mergejoin": "off",
    "random_page_cost": "0.1",
    "jit": "off",
}


class PostgresStore:
    """A log database on PostgreSQL 14 or newer."""

    own_machine = False

    def __init__(self, url: URL, *, statement_timeout_s: float, pool_size: int) -> None:
        self._url = url
        self._timeout_s = statement_timeout_s
        self._pool_size = pool_size
        self._engine: AsyncEngine | None = None
        self._flusher: asyncpg.Connection | None = None
        self._pooled: weakref.WeakSet[asyncpg.Connection] = weakref.WeakSet()
        self._expected: LogIdentity | None = None
        self._planned_pages = 0
        self._looked_at = 0.0
        self._since_look = 0
        self._key = 0
        """Of the advisory lock that the flushing session holds while it lives."""
        self._lost: list[int] = []
        """Keys of sessions that may still be writing a flush whose reply was lost."""

    async def open(self) -> None:
        """Connect, and refuse a replica."""
        millis = str(int(self._timeout_s * 1000))
        settings = {
            "application_name": "txcoord",
            "statement_timeout": millis,
            "idle_in_transaction_session_timeout": millis,
            "default_transaction_isolation": "read committed",
        }
        self._engine = create_async_engine(
            self._url,
            pool_size=self._pool_size,
            max_overflow=0,
            pool_timeout=self._timeout_s,
            # Planned anew each time: a plan that was made when the table was small would stay for long.
            connect_args={
                **self._limits(),
                "server_settings": {**settings, "plan_cache_mode": "force_custom_plan"},
            },
        )
        event.listen(
            self._engine.sync_engine, "connect", lambda conn, _: self._pooled.add(conn.driver_connection)
        )
        _, options = self._engine.dialect.create_connect_args(self._url)
        self._options = {
            **{
                k: v
                for k, v in options.items()
                if k not in ("prepared_statement_cache_size", "async_fallback")
            },
            **self._limits(),
            "server_settings": {**settings, **_HOT},
            "statement_cache_size": 256,
            "max_cached_statement_lifetime": 0,
            "max_cacheable_statement_size": 0,
        }
        try:
            await self._warn(await self._hot())
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
                await flusher.close(timeout=self._timeout_s)
            except _TROUBLE:
                flusher.terminate()
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None

    def abandon(self) -> None:
        """Drop all connections, without a word to the server."""
        flusher, self._flusher = self._flusher, None
        for conn in [*self._pooled, *([flusher] if flusher is not None else [])]:
            conn.terminate()
        if self._engine is not None:
            self._engine.sync_engine.dispose(close=False)
            self._engine = None

    def clock(self, conn: Connection) -> int:
        """The database's clock; not that of the transaction's start."""
        return int(conn.execute(_NOW_STATEMENT).scalar_one())

    async def reading(self, work: Work[T]) -> T:
        """Run ``work`` on one snapshot: a row and its branches belong together."""
        return await self._run(work, None)

    async def changing(self, work: Work[T], *, relaxed: bool = False) -> T:
        """Run ``work`` as one transaction."""
        return await self._run(work, _OFF if relaxed else _ON_IF_OFF.format(local="true"))

    async def _run(self, work: Work[T], first: str | None) -> T:
        stale_before = False
        for attempt in range(_TRIES):
            begun = False
            if self._engine is None:
                raise LogUnavailable("the log is not open")
            try:
                async with self._engine.connect() as conn:
                    if first is None:
                        await conn.execution_options(isolation_level="REPEATABLE READ")
                    else:
                        await conn.execute(text(first))
                        begun = True
                    out = await conn.run_sync(work)
                    await conn.commit()
                    return out
            except _TROUBLE as error:
                stale = isinstance(error, DBAPIError) and error.connection_invalidated
                if stale and not begun and not stale_before:
                    # Pooled connections may be stale since the database was restarted: all are made anew.
                    stale_before = True
                elif _code(error) not in _AGAIN or attempt == _TRIES - 1:
                    raise self._unavailable(error) from error
        raise AssertionError("unreachable")

    # ---- the flush ----

    async def write(self, rounds: Sequence[Round], relaxed: bool) -> Flushed:
        """One statement for each round."""
        try:
            prepared = [(r, *_statement_of(r, relaxed)) for r in rounds]
        except (TypeError, ValueError, AttributeError) as error:
            raise FlushRefused(f"{type(error).__name__}: {error}") from error
        try:
            conn = await self._hot()
        except _TROUBLE as error:
            raise self._unavailable(error) from error  # nothing has been sent
        for attempt in range(_TRIES):
            try:
                if self._planned_pages < _GROWN:
                    await self._replan(conn, sum(len(r.items) for r in rounds))
                return await self._send(conn, prepared)
            except asyncpg.PostgresError as error:
                code = error.sqlstate or ""
                if conn.is_closed() or code.startswith(_NO_PROOF):
                    self._drop(conn)
                    raise ReplyLost(str(error)) from error
                if code in _AGAIN and attempt < _TRIES - 1:
                    continue
                if code.startswith(_CONTENT):
                    raise FlushRefused(f"{code}: {error}") from error
                if code.startswith("25"):
                    self._drop(conn)  # read-only: this server is a replica now; the next connection looks
                raise self._unavailable(error) from error
            except asyncpg.DataError as error:
                raise FlushRefused(str(error)) from error  # refused before it was sent
            except _CLIENT as error:
                self._drop(conn)
                raise ReplyLost(f"{type(error).__name__}: {error}") from error
            except BaseException:
                self._drop(conn)
                raise
        raise AssertionError("unreachable")

    async def _send(
        self, conn: asyncpg.Connection, prepared: Sequence[tuple[Round, str, list[Any]]]
    ) -> Flushed:
        flushed = Flushed()
        if len(prepared) == 1:
            await self._send_round(conn, flushed, *prepared[0])
            return flushed
        async with conn.transaction():
            for each in prepared:
                await self._send_round(conn, flushed, *each)
        return flushed

    async def _send_round(
        self, conn: asyncpg.Connection, flushed: Flushed, round_: Round, sql: str, args: list[Any]
    ) -> None:
        row = await conn.fetchrow(sql, *args)
        assert row is not None
        now_us: int = row[0]
        written = {tx_id.hex for tx_id in row[1]}
        for item in round_.items:
            limit = item.change.not_after_us
            if item.change.tx.tx_id in written:
                what = Written.OK
            elif limit is not None and limit < now_us:
                what = Written.TOO_LATE
            else:
                what = Written.CONFLICT
            flushed[item] = WriteResult(what, now_us)

    # ---- the flushing connection ----

    async def _hot(self) -> asyncpg.Connection:
        if self._flusher is not None and not self._flusher.is_closed():
            return self._flusher
        if self._engine is None:
            raise LogUnavailable("the log is not open")
        conn: asyncpg.Connection = await asyncpg.connect(**self._options)
        try:
            if await conn.fetchval("SELECT pg_is_in_recovery()"):
                raise LogUnavailable(
                    f"{shown(self._url)} is a replica: a log is read and written on its primary"
                )
            if self._expected is not None:
                row = await conn.fetchrow("SELECT log_id, incarnation FROM txcoord_log_identity")
                if row is None or tuple(row) != (self._expected.log_id, self._expected.incarnation):
                    raise LogUnavailable(f"{shown(self._url)} is another log than before: restart this node")
            await conn.execute(_ON_IF_OFF.format(local="false"))
            for key in list(self._lost):
                await self._outlive(conn, key)
                self._lost.remove(key)
            self._key = secrets.randbits(62)
            await conn.execute(f"SELECT pg_advisory_lock({self._key})")
        except BaseException:
            conn.terminate()
            raise
        self._flusher = conn
        self._planned_pages, self._looked_at = 0, 0.0
        return conn

    async def _replan(self, conn: asyncpg.Connection, items: int) -> None:
        """Forget the plans when the table has grown since they were made, here or by other nodes."""
        now = asyncio.get_running_loop().time()
        self._since_look += items
        if self._since_look < _LOOK_AFTER and now - self._looked_at < _LOOK_EVERY_S:
            return
        self._since_look, self._looked_at = 0, now
        pages: int = await conn.fetchval(_SIZE)
        if pages > 2 * self._planned_pages + 8:
            await conn.execute("DISCARD PLANS")
            self._planned_pages = pages

    async def _outlive(self, conn: asyncpg.Connection, key: int) -> None:
        """Wait until the session that held this key is gone: then what it wrote can be read, and nothing of it
        comes later."""
        await conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            f" AND classid = {key >> 32} AND objid = {key & 0xFFFFFFFF} AND objsubid = 1"
        )
        await conn.execute(f"SELECT pg_advisory_lock({key})")
        # A session ended while it waited for a standby has committed here only. A commit after it waits for both.
        async with conn.transaction():
            await conn.execute(
                "SELECT pg_logical_emit_message(true, 'txcoord', ''), pg_advisory_unlock($1)", key
            )

    def _drop(self, conn: asyncpg.Connection) -> None:
        self._lost.append(self._key)
        self._flusher = None
        conn.terminate()

    async def _warn(self, conn: asyncpg.Connection) -> None:
        rows = await conn.fetch(
            "SELECT name, setting FROM pg_settings WHERE name IN"
            " ('fsync', 'full_page_writes', 'synchronous_standby_names', 'server_version_num')"
        )
        settings = {r[0]: r[1] for r in rows}
        if int(settings["server_version_num"]) < 140000:
            raise LogUnavailable("PostgreSQL 14 or newer is needed for a log")
        for name in ("fsync", "full_page_writes"):
            if settings[name] == "off":
                log.warning("log.unsafe", setting=name, reason=f"{name} is off: a crash can lose decisions")
        standbys = await conn.fetchval("SELECT count(*) FROM pg_stat_replication")
        if standbys and not settings["synchronous_standby_names"]:
            log.warning("log.asynchronous_standbys", count=standbys, reason="a failover can lose decisions")

    def _limits(self) -> dict[str, float]:
        return {"timeout": min(self._timeout_s, 5.0), "command_timeout": self._timeout_s + 2.0}

    def _unavailable(self, error: BaseException) -> LogUnavailable:
        return LogUnavailable(f"{shown(self._url)}: {type(error).__name__}: {error}")


_OFF = "SET LOCAL synchronous_commit = off"
_ON_IF_OFF = (
    "SELECT set_config('synchronous_commit', 'on', {local})"
    " WHERE current_setting('synchronous_commit') = 'off'"
)


# ---- the statement ----


def _statement_of(round_: Round, relaxed: bool) -> tuple[str, list[Any]]:
    """The text, and its arguments: an array for each column."""
    for items in (round_.inserts, round_.amends, round_.progress, round_.orders, round_.releases):
        items.sort(key=_tx_id)  # all nodes lock rows in one order
    rows: list[list[m.Row]] = [
        [m.insert_row(i.change) for i in round_.inserts],
        [m.amend_row(i.change) for i in round_.amends],
        [m.progress_row(i.change) for i in round_.progress],
        [m.order_row(i.change) for i in round_.orders],
        [m.release_row(i.change) for i in round_.releases],
        [row for i in round_.items for row in m.branch_rows(i.change)],
        [row for i in round_.items for row in m.history_rows(i.change, i.ordinal)],
        [row for i in round_.items for row in m.audit_rows(i.change, i.ordinal)],
        [row for i in round_.items for row in m.outbox_rows(i.change)],
        m.ordering_rows(i.change for i in round_.items),
    ]
    sql = _statement(tuple(bool(part) for part in rows), relaxed)
    return sql, [column for part in rows if part for column in zip(*part, strict=True)]


def _code(error: BaseException) -> str:
    """The SQLSTATE of what was refused; empty: it is no answer of the server's."""
    return str(getattr(getattr(error, "orig", error), "sqlstate", None) or "")


def _tx_id(item: Item) -> str:
    return item.change.tx.tx_id


_NEVER_LATE = "(i.not_after_us IS NULL OR (SELECT now_us FROM clock) <= i.not_after_us)"
_CARRIED_OUT = "t.epoch = i.expected AND (t.decision IS NOT NULL OR t.state = 'running')"
_RETURNING = "RETURNING t.tx_id"


def _names(columns: Sequence[m.Col], prefix: str = "") -> str:
    return ", ".join(prefix + c.name for c in columns)


@lru_cache(maxsize=256)
def _statement(present: tuple[bool, ...], relaxed: bool) -> str:
    """The statement for a flush in which these parts are present."""
    count = 0

    def arrays(columns: Sequence[m.Col]) -> str:
        nonlocal count
        first, count = count + 1, count + len(columns)
        params = ", ".join(f"${first + n}::{c.type}[]" for n, c in enumerate(columns))
        return f"unnest({params}) AS i({_names(columns)})"

    def update(columns: Sequence[m.Col], conditions: Sequence[m.Col], where: str) -> str:
        sets = ", ".join(
            # Of the claim whose epoch it names: it was renewed since, perhaps. Handed off it says when it is overdue,
            # and that is nobody's lease.
            f"{c.name} = CASE WHEN i.owner = '' OR t.owner = '' THEN i.{c.name}"
            f" ELSE greatest(t.{c.name}, i.{c.name}) END"
            if c.name == "lease_until_us"
            else f"{c.name} = i.{c.name}"
            for c in columns[1:]
        )
        source = arrays((*columns, *conditions))
        return (
            f"UPDATE txcoord_tx t SET {sets} FROM {source} WHERE t.tx_id = i.tx_id AND {where} {_RETURNING}"
        )

    def beside(table: str, columns: Sequence[m.Col], conflict: str, order: str = "") -> str:
        return (
            f"INSERT INTO {table} ({_names(columns)}) SELECT {_names(columns, 'i.')} FROM {arrays(columns)}"
            f" WHERE i.tx_id IN (SELECT tx_id FROM written){order} ON CONFLICT {conflict}"
        )

    insert, amend, progress, orders, release, branch, history, audit, outbox, ordering = present
    synchronous = ", set_config('synchronous_commit', 'off', true) AS relaxed" if relaxed else ""
    parts = [f"clock AS MATERIALIZED (SELECT {_NOW} AS now_us{synchronous})"]
    changed = []

    def change(name: str, sql: str) -> None:
        parts.append(f"{name} AS ({sql})")
        changed.append(f"SELECT tx_id FROM {name}")

    if insert:
        change(
            "inserted",
            f"INSERT INTO txcoord_tx AS t ({_names(m.INSERT)}, detail_pruned)"
            f" SELECT {_names(m.INSERT, 'i.')}, false FROM {arrays((*m.INSERT, m.NOT_AFTER))}"
            f" WHERE {_NEVER_LATE} ON CONFLICT DO NOTHING {_RETURNING}",
        )
    if amend:
        # Not "IS NULL": that would let the planner walk the index of undecided rows instead of going by the key.
        where = f"t.version = i.expected AND coalesce(t.decision, '') = '' AND {_NEVER_LATE}"
        change("amended", update(m.AMEND, (m.EXPECTED, m.NOT_AFTER), where))
    if progress:
        change("progressed", update(m.PROGRESS, (m.EXPECTED,), _CARRIED_OUT))
    if orders:
        # Locked: whoever cancels it, or takes it over, waits until this is written.
        running = (
            "EXISTS (SELECT 1 FROM txcoord_replay r WHERE r.id = i.job AND r.epoch = i.job_epoch"
            " AND r.state = 'running' FOR SHARE)"
        )
        change("ordered", update(m.PROGRESS, (m.EXPECTED, *m.JOB), f"{_CARRIED_OUT} AND {running}"))
    if release:
        source = arrays((*m.RELEASE, m.EXPECTED))
        change(
            "released",
            f"UPDATE txcoord_tx t SET gid = NULL FROM {source} WHERE t.tx_id = i.tx_id"
            f" AND t.version = i.expected AND t.decision = 'abort' {_RETURNING}",
        )
    parts.append(f"written AS MATERIALIZED ({' UNION ALL '.join(changed)})")
    if branch:
        sets = ", ".join(f"{c.name} = excluded.{c.name}" for c in m.BRANCH[2:])
        parts.append(f"b AS ({beside('txcoord_branch', m.BRANCH, f'(tx_id, id) DO UPDATE SET {sets}')})")
    if history:
        parts.append(f"h AS ({beside('txcoord_history', m.HISTORY, 'DO NOTHING')})")
    if audit:
        parts.append(f"a AS ({beside('txcoord_audit', m.AUDIT, 'DO NOTHING')})")
    if outbox:
        parts.append(f"o AS ({beside('txcoord_outbox', m.OUTBOX, 'DO NOTHING')})")
    if ordering:
        # Numbered in this order.
        order = " ORDER BY i.tx_id, i.position"
        parts.append(f"g AS ({beside('txcoord_ordering', m.ORDERING, 'DO NOTHING', order)})")
    seen = ", relaxed" if relaxed else ""
    return f"WITH {', '.join(parts)} SELECT now_us, ARRAY(SELECT tx_id FROM written){seen} FROM clock"


__all__ = ["PostgresStore"]
