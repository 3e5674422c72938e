"""The real engine over real PostgreSQL, its log in memory: orphans, fences, delayed and stray branches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest

from tests.support.databases import PG17, PG18, Databases
from tests.support.node import Node
from tests.support.resource import Resource, new_xid, now_us
from tests.support.virtual import eventually
from txcoord.adapters.embedded.clock import SystemClock
from txcoord.core.model import Branch, BranchState, DecidedBy, Decision, Kind, Tx, TxState, Windows
from txcoord.engine.recovery import RecoverySettings
from txcoord.testing.memory_log import Storage
from txcoord.testing.postgres import PostgresServer
from txcoord_client.protocol import marker
from txcoord_client.protocol.xid import Xid

# A short grace, so that an orphan need not be waited for.
WINDOWS = Windows(grace_us=300_000)


class World:
    """Two databases of two majors, one log, and nodes."""

    def __init__(self, a: Resource, b: Resource) -> None:
        self.a, self.b = a, b
        self.storage = Storage(now_us, WINDOWS)
        self.nodes: list[Node] = []

    def node(self, name: str = "n1") -> Node:
        finishers = {"a": self.a.finisher, "b": self.b.finisher}
        settings = RecoverySettings(scan_s=0.1)
        node = Node(self.storage, finishers, SystemClock(), name=name, windows=WINDOWS, recovery=settings)
        self.nodes.append(node)
        return node

    async def scan(self, node: Node) -> None:
        for resource in (self.a, self.b):
            await node.recovery.scan(resource.finisher)

    async def prepare(self, *, deadline_s: float = 30.0, branches: int = 2) -> tuple[Tx, list[Branch]]:
        """A transaction with a branch in each database, prepared; the coordinator knows of none."""
        first = new_xid("1", deadline_s=deadline_s)
        tx = Tx(first.tx_id, "shop", first.deadline_us)
        out = []
        for i in range(branches):
            x = Xid(first.log_id, first.deadline_us, first.tx_id, str(i + 1))
            resource = (self.a, self.b)[i % 2]
            await resource.prepare(x, i + 1)
            out.append(Branch(x.branch, Kind.XA, BranchState.READY, resource.name, str(x)))
        return tx, out


@pytest.fixture
async def world(pg18: PostgresServer, pg17: PostgresServer, pg_database: Databases) -> AsyncIterator[World]:
    async with a_world(pg_database(pg18), pg_database(pg17)) as world:
        yield world


@asynccontextmanager
async def a_world(a: str, b: str) -> AsyncIterator[World]:
    world = World(Resource(a, name="a", windows=WINDOWS), Resource(b, name="b", windows=WINDOWS))
    for resource in (world.a, world.b):
        await resource.make()
    try:
        yield world
    finally:
        for node in world.nodes:
            await node.stop()
        for resource in (world.a, world.b):
            await resource.finisher.close()


async def test_commit_over_two_databases(world: World) -> None:
    node = world.node()
    tx, branches = await world.prepare()
    told = await node.ended(await node.commit(tx, *branches))
    assert told.state is TxState.COMMITTED
    # No polling: told means done.
    assert (await world.a.work(), await world.b.work()) == ([1], [2])
    assert (await world.a.prepared(), await world.b.prepared()) == ([], [])


async def test_an_orphan_goes_after_its_deadline_and_grace_and_its_late_commit_is_refused(
    world: World,
) -> None:
    node = world.node()
    tx, branches = await world.prepare(deadline_s=1.0)
    foreign = new_xid(log_id="vvvvvvvvvv", deadline_s=-0.1)
    await world.a.prepare(foreign, 50)
    await world.a.sql("BEGIN; INSERT INTO work VALUES (51); PREPARE TRANSACTION 'somebody'")
    young = new_xid(deadline_s=60)
    await world.a.prepare(young, 52)
    await world.scan(node)
    assert not world.storage.rows, "not before"
    assert len(await world.a.prepared()) == 4
    await eventually(lambda: now_us() > WINDOWS.marker_until(tx.deadline_us))
    await world.scan(node)
    await world.scan(node)
    await eventually(lambda: world.storage.row(tx.tx_id).state is TxState.ABORTED, within_s=10)
    row = world.storage.row(tx.tx_id)
    assert (row.decision, row.decided_by) == (Decision.ABORT, DecidedBy.SCANNER)
    assert await world.a.prepared() == sorted([str(foreign), "somebody", str(young)])
    assert await world.b.prepared() == []
    told = await node.commit(tx, *branches)
    assert (told.decision, told.reason) == (Decision.ABORT, "ORPHAN")
    assert (await world.a.work(), await world.b.work()) == ([], [])
    assert node.coordinator.alarms == {}


async def test_a_delayed_prepare_after_its_rollback(world: World) -> None:
    node = world.node()
    x = new_xid()
    tx = Tx(x.tx_id, "shop", x.deadline_us)
    branch = Branch("1", Kind.XA, BranchState.OPEN, "a", str(x))
    told = await node.ended(await node.rollback(tx, branch, sealed=True))
    assert told.state is TxState.ABORTED
    await world.a.prepare(x)
    await world.scan(node)
    assert await world.a.prepared() == []
    assert await world.a.work() == []


async def test_prepared_but_not_in_the_commits_list(world: World) -> None:
    node = world.node()
    tx, branches = await world.prepare(branches=3)
    told = await node.ended(await node.commit(tx, *branches[:2]))
    assert told.state is TxState.COMMITTED
    await world.scan(node)
    assert node.coordinator.alarms == {"not_in_commit_list": 1}
    assert (await world.a.work(), await world.b.work()) == ([1], [2])
    assert await world.a.prepared() == []
    await node.log.settle()
    assert [h.reason for h in world.storage.histories[tx.tx_id]] == ["NOT_IN_COMMIT_LIST"]


async def test_finished_by_hand_is_surfaced(world: World) -> None:
    node = world.node()
    tx, branches = await world.prepare()
    await world.b.sql(f"ROLLBACK PREPARED '{branches[1].xid}'")
    told = await node.ended(await node.commit(tx, *branches))
    assert (told.state, told.heuristic, told.parked) == (TxState.COMMITTING, True, 1)
    other, (one, two) = await _more(world)
    await world.a.sql(f"COMMIT PREPARED '{one.xid}'")
    told = await node.ended(await node.rollback(other, one, two, sealed=True))
    assert (told.state, told.heuristic) == (TxState.ABORTING, True)
    assert node.coordinator.alarms == {"heuristic": 2}
    assert await world.b.prepared() == []


async def _more(world: World) -> tuple[Tx, list[Branch]]:
    first = new_xid("1")
    second = Xid(first.log_id, first.deadline_us, first.tx_id, "2")
    await world.a.prepare(first, 11)
    await world.b.prepare(second, 12)
    branches = [
        Branch(x.branch, Kind.XA, BranchState.READY, name, str(x))
        for x, name in ((first, "a"), (second, "b"))
    ]
    return Tx(first.tx_id, "shop", first.deadline_us), branches


async def test_one_phase_against_its_deadline_tells_one_story(world: World) -> None:
    node = world.node()
    await node.start()
    outcomes = []
    turns = 8
    for i in range(turns):
        x = new_xid(deadline_s=0.3)
        tx = Tx(x.tx_id, "shop", x.deadline_us, f"order-{i}", one_phase_resource="a")
        await node.begin(tx)
        # The local commit may come until H, which is after the deadline: around the sweep that asks for it.
        if i == turns - 1:
            await _ended(world, x)
        elif i:
            await eventually(lambda x=x, i=i: now_us() >= x.deadline_us + i * 25_000, step_s=0.002)  # type: ignore[misc]
        try:
            await world.a.commit_one_phase(x, i)
            outcomes.append(True)
        except asyncpg.PostgresError:
            outcomes.append(False)
        await _ended(world, x)
        row = world.storage.row(x.tx_id)
        assert row.state is (TxState.COMMITTED if outcomes[-1] else TxState.ABORTED)
        assert (i in await world.a.work()) is outcomes[-1]
        assert ((await node.commit(tx, begun=True)).decision is Decision.COMMIT) is outcomes[-1]
        assert await world.a.marker(x, marker.ONE) == (marker.DONE if outcomes[-1] else marker.TOMBSTONE)
    assert (outcomes[0], outcomes[-1]) == (True, False)


async def _ended(world: World, x: Xid) -> None:
    await eventually(lambda: world.storage.row(x.tx_id).ended, within_s=10)


async def test_a_node_dies_and_another_finishes(world: World) -> None:
    node = world.node()
    reached = asyncio.Event()

    async def stop_here(_name: str) -> None:
        reached.set()
        await asyncio.Event().wait()

    node.failpoints.on("finish.after", stop_here)
    tx, branches = await world.prepare()
    told = await node.commit(tx, *branches)
    await reached.wait()
    world.nodes.remove(node)
    await node.kill()
    row = world.storage.row(tx.tx_id)
    assert row.state is TxState.COMMITTING
    again = world.node()  # by its name it takes its own rows back at once
    await again.start()
    assert (await again.ended(told)).state is TxState.COMMITTED
    assert (await world.a.work(), await world.b.work()) == ([1], [2])
    assert not world.storage.row(tx.tx_id).heuristic


@pytest.mark.parametrize("flavour", [PG18, PG17])
async def test_a_database_is_killed_in_phase_two_and_comes_back(
    flavour: str, pg_server: Callable[..., PostgresServer], pg18: PostgresServer, pg_database: Databases
) -> None:
    server = pg_server(flavour)
    async with a_world(pg_database(pg18), pg_database(server)) as world:
        node = world.node()
        await node.start()
        tx, branches = await world.prepare()
        await world.b.finisher.list_prepared(["0123456789"])
        server.kill9()
        told = await node.commit(tx, *branches)
        await eventually(
            lambda: (live := node.coordinator.live.get(tx.tx_id)) is None or live.tx.branches[1].attempts > 0
        )
        assert (await node.ended(told, timeout_s=0.1)).state is TxState.COMMITTING
        assert await world.a.work() == [1], "the other one is not held back"
        server.start()
        assert (await node.ended(told, timeout_s=30)).state is TxState.COMMITTED
        assert await world.b.work() == [2]
        await eventually(lambda: not node.recovery.problems)
