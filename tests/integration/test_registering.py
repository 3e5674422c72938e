"""Participants that register themselves: called by their name, another instance where one is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.acceptance import eventually
from tests.support.acceptance_wire import Wire, refused
from tests.support.databases import Databases
from tests.support.redis_fleet import Fleet, fleet_on
from tests.support.redis_server import RedisServer
from txcoord.testing.postgres import PostgresServer
from txcoord.wiring import Node
from txcoord_client import Coordinator, Participant, Rejected, Saga, State, saga
from txcoord_client import sync as sync_client
from txcoord_client._pb import admin_pb2, admin_pb2_grpc
from txcoord_client._pb import coordinator_pb2 as pb


class Stock:
    """Instances of one participant, over one database."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self._url = f"sqlite+aiosqlite:///{folder}/stock.db"
        self._stack = stack
        self.packed: list[tuple[str, str]] = []
        """By which instance, and what."""

    async def instance(self, name: str) -> tuple[Participant, str, Any]:
        """One more: it, its address, and its server."""
        engine = create_async_engine(self._url)
        self._stack.push_async_callback(engine.dispose)
        stock = Participant("stock", db=engine)
        await stock.make_table()

        @stock.action
        async def pack(db: Any, *, order: str) -> None:
            self.packed.append((name, order))

        @pack.compensate
        async def unpack(db: Any) -> None:
            """Nothing is to be undone."""

        server = grpc.aio.server()
        stock.add_to(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._stack.push_async_callback(server.stop, None)
        return stock, f"grpc://127.0.0.1:{port}", server


def plan() -> Saga:
    """It knows the participant by its name only."""
    stock = Participant("stock")

    @stock.action
    async def pack(db: Any, *, order: str) -> None:
        """Elsewhere."""

    @pack.compensate
    async def unpack(db: Any) -> None:
        """Elsewhere."""

    return saga("ship").step(pack)


@asynccontextmanager
async def alone(folder: Path) -> AsyncIterator[Fleet]:
    async with fleet_on(f"sqlite:///{folder}/log.db", "") as fleet:
        yield fleet


@pytest.fixture
async def stock(tmp_path: Path) -> AsyncIterator[Stock]:
    async with AsyncExitStack() as stack:
        yield Stock(tmp_path, stack)


async def done(coord: Coordinator, order: str) -> None:
    run = await coord.submit(plan(), data={"order": order})
    assert (await run.wait(50)).state is State.COMMITTED


async def test_by_name_and_another_one_where_one_is_gone(tmp_path: Path, stock: Stock) -> None:
    async with alone(tmp_path) as fleet:
        node, wire = await fleet.node("n1", redis=False, backoff={"first": "20ms", "cap": "100ms"})
        async with Coordinator(node.address) as coord:
            with pytest.raises(Rejected, match="stock"):
                await coord.submit(plan(), data={"order": "0"})
            one, at_one, server = await stock.instance("one")
            other, at_other, _ = await stock.instance("other")
            async with coord.register(one, address=at_one, version="1.2"):
                async with coord.register(other, address=at_other):
                    for number in range(4):
                        await done(coord, f"a{number}")
                    assert {name for name, _ in stock.packed} == {"one", "other"}
                    await server.stop(None)  # It says nothing, and is not there any more.
                    for number in range(4):
                        await done(coord, f"b{number}")
                    assert {name for name, order in stock.packed if order[0] == "b"} == {"other"}
                assert node._shared is not None
                assert [i.version for i, _ in node._shared.registry.instances()] == ["1.2"]
                (listed,) = (await admin(wire).ListTargets(admin_pb2.ListTargetsRequest())).targets
                assert (listed.name, [(i.address, i.version) for i in listed.instances]) == (
                    "stock",
                    [(at_one, "1.2")],
                )
            assert node._shared.registry.instances() == []
            assert sorted(order for _, order in stock.packed) == [f"{x}{n}" for x in "ab" for n in range(4)]


async def test_what_cannot_register(tmp_path: Path) -> None:
    async with alone(tmp_path) as fleet:
        node, wire = await fleet.node("n1", redis=False)
        async with Coordinator(node.address) as coord:
            with pytest.raises(Rejected, match=r"10\.0\.0\.1:80") as caught:
                async with coord.register("stock", address="grpc://10.0.0.1:80"):
                    raise AssertionError("it is not allowed")
            assert caught.value.reason == "TARGET_NOT_ALLOWED"
        good = {"participant": "stock", "instance": "i", "address": "grpc://127.0.0.1:1"}
        for bad, reason, code in (
            ({"participant": "a b"}, "BAD_REQUEST", "INVALID_ARGUMENT"),
            ({"instance": ""}, "BAD_REQUEST", "INVALID_ARGUMENT"),
            ({"instance": "a b"}, "BAD_REQUEST", "INVALID_ARGUMENT"),
            ({"address": "stock"}, "BAD_REQUEST", "INVALID_ARGUMENT"),
            ({"address": "grpc://169.254.169.254:80"}, "TARGET_NOT_ALLOWED", "PERMISSION_DENIED"),
            ({"namespace": "a b"}, "BAD_NAMESPACE", "INVALID_ARGUMENT"),
            ({"labels": {"a": "b"}}, "NOT_SUPPORTED", "UNIMPLEMENTED"),
            ({"max_in_flight": 3}, "NOT_SUPPORTED", "UNIMPLEMENTED"),
        ):
            with refused(code, reason):
                await wire.call("RegisterParticipant", pb.RegisterParticipantRequest(**{**good, **bad}))
        beat = pb.HeartbeatParticipantRequest(participant="stock", instance="i")
        assert not (await wire.call("HeartbeatParticipant", beat)).known
        answer = await wire.call("RegisterParticipant", pb.RegisterParticipantRequest(**good))
        assert answer.expires_us > answer.log_time_us
        assert 0 < answer.heartbeat_us < answer.expires_us - answer.log_time_us + 1_000_000
        assert (await wire.call("HeartbeatParticipant", beat)).known


async def test_from_threads(tmp_path: Path, stock: Stock) -> None:
    async with alone(tmp_path) as fleet:
        node, _ = await fleet.node("n1", redis=False)
        _, address, _ = await stock.instance("one")

        def known() -> bool:
            return node._shared is not None and node._shared.registry.is_known("stock")

        def serve() -> None:
            with (
                sync_client.Coordinator(node.address) as coord,
                coord.register(sync_client.Participant("stock"), address=address),
            ):
                assert known()

        with ThreadPoolExecutor(1) as thread:
            await asyncio.get_running_loop().run_in_executor(thread, serve)
        assert node._shared is not None
        assert node._shared.registry.instances() == []


async def test_the_settings_win(tmp_path: Path, stock: Stock) -> None:
    async with alone(tmp_path) as fleet:
        _, at_one, _ = await stock.instance("one")
        _, at_other, _ = await stock.instance("other")
        node, _ = await fleet.node("n1", redis=False, participants={"stock": {"addresses": at_one}})
        async with Coordinator(node.address) as coord, coord.register("stock", address=at_other):
            for number in range(3):
                await done(coord, f"{number}")
        assert {name for name, _ in stock.packed} == {"one"}


def admin(wire: Wire) -> Any:
    return admin_pb2_grpc.AdminServiceStub(wire.channel)


async def _known(node: Node) -> bool:
    assert node._shared is not None
    return node._shared.registry.is_known("stock")


async def test_registered_at_one_node_called_by_another_also_when_redis_is_lost(
    pg18: PostgresServer, new_database: Databases, own_redis: RedisServer, tmp_path: Path, stock: Stock
) -> None:
    async with fleet_on(new_database(pg18), own_redis.url) as fleet:
        (here, _), (there, _) = await fleet.node("n1"), await fleet.node("n2")
        _, address, _ = await stock.instance("one")
        async with (
            Coordinator(here.address) as mine,
            Coordinator(there.address) as coord,
            mine.register("stock", address=address),
        ):
            await eventually(lambda: _known(there))
            await done(coord, "1")
            own_redis.kill()
            await done(coord, "2")
            own_redis.start()
            await done(coord, "3")


async def test_at_every_coordinator_that_is_known_without_redis(
    pg18: PostgresServer, new_database: Databases, tmp_path: Path, stock: Stock
) -> None:
    async with fleet_on(new_database(pg18), "") as fleet:
        nodes = [(await fleet.node(name, redis=False))[0] for name in ("n1", "n2")]
        _, address, _ = await stock.instance("one")
        async with (
            Coordinator([node.address for node in nodes]) as coord,
            coord.register("stock", address=address),
        ):
            for node in nodes:
                await eventually(partial(_known, node))
