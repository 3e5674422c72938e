"""Several coordinators in this process on one log, PostgreSQL or MariaDB, as clients see them."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.acceptance import Db, eventually
from tests.support.acceptance_wire import RawTx, S, Wire, refusal_of, told, wire_to
from tests.support.databases import Databases
from tests.support.node import new_tx
from txcoord.adapters.sql.leases import SqlLeases
from txcoord.adapters.sql.migrate import migrate
from txcoord.config import Settings
from txcoord.core.action import Action, Retry
from txcoord.core.events import Commit, Enlist
from txcoord.core.model import Branch, BranchState, Kind, Tx
from txcoord.ports import Backlog
from txcoord.testing.postgres import PostgresServer
from txcoord.wiring import Node, StartError
from txcoord.wiring import claim as claims
from txcoord.wiring.parts import finisher
from txcoord_client._pb import admin_pb2 as pa
from txcoord_client._pb import admin_pb2_grpc
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb


class Fleet:
    """Two databases, one log, and the nodes that come and go."""

    def __init__(self, dbs: list[Db], log_url: str, stack: AsyncExitStack) -> None:
        self.dbs = dbs
        self.log_url = log_url
        self._stack = stack

    def settings(self, name: str, **recovery: str) -> Settings:
        return Settings.model_validate(
            {
                "listen": "127.0.0.1:0",
                "node": {"name": name, "drain_timeout": "1s"},
                "log": {"url": self.log_url},
                "resources": {db.name: {"url": db.url} for db in self.dbs},
                "recovery": {"scan_interval": "200ms", "grace": "500ms", "lease": "2s", **recovery},
                "backoff": {"first": "50ms", "cap": "250ms"},
            }
        )

    async def node(self, name: str, **recovery: str) -> tuple[Node, Wire]:
        """One more node, and a raw client of it."""
        node = await self._stack.enter_async_context(Node(self.settings(name, **recovery)))
        return node, await self._stack.enter_async_context(wire_to(node.address))

    async def channel(self, node: Node) -> grpc.aio.Channel:
        return await self._stack.enter_async_context(grpc.aio.insecure_channel(node.address))

    def branches(self, tx: RawTx, body: str) -> list[c.Branch]:
        return [tx.prepare(db, str(n), body) for n, db in enumerate(self.dbs, 1)]

    def counts(self, body: str) -> list[int]:
        return [db.count(body) for db in self.dbs]


def at(tx: RawTx, wire: Wire) -> RawTx:
    """The same transaction, asked about at another node."""
    return RawTx(wire, tx.tx_id, tx.gid, tx.deadline_us, tx.name, tx.labels, tx.begun)


@pytest.fixture(params=["pg18", "mariadb"])
async def fleet(
    request: pytest.FixtureRequest, pg18: PostgresServer, new_database: Databases
) -> AsyncIterator[Fleet]:
    log_url = new_database(request.getfixturevalue(request.param))
    dbs = [Db(name, pg18, new_database(pg18)) for name in ("accounts", "ledger")]
    for db in dbs:
        db.make_table()
    async with AsyncExitStack() as stack:
        fleet = Fleet(dbs, log_url, stack)
        await migrate(log_url)
        for number, name in enumerate(fleet.settings("x").resources, 1):
            database = finisher(fleet.settings("x"), name)
            await database.prepare_database(f"{number:x}" * 32)
            await database.close()
        yield fleet


# ---- any node serves any transaction ----


async def test_what_waits_outlives_the_node_that_has_decided_it(fleet: Fleet) -> None:
    """Its participant is nowhere: each attempt fails, on whichever node it is made, and has its number."""
    (a, _), (b, _) = [await fleet.node(name) for name in ("n1", "n2")]
    action = Action("confirm", retry=Retry(schedule_us=(round(1.3 * S),) * 100))
    branch = Branch("1", Kind.TCC, BranchState.OPEN, "grpc://127.0.0.1:9", action=action)
    tx = new_tx(a.clock)
    await a.coordinator.enlist(Enlist(tx, (branch,)), begun=False)
    voted = replace(tx, branches=(replace(branch, state=BranchState.READY),))
    await a.coordinator.commit(Commit(voted, begun=True))

    async def waits(attempts: int) -> Tx | None:
        row = (await b.log.read([tx.tx_id]))[tx.tx_id]
        return row if not row.owner and row.branches[0].attempts >= attempts else None

    first = await eventually(lambda: waits(1))
    assert first.epoch == 1
    assert not a.coordinator.live
    assert await b.log.backlog() == {branch.resource: Backlog(1, first.branches[0].next_attempt_us)}
    again = await eventually(lambda: waits(2))
    assert again.epoch > first.epoch
    await a.abandon()
    last = await eventually(lambda: waits(again.branches[0].attempts + 2))
    failures = [h for h in await b.log.history(tx.tx_id) if h.what == "branch.failed"]
    assert len(failures) == last.branches[0].attempts


async def test_begun_here_committed_there_asked_elsewhere(fleet: Fleet) -> None:
    (_, a), (_, b), (_, third) = [await fleet.node(name) for name in ("n1", "n2", "n3")]
    assert {w.hello.node for w in (a, b, third)} == {"n1", "n2", "n3"}
    tx = a.tx("order-1")
    await tx.begin()
    branches = fleet.branches(tx, "1")
    first = await at(tx, b).commit(*branches)
    again = await at(tx, third).commit(*branches)
    late = await at(tx, a).rollback()
    assert told(first) == told(again) == told(late) == ("COMMITTED", "client", "")
    assert fleet.counts("1") == [1, 1]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await a.tx("order-1").begin()
    assert refusal_of(refused.value).reason == "ALREADY_COMMITTED"


async def test_decisions_race_by_the_compare_and_set(fleet: Fleet) -> None:
    wires = [(await fleet.node(name))[1] for name in ("n1", "n2")]
    outcomes = set()
    for turn in range(12):
        tx = wires[turn % 2].tx(f"race-{turn}")
        await tx.begin()
        branches = fleet.branches(tx, f"r{turn}")
        commit, rollback = at(tx, wires[turn // 2 % 2]), at(tx, wires[1 - turn // 2 % 2])

        async def committed(commit: RawTx = commit, branches: list[c.Branch] = branches) -> c.Outcome:
            try:
                return await commit.commit(*branches)
            except grpc.aio.AioRpcError as error:  # The rollback was faster.
                if not refusal_of(error).definite:
                    raise
            return await commit.reached(c.WAIT_LEVEL_COMMITTED)

        asks = [committed(), rollback.rollback(*branches)]
        one, two = await asyncio.gather(*(asks if turn % 3 else asks[::-1]))
        assert told(one) == told(two)
        outcomes.add(one.decision)
        wanted = 1 if one.decision == c.DECISION_COMMIT else 0
        assert fleet.counts(f"r{turn}") == [wanted, wanted]
    assert not any(db.prepared() for db in fleet.dbs)


async def test_who_waits_at_another_node_is_told_soon(fleet: Fleet) -> None:
    (_, a), (_, b) = [await fleet.node(name) for name in ("n1", "n2")]
    tx = a.tx("order-1")
    await tx.begin()
    loop = asyncio.get_running_loop()

    async def waits(level: int, **more: Any) -> float:
        item = pb.WaitItem(tx_id=tx.tx_id, level=level, **more)  # type: ignore[arg-type]
        answer = await b.call("Wait", pb.WaitRequest(items=[item], wait_us=30 * S), 35)
        assert [r.outcome.decision for r in answer.results] == [c.DECISION_COMMIT]
        return loop.time()

    open_ = [
        asyncio.ensure_future(waits(c.WAIT_LEVEL_DECIDED)),
        asyncio.ensure_future(waits(c.WAIT_LEVEL_COMMITTED)),
        asyncio.ensure_future(waits(c.WAIT_LEVEL_DECIDED, expected=True)),
        *(asyncio.ensure_future(waits(c.WAIT_LEVEL_COMMITTED, expected=True)) for _ in range(200)),
    ]
    await asyncio.wait(open_, timeout=0.5)
    assert not any(w.done() for w in open_)
    assert (await tx.commit(*fleet.branches(tx, "1"))).state == c.STATE_COMMITTED
    ended = loop.time()
    latest = max(await asyncio.gather(*open_))
    assert latest - ended < 5, "far less than they would have waited"


# ---- one that dies ----


async def test_what_a_node_leaves_is_taken_over_when_its_lease_is_over(fleet: Fleet) -> None:
    dead, a = await fleet.node("n1")
    _, b = await fleet.node("n2")
    tx = a.tx("order-1")
    await tx.begin()
    reached = asyncio.Event()

    async def stop_here(name: str) -> None:
        if name == "finish.before":
            reached.set()
            await asyncio.Event().wait()

    dead.coordinator.phase_two._failpoints.reach = stop_here  # type: ignore[method-assign]
    decided = await tx.commit(*fleet.branches(tx, "1"), wait=c.WAIT_LEVEL_DECIDED)
    assert decided.state == c.STATE_COMMITTING
    await reached.wait()
    dead.log.abandon()  # Nothing of it reaches the log any more.
    outcome = await at(tx, b).reached(c.WAIT_LEVEL_COMMITTED, 20)
    assert outcome.state == c.STATE_COMMITTED
    assert fleet.counts("1") == [1, 1]


async def test_what_a_leaving_node_leaves_is_taken_over_at_once(fleet: Fleet) -> None:
    """Its leases are a minute long; it gives them back."""
    leaving = Node(fleet.settings("n1", lease="60s"))
    await leaving.start()
    _, b = await fleet.node("n2", lease="60s")
    ledger = fleet.dbs[1]
    async with wire_to(leaving.address) as a:
        tx = a.tx("order-1")
        await tx.begin()
        branches = fleet.branches(tx, "1")
        leaving.resources.by_name["ledger"].finish = _never  # type: ignore[method-assign]
        await tx.commit(*branches, wait=c.WAIT_LEVEL_DECIDED)
        waiting = asyncio.ensure_future(
            a.call(
                "Wait", pb.WaitRequest(items=[pb.WaitItem(tx_id="f" * 32, expected=True)], wait_us=60 * S), 65
            )
        )
        await eventually(lambda: fleet.dbs[0].count("1") == 1)
        await eventually(lambda: len(leaving.coordinator.waiting), what="somebody waits there")
        await leaving.stop()
        assert not (await waiting).results, "it did not keep who only waits"
    outcome = await at(tx, b).reached(c.WAIT_LEVEL_COMMITTED, 20)
    assert outcome.state == c.STATE_COMMITTED
    assert ledger.count("1") == 1


async def _never(xid: str, commit: bool) -> Any:
    await asyncio.Event().wait()


# ---- names ----


async def test_two_nodes_of_one_name_are_refused(fleet: Fleet) -> None:
    node, a = await fleet.node("n1")
    twin = Node(fleet.settings("n1"))
    with pytest.raises(StartError, match="'n1'") as refused:
        await twin.start()
    assert refused.value.reason == "NODE_NAME_IN_USE"
    tx = a.tx("order-1")
    await tx.begin()
    assert (await tx.commit(*fleet.branches(tx, "1"))).state == c.STATE_COMMITTED
    await node.stop()
    async with Node(fleet.settings("n1")) as again, wire_to(again.address) as wire:
        assert wire.hello.node == "n1", "it was given back"


async def test_the_name_of_a_process_that_is_gone_is_free_at_once(fleet: Fleet) -> None:
    node, _ = await fleet.node("other")
    leases = SqlLeases(node.log)
    gone = _instance_of_a_dead_process()
    assert await leases.acquire("node:n1", gone, 3_600 * S) is not None
    await asyncio.wait_for(fleet.node("n1"), 60)


async def test_the_name_of_one_that_nobody_can_see_is_free_after_its_lease(fleet: Fleet) -> None:
    node, _ = await fleet.node("other")
    leases = SqlLeases(node.log)
    assert await leases.acquire("node:n1", "elsewhere 1 2 3 4 5", 2 * S) is not None
    await asyncio.wait_for(fleet.node("n1"), 60)
    assert not await leases.acquire("node:n1", "elsewhere 1 2 3 4 5", 2 * S)


async def test_one_whose_name_was_taken_ends(fleet: Fleet) -> None:
    """It was stopped for longer than its lease, and a new one of its name has started."""
    node, _ = await fleet.node("n1")
    assert node._name is not None
    leases = SqlLeases(node.log)
    # It may be the first to ask for it again.
    await leases.release("node:n1", node._name._instance)
    while await leases.acquire("node:n1", "elsewhere 1 2 3 4 5", 60 * S) is None:
        await leases.release("node:n1", node._name._instance)
    error = await asyncio.wait_for(node.lost(), 20)
    assert error.reason == "NODE_NAME_IN_USE"


def _instance_of_a_dead_process() -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from txcoord.wiring.claim import this_process; print(this_process())"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    return done.stdout.strip()


def test_who_is_gone() -> None:
    assert claims.is_gone(_instance_of_a_dead_process())
    here = claims.this_process()
    assert not claims.is_gone(here)
    parts = here.split(" ")
    swapped: Callable[[int, str], str] = lambda at, new: " ".join([*parts[:at], new, *parts[at + 1 :]])  # noqa: E731
    assert claims.is_gone(swapped(4, "1")), "its number was given to another process"
    assert not claims.is_gone(swapped(1, "another-boot"))
    assert not claims.is_gone(swapped(2, "pid:[1]")), "another container's numbers say nothing"
    assert not claims.is_gone("somebody")


def test_who_is_not_shown_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc mounted with hidepid=2: nobody else's process is there, not even the first one."""
    dead, started = _instance_of_a_dead_process(), claims._started
    monkeypatch.setattr(claims, "_started", lambda pid: "" if pid == 1 else started(pid))
    assert not claims.is_gone(dead)


