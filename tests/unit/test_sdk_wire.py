"""The wire against a server in this process that does what a test tells it to do."""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from txcoord_client import _wire
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client._pb import coordinator_pb2_grpc as rpc
from txcoord_client._wire import Wire
from txcoord_client.errors import AlreadyCommitted, OutcomeUnknown, Rejected, TxcoordError, Unavailable

LOG = "0123456789"
Answer = Callable[[pb.Operation], Awaitable[pb.OperationResult | None]]


class Server(rpc.CoordinatorServiceServicer):
    """Notes every message; answers each operation as ``answer`` says."""

    def __init__(self) -> None:
        self.messages: list[pb.SessionRequest] = []
        self.streams = 0
        self.hellos = 0
        self.limits = pb.Limits()
        self.log_id = LOG
        self.earlier_log_ids: list[str] = []
        self.log_time_us = 1_000_000
        self.hello_gate = asyncio.Event()
        self.hello_gate.set()
        self.answer: Answer = committed
        self.end_stream: Callable[[Server, Any], Awaitable[bool]] | None = None
        self.draining = False
        self._outs: set[asyncio.Queue[pb.OperationResult | None]] = set()
        self.port = 0
        self._server: grpc.aio.Server | None = None

    async def start(self, port: int = 0) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        rpc.add_CoordinatorServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()

    def drain(self) -> None:
        """As a coordinator that leaves: what is open is still answered."""
        self.draining = True
        for out in self._outs:
            out.put_nowait(None)

    async def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)

    async def Hello(self, request: pb.HelloRequest, context: Any) -> pb.HelloResponse:
        self.hellos += 1
        await self.hello_gate.wait()
        return pb.HelloResponse(
            log_id=self.log_id,
            earlier_log_ids=self.earlier_log_ids,
            log_time_us=self.log_time_us,
            limits=self.limits,
        )

    async def Session(self, requests: Any, context: Any) -> AsyncIterator[pb.SessionResponse]:
        self.streams += 1
        out: asyncio.Queue[pb.OperationResult | None] = asyncio.Queue()
        self._outs.add(out)
        tasks = set()

        async def one(op: pb.Operation) -> None:
            result = await self.answer(op)
            if result is not None:
                result.op_id = op.op_id
                out.put_nowait(result)

        async def read() -> None:
            async for message in requests:
                self.messages.append(message)
                if message.log_id and message.log_id != self.log_id:
                    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "BAD_XID: another log")
                if self.end_stream is not None and await self.end_stream(self, context):
                    return
                for op in message.operations:
                    task = asyncio.ensure_future(one(op))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)

        reader = asyncio.ensure_future(read())
        try:
            while not reader.done():
                taken = asyncio.ensure_future(out.get())
                await asyncio.wait({taken, reader}, return_when=asyncio.FIRST_COMPLETED)
                if taken.done():
                    result = taken.result()
                    yield pb.SessionResponse(
                        results=[] if result is None else [result],
                        log_time_us=self.log_time_us,
                        draining=self.draining,
                    )
                else:
                    taken.cancel()
        finally:
            self._outs.discard(out)
            reader.cancel()
            await asyncio.gather(reader, *tasks, return_exceptions=True)


async def committed(op: pb.Operation) -> pb.OperationResult | None:
    return pb.OperationResult(commit=pb.CommitResponse(outcome=c.Outcome(state=c.STATE_COMMITTED)))


def refusal(code: grpc.StatusCode, reason: str, definite: bool = True, **more: Any) -> pb.OperationResult:
    return pb.OperationResult(
        status=c.Status(code=code.value[0], reason=reason, message=reason, definite=definite, **more)
    )


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def wire(server: Server) -> AsyncIterator[Wire]:
    made = Wire(f"127.0.0.1:{server.port}", "shop", version="0")
    yield made
    await made.close()


