"""Finishes XA branches straight on a PostgreSQL database.

What a reply means is in ``txcoord_client.protocol.postgresql``. An OK is believed only with its tag; everything
else asks the marker row; what is absent from list and marker is fenced by a tombstone before it is judged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from txcoord_client.protocol import marker, reasons
from txcoord_client.protocol import postgresql as pg
from txcoord_client.protocol import xid as xids

from ...core.model import Windows
from ...observe import logs
from ...ports import Finished, FinishResult, PreparedBranch, Probed, ResourceTrouble

log = logs.get("txcoord.xa.postgresql")

# asyncpg says InternalClientError of a connection on which the server has said goodbye.
_UNREACHABLE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
)
_CREDENTIALS = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)


class PostgresFinisher:
    """One PostgreSQL database as a resource.

    ``url`` may be a SQLAlchemy URL (``postgresql+asyncpg://…``) or a plain one. ``width`` connections at most,
    opened when needed; each statement ends within ``timeout_s``.
    """

    engine = "postgresql"
    lists_server = False

    def __init__(
        self,
        name: str,
        url: str,
        *,
        windows: Windows,
        expected_identity: str | None = None,
        schema: str = pg.DEFAULT_SCHEMA,
        width: int = 8,
        timeout_s: float = 5.0,
    ) -> None:
        self.name = name
        self.expected_identity = expected_identity
        self.statements = 0
        """How many statements phase two has sent, for the cost counters."""
        self._dsn = _plain(url)
        self._windows = windows
        self._schema = schema
        self._timeout_s = timeout_s
        self._idle: list[tuple[asyncpg.Connection, str | None]] = []
        """With the identity of the database that each was found to lead to."""
        self._slots = asyncio.Semaphore(width)
        self._closed = False

    # ---- ports.Finisher ----

    async def identity(self) -> str:
        """The identity row of the database. Raises ResourceTrouble."""
        async with self._session(check=False) as conn:
            return await self._identity_on(conn)

    async def finish(self, xid: str, commit: bool) -> FinishResult:
        """COMMIT or ROLLBACK PREPARED, with proof."""
        try:
            async with self._session() as conn:
                return await self._finish_on(conn, xid, commit)
        except ResourceTrouble as trouble:
            return FinishResult(Finished.RETRY, f"{trouble.reason}: {trouble.message}")

    async def list_prepared(self, log_ids: Sequence[str]) -> list[PreparedBranch]:
        """Prepared transactions of these logs in this database."""
        async with self._session() as conn:
            found: list[PreparedBranch] = []
            for log_id in log_ids:
                rows = await conn.fetch(pg.list_prepared(log_id), timeout=self._timeout_s)
                found.extend(PreparedBranch(row[0], row[1], row[2]) for row in rows)
            return found

    async def has_ended(self, xid: str, commit: bool) -> bool:
        """No session finishes its own branch here."""
        return False

    async def owns(self, xid: str) -> bool:
        """Only those of this database are listed."""
        return True

    async def in_limbo(self) -> int:
        """Never any."""
        return 0

    async def probe_one_phase(self, tx_id: str, not_after_us: int) -> Probed:
        """Tombstone the one-phase key."""
        async with self._session() as conn:
            return await self._probe_on(conn, tx_id, marker.ONE_BRANCH, marker.ONE, not_after_us)

    async def prune_markers(self, not_after_us: int, limit: int) -> int:
        """Delete a small batch of old markers."""
        async with self._session() as conn:
            tag = await self._execute(conn, pg.delete_old_markers(not_after_us, limit, self._schema))
            return int(tag.rsplit(" ", 1)[-1])

    def by_hand(self, xid: str, commit: bool) -> str:
        """What a person runs there."""
        return pg.commit_prepared(xid) if commit else pg.rollback_prepared(xid)

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        while self._idle:
            await _close(self._idle.pop()[0])

    # ---- set-up, by `txcoord resource check --fix` ----

    async def prepare_database(self, identity: str) -> str:
        """Make the tables, give the database an identity unless it has one; answer the one that it has."""
        async with self._session(check=False) as conn:
            for statement in [*pg.ddl(self._schema), pg.set_identity(identity, self._schema)]:
                await self._execute(conn, statement)
            return await self._identity_on(conn)

    async def missing_rights(self) -> list[str] | None:
        """What this role may not do with the marker table; None: there is no such table. Raises ResourceTrouble."""
        async with self._session(check=False) as conn:
            found = await conn.fetchval(pg.missing_rights(self._schema), timeout=self._timeout_s)
            return None if found is None else list(found)

    async def settings(self) -> dict[str, str]:
        """The server's settings that matter for XA."""
        wanted = (
            "max_prepared_transactions",
            "fsync",
            "full_page_writes",
            "synchronous_commit",
            "server_version",
        )
        async with self._session(check=False) as conn:
            rows = await conn.fetch(
                "SELECT name, setting FROM pg_settings WHERE name = ANY($1)",
                list(wanted),
                timeout=self._timeout_s,
            )
            out = {r[0]: r[1] for r in rows}
            out["in_recovery"] = str(
                await conn.fetchval("SELECT pg_is_in_recovery()", timeout=self._timeout_s)
            ).lower()
            return out

    # ---- one branch ----

    async def _finish_on(self, conn: asyncpg.Connection, xid: str, commit: bool) -> FinishResult:
        statement = pg.commit_prepared(xid) if commit else pg.rollback_prepared(xid)
        wanted = pg.COMMIT_PREPARED_TAG if commit else pg.ROLLBACK_PREPARED_TAG
        self.statements += 1
        try:
            tag = await self._execute(conn, statement)
        except asyncpg.PostgresConnectionError:
            raise
        except asyncpg.PostgresError as error:
            meaning = pg.meaning(error.sqlstate)
            if meaning is pg.Reply.UNKNOWN_XID:
                return await (self._gone_commit(conn, xid) if commit else self._gone_rollback(conn, xid))
            if meaning is pg.Reply.REFUSED and await self._as_owner(conn, xid, statement, wanted):
                return FinishResult(Finished.DONE)
            return FinishResult(Finished.RETRY, f"{meaning.name}: {error.sqlstate} {error}")
        if tag != wanted:
            return FinishResult(Finished.RETRY, f"OTHER: expected the tag {wanted!r}, got {tag!r}")
        return FinishResult(Finished.DONE)

    async def _gone_commit(self, conn: asyncpg.Connection, xid: str) -> FinishResult:
        """Not there any more: committed earlier, or rolled back by somebody. The marker knows."""
        x = xids.parse(xid)
        assert x is not None
        not_after_us = self._windows.abort_until(x.deadline_us)
        answer = await self._probe_on(conn, x.tx_id, x.branch, marker.XA, not_after_us)
        if answer is Probed.COMMITTED:
            return FinishResult(Finished.DONE)
        if answer is Probed.NEVER:
            return FinishResult(
                Finished.HEURISTIC,
                f"{reasons.HEURISTIC}: the prepared branch is gone and its marker is absent: "
                "someone rolled it back, though commit was decided",
            )
        if answer is Probed.TOO_LATE:
            return FinishResult(
                Finished.HEURISTIC, f"{reasons.HEURISTIC}: gone, and too long ago for its marker to tell"
            )
        return FinishResult(Finished.RETRY, "BUSY: the marker's key is locked: still prepared or in flight")

    async def _gone_rollback(self, conn: asyncpg.Connection, xid: str) -> FinishResult:
        """Not there: never prepared, rolled back before, or committed by somebody. A PREPARE that is still on
        its way is the scanner's."""
        x = xids.parse(xid)
        assert x is not None
        state = await conn.fetchval(
            pg.read_marker(x.tx_id, x.branch, marker.XA, self._schema), timeout=self._timeout_s
        )
        if state == marker.DONE:
            return FinishResult(
                Finished.HEURISTIC,
                f"{reasons.HEURISTIC}: its marker is committed: someone committed it, though abort was decided",
            )
        return FinishResult(Finished.DONE)

    async def _as_owner(self, conn: asyncpg.Connection, xid: str, statement: str, wanted: str) -> bool:
        """Prepared by another role: finish it as that role, where we are a member of it."""
        owner = await conn.fetchval(
            "SELECT owner FROM pg_prepared_xacts WHERE gid = $1", xid, timeout=self._timeout_s
        )
        if owner is None:
            return False
        try:
            await self._execute(conn, 'SET ROLE "' + owner.replace('"', '""') + '"')
            return await self._execute(conn, statement) == wanted
        except asyncpg.PostgresError as error:
            log.error("finish.not_permitted", resource=self.name, owner=owner, reason=str(error))
            return False
        finally:
            await self._execute(conn, "RESET ROLE")

    async def _probe_on(
        self, conn: asyncpg.Connection, tx_id: str, branch: str, op: str, not_after_us: int
    ) -> Probed:
        read = pg.read_marker(tx_id, branch, op, self._schema)
        for _ in range(2):
            state = await conn.fetchval(read, timeout=self._timeout_s)
            if state is not None:
                return Probed.COMMITTED if state == marker.DONE else Probed.NEVER
            try:
                tag = await self._execute(conn, pg.probe(tx_id, branch, op, not_after_us, self._schema))
            except asyncpg.PostgresConnectionError:
                raise
            except asyncpg.PostgresError as error:
                await self._execute(conn, "ROLLBACK")
                meaning = pg.meaning(error.sqlstate)
                if meaning is pg.Reply.DUPLICATE:
                    continue
                if meaning is pg.Reply.LOCK_TIMEOUT:
                    return Probed.OPEN
                if meaning is pg.Reply.TOO_LATE:
                    return Probed.TOO_LATE
                raise ResourceTrouble(self.name, reasons.RESOURCE_UNREACHABLE, str(error)) from error
            if tag == pg.COMMITTED_TAG:
                return Probed.NEVER
        return Probed.OPEN

    async def _execute(self, conn: asyncpg.Connection, statement: str) -> str:
        return str(await conn.execute(statement, timeout=self._timeout_s))

    # ---- connections ----

    @asynccontextmanager
    async def _session(self, *, check: bool = True) -> AsyncIterator[asyncpg.Connection]:
        """A connection in autocommit; with ``check``, known to lead to the right database. A broken one is
        thrown away."""
        async with self._slots:
            conn, found = await self._take()
            clean = False
            try:
                if check and self.expected_identity is not None and found != self.expected_identity:
                    found = await self._identity_on(conn)
                    self._compare(found)
                yield conn
                clean = not conn.is_in_transaction()
            except _UNREACHABLE as error:
                # Those beside it are most likely as dead: they must not cost an attempt each.
                self._forget_idle()
                raise ResourceTrouble(
                    self.name, reasons.RESOURCE_UNREACHABLE, f"{type(error).__name__}: {error}"
                ) from error
            except asyncpg.UndefinedTableError as error:
                raise self._not_prepared() from error
            except asyncpg.PostgresError as error:
                raise ResourceTrouble(self.name, reasons.RESOURCE_UNREACHABLE, str(error)) from error
            finally:
                if clean and not self._closed and not conn.is_closed():
                    self._idle.append((conn, found))
                else:
                    conn.terminate()

    async def _take(self) -> tuple[asyncpg.Connection, str | None]:
        """A connection, and the identity of its database if that was asked."""
        while self._idle:
            conn, found = self._idle.pop()
            if not conn.is_closed():
                return conn, found
        try:
            conn = await asyncpg.connect(
                self._dsn,
                timeout=self._timeout_s,
                statement_cache_size=0,
                server_settings={"application_name": "txcoord-finisher"},
            )
        except _CREDENTIALS as error:
            raise ResourceTrouble(self.name, "RESOURCE_CREDENTIALS", f"cannot log in: {error}") from error
        except (*_UNREACHABLE, asyncpg.PostgresError) as error:
            raise ResourceTrouble(
                self.name, reasons.RESOURCE_UNREACHABLE, f"{type(error).__name__}: {error}"
            ) from error
        return conn, None

    def _compare(self, found: str) -> None:
        if found != self.expected_identity:
            raise ResourceTrouble(
                self.name,
                reasons.RESOURCE_MISMATCH,
                "this URL leads to another database than before: "
                f"identity {found}, the log remembers {self.expected_identity}",
            )

    def _forget_idle(self) -> None:
        while self._idle:
            self._idle.pop()[0].terminate()

    def _not_prepared(self) -> ResourceTrouble:
        return ResourceTrouble(
            self.name,
            reasons.RESOURCE_NOT_PREPARED,
            f"the database has no txcoord tables: run 'txcoord resource check {self.name} --fix'",
        )

    async def _identity_on(self, conn: asyncpg.Connection) -> str:
        found = await conn.fetchval(pg.read_identity(self._schema), timeout=self._timeout_s)
        if found is None:
            raise self._not_prepared()
        return str(found)


def _plain(url: str) -> str:
    """A URL that asyncpg reads, from one that SQLAlchemy reads."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(scheme=parts.scheme.split("+", 1)[0]))


async def _close(conn: asyncpg.Connection) -> None:
    try:
        await asyncio.wait_for(conn.close(), 1.0)
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        conn.terminate()
