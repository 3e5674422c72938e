"""The ASGI middleware against the protocol's own rules, with a transaction of straw."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest

from tests.unit.test_carrying import TX, Tx, context
from txcoord_client import _carrying
from txcoord_client._pb import common_pb2 as c
from txcoord_client.asgi import Application, Message, Middleware
from txcoord_client.sync import _services

HEADER = _carrying.context_header(context()).encode()


class Door:
    """Lets every transaction in; remembers in what order things happened."""

    def __init__(self) -> None:
        self.namespace = "default"
        self.current: ContextVar[Any] = ContextVar("current", default=None)
        self.tx = Tx()
        self.order: list[str] = []
        self.fails = ""

    async def join(self, context: c.CallContext) -> Any:
        self.order.append("join")
        return self.tx

    async def leave(self, tx: Any) -> None:
        if self.fails and not tx.rollback_only:
            tx.set_rollback_only(self.fails, "it failed")
        self.order.append("undone" if tx.rollback_only else "prepared")


class Server:
    """The side of the server: gives the request, gets the reply."""

    def __init__(self, door: Door, body: tuple[bytes, ...] = (b"",), *, hangs_up: bool = False) -> None:
        self.door = door
        self.replies: list[Message] = []
        self._incoming: list[Message] = [
            {"type": "http.request", "body": part, "more_body": i < len(body) - 1}
            for i, part in enumerate(body)
        ]
        if hangs_up:
            self._incoming.append({"type": "http.disconnect"})

    async def receive(self) -> Message:
        if self._incoming:
            return self._incoming.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Message) -> None:
        self.door.order.append(message["type"].removeprefix("http.response."))
        self.replies.append(message)

    async def run(self, app: Application, **scope: Any) -> None:
        request = {"type": "http", "headers": [(b"txcoord-context", HEADER), (b"host", b"x")], **scope}
        async with asyncio.timeout(5):
            await Middleware(app, self.door)(request, self.receive, self.send)

    @property
    def status(self) -> int:
        return int(self.replies[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.replies)

    @property
    def vote(self) -> c.CallVote:
        values = [v.decode() for k, v in self.replies[0]["headers"] if k.lower() == b"txcoord-vote"]
        vote = _carrying.vote_in(values)
        assert vote is not None
        return vote


def start(status: int = 200, *headers: tuple[bytes, bytes], **more: Any) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers), **more}


def chunk(body: bytes = b"", more: bool = False) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


@pytest.fixture
def door() -> Door:
    return Door()


async def test_nothing_leaves_before_the_application_has_returned_and_it_is_prepared(door: Door) -> None:
    """A `yield` dependency ends, and a background task runs, after the body was sent."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(chunk(b"a", True))
        await send(chunk(b"b"))
        await asyncio.sleep(0)
        assert door.current.get() is door.tx
        door.order.append("returned")

    server = Server(door)
    await server.run(app)
    assert door.order == ["join", "returned", "prepared", "start", "body", "body"]
    assert (server.status, server.body, server.vote.tx_id, server.vote.branch) == (200, b"ab", TX, "3")
    assert not server.vote.rollback_only
    assert door.current.get() is None


@pytest.mark.parametrize("scope", [{"type": "lifespan"}, {"type": "websocket", "headers": []}])
async def test_other_protocols_and_plain_requests_pass(door: Door, scope: dict[str, Any]) -> None:
    seen: list[Any] = []

    async def app(*what: Any) -> None:
        seen.append(what)

    server = Server(door)
    plain = {"type": "http", "headers": [(b"host", b"x")]}
    for each in (scope, plain):
        await Middleware(app, door)(each, server.receive, server.send)
    assert seen == [(scope, server.receive, server.send), (plain, server.receive, server.send)]
    assert not door.order


async def test_extensions_that_would_pass_by_are_hidden(door: Door) -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope["extensions"])
        await send(start())
        await send(chunk())

    given = {
        "tls": {},
        "http.response.trailers": {},
        "http.response.pathsend": {},
        "http.response.zerocopysend": {},
    }
    await Server(door).run(app, extensions=given)
    assert set(seen) == {"tls", "http.response.trailers"}


async def test_trailers_come_after_the_body(door: Door) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(trailers=True))
        await send(chunk(b"x"))
        await send({"type": "http.response.trailers", "headers": [(b"sum", b"1")], "more_trailers": False})

    server = Server(door)
    await server.run(app)
    assert door.order[-3:] == ["start", "body", "trailers"]
    assert server.replies[-1]["headers"] == [(b"sum", b"1")]