# ---- what operators do ----


async def test_a_drained_node_takes_nothing_new_and_goes_on_with_what_it_has(fleet: Fleet) -> None:
    drained, a = await fleet.node("n1")
    other, _ = await fleet.node("n2")
    nodes: Any = admin_pb2_grpc.AdminServiceStub(await fleet.channel(other))
    health: Any = health_pb2_grpc.HealthStub(await fleet.channel(drained))  # type: ignore[no-untyped-call]
    assert [(n.name, n.draining) for n in (await nodes.ListNodes(pa.ListNodesRequest())).nodes] == [
        ("n1", False),
        ("n2", False),
    ]
    tx = a.tx("order-1")
    await tx.begin()
    let_go = asyncio.Event()
    finish = drained.resources.by_name["ledger"].finish

    async def later(xid: str, commit: bool) -> Any:
        await let_go.wait()
        return await finish(xid, commit)

    drained.resources.by_name["ledger"].finish = later  # type: ignore[method-assign]
    await tx.commit(*fleet.branches(tx, "1"), wait=c.WAIT_LEVEL_DECIDED)
    order = pa.DrainNodeRequest(node="n1", audit=pa.Audit(actor="ann", reason="new disk"))
    answered = await nodes.DrainNode(order)
    assert answered.node.draining
    assert not answered.retries_wait  # The other takes them.
    await eventually(lambda: drained._fleet.draining)
    assert b"\ntxcoord_drained 1.0\n" in drained.observed.metrics.render()
    answer = await health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError, match="drained by an operator"):
        await a.tx("order-2").begin()
    # Who waits there is answered, and what it has is ended by it.
    waiting = asyncio.ensure_future(tx.reached(c.WAIT_LEVEL_COMMITTED, 20))
    let_go.set()
    assert (await waiting).state == c.STATE_COMMITTED
    found = await a.call("Get", pb.GetRequest(gid="order-1"))
    assert found.transaction.outcome.state == c.STATE_COMMITTED
    last = pa.DrainNodeRequest(node="n2", audit=pa.Audit(actor="ann", reason="new disk", dry_run=True))
    assert (await nodes.DrainNode(last)).retries_wait  # Then nobody would.
    assert not (await nodes.ListNodes(pa.ListNodesRequest())).retries_wait
    # Asked for twice it is one order; without a reason it is none.
    assert (await nodes.DrainNode(order)).node.draining
    order.audit.reason = ""
    with pytest.raises(grpc.aio.AioRpcError, match="needs an actor and a reason"):
        await nodes.DrainNode(order)
    with pytest.raises(grpc.aio.AioRpcError, match="there is no node 'n3'; there are n1, n2"):
        await nodes.DrainNode(pa.DrainNodeRequest(node="n3", audit=pa.Audit(actor="ann", reason="x")))
    back = pa.DrainNodeRequest(node="n1", undo=True, audit=pa.Audit(actor="ann", reason="done"))
    assert not (await nodes.DrainNode(back)).node.draining
    await eventually(lambda: not drained._fleet.draining)
    await a.tx("order-2").begin()
    answer = await health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    trail = (await nodes.ListAudit(pa.ListAuditRequest(filter='node = "n1"'))).entries
    assert [(e.action, e.actor, e.reason) for e in trail] == [
        ("node.undrain", "ann", "done"),
        ("node.drain", "ann", "new disk"),
    ]