def soon(seconds: float = 10.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def commit(wire: Wire, *, until: float | None = None, size: int = 0, **fields: Any) -> Any:
    request = pb.CommitRequest(tx_id="t", result=b"x" * size, **fields)
    return await wire.call("commit", request, soon() if until is None else until, tx_id="t", gid="g")


# ---- hello ----


async def test_hello_is_asked_once_for_all_and_nobody_waits_past_his_time(server: Server, wire: Wire) -> None:
    server.hello_gate.clear()
    patient = [asyncio.create_task(wire.hello(soon())) for _ in range(5)]
    await asyncio.sleep(0)
    begun = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        await wire.hello(soon(0.2))
    assert time.monotonic() - begun < 3
    assert caught.value.definite, "hello does nothing"
    server.hello_gate.set()
    assert {(await task).log_id for task in patient} == {LOG}
    assert (await wire.hello(soon())).log_id == LOG
    assert server.hellos == 1


async def test_whoever_has_more_time_asks_again(server: Server, wire: Wire) -> None:
    await server.stop()
    hasty = asyncio.create_task(wire.hello(soon(0.3)))
    await asyncio.sleep(0)
    patient = asyncio.create_task(wire.hello(soon(20)))
    with pytest.raises(Unavailable):
        await hasty
    await server.start(server.port)
    assert (await patient).log_id == LOG


# ---- many at once ----


async def test_one_goes_at_once_and_many_share_messages(server: Server, wire: Wire) -> None:
    await wire.hello(soon())
    await commit(wire)
    assert len(server.messages) == 1
    await asyncio.gather(*(commit(wire) for _ in range(200)))
    assert len(server.messages) <= 4
    first, *others = server.messages
    assert (first.namespace, first.log_id) == ("shop", LOG)
    assert not any(m.namespace or m.log_id for m in others)
    ids = [op.op_id for m in server.messages for op in m.operations]
    assert len(ids) == len(set(ids)) == 201
    assert server.streams == 1


async def test_no_message_holds_more_than_the_coordinator_takes(server: Server, wire: Wire) -> None:
    """A message that is too large or too long would end the stream, and everything in it would be sent again in one
    just as large."""
    server.limits.max_operations, server.limits.max_message_bytes = 10, 100_000
    await wire.hello(soon())
    await asyncio.gather(*(commit(wire, size=30_000) for _ in range(20)), *(commit(wire) for _ in range(40)))
    assert max(len(m.operations) for m in server.messages) <= 10
    assert max(m.ByteSize() for m in server.messages) <= 100_000
    with pytest.raises(Rejected) as caught:
        await commit(wire, size=200_000)
    assert (caught.value.reason, caught.value.definite) == ("TOO_LARGE", True)
    assert server.streams == 1


async def test_an_answer_that_nobody_waits_for_harms_no_other(server: Server, wire: Wire) -> None:
    gate = asyncio.Event()

    async def slow_first(op: pb.Operation) -> pb.OperationResult | None:
        if op.commit.gid == "slow":
            await gate.wait()
        return await committed(op)

    server.answer = slow_first
    with pytest.raises(Unavailable) as caught:
        await commit(wire, until=soon(0.2), gid="slow")
    assert not caught.value.definite
    gate.set()
    assert (await commit(wire)).outcome.state == c.STATE_COMMITTED
    cancelled = asyncio.create_task(commit(wire))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert (await commit(wire)).outcome.state == c.STATE_COMMITTED


# ---- the stream breaks ----


async def test_what_was_open_is_sent_again_with_the_same_content(server: Server, wire: Wire) -> None:
    lost = itertools.count()

    async def break_twice(server: Server, context: Any) -> bool:
        return next(lost) < 2

    server.end_stream = break_twice
    await wire.hello(soon())
    await asyncio.gather(*(commit(wire, gid=f"g{n}") for n in range(5)))
    assert server.streams == 3
    sent: dict[str, list[bytes]] = {}
    for op in (op for m in server.messages for op in m.operations):
        sent.setdefault(op.commit.gid, []).append(op.commit.SerializeToString())
    assert len(sent) == 5
    assert all(len(tries) >= 2 and len(set(tries)) == 1 for tries in sent.values())
    assert [m.namespace for m in server.messages if m.log_id] == ["shop"] * 3


async def test_a_server_that_comes_back_is_found(server: Server, wire: Wire) -> None:
    await commit(wire)
    await server.stop()
    waiting = asyncio.create_task(commit(wire, until=soon(20)))
    with pytest.raises(Unavailable) as caught:
        await commit(wire, until=soon(0.3))
    assert not caught.value.definite
    await server.start(server.port)
    assert (await waiting).outcome.state == c.STATE_COMMITTED


async def test_another_log_is_no_answer(server: Server, wire: Wire) -> None:
    await wire.hello(soon())
    server.log_id = "9876543210"
    with pytest.raises(TxcoordError) as caught:
        await commit(wire)
    assert not caught.value.definite
    assert (await wire.hello(soon())).log_id == "9876543210"
    assert (await commit(wire)).outcome.state == c.STATE_COMMITTED


# ---- what a refusal says ----


async def test_a_refusal_says_nothing_of_an_earlier_try_whose_answer_was_lost(
    server: Server, wire: Wire
) -> None:
    """The first try may have been committed: by a coordinator that has been replaced, say."""
    tries = itertools.count()

    async def lose_first(server: Server, context: Any) -> bool:
        return next(tries) == 0

    async def refuse(op: pb.Operation) -> pb.OperationResult | None:
        return refusal(grpc.StatusCode.FAILED_PRECONDITION, "BAD_XID")

    server.end_stream, server.answer = lose_first, refuse
    with pytest.raises(Rejected) as caught:
        await commit(wire)
    assert (caught.value.reason, caught.value.definite) == ("BAD_XID", False)
    with pytest.raises(Rejected) as caught:
        await commit(wire)
    assert caught.value.definite, "nothing was lost before this one"


async def test_a_refusal_that_tells_the_outcome_counts(server: Server, wire: Wire) -> None:
    tries = itertools.count()

    async def lose_first(server: Server, context: Any) -> bool:
        return next(tries) == 0

    async def aborted(op: pb.Operation) -> pb.OperationResult | None:
        told = c.Outcome(state=c.STATE_ABORTED, reason="DEADLINE")
        return refusal(grpc.StatusCode.FAILED_PRECONDITION, "DEADLINE", outcome=told)

    server.end_stream, server.answer = lose_first, aborted
    with pytest.raises(Rejected) as caught:
        await commit(wire)
    assert caught.value.definite
    assert caught.value.outcome is not None
    assert caught.value.outcome.aborted


async def test_closing_says_nothing_of_what_was_sent(server: Server, wire: Wire) -> None:
    received = asyncio.Event()

    async def never(op: pb.Operation) -> pb.OperationResult | None:
        received.set()
        return None

    server.answer = never
    waiting = asyncio.create_task(commit(wire))
    await asyncio.wait_for(received.wait(), 10)
    await wire.close()
    with pytest.raises(Unavailable) as caught:
        await waiting
    assert not caught.value.definite
    with pytest.raises(Rejected) as closed:
        await commit(wire)
    assert (closed.value.reason, closed.value.definite) == ("CLOSED", True)


@pytest.mark.parametrize("definite", [True, False])
async def test_try_again_is_tried_until_the_time_is_up(server: Server, wire: Wire, definite: bool) -> None:
    count = itertools.count()

    async def busy(op: pb.Operation) -> pb.OperationResult | None:
        if next(count) < 3:
            return refusal(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN", definite, retry_after_us=10_000)
        return await committed(op)

    server.answer = busy
    assert (await commit(wire)).outcome.state == c.STATE_COMMITTED
    count = itertools.count(-1_000_000)
    begun = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        await commit(wire, until=soon(0.4))
    assert caught.value.definite is definite
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("reason", "facts", "kind"),
    [
        ("ALREADY_COMMITTED", {"tx_id": "other"}, AlreadyCommitted),
        ("EXPIRED", {}, OutcomeUnknown),
        ("CONTENT_MISMATCH", {}, Rejected),
    ],
)
async def test_other_refusals_are_final(
    server: Server, wire: Wire, reason: str, facts: dict[str, str], kind: type[TxcoordError]
) -> None:
    async def refuse(op: pb.Operation) -> pb.OperationResult | None:
        return refusal(grpc.StatusCode.ALREADY_EXISTS, reason, reason != "EXPIRED", facts=facts)

    server.answer = refuse
    with pytest.raises(kind):
        await commit(wire)
    assert len(server.messages) == 1


async def test_a_wait_that_is_sent_again_ends_before_its_caller_goes(server: Server, wire: Wire) -> None:
    """The answer *decided, not done yet* must be there in time, or a decided transaction is told as unknown."""
    tries = itertools.count()

    async def lose_first(server: Server, context: Any) -> bool:
        if next(tries) == 0:
            await asyncio.sleep(0.5)  # time goes by
            return True
        return False

    server.end_stream = lose_first
    await commit(wire, until=soon(5), wait_us=5_000_000)
    first, second = (m.operations[0].commit.wait_us for m in server.messages)
    assert 0 < first <= (5 - _wire._REPLY_S) * 1e6
    assert 0 < second <= first - 400_000


async def test_whoever_asks_once_more_waits_as_long_again(server: Server, wire: Wire) -> None:
    """Sessions ask for the decision until they hear it. With the rest of an earlier try they would ask without a
    pause, and never hear anything."""

    async def refuse(op: pb.Operation) -> pb.OperationResult:
        return refusal(grpc.StatusCode.UNAVAILABLE, "LOG_UNAVAILABLE")

    server.answer = refuse
    request = pb.WaitRequest(wait_us=1_000_000)
    for _ in range(2):
        with pytest.raises(Unavailable):
            await wire.call("wait", request, soon(0.6))
    assert request.wait_us == 1_000_000
    waits = [op.wait.wait_us for m in server.messages for op in m.operations]
    assert max(waits[1:]) > 200_000
    assert all(0 < w <= 300_000 for w in waits)


async def test_the_clock_follows_every_reply(server: Server, wire: Wire) -> None:
    await wire.hello(soon())
    server.log_time_us = 5_000_000_000
    await commit(wire)
    assert wire.clock.now_us() >= 5_000_000_000


def _calls_that_are_kept() -> list[object]:
    return [x for x in gc.get_objects() if type(x).__name__ == "UnaryUnaryCall"]


async def test_closing_ends_all_that_connects(server: Server, wire: Wire) -> None:
    await server.stop()
    seen = 0

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen += 1
        writer.close()

    listener = await asyncio.start_server(hang_up, "127.0.0.1", server.port)
    before = {id(x) for x in _calls_that_are_kept()}
    gc.disable()  # Not by luck.
    try:
        asking = asyncio.ensure_future(wire.hello(time.monotonic() + 60))
        while seen < 4:  # noqa: ASYNC110 - it is what is waited for
            await asyncio.sleep(0.01)
        await wire.close()
        with pytest.raises(Rejected, match="closed"):
            await asking
        await asyncio.sleep(0)
        # Whatever keeps a call keeps gRPC connecting, again and again.
        assert not [x for x in _calls_that_are_kept() if id(x) not in before]
    finally:
        gc.enable()
        listener.close()
        await listener.wait_closed()
