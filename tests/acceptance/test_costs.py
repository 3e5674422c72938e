"""What a transaction costs, counted: forced log writes and one-way messages. Counts don't flake as timings do.

A message is one way: a call to the coordinator is two (there and back), and so is a statement of phase two.
"""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.acceptance.conftest import new_databases
from tests.support.acceptance import INSERT, Db, eventually, new_gid
from tests.support.acceptance_valve import Valve
from tests.support.acceptance_wire import told, wire_to
from tests.support.databases import Databases
from tests.support.logs import Held, until_waiting
from txcoord.adapters.sql.migrate import migrate
from txcoord.config import Settings
from txcoord.testing.postgres import PostgresServer
from txcoord.wiring import Node
from txcoord.wiring.parts import finisher
from txcoord_client import Coordinator, Transaction
from txcoord_client._pb import common_pb2 as c


@dataclass
class Cost:
    """What was counted."""

    forced: int = 0
    lazy: int = 0
    messages: int = 0
    """To and from the coordinator and, for phase two, the databases."""
    prepares: int = 0


@dataclass
class Bench:
    """A node in this process, and an SDK on it."""

    node: Node
    coord: Coordinator
    engines: dict[str, AsyncEngine]
    databases: list[Db]
    valves: list[Valve]

    def _now(self) -> Cost:
        assert self.node._server is not None
        finishers = [r._finisher for r in self.node.resources.by_name.values()]
        calls = self.node._server.servicer.messages + sum(f.statements for f in finishers)
        return Cost(self.node.log.forced_flushes, self.node.log.lazy_flushes, 2 * calls)

    @contextmanager
    def counting(self) -> Iterator[Cost]:
        """Count what happens inside; the lazy end record is not waited for."""
        before, cost = self._now(), Cost()
        with ExitStack() as stack:
            watches = [stack.enter_context(v.watching("PREPARE TRANSACTION")) for v in self.valves]
            yield cost
            after = self._now()
            cost.forced = after.forced - before.forced
            cost.lazy = after.lazy - before.lazy
            cost.messages = after.messages - before.messages
            cost.prepares = sum(w.count for w in watches)

    async def write(self, g: Transaction, name: str, body: str) -> None:
        async with g.xa(self.engines[name]) as db:
            await db.execute(text(INSERT), {"body": body})

    async def warm_up(self) -> None:
        """Say hello, open the stream, the finisher's connections and the pools, check identities."""
        async with self.coord.begin("warm-up", gid=new_gid()) as g:
            for name in self.engines:
                await self.write(g, name, "warm-up")
        await self.node.log.settle()


@pytest.fixture
async def bench(
    pg18: PostgresServer, pg17: PostgresServer, pg_database: Databases, tmp_path: Path
) -> AsyncIterator[Bench]:
    databases = new_databases(pg_database, pg18, pg17)
    url = f"sqlite+aiosqlite:///{tmp_path}/log.db"
    settings = Settings(
        listen="127.0.0.1:0",
        log={"url": url},  # type: ignore[arg-type]
        resources={db.name: {"url": db.url} for db in databases},  # type: ignore[misc]
    )
    await migrate(url)
    for db in databases:
        one = finisher(settings, db.name)
        await one.prepare_database(uuid.uuid4().hex)
        await one.close()
    valves = [Valve(db.url) for db in databases]
    engines = {db.name: create_async_engine(v.url) for db, v in zip(databases, valves, strict=True)}
    async with Node(settings) as node, Coordinator(node.address, resources=engines) as coord:
        bench = Bench(node, coord, engines, databases, valves)
        await bench.warm_up()
        yield bench
    for engine in engines.values():
        await engine.dispose()
    for valve in valves:
        valve.close()


async def test_two_branches_without_a_gid(bench: Bench) -> None:
    with bench.counting() as cost:
        async with bench.coord.begin("pay") as g:
            await bench.write(g, "accounts", "a")
            await bench.write(g, "ledger", "a")
    assert g.outcome is not None
    assert g.outcome.state == "COMMITTED"
    assert cost.forced <= 1
    assert cost.messages <= 6
    assert cost.prepares == 2


async def test_two_branches_with_a_gid(bench: Bench) -> None:
    with bench.counting() as cost:
        async with bench.coord.begin("pay", gid=new_gid()) as g:
            await bench.write(g, "accounts", "a")
            await bench.write(g, "ledger", "a")
    assert cost.forced <= 2
    assert cost.messages <= 8


