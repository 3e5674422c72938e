"""Tries that are asked for in the same moment travel together, over real gRPC; each has an end of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from tests.support.callers import over_grpc, over_the_web
from txcoord_client import Participant
from txcoord_client._participants import Participants
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import participant_pb2 as pb
from txcoord_client._pb import participant_pb2_grpc
from txcoord_client._places import ParticipantAt
from txcoord_client.errors import Rejected, Unavailable
from txcoord_client.sync._participants import Participants as SyncParticipants

PATIENCE_S = 60.0


class Service(participant_pb2_grpc.ParticipantServiceServicer):
    """Notes what came in which message; ``say`` may do something else than answer."""

    def __init__(self) -> None:
        self.messages: list[list[str]] = []
        self.contexts: list[int] = []
        self.hanging: set[str] = set()
        self.ended = asyncio.Event()
        self.say: Callable[[str, Any], Any] = self._nothing

    async def _nothing(self, branch: str, context: Any) -> None: ...

    async def Execute(self, request: pb.ExecuteRequest, context: Any) -> AsyncIterator[pb.ExecuteResponse]:
        self.messages.append([action.branch for action in request.actions])
        self.contexts.append(len(request.contexts))
        try:
            for action in request.actions:
                await self.say(action.branch, context)
                if action.branch in self.hanging:
                    continue
                tx_id = request.contexts[action.context].tx_id
                yield pb.ExecuteResponse(answers=[answer(tx_id, action)])
            if self.hanging.intersection(self.messages[-1]):
                await asyncio.Event().wait()
        finally:
            self.ended.set()


def answer(tx_id: str, action: pb.BranchAction) -> c.BranchAnswer:
    return c.BranchAnswer(
        tx_id=tx_id, branch=action.branch, op=action.op, kind=c.ANSWER_KIND_DONE, result=action.payload
    )


def request(tx_id: str, branch: str) -> pb.ExecuteRequest:
    return pb.ExecuteRequest(
        namespace="shop",
        contexts=[pb.ActionContext(tx_id=tx_id)],
        actions=[pb.BranchAction(branch=branch, op=c.BRANCH_OP_TRY, payload=f"{tx_id}/{branch}".encode())],
    )


@asynccontextmanager
async def place() -> AsyncIterator[tuple[Service, Callable[..., Any]]]:
    service, server = Service(), grpc.aio.server()
    participant_pb2_grpc.add_ParticipantServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    participants, at = Participants({}), ParticipantAt(f"grpc://127.0.0.1:{port}")
    loop = asyncio.get_running_loop()

    async def ask(tx_id: str, branch: str, within_s: float = PATIENCE_S) -> bytes:
        until = loop.time() + within_s
        return (await participants.run(at, request(tx_id, branch), until)).result

    try:
        yield service, ask
    finally:
        await participants.close()
        await server.stop(0)


async def test_what_is_asked_for_at_once_travels_in_one_message() -> None:
    async with place() as (service, ask):
        found = await asyncio.gather(*(ask(f"t{n // 2}", str(n)) for n in range(100)))
        assert found == [f"t{n // 2}/{n}".encode() for n in range(100)]
        assert [len(message) for message in service.messages] == [100]
        assert service.contexts == [50]
        await asyncio.gather(*(ask("t", str(n)) for n in range(450)))
        assert sorted(len(message) for message in service.messages) == [50, 100, 200, 200]
        large = "x" * 500_000
        await asyncio.gather(*(ask(large + str(n), "1") for n in range(4)))
        assert len(service.messages) == 4 + 2  # Each twice in its own, 1 MB: three, and one.


async def test_one_that_is_given_up_leaves_the_others_alone() -> None:
    async with place() as (service, ask):
        service.hanging = {"hung", "late"}
        hung, late = asyncio.ensure_future(ask("t1", "hung")), asyncio.ensure_future(ask("t2", "late", 0.5))
        assert await ask("t3", "well") == b"t3/well"
        assert [sorted(message) for message in service.messages] == [["hung", "late", "well"]]
        with pytest.raises(Unavailable):
            await late
        assert not service.ended.is_set()
        assert not hung.done()
        # Nobody waits for anything of it any more: what still runs there is ended.
        hung.cancel()
        await asyncio.wait_for(service.ended.wait(), PATIENCE_S)


async def test_one_that_spoils_the_message_spoils_it_for_itself_only() -> None:
    async with place() as (service, ask):

        async def say(branch: str, context: Any) -> None:
            if branch == "bad":
                await context.abort(grpc.StatusCode.INTERNAL, "no idea")

        service.say = say
        bad, *well = await asyncio.gather(
            ask("t1", "bad"), ask("t2", "1"), ask("t3", "2"), return_exceptions=True
        )
        assert isinstance(bad, Unavailable)
        assert "INTERNAL: no idea" in bad.message
        assert well == [b"t2/1", b"t3/2"]
        assert sorted(map(len, service.messages)) == [1, 1, 1, 3]


async def test_a_call_that_does_not_fit_is_not_made_again() -> None:
    """Also by threads, and over gRPC: the service says what is wrong with it, once."""
    stock, server = Participant("stock"), grpc.aio.server()
    stock.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    at = ParticipantAt(f"grpc://127.0.0.1:{port}")
    asynchronous, threads = Participants({}), SyncParticipants({})
    try:
        for made, definite in ((0, True), (1, True), (2, False)):
            asked = request("t1", "1")
            asked.actions[0].operation, asked.actions[0].attempt = "stock.Reserv", made
            with pytest.raises(Rejected) as wrong:
                await asynchronous.run(at, asked, asyncio.get_running_loop().time() + PATIENCE_S)
            assert (wrong.value.reason, wrong.value.definite) == ("UNKNOWN_OPERATION", definite)
            assert (
                str(wrong.value)
                == f"UNKNOWN_OPERATION: {at.address}: there is no operation 'stock.Reserv' here"
            )
            with pytest.raises(Rejected, match=r"^UNKNOWN_OPERATION: grpc://"):
                await asyncio.to_thread(threads.run, at, asked, time.monotonic() + PATIENCE_S)
    finally:
        await asynchronous.close()
        threads.close()
        await server.stop(0)


async def test_two_calls_of_one_branch_travel_apart() -> None:
    """Their answers look the same."""
    async with place() as (service, ask):
        assert await asyncio.gather(ask("t1", "1"), ask("t1", "1"), ask("t1", "2")) == [
            b"t1/1",
            b"t1/1",
            b"t1/2",
        ]
        assert sorted(service.messages) == [["1"], ["1", "2"]]


@pytest.mark.parametrize("serving", [over_the_web, over_grpc], ids=["http", "grpc"])
async def test_the_environment_says_nothing_of_participants(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its proxy would see their tokens, and its passwords are none of theirs."""
    came: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await reader.readline())
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "grpc_proxy"):
        monkeypatch.setenv(name, url)
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    loop = asyncio.get_running_loop()
    async with server, serving() as target:
        at = ParticipantAt(target.replace("127.0.0.1", "localhost"))
        asynchronous, threads = Participants({}), SyncParticipants({})
        found = await asynchronous.run(at, request("t1", "1"), loop.time() + PATIENCE_S)
        assert found.result == b"t1/1"
        until = time.monotonic() + PATIENCE_S
        found = await asyncio.to_thread(threads.run, at, request("t1", "2"), until)
        assert found.result == b"t1/2"
        await asynchronous.close()
        threads.close()
    assert came == []
