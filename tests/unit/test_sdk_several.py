"""The wire with several coordinators to go to: servers in this process that do what a test tells them to do."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from txcoord_client import TLS, Coordinator, _nodes, _wire
from txcoord_client._nodes import joined
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client._wire import Wire
from txcoord_client.access import Access
from txcoord_client.errors import Rejected, Unavailable

from .test_sdk_wire import Server, commit, committed, refusal, soon


class Fleet:
    """Servers, and a wire that knows them all."""

    def __init__(self, servers: list[Server], wire: Wire) -> None:
        self.servers = servers
        self.wire = wire

    @property
    def used(self) -> Server:
        """The one that the last operation went to."""
        return max(self.servers, key=lambda s: s.last)  # type: ignore[attr-defined]

    def others(self, server: Server) -> list[Server]:
        return [s for s in self.servers if s is not server]

    async def commit(self, **more: Any) -> Server:
        assert (await commit(self.wire, **more)).outcome.state == c.STATE_COMMITTED
        return self.used


@asynccontextmanager
async def a_fleet(count: int) -> AsyncIterator[Fleet]:
    times = itertools.count(1)
    async with AsyncExitStack() as stack:
        servers = []
        for _ in range(count):
            server = Server()
            server.last = 0  # type: ignore[attr-defined]

            async def answer(op: pb.Operation, server: Server = server) -> pb.OperationResult | None:
                server.last = next(times)  # type: ignore[attr-defined]
                return await committed(op)

            server.answer = answer
            await server.start()
            stack.push_async_callback(server.stop)
            servers.append(server)
        wire = Wire(",".join(f"127.0.0.1:{s.port}" for s in servers), "shop", version="0")
        stack.push_async_callback(wire.close)
        yield Fleet(servers, wire)


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with a_fleet(3) as made:
        yield made


async def test_it_stays_at_one_while_that_is_well(fleet: Fleet) -> None:
    first = await fleet.commit()
    for _ in range(20):
        assert await fleet.commit() is first
    await asyncio.gather(*(commit(fleet.wire) for _ in range(100)))
    assert [s.hellos for s in fleet.servers if s is not first] == [0, 0]
    assert first.streams == 1


async def test_each_process_begins_somewhere(fleet: Fleet) -> None:
    address = ",".join(f"127.0.0.1:{s.port}" for s in fleet.servers)
    for _ in range(40):
        wire = Wire(address, "shop", version="0")
        await wire.hello(soon())
        await wire.close()
    assert all(s.hellos for s in fleet.servers)


async def test_one_that_is_gone_is_left(fleet: Fleet) -> None:
    first = await fleet.commit()
    await first.stop()
    second = await fleet.commit(until=soon(5))
    assert second is not first
    assert second.hellos == 1, "it said hello there first"
    assert second.messages[0].log_id == first.log_id
    await second.stop()
    third = await fleet.commit(until=soon(5))
    assert third not in (first, second)
    await first.start(first.port)
    await third.stop()
    assert await fleet.commit(until=soon(10)) is first


async def test_it_starts_where_one_is_there(fleet: Fleet) -> None:
    for server in fleet.servers[1:]:
        await server.stop()
    assert (await fleet.wire.hello(soon(5))).log_id == fleet.servers[0].log_id
    assert await fleet.commit() is fleet.servers[0]


async def test_none_is_there_until_one_is(fleet: Fleet) -> None:
    for server in fleet.servers:
        await server.stop()
    with pytest.raises(Unavailable):
        await commit(fleet.wire, until=soon(0.5))
    asked = fleet.wire.messages_sent
    waiting = asyncio.create_task(fleet.commit(until=soon(20)))
    while fleet.wire.messages_sent == asked:  # noqa: ASYNC110 - until it has asked in vain
        await asyncio.sleep(0.01)
    await fleet.servers[2].start(fleet.servers[2].port)
    assert await waiting is fleet.servers[2]


async def test_what_is_open_at_one_that_leaves_is_answered_there(fleet: Fleet) -> None:
    gate, arrived = asyncio.Event(), asyncio.Event()
    first = await fleet.commit()
    quick = first.answer

    async def slow(op: pb.Operation) -> pb.OperationResult | None:
        if op.commit.gid != "slow":
            return await quick(op)
        arrived.set()
        await gate.wait()
        return await committed(op)

    first.answer = slow
    open_ = asyncio.create_task(commit(fleet.wire, gid="slow"))
    await arrived.wait()
    first.drain()
    while (second := await fleet.commit()) is first:
        pass  # The word that it leaves is still on its way.
    for _ in range(5):
        assert await fleet.commit() is second
    assert not open_.done()
    gate.set()
    assert (await open_).outcome.state == c.STATE_COMMITTED
    assert sum(op.commit.gid == "slow" for s in fleet.servers for m in s.messages for op in m.operations) == 1


@pytest.mark.parametrize("several", [1, 3])
async def test_one_that_takes_nothing_new(several: int) -> None:
    async with a_fleet(several) as fleet:
        first = await fleet.commit()
        quick = first.answer
        refused = itertools.count()

        async def leaving(op: pb.Operation) -> pb.OperationResult | None:
            if next(refused) >= 3:
                return await quick(op)
            return refusal(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", retry_after_us=10_000)

        first.answer = leaving
        assert (await fleet.commit(until=soon(5)) is first) is (several == 1)


async def test_one_whose_log_is_away_for_long(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_wire, "_LOG_AWAY_S", 0.2)
    first = await fleet.commit()

    async def away(op: pb.Operation) -> pb.OperationResult | None:
        return refusal(grpc.StatusCode.UNAVAILABLE, "LOG_UNAVAILABLE", definite=False)

    first.answer = away
    assert await fleet.commit(until=soon(10)) is not first


async def test_one_that_hangs(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection stands and nothing comes: as after SIGSTOP."""
    monkeypatch.setattr(_wire, "_SILENT_S", 0.3)
    monkeypatch.setattr(_wire, "_HELLO_S", 0.5)
    first = await fleet.commit()

    async def hangs(op: pb.Operation) -> pb.OperationResult | None:
        return None

    first.answer = hangs
    first.hello_gate.clear()
    assert await fleet.commit(until=soon(10)) is not first