async def test_to_the_application_its_reply_has_left(door: Door) -> None:
    """Who watches for a disconnect until the reply has left would wait for ever."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        watch = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        await send(start())
        await send(chunk())
        assert (await watch)["type"] == "http.disconnect"
        assert (await receive())["type"] == "http.disconnect"

    server = Server(door)
    await server.run(app)
    assert (server.status, server.vote.rollback_only) == (200, False)


async def test_a_body_in_parts_arrives_whole(door: Door) -> None:
    got: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            got.append(message["body"])
            more = message["more_body"]
        await send(start())
        await send(chunk())

    await Server(door, (b"a", b"b", b"c")).run(app)
    assert got == [b"a", b"b", b"c"]


async def test_an_event_stream_is_refused_at_its_first_word(door: Door) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(200, (b"Content-Type", b"text/event-stream")))
        while True:
            await send(chunk(b"data: 1\n\n", True))

    server = Server(door)
    with pytest.raises(Exception, match="event-stream"):
        await server.run(app)
    assert (server.status, server.vote.reason, door.order[1]) == (501, "NOT_SUPPORTED", "undone")


async def test_a_reply_that_is_too_large_is_refused(door: Door) -> None:
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send(start())
        while True:
            await send(chunk(b"x" * 65536, True))
            sent += 65536

    server = Server(door)
    with pytest.raises(Exception, match="more than 4194304 bytes"):
        await server.run(app)
    assert (server.status, server.vote.reason, sent) == (500, "TOO_LARGE", 4 * 1024 * 1024)


async def test_one_of_exactly_that_size_is_not(door: Door) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(chunk(b"x" * (4 * 1024 * 1024)))

    server = Server(door)
    await server.run(app)
    assert (server.status, server.vote.rollback_only) == (200, False)


@pytest.mark.parametrize("messages", [[], [start()], [start(), chunk(b"half", True)]])
async def test_an_application_that_stops_half_way_is_a_no(door: Door, messages: list[Message]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    server = Server(door)
    await server.run(app)
    assert (server.status, server.vote.reason) == (500, "APPLICATION_ERROR")


async def test_an_exception_after_the_reply_replaces_it_and_reaches_the_server(door: Door) -> None:
    """As the commit of a `yield` dependency that fails."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(chunk(b"all well"))
        raise RuntimeError("the commit failed")

    server = Server(door)
    with pytest.raises(RuntimeError, match="the commit failed"):
        await server.run(app)
    assert (server.status, server.vote.rollback_only, door.order[1]) == (500, True, "undone")
    assert b"all well" not in server.body


async def test_an_exception_that_the_framework_answered_comes_with_its_reply(door: Door) -> None:
    """Starlette sends a 500 of its own, and raises on."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(500))
        await send(chunk(b"Internal Server Error"))
        raise RuntimeError("bug")

    server = Server(door)
    with pytest.raises(RuntimeError, match="bug"):
        await server.run(app)
    assert (server.status, server.body, server.vote.reason) == (
        500,
        b"Internal Server Error",
        "APPLICATION_ERROR",
    )


async def test_a_failed_prepare_replaces_the_reply(door: Door) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(chunk(b"all well"))

    door.fails = "PREPARE_FULL"
    server = Server(door)
    await server.run(app)
    assert (server.status, server.vote.reason) == (503, "PREPARE_FULL")
    assert b"all well" not in server.body


async def test_a_vote_that_the_application_passes_on_is_replaced(door: Door) -> None:
    """A service that hands a reply through, headers and all, must not vote for another."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(200, (b"Txcoord-Vote", b"AAAA")))
        await send(chunk())

    server = Server(door)
    await server.run(app)
    assert server.vote.tx_id == TX


async def test_a_caller_who_hung_up_gets_nothing_prepared(door: Door) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(chunk())

    server = Server(door, (b"unread",), hangs_up=True)
    await server.run(app)
    assert (server.vote.reason, door.order[1]) == ("VOTE_MISSING", "undone")


async def test_a_cancelled_application_is_undone(door: Door) -> None:
    inside = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        inside.set()
        await asyncio.Event().wait()

    server = Server(door)
    task = asyncio.ensure_future(server.run(app))
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert door.order == ["join", "undone"]


async def test_messages_out_of_order_are_refused(door: Door) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(RuntimeError, match="unexpected"):
            await send(chunk())
        await send(start())
        with pytest.raises(RuntimeError, match="unexpected"):
            await send(start())
        await send(chunk())
        with pytest.raises(RuntimeError, match="unexpected"):
            await send(chunk(b"more"))

    server = Server(door)
    await server.run(app)
    assert (server.status, server.body) == (200, b"")


async def test_a_cancelled_waiting_does_not_keep_a_thread_from_leaving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All threads are busy: what has not begun could be cancelled, and the branch would stay open for ever."""
    left: list[Any] = []
    monkeypatch.setattr(_services._joining, "left", left.append)
    loop, busy = asyncio.get_running_loop(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        loop.set_default_executor(pool)
        loop.run_in_executor(None, busy.wait)
        tx: Any = object()
        leaving = asyncio.ensure_future(_services.ThreadDoor(Door()).leave(tx))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        busy.set()
    assert left == [tx]