async def test_a_restart_ends_a_drain_and_a_dead_node_is_not_drained(fleet: Fleet) -> None:
    other, _ = await fleet.node("n2")
    nodes: Any = admin_pb2_grpc.AdminServiceStub(await fleet.channel(other))
    order = pa.DrainNodeRequest(node="n1", audit=pa.Audit(actor="ann", reason="new disk"))
    async with Node(fleet.settings("n1")) as first:
        await nodes.DrainNode(order)
        await eventually(lambda: first._fleet.draining)
    assert [n.name for n in (await nodes.ListNodes(pa.ListNodesRequest())).nodes] == ["n2"]
    again = Node(fleet.settings("n1"))
    await again.start()
    found = {n.name: n for n in (await nodes.ListNodes(pa.ListNodesRequest())).nodes}
    assert not found["n1"].draining
    assert found["n1"].role == "coordinator"
    assert found["n1"].address == again.address
    again._joined = False  # As if it had been killed: it does not say goodbye.
    await again.stop()

    async def refused() -> bool:
        try:
            await nodes.DrainNode(order)
        except grpc.aio.AioRpcError as error:
            return "is gone" in (error.details() or "")
        return False

    await eventually(refused)


@pytest.mark.parametrize("fleet", ["pg18"], indirect=True)
async def test_nodes_come_and_go_in_any_order(fleet: Fleet) -> None:
    """Whoever is there serves every transaction, and knows who else is there."""
    draw = random.Random(8)
    stacks: dict[str, tuple[AsyncExitStack, Node, Wire]] = {}

    begun: RawTx | None = None
    async with AsyncExitStack() as all_of_them:

        async def start(name: str) -> None:
            stack = AsyncExitStack()
            all_of_them.push_async_callback(stack.aclose)
            node = await stack.enter_async_context(Node(fleet.settings(name)))
            stacks[name] = stack, node, await stack.enter_async_context(wire_to(node.address))

        async def stop(name: str) -> None:
            await stacks.pop(name)[0].aclose()

        for number in range(7):
            there, absent = sorted(stacks), sorted({"n1", "n2", "n3"} - stacks.keys())
            if len(there) < 2 or (absent and draw.random() < 0.5):
                await start(draw.choice(absent))
            else:
                await stop(draw.choice(there))
            wires = [stacks[name][2] for name in sorted(stacks)]
            if begun is not None:  # By a node that may have gone.
                ended = await at(begun, draw.choice(wires)).commit(*fleet.branches(begun, str(number - 1)))
                assert ended.state == c.STATE_COMMITTED
            begun = draw.choice(wires).tx(f"order-{number}")
            await begun.begin()
            _, node, _ = stacks[draw.choice(sorted(stacks))]
            assert [status.name for status in await node._fleet.all()] == sorted(stacks)
        while stacks:
            await stop(draw.choice(sorted(stacks)))
    for number in range(6):
        assert fleet.counts(str(number)) == [1, 1]