@pytest.mark.parametrize("call_timeout", [2.0, 5.0])
async def test_two_that_hang_leave_time_for_a_third(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, call_timeout: float
) -> None:
    fleet.wire._call_timeout = call_timeout
    first = await fleet.commit()
    ask, waits = fleet.wire._ask_hello, []

    async def asked(node: _nodes.Node, timeout: float) -> pb.HelloResponse:
        try:
            return await ask(node, timeout)
        except grpc.aio.AioRpcError:
            waits.append(timeout)  # One that hangs: for so long it kept the caller.
            raise

    async def hangs(op: pb.Operation) -> pb.OperationResult | None:
        return None

    monkeypatch.setattr(fleet.wire, "_ask_hello", asked)
    second = next(s for s in fleet.servers if s.port == _port(list(fleet.wire._nodes._nodes.values())[1]))
    for server in (first, second):
        server.answer = hangs
        server.hello_gate.clear()
    used = await fleet.commit(until=soon(60))
    assert used not in (first, second)
    assert len(waits) == 2
    assert _wire._SILENT_S + sum(waits) < call_timeout


def _port(node: _nodes.Node) -> int:
    return int(node.address.rpartition(":")[2])


async def test_waiting_long_is_no_reason_to_leave(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_wire, "_SILENT_S", 0.05)
    first = await fleet.commit()
    gate = asyncio.Event()
    quick = first.answer

    async def slow(op: pb.Operation) -> pb.OperationResult | None:
        await gate.wait()
        return await quick(op)

    first.answer = slow
    waiting = asyncio.create_task(fleet.commit())
    while first.hellos < 4:  # noqa: ASYNC110 - the probes are counted by the server
        await asyncio.sleep(0.01)
    gate.set()
    assert await waiting is first
    assert first.streams == 1


async def test_one_with_another_log_is_refused(fleet: Fleet) -> None:
    first = await fleet.commit()
    for other in fleet.others(first):
        other.log_id = "9876543210"
    await first.stop()
    with pytest.raises(Unavailable):
        await commit(fleet.wire, until=soon(1.5))
    with pytest.raises(Unavailable) as caught:
        await fleet.wire.hello(soon(1.5), fresh=True)
    assert caught.value.definite
    assert not any(m.operations for s in fleet.others(first) for m in s.messages)
    await first.start(first.port)
    assert await fleet.commit(until=soon(20)) is first


async def test_a_log_that_was_restored_is_the_same_log(fleet: Fleet) -> None:
    first = await fleet.commit()
    before = first.log_id
    for other in fleet.others(first):
        other.log_id, other.earlier_log_ids = "9876543210", [before]
    await first.stop()
    assert await fleet.commit(until=soon(5)) is not first
    # One that has not been told yet is not gone back to.
    await first.start(first.port)
    for other in fleet.others(first):
        await other.stop()
    with pytest.raises(Unavailable):
        await commit(fleet.wire, until=soon(1.5))


