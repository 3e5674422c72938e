"""The log: the real SqlLog and its real statements on SQLite, behind a network and a disk that fail.

The server is one database in memory. What was committed without being synced (lazy) is lost when it crashes.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, StaticPool, create_engine, event

from txcoord.adapters.sql import migrate, sqlite, upkeep
from txcoord.adapters.sql.batch import Flushed, Round
from txcoord.adapters.sql.log import SqlLog
from txcoord.adapters.sql.store import FlushRefused, ReplyLost, T, Work
from txcoord.core.model import SETTLED_BRANCH, Windows
from txcoord.ports import LogIdentity, LogUnavailable

from .loop import Process
from .network import Broken, Link

if TYPE_CHECKING:
    from .world import World

LOG_ID = "0123456789"
_STATEMENT_S = 4.0


class DiskFull(Exception):
    """Nothing can be written."""


class _Raw:
    """What ``sqlite._flush`` needs of a session."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self.raw = raw

    def set_relaxed(self, relaxed: bool) -> None:
        pass


@cache
def _database() -> tuple[sqlite3.Connection, Connection, bytes]:
    """One for this process of the machine: each world starts from the same bytes."""
    raw = sqlite3.connect(":memory:", isolation_level=None, cached_statements=512)
    engine: Engine = create_engine("sqlite://", creator=lambda: raw, poolclass=StaticPool)
    event.listen(engine, "begin", lambda conn: conn.exec_driver_sql("BEGIN"))
    with engine.begin() as conn:
        migrate.upgrade(conn)
        conn.exec_driver_sql(f"UPDATE txcoord_log_identity SET log_id = '{LOG_ID}'")
    return raw, engine.connect(), raw.serialize()


class LogServer:
    """``network.Server`` for the log."""

    name = "log"

    def __init__(self, world: World) -> None:
        self.world = world
        self.up = True
        self.full = False
        self.slow_s = 0.0
        self.links: dict[Link, None] = {}
        self.offset_us = 0
        """How far its clock is from true time."""
        self.shown_us = 0
        """The latest that its clock has shown before it went back."""
        self.keeps_all = True
        """False: what is not synced is lost with a crash, for which the last synced state is kept."""
        self._raw, self._conn, self._synced = _database()
        self._raw.deserialize(self._synced)
        self._shim = _Raw(self._raw)

    def now_us(self) -> int:
        """The log's clock."""
        return self.world.now_us() + self.offset_us

    def step(self, seconds: float) -> None:
        """Its clock jumps."""
        self.shown_us = max(self.shown_us, self.now_us())
        self.offset_us += int(seconds * 1e6)

    # ---- network.Server ----

    def connected(self, link: Link) -> Link:
        return link

    def closed(self, session: Link) -> None:
        pass

    def receive(self, session: Link, request: Any, reply: Callable[[Any], None]) -> None:
        work, writes, synced = request
        delay = self.slow_s if writes else 0.0
        if delay:
            self.world.net.send(delay, self._do, session, work, writes, synced, reply)
        else:
            self._do(session, work, writes, synced, reply)

    def _do(
        self,
        session: Link,
        work: Callable[[LogServer], Any],
        writes: bool,
        synced: bool,
        reply: Callable[[Any], None],
    ) -> None:
        if session not in self.links:
            return  # It was ended meanwhile: by a crash, or by its node's next session.
        if self.full and writes:
            reply(DiskFull("no space left on device"))
            return
        try:
            out = work(self)
        except Exception as error:
            reply(error)
            return
        if writes and synced and not self.keeps_all:
            self._synced = self._raw.serialize()
        reply(out)

    def crash(self) -> None:
        self.up = False
        for link in list(self.links):
            link.server_gone()
        self.links.clear()
        if not self.keeps_all:
            self._raw.deserialize(self._synced)
            self.world.checker.log_restarted()

    def restart(self) -> None:
        self.up = True

    # ---- what is done there ----

    def flush(self, rounds: Sequence[Round], relaxed: bool) -> Flushed:
        """A flush, by the real statements."""
        flushed = sqlite._flush(self._shim, rounds, relaxed)  # type: ignore[arg-type]
        for each in rounds:
            for item in each.items:
                self.world.checker.changed(item.change, flushed[item])
        return flushed

    def transaction(self, work: Work[T]) -> T:
        """Anything else."""
        with self._conn.begin():
            return work(self._conn)

    def acquire(self, duty: str, owner: str, ttl_us: int) -> int | None:
        """A lease: as ``upkeep.acquire``, in one statement. A third of all that happens in a world are leases."""
        now_us = self.now_us()
        taken = self._raw.execute(
            "INSERT INTO txcoord_lease (duty, owner, token, until_us) VALUES (?, ?, 1, ?) ON CONFLICT (duty) DO UPDATE"
            " SET owner = excluded.owner, until_us = excluded.until_us, token = token + 1"
            " WHERE owner IN ('', excluded.owner) OR until_us <= ? RETURNING token",
            (duty, owner, now_us + ttl_us, now_us),
        ).fetchone()
        return None if taken is None else int(taken[0])

    def select(self, sql: str) -> list[tuple[Any, ...]]:
        """For the checker."""
        return self._raw.execute(sql).fetchall()

    def before(self, tx_id: str, branch: str) -> list[tuple[str, str, bool]]:
        """The messages that have their places before this one's: tx id, branch, and have they ended?"""
        settled = ", ".join(f"'{state}'" for state in SETTLED_BRANCH)
        return [
            (str(other), str(number), bool(over))
            for other, number, over in self.select(
                "SELECT o.tx_id, o.branch, coalesce(t.decision = 'abort', t.tx_id IS NULL) OR"
                f" coalesce(b.state IN ({settled}), t.decision = 'commit', 0) FROM txcoord_ordering o"
                " JOIN txcoord_ordering own ON own.line = o.line AND own.id > o.id"
                f" AND own.tx_id = '{tx_id}' AND own.branch = '{branch}'"
                " LEFT JOIN txcoord_tx t ON t.tx_id = o.tx_id"
                " LEFT JOIN txcoord_branch b ON b.tx_id = o.tx_id AND b.id = o.branch"
            )
        ]


