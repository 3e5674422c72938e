"""Where a scenario runs, and one run of it: the coordinator's lives, and a client written by hand.

That client is a good one: it asks again, with the same content, until it is answered. The SDK's is in ``client``.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.faults.crashing import Died, Process
from tests.faults.points import MARIADB, Points
from tests.faults.services import Caller, Service
from tests.support.node import tx_id_at
from txcoord.adapters.xa.mariadb_session import Address
from txcoord.core.errors import Refused
from txcoord.core.events import Begin, Commit, Rollback
from txcoord.core.model import Branch, BranchState, Decision, Kind, Tx, Windows
from txcoord.engine.coordinator import Coordinator
from txcoord.engine.live import WaitLevel
from txcoord.ports import LogUnavailable, ResourceTrouble
from txcoord_client.protocol import mariadb as my
from txcoord_client.protocol import marker
from txcoord_client.protocol import postgresql as pg
from txcoord_client.protocol.xid import Xid

if TYPE_CHECKING:
    from tests.faults.client import Client

T = TypeVar("T")
S = 1_000_000
NAMES = ("a", "b")
_LIVES = 6
_PATIENCE_S = 15.0
_GONE_S = 0.005


LATE = (asyncpg.NotNullViolationError, asyncpg.UniqueViolationError)
"""The marker of a branch is refused: it is past its time, or its key is taken by a tombstone."""


class TooSlow(Exception):
    """The machine was too slow for a short deadline: the run proves nothing."""


def kind_of(url: str) -> str:
    """The kind of database that a URL leads to."""
    return "postgresql" if url.startswith("postgresql") else MARIADB


@dataclass
class Place:
    """A log of its own, and two databases that many logs share."""

    log_url: str
    databases: dict[str, str]
    identities: dict[str, str]
    foreign: dict[str, list[str]]
    connections: Connections
    log_id: str = ""


@dataclass
class Run:
    """One run of a scenario."""

    place: Place
    points: Points
    scale: float = 1.0
    told: list[Decision] = field(default_factory=list)
    last: Tx | None = None
    """The transaction that the outcome is about."""
    involved: set[str] = field(default_factory=set)
    torn_by_hand: bool = False
    node: str = "n1"
    """The name of the coordinator."""
    lease_us: int = 10_000_000
    process: Process | None = None
    lives: int = 0
    reached: list[Counter[str]] = field(default_factory=list)
    """What the scenario has reached: before the first crash, after it, …"""
    clients: list[Client] = field(default_factory=list)
    services: dict[str, Service] = field(default_factory=dict)
    steps: set[str] = field(default_factory=set)
    """What participants are to do, and"""
    order: list[tuple[str, str]] = field(default_factory=list)
    """what of it comes before what."""
    done: list[tuple[str, str]] = field(default_factory=list)
    """What they have done, in that order."""
    asked: Counter[str] = field(default_factory=Counter)
    graves: list[Service] = field(default_factory=list)
    _held: list[Any] = field(default_factory=list)
    _starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.gid = f"g-{tx_id_at(time.time_ns() // 1000)}"
        self.grace_us = round(0.3 * S * self.scale)
        self.windows = Windows(grace_us=self.grace_us, retention_us=1000 * S)

    # ---- the coordinator's lives ----

    async def up(self) -> Process:
        """The coordinator, started again if it is dead."""
        async with self._starting:  # Several clients may miss it at once.
            while self.process is None or self.process.dead.is_set():
                if self.process is not None:
                    await self.process.bury()
                self.lives += 1
                assert self.lives <= _LIVES, "it dies again and again"
                place = self.place
                self.process = process = Process(
                    place.log_url,
                    place.databases,
                    place.identities,
                    self.windows,
                    self.points,
                    node=self.node,
                    lease_us=self.lease_us,
                    scale=self.scale,
                    caller=Caller(self, self.node),
                )
                with suppress(Died):
                    await process.start()
                    assert process.coordinator.identity is not None
                    place.log_id = process.coordinator.identity.log_id
            return self.process

    async def ask(self, work: Callable[[Coordinator], Coroutine[Any, Any, T]]) -> T:
        """Ask until there is an answer."""
        while True:
            process = await self.up()
            try:
                return await process.call(work(process.coordinator))
            except (Died, LogUnavailable):
                continue
            except Refused as refused:
                if refused.refusal.code != "UNAVAILABLE":
                    raise

    async def recover(self, work: Callable[[Process], Awaitable[Any]]) -> None:
        """A turn of recovery; it may die in it, and another one goes on."""

        async def turn(process: Process) -> None:
            await work(process)

        while True:
            process = await self.up()
            with suppress(Died, LogUnavailable, ResourceTrouble):
                return await process.call(turn(process))

    async def end(self, tx: Tx) -> Tx:
        """Wait for the end, and believe what is told."""
        tx = await self.ask(lambda c: c.wait(tx, WaitLevel.COMMITTED, _PATIENCE_S))
        assert tx.decision is not None
        assert tx.ended or tx.shown_parked, f"not ended after {_PATIENCE_S} s: {tx}"
        self.told.append(tx.decision)
        await self.recover(lambda p: p.log.settle())  # The lazy end record is a step as well.
        return tx

    def service(self, name: str) -> Service:
        """A service that takes part, started again if it is dead."""
        found = self.services.get(name)
        if found is None or found.dead.is_set():
            if found is not None:
                self.graves.append(found)
            found = self.services[name] = Service(self, name)
        return found

    async def bury(self) -> None:
        """End what is left of all of its processes."""
        for service in (*self.graves, *self.services.values()):
            await service.bury()
        for client in self.clients:
            await client.bury()
        for session in self._held:
            session.close()
        if self.process is not None:
            await self.process.bury()

    def lose_node(self, other: str) -> None:
        """The coordinator's machine is gone for good; there is another one, of this name."""
        if self.process is not None:
            self.process.die()
        self.node = other

    # ---- the client ----

    def tx(self, *, gid: str | None = "", deadline_s: float = 30.0, one_phase: str = "") -> Tx:
        """``gid`` empty: this run's own; None: none."""
        now_us = time.time_ns() // 1000
        name = "" if gid is None else gid or self.gid
        deadline_us = now_us + round(deadline_s * S * self.scale)
        self.last = Tx(tx_id_at(now_us), "shop", deadline_us, name, one_phase_resource=one_phase)
        return self.last

    def branch(self, xid: Xid, resource: str, state: BranchState = BranchState.READY) -> Branch:
        """A branch of this name."""
        return Branch(xid.branch, Kind.XA, state, resource, str(xid))

    def xid(self, tx: Tx, number: str, connection_id: int = 0) -> Xid:
        """The name of a branch."""
        return Xid(self.place.log_id, tx.deadline_us, tx.tx_id, number, connection_id)

    async def work(
        self, tx: Tx, number: str, resource: str, *, prepare: bool = True, hangs: bool = False
    ) -> Branch:
        """Work in one database, and prepare it, or commit it in one phase. On MariaDB the session is gone afterwards,
        or ``hangs``: it lives and does nothing more."""
        self.involved.add(resource)
        url = self.place.databases[resource]
        limit_us = self.windows.marker_until(tx.deadline_us)
        if kind_of(url) == MARIADB:
            assert prepare
            xid = await self._work_on_mariadb(tx, number, url, limit_us, hangs)
            return self.branch(xid, resource)
        xid = self.xid(tx, number)
        async with self.place.connections.on(url) as db:
            await db.execute(f"BEGIN; {pg.START_GUARD}")
            await db.execute(f"INSERT INTO work VALUES ('{self.gid}')")
            if prepare:
                assert await db.execute(pg.prepare(tx.tx_id, number, str(xid), limit_us)) == pg.PREPARED_TAG
            else:
                assert await db.execute(pg.commit_one_phase(tx.tx_id, limit_us)) == pg.COMMITTED_TAG
        return self.branch(xid, resource)

    async def _work_on_mariadb(self, tx: Tx, number: str, url: str, limit_us: int, hangs: bool) -> Xid:
        connections = self.place.connections
        session = await connect_mariadb(url)
        xid = self.xid(tx, number, int((await rows(session, my.READ_CONNECTION_ID))[0][0]))
        name = str(xid)
        for statement in (
            my.xa_start(name),
            f"INSERT INTO work VALUES ('{self.gid}')",
            my.insert_marker(tx.tx_id, number, marker.XA, limit_us),
            my.xa_end(name),
            my.xa_prepare(name),
        ):
            await rows(session, statement)
        if hangs:
            self._held.append(session)
            return xid
        session.close()
        while await connections.fetch(url, my.find_session(xid.connection_id)):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(_GONE_S)
        return xid

    async def undo_by_hand(self, branch: Branch) -> None:
        """Somebody rolls a prepared branch back."""
        url = self.place.databases[branch.resource]
        by_hand = my.xa_rollback if kind_of(url) == MARIADB else pg.rollback_prepared
        await self.place.connections.execute(url, by_hand(branch.xid))
        self.torn_by_hand = True

    async def begin(self, tx: Tx, **options: Any) -> Tx:
        """Announce it."""
        try:
            return await self.ask(lambda c: c.begin(Begin(tx), **options))
        except Refused as refused:
            if refused.refusal.reason == "DEADLINE":
                raise TooSlow from None
            raise

    async def commit(self, tx: Tx, *branches: Branch, begun: bool) -> Tx:
        """Commit it."""
        event = Commit(replace(tx, branches=branches), begun)
        return await self.end(await self.ask(lambda c: c.commit(event)))

    async def rollback(self, tx: Tx, *branches: Branch, begun: bool, **options: Any) -> Tx:
        """Roll it back."""
        event = Rollback(replace(tx, branches=branches), **options)
        return await self.end(await self.ask(lambda c: c.rollback(event, begun=begun)))

    async def past(self, at_us: int) -> None:
        """Wait until then."""
        await asyncio.sleep(max(at_us - time.time_ns() // 1000, 0) / 1e6 + 0.005)

    # ---- recovery ----

    async def sweep(self) -> None:
        """Deadlines have their turn."""
        await self.recover(lambda p: p.recovery.sweep_deadlines())

    async def take_over(self) -> None:
        """What is another node's, and has been left, is taken over."""
        await self.recover(lambda p: p.recovery.take_over())

    async def scan(self) -> None:
        """Every database is scanned once."""
        for name in NAMES:
            await self.recover(lambda p, name=name: p.recovery.scan(p.finishers[name]))  # type: ignore[misc]

    async def prepared(self) -> list[str]:
        """What of this log is prepared."""
        found: list[str] = []
        for url in self.place.databases.values():
            if kind_of(url) == MARIADB:
                listed = my.recovered(await self.place.connections.fetch(url, "XA RECOVER"))
                found += [str(x) for x in listed if x.log_id == self.place.log_id]
            else:
                listed_here = await self.place.connections.fetch(url, pg.list_prepared(self.place.log_id))
                found += [row[0] for row in listed_here]
        return found


async def connect_mariadb(url: str) -> Any:
    """A session in autocommit, whose rows are tuples."""
    return await Address.of(url).connect(10.0)


async def rows(session: Any, sql: str) -> Sequence[Sequence[Any]]:
    """What a statement gives on MariaDB."""
    async with session.cursor() as cursor:
        await cursor.execute(sql)
        found: Sequence[Sequence[Any]] = await cursor.fetchall() if cursor.description else ()
    return found


class Connections:
    """The connections of clients written by hand, and of whoever looks, for one block at a time."""

    def __init__(self) -> None:
        self._idle: dict[str, list[asyncpg.Connection]] = {}
        self._sessions: dict[str, list[Any]] = {}
        self._engines: dict[str, AsyncEngine] = {}

    def engine(self, url: str) -> AsyncEngine:
        """For services."""
        if url not in self._engines:
            self._engines[url] = create_async_engine(url, pool_size=10, max_overflow=50)
        return self._engines[url]

    @asynccontextmanager
    async def on(self, url: str) -> AsyncIterator[asyncpg.Connection]:
        """One of PostgreSQL."""
        idle = self._idle.setdefault(url, [])
        db = (
            idle.pop() if idle else await asyncpg.connect(url.replace("+asyncpg", ""), statement_cache_size=0)
        )
        try:
            yield db
        finally:
            if db.is_in_transaction():
                db.terminate()
            else:
                idle.append(db)

    async def fetch(self, url: str, sql: str) -> Sequence[Sequence[Any]]:
        """The rows of a statement, on a database of either kind."""
        if kind_of(url) != MARIADB:
            async with self.on(url) as db:
                found: Sequence[Sequence[Any]] = await db.fetch(sql)
            return found
        idle = self._sessions.setdefault(url, [])
        session = idle.pop() if idle else await connect_mariadb(url)
        try:
            out = await rows(session, sql)
        except BaseException:
            session.close()
            raise
        idle.append(session)
        return out

    async def execute(self, url: str, sql: str) -> None:
        """A statement, on a database of either kind."""
        if kind_of(url) == MARIADB:
            await self.fetch(url, sql)
            return
        async with self.on(url) as db:
            await db.execute(sql)

    async def close(self) -> None:
        """Close all."""
        for engine in self._engines.values():
            await engine.dispose()
        for idle in self._idle.values():
            for db in idle:
                db.terminate()
        for sessions in self._sessions.values():
            for session in sessions:
                session.close()


__all__ = ["LATE", "NAMES", "Connections", "Place", "Run", "S", "TooSlow"]