async def test_a_single_branch_without_a_gid(bench: Bench) -> None:
    with bench.counting() as cost:
        async with bench.coord.begin("note") as g:
            await bench.write(g, "accounts", "one")

        async def reported() -> bool:
            return await bench.node.coordinator.log.read([g.tx_id]) != {}

        await eventually(reported)  # told afterwards, and nobody waits for it
    assert cost.prepares == 0
    assert cost.forced == 0
    assert cost.messages <= 2


async def test_a_single_branch_with_a_gid(bench: Bench) -> None:
    with bench.counting() as cost:
        async with bench.coord.begin("note", gid=new_gid(), resources=["accounts"]) as g:
            await bench.write(g, "accounts", "one")
    assert g.outcome is not None
    assert g.outcome.decided_by == "database"
    assert cost.prepares == 0
    assert cost.forced <= 2
    assert cost.messages <= 4


async def test_an_abort_of_unprepared_work_without_a_gid_says_nothing(bench: Bench) -> None:
    wire = bench.coord._runtime().wire
    sent = wire.messages_sent
    with bench.counting() as cost:
        with pytest.raises(ZeroDivisionError):
            async with bench.coord.begin("pay") as g:
                await bench.write(g, "accounts", "x")
                await bench.write(g, "ledger", "x")
                raise ZeroDivisionError
        await bench.node.log.settle()
    assert (wire.messages_sent - sent, cost) == (0, Cost())
    assert g.outcome is not None
    assert g.outcome.state == "ABORTED"


async def test_an_abort_of_prepared_work_without_a_gid_is_not_logged(bench: Bench) -> None:
    """Presumed abort: *absent* means it already."""
    with bench.counting() as cost:
        with pytest.raises(ZeroDivisionError):
            async with bench.coord.begin("pay") as g:
                await bench.write(g, "accounts", "x")
                await bench.write(g, "ledger", "x")
                for branch in g._local:
                    await branch.prepare(g._until)
                raise ZeroDivisionError
        await eventually(lambda: not any(db.prepared(g.tx_id) for db in bench.databases))
        await bench.node.log.settle()
    assert (cost.forced, cost.lazy) == (0, 0)
    assert cost.messages <= 6
    assert await bench.coord.get(tx_id=g.tx_id) is None


async def test_a_transaction_that_only_reads_says_nothing(bench: Bench) -> None:
    with bench.counting() as cost:
        async with bench.coord.begin("look") as g:
            for engine in bench.engines.values():
                async with g.xa(engine) as db:
                    await db.execute(text("SELECT count(*) FROM note"))
    assert cost == Cost()


async def test_the_end_record_is_lazy_and_there_is_one(bench: Bench) -> None:
    with bench.counting() as cost:
        for _ in range(3):
            async with bench.coord.begin("pay") as g:
                await bench.write(g, "accounts", "a")
                await bench.write(g, "ledger", "a")
        await bench.node.log.settle()
    assert cost.forced <= 3
    assert cost.lazy <= 3


async def test_sixty_four_commits_that_arrive_during_one_flush_leave_in_two(bench: Bench) -> None:
    log: Any = bench.node.log
    async with wire_to(bench.node.address) as wire:

        async def commit() -> tuple[str, str, str]:
            tx = wire.tx()
            return told(await tx.commit(tx.branch("1", "accounts", c.VOTE_READ_ONLY)))

        held = Held(log)
        first = asyncio.ensure_future(commit())
        await held.taken.wait()
        before = log.forced_flushes
        others = [asyncio.ensure_future(commit()) for _ in range(64)]
        await until_waiting(log, 64)
        assert not any(o.done() for o in others)
        held.let_go()
        assert set(await asyncio.gather(first, *others)) == {("COMMITTED", "client", "")}
    assert log.forced_flushes - before - 1 <= 2


async def test_many_callers_of_one_process_share_messages(bench: Bench) -> None:
    """While one message is written the next one fills: 60 transactions cost far fewer than 60 messages."""
    with bench.counting() as cost:

        async def one() -> None:
            async with bench.coord.begin("pay") as g:
                await bench.write(g, "accounts", "many")
                await bench.write(g, "ledger", "many")

        sent = bench.coord._runtime().wire.messages_sent
        await asyncio.gather(*(one() for _ in range(60)))
        sent = bench.coord._runtime().wire.messages_sent - sent
    assert sent <= 60
    assert cost.forced <= 60
    assert all(db.count("many") == 60 for db in bench.databases)