async def test_an_open_operation_goes_on_at_another_one(fleet: Fleet) -> None:
    first = await fleet.commit()
    arrived = asyncio.Event()

    async def never(op: pb.Operation) -> pb.OperationResult | None:
        arrived.set()
        return None

    first.answer = never
    waiting = asyncio.create_task(fleet.commit(gid="order-1", until=soon(10)))
    await arrived.wait()
    await first.stop()
    second = await waiting
    assert second is not first
    sent = [
        op.commit.SerializeToString() for s in (first, second) for m in s.messages for op in m.operations
    ][1:]
    assert len(set(sent)) == 1, "the same request"


# ---- addresses ----


def test_addresses() -> None:
    assert joined("a:1") == "a:1"
    assert joined("grpc://a:1, b:2,a:1") == "a:1,b:2"
    assert joined(["a:1", "dns:///c:3"]) == "a:1,dns:///c:3"
    assert Coordinator(["a:1", "b:2"]).address == "a:1,b:2"
    for bad in ("", "a:1,,b:2", []):
        with pytest.raises(Rejected):
            joined(bad)


async def test_a_name_is_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_fleet(2) as fleet:
        one, two = fleet.servers
        found = [one.port]

        async def look_up(loop: Any, name: str) -> list[str]:
            assert name == "dns:///txcoord:7070"
            return [f"127.0.0.1:{port}" for port in found]

        monkeypatch.setattr(_nodes, "_resolved", look_up)
        monkeypatch.setattr(_nodes, "_LOOK_UP_S", 0.0)
        wire = Wire("dns:///txcoord:7070", "shop", version="0")
        try:
            await commit(wire)
            assert fleet.used is one
            found[:] = [two.port]  # Its pod was replaced by another one.
            await one.stop()
            await commit(wire, until=soon(10))
            assert fleet.used is two
            found[:] = [one.port]
            await one.start(one.port)
            await two.stop()
            await commit(wire, until=soon(10))
            assert fleet.used is one
            assert len(wire._nodes._gone) == 1, "the one before last is closed"
        finally:
            await wire.close()


async def test_addresses_outlive_their_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_fleet(2) as fleet:
        away = False

        async def look_up(loop: Any, name: str) -> list[str]:
            if away:
                raise socket.gaierror(socket.EAI_AGAIN, "try again")
            return [f"127.0.0.1:{s.port}" for s in fleet.servers]

        monkeypatch.setattr(_nodes, "_resolved", look_up)
        monkeypatch.setattr(_nodes, "_LOOK_UP_S", 0.0)
        wire = Wire("dns:///txcoord.invalid:7070", "shop", version="0")
        try:
            await commit(wire)
            first, away = fleet.used, True
            await first.stop()
            await commit(wire, until=soon(10))
            assert fleet.used is not first
        finally:
            await wire.close()


@pytest.mark.parametrize("name", ["dns:///txcoord.invalid:7070", f"dns:///{'x' * 64}:7070"])
async def test_a_name_that_leads_nowhere_is_told_as_such(name: str) -> None:
    wire = Wire(name, "shop", version="0")
    try:
        with pytest.raises(Unavailable):
            await commit(wire, until=soon(1))
    finally:
        await wire.close()


async def test_names_are_resolved() -> None:
    loop = asyncio.get_running_loop()
    there = {a.rpartition(":")[0] for a in await _nodes._resolved(loop, "dns:///localhost:81")}
    assert there & {"127.0.0.1", "[::1]"}
    assert await _nodes._resolved(loop, "dns:///127.0.0.1") == ["127.0.0.1:7070"]
    if socket.has_ipv6:
        assert await _nodes._resolved(loop, "dns:///[::1]:82") == ["[::1]:82"]


async def test_behind_a_name_there_is_the_certificate_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each address of the name has a channel of its own, but no certificate of its own."""
    seen: dict[str, str] = {}

    def channel(address: str, access: Access) -> grpc.aio.Channel:
        assert access.tls is not None
        seen[address] = access.tls.server_name
        return grpc.aio.insecure_channel(address)

    async def look_up(loop: asyncio.AbstractEventLoop, name: str) -> list[str]:
        return ["10.0.0.1:7443", "10.0.0.2:7443"]

    monkeypatch.setattr(_nodes, "open_channel", channel)
    monkeypatch.setattr(_nodes, "_resolved", look_up)
    for tls, expected in ((TLS(), "txcoord.internal"), (TLS(server_name="other"), "other")):
        nodes = _nodes.Nodes("dns:///txcoord.internal:7443", Access(tls), lambda: 0.5)
        await nodes.pick()
        await nodes.close()
        assert seen == {"10.0.0.1:7443": expected, "10.0.0.2:7443": expected}
    nodes = _nodes.Nodes("txcoord.internal:7443", Access(TLS()), lambda: 0.5)
    await nodes.close()
    assert seen["txcoord.internal:7443"] == "", "gRPC knows the name"
