"""gRPC without gRPC: the SDK's real Session stream and the real servicer, with real protobuf bytes in between."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from txcoord_client._pb import coordinator_pb2 as pb

from .calls import ExecuteCall, error
from .loop import Process

if TYPE_CHECKING:
    from .node import SimNode
    from .world import World

_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]
KEEPALIVE_S = 5.0


class Aborted(Exception):
    """A handler has ended its call with a status."""

    def __init__(self, code: grpc.StatusCode, text: str, trailing: Any) -> None:
        super().__init__(text)
        self.code, self.text, self.trailing = code, text, trailing


class Context:
    """A servicer's context."""

    def __init__(self, until: float | None, now: Callable[[], float]) -> None:
        self._until, self._now = until, now

    def time_remaining(self) -> float | None:
        return None if self._until is None else self._until - self._now()

    async def abort(self, code: grpc.StatusCode, text: str = "", trailing: Any = ()) -> Any:
        raise Aborted(code, text, trailing)


class Channel:
    """A channel of one process to whoever serves at its target: one node by name, or ``any`` of them."""

    def __init__(self, world: World, process: Process, target: str) -> None:
        self._world = world
        self._process = process
        self._target = target

    def unary_unary(self, method: str, **_: Any) -> Any:
        return UnaryCall(self._world, self._process, self._target, method.rsplit("/", 1)[1])

    def unary_stream(self, method: str, **_: Any) -> Any:
        place = self._world.places[self._target.removeprefix("dns:///").partition(":")[0]]
        return partial(ExecuteCall, self._world, self._process, place)

    def stream_stream(self, method: str, **_: Any) -> Any:
        return lambda: Stream(self._world, self._process, self._world.node_at(self._target))

    async def close(self, grace: float | None = None) -> None:
        pass


class UnaryCall:
    """A unary method."""

    def __init__(self, world: World, process: Process, target: str, name: str) -> None:
        self._world, self._process, self._target, self._name = world, process, target, name

    async def __call__(self, request: Any, timeout: float | None = None) -> Any:
        world, process = self._world, self._process
        node = world.node_at(self._target)
        future: asyncio.Future[Any] = world.loop.create_future()
        back = process.context
        until = None if timeout is None else world.loop.now + timeout

        def answer(result: Any) -> None:
            delay = world.net.delay(node.name if node else "?", process.name)
            world.loop.call_later(delay, _settle, future, result, context=back.copy())

        async def serve(process_: Process) -> None:
            try:
                method = getattr(node.servicer, self._name)  # type: ignore[union-attr]
                response = await method(request, Context(until, world.loop.time))
            except Aborted as raised:
                answer(error(raised.code, raised.text, raised.trailing))
            else:
                answer(type(response).FromString(response.SerializeToString()))

        def arrive() -> None:
            if node is None or node.process is None or node.servicer is None or not node.process.alive:
                answer(error(grpc.StatusCode.UNAVAILABLE, "connection refused"))
                return
            node.process.start(serve(node.process), f"rpc.{self._name}")

        world.net.send(world.net.delay(process.name, node.name if node else "?"), arrive)
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            raise error(grpc.StatusCode.DEADLINE_EXCEEDED, "too late") from None


