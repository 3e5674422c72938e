"""gRPC without a port: the SDK's channel to a coordinator in process, with real messages in between.

One side runs on the loop of whoever uses the SDK, the other on the coordinator's.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NoReturn, Protocol, TypeVar

import grpc

from txcoord_client._pb import coordinator_pb2 as pb

from ...api.grpc import status
from ...core.errors import Refusal, Refused
from .loop import BELONGS_TO, Gone, Loop, start_on
from .node import Node

T = TypeVar("T")


class House(Protocol):
    """Where the coordinator is."""

    loop: Loop

    def used_here(self) -> None: ...

    def own(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]: ...

    def unary(self, name: str, data: bytes, timeout: float | None) -> Coroutine[Any, Any, Any]: ...

    async def up(self) -> Node | None: ...


_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]
_FOR_GOOD_US = 86_400_000_000
"""Whoever is told to come back so late gives up at once: its time is real, and no test should wait for it."""
Find = Callable[[], House | None]
"""The house of the test that runs now: a Coordinator of a module outlives a test, and what it connected to."""


_OVER = "the test of this coordinator is over: it is there while the fixture `txcoord` is"


class Aborted(Exception):
    """A handler has ended its call with a status."""

    def __init__(self, code: grpc.StatusCode, text: str, trailing: Any) -> None:
        super().__init__(text)
        self.code, self.text, self.trailing = code, text, trailing

    def error(self) -> grpc.aio.AioRpcError:
        """As the client sees it."""
        trailing = grpc.aio.Metadata(*(self.trailing or ()))
        return grpc.aio.AioRpcError(self.code, grpc.aio.Metadata(), trailing, self.text, self.text)


class Context:
    """A servicer's context."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout

    def time_remaining(self) -> float | None:
        """Seconds that the client still waits."""
        return self._timeout

    async def abort(self, code: grpc.StatusCode, text: str = "", trailing: Any = ()) -> NoReturn:
        """End the call."""
        raise Aborted(code, text, trailing)


async def away(message: str, *, for_good: bool) -> grpc.aio.AioRpcError:
    """The error of a coordinator that is not there."""
    try:
        await status.abort(
            Context(None),
            Refused(
                Refusal(
                    "UNAVAILABLE",
                    "UNAVAILABLE",
                    message,
                    False,
                    retry_after_us=_FOR_GOOD_US if for_good else 0,
                )
            ),
        )
    except Aborted as aborted:
        return aborted.error()


class Channel:
    """What the SDK has instead of a channel of gRPC."""

    def __init__(self, find: Find) -> None:
        self._find = find

    def unary_unary(self, method: str, **_: Any) -> Any:
        """A unary method of the coordinator."""
        name = method.rsplit("/", 1)[1]

        async def call(request: Any, timeout: float | None = None, **_: Any) -> Any:
            house = self._find()
            if house is None:
                raise await away(_OVER, for_good=True)
            house.used_here()
            work = house.unary(name, request.SerializeToString(), timeout)
            try:
                answer = await asyncio.wrap_future(start_on(house.loop, work))
            except Gone as gone:
                raise await away(str(gone), for_good=True) from None
            if isinstance(answer, grpc.aio.AioRpcError):
                raise answer
            return type(answer).FromString(answer.SerializeToString())

        return call

    def stream_stream(self, method: str, **_: Any) -> Any:
        """The Session."""

        def open_(**_: Any) -> Stream:
            house = self._find()
            if house is None:
                raise Aborted(grpc.StatusCode.UNAVAILABLE, _OVER, ()).error()
            house.used_here()
            return Stream(house)

        return open_

    def unary_stream(self, method: str, **_: Any) -> Any:
        """None is used."""
        return None

    def stream_unary(self, method: str, **_: Any) -> Any:
        """None is used."""
        return None

    async def close(self, grace: float | None = None) -> None:
        """Nothing is open."""


class Stream:
    """A Session. What begins with ``_s`` belongs to the coordinator's loop, the rest to the SDK's."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Any] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._over = False
        self._s_requests: deque[pb.SessionRequest] = deque()
        self._s_asked: asyncio.Future[None] | None = None
        self._s_ended = False
        self._s_serving: asyncio.Task[None] | None = None
        self._s_open = 0
        """Operations without an answer."""
        self._up(self._s_start)

    # ---- the SDK's side ----

    async def write(self, message: pb.SessionRequest) -> None:
        """Send."""
        if self._over:
            raise asyncio.InvalidStateError("the call has ended")
        self._up(self._s_take, message.SerializeToString())

    async def read(self) -> Any:
        """The next message, or EOF. Raises AioRpcError."""
        while not self._inbox:
            self._reader = self._loop.create_future()
            await self._reader
        item = self._inbox[0]
        if isinstance(item, Exception):
            raise item
        if item is not _EOF:
            self._inbox.popleft()
        return item

    def cancel(self) -> None:
        """Nobody listens any more."""
        if not self._over:
            self._over = True
            self._up(self.break_off)

    def _received(self, item: Any) -> None:
        if isinstance(item, bytes):
            item = pb.SessionResponse.FromString(item)
        elif isinstance(item, Exception):
            self._over = True
        self._inbox.append(item)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _up(self, callback: Any, *args: Any) -> None:
        try:
            self._house.loop.call_soon_threadsafe(callback, *args, context=contextvars.Context())
        except RuntimeError:
            self._received(Aborted(grpc.StatusCode.UNAVAILABLE, _OVER, ()).error())

    # ---- the coordinator's side ----

    def _s_start(self) -> None:
        self._s_serving = self._house.own(self._s_serve())

    def _s_take(self, data: bytes) -> None:
        request = pb.SessionRequest.FromString(data)
        self._s_open += len(request.operations)
        if not self._s_ended:
            self._house.loop.waiting += len(request.operations)
        self._s_requests.append(request)
        if self._s_asked is not None and not self._s_asked.done():
            self._s_asked.set_result(None)

    def break_off(self) -> None:
        """Also when its node dies."""
        if self._s_serving is not None:
            self._s_serving.cancel()

    async def _s_serve(self) -> None:
        last: Any = None
        try:
            node = await self._house.up()
            if node is None:
                last = await away("the coordinator is down", for_good=True)
                return
            node.streams.add(self)
            BELONGS_TO.set(node.tasks)
            try:
                await self._s_session(node)
            finally:
                node.streams.discard(self)
            last = _EOF
        except Aborted as aborted:
            last = aborted.error()
        except asyncio.CancelledError:
            last = await away("the coordinator has died", for_good=False)
        finally:
            self._s_ended = True
            self._house.loop.waiting -= self._s_open
            if last is not None:
                self._down(last)

    async def _s_session(self, node: Node) -> None:
        async for response in node.servicer.Session(self._s_incoming(), Context(None)):
            if node.dead:
                raise asyncio.CancelledError
            self._s_open -= len(response.results)
            self._house.loop.waiting -= len(response.results)
            self._down(response.SerializeToString())

    async def _s_incoming(self) -> AsyncIterator[pb.SessionRequest]:
        while True:
            while not self._s_requests:
                self._s_asked = self._house.loop.create_future()
                await self._s_asked
            yield self._s_requests.popleft()

    def _down(self, item: Any) -> None:
        with contextlib.suppress(RuntimeError):  # Whoever listened is gone.
            self._loop.call_soon_threadsafe(self._received, item, context=contextvars.Context())
