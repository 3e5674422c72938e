"""Several coordinators as processes on one log: one is killed, one is stopped and wakes too late, all are restarted in
turn while work goes on."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.acceptance import QUICK, Db, eventually
from tests.support.acceptance_valve import Valve
from tests.support.acceptance_wire import RawTx, Wire, wire_to
from tests.support.databases import Databases, database_of
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import Managed, coordinator, run_txcoord
from txcoord_client import Coordinator
from txcoord_client._pb import common_pb2 as c
from txcoord_client.sync import Coordinator as SyncCoordinator

pytestmark = pytest.mark.timeout(180)

LEASE_S = 3
ACCOUNTS = 40
CENTS = 1_000


class Site:
    """Two databases, a log, and the coordinators on it."""

    def __init__(
        self,
        folder: Path,
        dbs: list[Db],
        log: PostgresServer | MariaDBServer,
        log_url: str,
        stack: AsyncExitStack,
    ) -> None:
        self.folder = folder
        self.dbs = dbs
        self.log = log
        self.log_url = log_url
        self.stack = stack
        self.nodes: list[Managed] = []

    def node(self, name: str, **urls: str) -> Managed:
        """A coordinator, not started. ``urls``: where it reaches a database otherwise."""
        node = coordinator(
            self.folder,
            resources={db.name: urls.get(db.name, db.url) for db in self.dbs},
            log_url=self.log_url,
            settings={**QUICK, "RECOVERY__LEASE": f"{LEASE_S}s", "RECOVERY__SCAN_INTERVAL": "1s"},
            name=name,
        )
        self.nodes.append(node)
        self.stack.callback(node.stop)
        return node

    async def start(self, *nodes: Managed) -> None:
        env = nodes[0].env
        await asyncio.to_thread(run_txcoord, "migrate", env=env, cwd=self.folder)
        await asyncio.to_thread(run_txcoord, "resource", "check", "--fix", env=env, cwd=self.folder)
        await asyncio.gather(*(asyncio.to_thread(node.start) for node in nodes))

    async def wire(self, node: Managed) -> Wire:
        return await self.stack.enter_async_context(wire_to(node.address))

    def prepared(self, wire: Wire, gid: str) -> tuple[RawTx, Callable[[], Awaitable[list[c.Branch]]]]:
        """A transaction, and how its branches are made."""
        tx = wire.tx(gid)

        async def prepare() -> list[c.Branch]:
            return [await asyncio.to_thread(tx.prepare, db, str(n), gid) for n, db in enumerate(self.dbs, 1)]

        return tx, prepare

    def counts(self, body: str) -> list[int]:
        return [db.count(body) for db in self.dbs]

    def row(self, tx_id: str) -> str:
        """All of a transaction in the log."""
        key = f"X'{tx_id}'" if isinstance(self.log, MariaDBServer) else f"'{tx_id}'"
        database = database_of(self.log_url)
        columns = "state, decision, decided_us, ended_us, epoch, owner, lease_until_us, heuristic"
        return str(self.log.sql(f"SELECT {columns} FROM txcoord_tx WHERE tx_id = {key}", database)) + str(
            self.log.sql(f"SELECT count(*) FROM txcoord_history WHERE tx_id = {key}", database)
        )


def events(node: Managed, event: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in node.log.read_text().splitlines() if line.startswith("{"))
    return [line for line in lines if line["event"] == event]


@pytest.fixture(params=["pg18", "mariadb"])
async def site(
    request: pytest.FixtureRequest, pg18: PostgresServer, new_database: Databases, tmp_path: Path
) -> AsyncIterator[Site]:
    server = request.getfixturevalue(request.param)
    dbs = [Db(name, pg18, new_database(pg18)) for name in ("accounts", "ledger")]
    for db in dbs:
        db.make_table()
    async with AsyncExitStack() as stack:
        yield Site(tmp_path, dbs, server, new_database(server), stack)


on_postgresql = pytest.mark.parametrize("site", ["pg18"], indirect=True)


async def test_one_is_killed_in_the_middle_of_phase_two(site: Site) -> None:
    first, second = site.node("n1"), site.node("n2")
    first.env["TXCOORD_FAILPOINTS"] = "finish.after=kill@1"
    await site.start(first, second)
    a, b = await site.wire(first), await site.wire(second)
    tx, prepare = site.prepared(a, "order-1")
    await tx.begin()
    decided = asyncio.ensure_future(tx.commit(*await prepare(), wait=c.WAIT_LEVEL_DECIDED))
    await asyncio.to_thread(first.wait, 30)
    assert first.exit_code == -9
    await asyncio.gather(decided, return_exceptions=True)  # Its answer may have come, or not.
    there = RawTx(b, tx.tx_id, tx.gid, tx.deadline_us, begun=True)
    loop = asyncio.get_running_loop()
    killed = loop.time()
    outcome = await there.reached(c.WAIT_LEVEL_COMMITTED, 60)
    assert (outcome.decision, outcome.state) == (c.DECISION_COMMIT, c.STATE_COMMITTED)
    # The lease, one look for such rows, and what a busy machine needs.
    assert loop.time() - killed < LEASE_S + 1 + 10
    assert site.counts("order-1") == [1, 1]
    assert not any(db.prepared() for db in site.dbs)
    # Its name is free at once: it can be seen that its process is gone.
    first.env.update(TXCOORD_RECOVERY__LEASE="10m", TXCOORD_FAILPOINTS="")
    await asyncio.to_thread(first.start)
    await asyncio.to_thread(first.kill9)
    await asyncio.to_thread(first.start)
    assert events(first, "node.name_freed")


@on_postgresql
async def test_one_that_was_stopped_and_wakes_after_the_take_over_changes_nothing(site: Site) -> None:
    valve = Valve(site.dbs[1].url)
    site.stack.callback(valve.close)
    first, second = site.node("n1", ledger=valve.url), site.node("n2")
    await site.start(first, second)
    a, b = await site.wire(first), await site.wire(second)
    tx, prepare = site.prepared(a, "order-1")
    await tx.begin()
    branches = await prepare()
    with valve.holding("COMMIT PREPARED") as held:
        assert (await tx.commit(*branches, wait=c.WAIT_LEVEL_DECIDED)).state == c.STATE_COMMITTING
        await held.reached()
        first.signal(signal.SIGSTOP)
        there = RawTx(b, tx.tx_id, tx.gid, tx.deadline_us, begun=True)
        assert (await there.reached(c.WAIT_LEVEL_COMMITTED, 60)).state == c.STATE_COMMITTED
        await eventually(lambda: "n2" in site.row(tx.tx_id) and "committed" in site.row(tx.tx_id))
        before = site.row(tx.tx_id)
    # What it had sent reaches the database only now, and its answer finds it awake.
    first.signal(signal.SIGCONT)
    await eventually(lambda: events(first, "tx.stale_epoch"), within=60)
    again = await RawTx(a, tx.tx_id, tx.gid, tx.deadline_us, begun=True).commit(*branches)
    assert again.state == c.STATE_COMMITTED
    assert site.row(tx.tx_id) == before
    assert site.counts("order-1") == [1, 1]
    assert not [line for line in first.log.read_text().splitlines() if '"alarm.' in line]


# ---- a rolling restart ----


class Money:
    """Transfers between two databases, with the SDK in both its kinds, until it is told to stop."""

    def __init__(self, site: Site, addresses: list[str]) -> None:
        self.site = site
        self.addresses = addresses
        self.done: dict[str, int] = {"async": 0, "sync": 0}
        self.failures: list[BaseException] = []
        self.over = threading.Event()
        for db in site.dbs:
            db.sql(
                "CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL);"
                f" INSERT INTO account SELECT n, {CENTS} FROM generate_series(1, {ACCOUNTS}) n"
            )

    async def run_async(self, workers: int) -> None:
        urls = {db.name: db.url for db in self.site.dbs}
        engines = {name: create_async_engine(url, pool_size=workers) for name, url in urls.items()}
        async with Coordinator(self.addresses, resources=engines) as coord:

            async def work(number: int) -> None:
                turn = 0
                while not self.over.is_set():
                    turn += 1
                    # Every second one with a gid: then its begin is a call as well.
                    gid = f"a-{number}-{turn}" if turn % 2 else ""
                    try:
                        async with coord.begin("transfer", gid=gid) as g:
                            for (name, engine), sign in zip(engines.items(), "-+", strict=True):
                                async with g.xa(engine, resource=name) as db:
                                    await db.execute(_move(sign), {"id": number})
                        self.done["async"] += 1
                    except Exception as error:
                        self.failures.append(error)

            await asyncio.gather(*(work(n) for n in range(1, workers + 1)))
        for engine in engines.values():
            await engine.dispose()

    def run_sync(self, workers: int) -> None:
        urls = {db.name: db.url.replace("+asyncpg", "+psycopg") for db in self.site.dbs}
        engines = {name: create_engine(url, pool_size=workers) for name, url in urls.items()}
        with SyncCoordinator(",".join(self.addresses), resources=engines) as coord:

            def work(number: int) -> None:
                turn = 0
                while not self.over.is_set():
                    turn += 1
                    try:
                        with coord.begin("transfer", gid=f"s-{number}-{turn}" if turn % 2 else "") as g:
                            for (name, engine), sign in zip(engines.items(), "-+", strict=True):
                                with g.xa(engine, resource=name) as db:
                                    db.execute(_move(sign), {"id": number})
                        self.done["sync"] += 1
                    except Exception as error:
                        self.failures.append(error)

            threads = [threading.Thread(target=work, args=(20 + n,)) for n in range(1, workers + 1)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        for engine in engines.values():
            engine.dispose()

    async def more(self, count: int) -> None:
        """Until so many more are done, of each kind."""
        wanted = {kind: done + count for kind, done in self.done.items()}
        await eventually(
            lambda: self.failures or all(self.done[k] >= wanted[k] for k in wanted),
            within=60,
            what=f"{count} more",
        )

    def check(self) -> None:
        """Each transfer is in both databases, once."""
        moved = sum(self.done.values())
        balances = [int(db.sql("SELECT sum(balance) FROM account")) for db in self.site.dbs]
        assert balances == [ACCOUNTS * CENTS - moved, ACCOUNTS * CENTS + moved]


@asynccontextmanager
async def moving(site: Site, nodes: Sequence[Managed]) -> AsyncIterator[Money]:
    """Money moves meanwhile, and no call has failed in the end."""
    money = Money(site, [node.address for node in nodes])
    running = [
        asyncio.ensure_future(money.run_async(4)),
        asyncio.ensure_future(asyncio.to_thread(money.run_sync, 4)),
    ]
    try:
        yield money
    finally:
        money.over.set()
        await asyncio.gather(*running)
    assert money.failures == []


def _move(sign: str) -> Any:
    return text(f"UPDATE account SET balance = balance {sign} 1 WHERE id = :id")


@on_postgresql
async def test_a_rolling_restart_fails_no_call(site: Site) -> None:
    nodes = [site.node(f"n{n}") for n in (1, 2, 3)]
    await site.start(*nodes)
    async with moving(site, nodes) as money:
        for node in (*nodes, *nodes):
            await money.more(20)
            assert await asyncio.to_thread(node.stop) == 0, node.tail()
            await money.more(20)
            await asyncio.to_thread(node.start)
        await money.more(20)
    money.check()
    assert not any(db.prepared() for db in site.dbs)
    assert not [line for node in nodes for line in node.log.read_text().splitlines() if '"alarm.' in line]
    served = [len(events(node, "node.started")) for node in nodes]
    assert served == [3, 3, 3]


@on_postgresql
async def test_one_that_hangs_fails_no_call(site: Site) -> None:
    """SIGSTOP: its connections stand, and nothing comes."""
    nodes = [site.node(f"n{n}") for n in (1, 2)]
    await site.start(*nodes)
    async with moving(site, nodes) as money:
        for node in nodes:
            await money.more(20)
            node.signal(signal.SIGSTOP)
            await money.more(20)
            node.signal(signal.SIGCONT)
            await asyncio.to_thread(node.wait_ready)
        await money.more(20)
    await eventually(lambda: not any(db.prepared() for db in site.dbs))
    money.check()