class Stream:
    """A Session: an ordered connection, both ways."""

    def __init__(self, world: World, process: Process, node: SimNode | None) -> None:
        self._world = world
        self._process = process
        self._node = node
        self._server = node.process if node is not None else None
        self._inbox: deque[Any] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._requests: deque[Any] = deque()
        self._asked: asyncio.Future[None] | None = None
        self._up = self._down = 0.0
        self._over = False
        """For the client."""
        self._ended = False
        """For the server."""
        self._serving: asyncio.Task[Any] | None = None
        process.when_dead.append(self._client_gone)
        if self._server is None or not self._server.alive:
            self._break(error(grpc.StatusCode.UNAVAILABLE, "connection refused"))
        else:
            self._server.when_dead.append(self._server_gone)
            world.streams[self] = None
            self._send_up(self._opened)

    # ---- the client's side ----

    async def write(self, message: pb.SessionRequest) -> None:
        if self._over:
            raise asyncio.InvalidStateError("the call has ended")
        self._world.wire_message(self, message.SerializeToString())

    def carry(self, data: bytes, do: str) -> None:
        """Put a message on its way; ``do`` is what becomes of it."""
        process = self._process
        if do == "lose_request":
            self._break(error(grpc.StatusCode.UNAVAILABLE, "connection reset"))
            self._send_up(self._gone)
            return
        late = float(do[4:]) if do.startswith("late") else 0.0
        if late:
            # It arrives after its stream has broken: there it is taken, and nobody hears the answer.
            self._send_up(self._request, data, late=late)
            self._break(error(grpc.StatusCode.UNAVAILABLE, "connection reset"))
            self._send_up(self._gone)
            return
        self._send_up(self._request, data)
        if do == "twice":
            ghost = Stream(self._world, Process(self._world.loop, "ghost"), self._node)
            ghost._send_up(ghost._request, data, late=self._world.net.delay("ghost", "node") * 50)
        elif do == "lose_reply":
            self._send_up(self._gone)
            self._break(error(grpc.StatusCode.UNAVAILABLE, "connection reset"))
        elif do == "crash_client":
            self._world.crash(process)
        elif do.startswith("stop_client"):
            self._world.stop(process, float(do[11:]))

    async def read(self) -> Any:
        while not self._inbox:
            self._reader = self._world.loop.create_future()
            await self._reader
        item = self._inbox[0]
        if isinstance(item, Exception):
            raise item
        if item is not _EOF:
            self._inbox.popleft()
        return item

    def cancel(self) -> None:
        if not self._over:
            self._over = True
            self._send_up(self._gone)

    def _break(self, error: Exception) -> None:
        if not self._over:
            self._over = True
            self._receive(error, self._world.net.delay("?", self._process.name))

    def unheard(self) -> None:
        """Nothing was heard from the other side for too long."""
        if not self._over:
            self._break(error(grpc.StatusCode.UNAVAILABLE, "keepalive timed out"))
            self._send_up(self._gone)

    def between(self, client: str, node: str) -> bool:
        """Is it a stream of these two?"""
        return self._process.name.partition("#")[0] == client and self.node_name == node

    @property
    def node_name(self) -> str:
        return self._node.name if self._node is not None else ""

    @property
    def client_name(self) -> str:
        return self._process.name

    def _client_gone(self) -> None:
        self._over = True
        if self._server is not None:
            self._send_up(self._gone)

    def _server_gone(self) -> None:
        self._ended = True
        self._world.streams.pop(self, None)
        self._break(error(grpc.StatusCode.UNAVAILABLE, "connection reset"))

    def _receive(self, item: Any, delay: float) -> None:
        now = self._world.loop.now
        self._down = max(self._down, now + delay)
        loop = self._world.loop
        loop.call_at(self._down, self._received, item, context=self._process.context)

    def _received(self, item: Any) -> None:
        if isinstance(item, bytes):
            item = pb.SessionResponse.FromString(item)
        self._inbox.append(item)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # ---- the server's side ----

    def _send_up(self, callback: Callable[..., Any], *args: Any, late: float = 0.0) -> None:
        now = self._world.loop.now
        delay = self._world.net.delay(self._process.name, self.node_name) + late
        self._up = max(self._up, now + delay)
        self._world.net.send(self._up - now, callback, *args)

    def _opened(self) -> None:
        server = self._server
        if server is None or not server.alive or self._node is None or self._node.servicer is None:
            self._break(error(grpc.StatusCode.UNAVAILABLE, "connection refused"))
            return
        self._serving = server.start(self._serve(), "session")

    async def _serve(self) -> None:
        assert self._node is not None
        assert self._node.servicer is not None
        context = Context(None, self._world.loop.time)
        last: Any = _EOF
        try:
            async for response in self._node.servicer.Session(self._incoming(), context):
                data = response.SerializeToString()
                if not self._over:
                    self._receive(data, self._world.net.delay(self.node_name, self._process.name))
        except Aborted as raised:
            last = error(raised.code, raised.text, raised.trailing)
        if not self._over:
            self._receive(last, self._world.net.delay(self.node_name, self._process.name))

    async def _incoming(self) -> AsyncIterator[pb.SessionRequest]:
        while True:
            while not self._requests:
                if self._ended:
                    return
                self._asked = self._world.loop.create_future()
                await self._asked
            yield pb.SessionRequest.FromString(self._requests.popleft())

    def _request(self, data: bytes) -> None:
        self._requests.append(data)
        self._nudge()

    def _gone(self) -> None:
        """The client's side is closed. gRPC cancels the handler; what it has begun goes on."""
        self._ended = True
        self._world.streams.pop(self, None)
        server, serving = self._server, self._serving
        if server is None or not server.alive or serving is None:
            return
        if self._requests:
            # Taken before it is known that nobody listens.
            self._nudge()
        self._world.loop.call_soon(self._nudge_then_cancel, 4, context=server.context)

    def _nudge_then_cancel(self, turns: int) -> None:
        # What has arrived is read first: it could have come a moment earlier.
        if self._requests and turns:
            self._nudge()
            self._world.loop.call_soon(
                self._nudge_then_cancel,
                turns - 1,
                context=self._server.context,  # type: ignore[union-attr]
            )
        elif self._serving is not None:
            self._serving.cancel()

    def _nudge(self) -> None:
        if self._server is not None and self._server.alive:
            self._world.loop.call_soon(self._wake, context=self._server.context)

    def _wake(self) -> None:
        if self._asked is not None and not self._asked.done():
            self._asked.set_result(None)


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