class SimStore:
    """``store.Store`` of one node."""

    own_machine = False

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._server = world.log
        self._flusher: Link | None = None
        self._lost: list[Link] = []
        self._pool: list[Link] = []

    async def open(self) -> None:
        await self._roundtrip(lambda server: None, "log_open")

    def expect(self, identity: LogIdentity) -> None:
        pass

    async def close(self) -> None:
        pass

    def abandon(self) -> None:
        pass

    def clock(self, conn: Connection) -> int:
        return self._server.now_us()

    async def write(self, rounds: Sequence[Round], relaxed: bool) -> Flushed:
        if self._flusher is None or self._flusher.broken:
            await self._connect()
            # As the real one does: a lost flush must not live on when the next one begins.
            for link in self._lost:
                self._server.links.pop(link, 0)
            self._lost.clear()
            self._flusher = Link(self._world, self._process, self._server)
        flusher = self._flusher
        kind = "log_lazy" if relaxed else "log_write"
        text = ",".join(f"{i.change.kind}:{i.change.tx.tx_id[-6:]}" for r in rounds for i in r.items)
        request = (lambda server: server.flush(rounds, relaxed), bool(rounds), not relaxed)
        try:
            async with asyncio.timeout(_STATEMENT_S):
                flushed: Flushed = await flusher.ask(request, kind, text)
        except DiskFull as error:
            raise LogUnavailable(str(error)) from None
        except (Broken, TimeoutError) as error:
            self._drop(flusher)
            raise ReplyLost(str(error)) from None
        except BaseException as error:
            if not isinstance(error, Exception):
                self._drop(flusher)
                raise
            raise FlushRefused(f"{type(error).__name__}: {error}") from error
        return flushed

    def _drop(self, flusher: Link) -> None:
        flusher.close()
        self._lost.append(flusher)
        self._flusher = None

    async def reading(self, work: Work[T]) -> T:
        return await self._roundtrip(lambda server: server.transaction(work), "log_read")

    async def changing(self, work: Work[T], *, relaxed: bool = False) -> T:
        return await self._roundtrip(
            lambda server: server.transaction(work), "log_change", writes=True, synced=not relaxed
        )

    async def acquire(self, duty: str, owner: str, ttl_us: int) -> int | None:
        """``ports.Leases``."""
        return await self._roundtrip(
            lambda server: server.acquire(duty, owner, ttl_us), "log_change", writes=True, synced=True
        )

    async def release(self, duty: str, owner: str) -> None:
        """``ports.Leases``."""
        await self.changing(lambda conn: upkeep.release(conn, duty, owner))

    async def _connect(self) -> None:
        net, server = self._world.net, self._server
        await asyncio.sleep(net.delay(self._process.name, server.name))
        if not server.up:
            raise LogUnavailable("connection refused")

    async def _roundtrip(
        self, work: Callable[[LogServer], T], kind: str, *, writes: bool = False, synced: bool = False
    ) -> T:
        link = self._pool.pop() if self._pool else None
        if link is None or link.broken:
            await self._connect()
            link = Link(self._world, self._process, self._server)
        try:
            async with asyncio.timeout(_STATEMENT_S):
                out: T = await link.ask((work, writes, synced), kind)
        except (Broken, TimeoutError, DiskFull) as error:
            link.close()
            raise LogUnavailable(f"{type(error).__name__}: {error}") from None
        self._pool.append(link)
        return out


def new_log(world: World, process: Process, windows: Windows) -> SqlLog:
    """A node's log."""
    log = SqlLog("sqlite://", windows=windows, detail_retention_us=windows.retention_us // 4, tick_s=0.02)
    log.store = SimStore(world, process)
    log._in_memory = False
    return log


__all__ = ["LOG_ID", "LogServer", "SimStore", "new_log", "upkeep"]
