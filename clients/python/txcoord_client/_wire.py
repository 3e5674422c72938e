"""The wire: one Session stream to the coordinator, on which many operations of many transactions travel.

While one message is being written the next one fills, so that a busy process sends few; an idle one sends at
once. Every operation can be sent again: when the stream breaks, what is open goes out on the next one, the same
content, until its caller's time is up.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from . import _refusals
from ._aio import Task, Tasks
from ._clock import LogClock
from ._pb import common_pb2 as c
from ._pb import coordinator_pb2 as pb
from ._pb import coordinator_pb2_grpc as rpc
from .errors import AlreadyAborted, AlreadyCommitted, Rejected, TxcoordError, Unavailable
from .protocol import reasons

log = logging.getLogger("txcoord.client")
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 0.5
_TURNS = 3
"""Turns of the loop before a message leaves: what is ready in them travels along. Not a timer: an idle loop turns
at once."""
_OVERHEAD_BYTES = 1_024
_REPLY_S = 0.3
"""A wait ends so much before its caller's time is up, so that the answer is there in time."""
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
)


class _Lost(Exception):
    """The stream broke: whether the operation was done is unknown."""


class _Open:
    """One operation on its way."""

    __slots__ = ("future", "operation", "size")

    def __init__(
        self, operation: pb.Operation, size: int, future: asyncio.Future[pb.OperationResult]
    ) -> None:
        self.operation = operation
        self.size = size
        self.future = future


class Wire:
    """The connection of one process and event loop to the coordinator."""

    def __init__(self, address: str, namespace: str, *, version: str, max_operations: int = 1_000) -> None:
        self.clock = LogClock()
        self.tasks = Tasks()
        self.messages_sent = 0
        """Stream messages and unary calls sent, for the cost counters."""
        self._namespace = namespace
        self._version = version
        self._max_operations = max_operations
        self._max_bytes = 4 * 1024 * 1024
        self._channel = grpc.aio.insecure_channel(_target(address), options=_OPTIONS)
        self._stub: Any = rpc.CoordinatorServiceStub(self._channel)
        self._hello: pb.HelloResponse | None = None
        self._saying_hello: asyncio.Task[pb.HelloResponse] | None = None
        self._numbers = itertools.count(1)
        self._queue: deque[_Open] = deque()
        self._kick: asyncio.Future[None] | None = None
        self._runner: asyncio.Task[None] | None = None
        self._closed = False

    # ---- hello ----

    async def hello(self, until: float, *, fresh: bool = False) -> pb.HelloResponse:
        """Who is there; asked once for all callers. ``until`` is by the loop's clock."""
        if self._hello is not None and not fresh:
            return self._hello
        loop = asyncio.get_running_loop()
        while True:
            task, own = self._saying_hello, False
            if task is None or task.done():
                task, own = loop.create_task(self._say_hello(until)), True
                task.add_done_callback(_retrieve)
                self._saying_hello = task
            done, _ = await asyncio.wait({task}, timeout=max(until - loop.time(), 0.0))
            if not done:
                raise Unavailable("the coordinator has not said hello in time", definite=True)
            try:
                return task.result()
            except Unavailable:
                # Whoever asked may have had less time than we have.
                if own or loop.time() >= until:
                    raise

    async def _say_hello(self, until: float) -> pb.HelloResponse:
        request = pb.HelloRequest(
            namespace=self._namespace,
            client="txcoord-client-python",
            client_version=self._version,
            instance=f"{socket.gethostname()}/{os.getpid()}",
        )

        async def once(left: float) -> pb.HelloResponse:
            self.messages_sent += 1
            try:
                answer: pb.HelloResponse = await self._stub.Hello(request, timeout=min(left, 5.0))
            except grpc.aio.AioRpcError as error:
                refusal = _refusals.error_of_call(error)
                refusal.definite = True  # Hello does nothing.
                raise refusal from error
            return answer

        self._hello = await self._retrying(once, until)
        self.clock.observe(self._hello.log_time_us)
        limits = self._hello.limits
        self._max_operations = limits.max_operations or self._max_operations
        self._max_bytes = limits.max_message_bytes or self._max_bytes
        return self._hello

    @property
    def known(self) -> pb.HelloResponse | None:
        """What it has said, if it is still so."""
        return self._hello

    @property
    def under_way(self) -> int:
        """How many operations that nobody waits for have no answer yet."""
        return len(self.tasks)

    # ---- operations ----

    async def call(self, name: str, request: Any, until: float, *, tx_id: str = "", gid: str = "") -> Any:
        """Send an operation, again if need be, until ``until`` (by the loop's clock).

        Raises the SDK's errors; Unavailable that is not definite means that it may have been done.
        """

        async def once(left: float) -> Any:
            if getattr(request, "wait_us", 0):
                # Also when it is sent again: an answer that comes after our time is none.
                request.wait_us = max(min(request.wait_us, int((left - _REPLY_S) * 1e6)), 1)
            result = await self._send(name, request, left)
            if result.HasField("status"):
                raise _refusals.error_of(result.status, tx_id=tx_id, gid=gid)
            return getattr(result, name)

        return await self._retrying(once, until)

    def tell(
        self, name: str, request: Any, until: float, unheard: str, *, tx_id: str = "", gid: str = ""
    ) -> Task[Any]:
        """Send an operation whose answer nobody needs; one that is not answered is logged as ``unheard``."""
        return self.tasks.spawn(
            f"txcoord.{name}:{tx_id}", self._told, name, request, until, unheard, tx_id, gid
        )

    async def _told(self, name: str, request: Any, until: float, unheard: str, tx_id: str, gid: str) -> Any:
        try:
            return await self.call(name, request, until, tx_id=tx_id, gid=gid)
        except TxcoordError as error:
            log.warning("%s of %s: %s", unheard, tx_id, error)
            return None

    async def unary(self, name: str, request: Any, until: float) -> Any:
        """A call that has no operation of its own in a Session."""

        async def once(left: float) -> Any:
            self.messages_sent += 1
            try:
                return await getattr(self._stub, name)(request, timeout=left)
            except grpc.aio.AioRpcError as error:
                raise _refusals.error_of_call(error) from error

        return await self._retrying(once, until)

    async def _retrying(self, once: Callable[[float], Awaitable[Any]], until: float) -> Any:
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE_S
        maybe_done = False
        while True:
            left = until - loop.time()
            try:
                return await once(max(left, 0.001))
            except (AlreadyCommitted, AlreadyAborted):
                raise
            except TxcoordError as error:
                # If any try may have been done, the whole may have been done: that this one was refused says
                # nothing of those before, unless it tells the outcome.
                maybe_done = maybe_done or not error.definite
                if not isinstance(error, Unavailable):
                    if maybe_done and error.outcome is None:
                        error.definite = False
                    raise
                wait = max(error.retry_after, pause * (0.5 + random.random() / 2))
                if loop.time() + wait >= until or self._closed:
                    error.definite = not maybe_done
                    raise
            await asyncio.sleep(wait)
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    async def _send(self, name: str, request: Any, left: float) -> pb.OperationResult:
        if self._closed:
            raise Rejected("this Coordinator is closed", reason="CLOSED")
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        operation = pb.Operation(op_id=number)
        getattr(operation, name).CopyFrom(request)
        size = operation.ByteSize()
        if size > self._max_bytes - _OVERHEAD_BYTES:
            raise Rejected(
                f"{name}: {size} bytes are more than the coordinator takes ({self._max_bytes})",
                reason=reasons.TOO_LARGE,
            )
        item = _Open(operation, size, loop.create_future())
        self._queue.append(item)
        self._wake()
        timer = loop.call_later(left, _give_up, item.future)
        try:
            return await item.future
        except _Lost as lost:
            raise Unavailable(str(lost), definite=False) from None
        finally:
            timer.cancel()

    def _wake(self) -> None:
        if self._runner is None or self._runner.done():
            self._runner = asyncio.get_running_loop().create_task(self._run(), name="txcoord.wire")
        elif self._kick is not None and not self._kick.done():
            self._kick.set_result(None)

    async def _run(self) -> None:
        """One stream, as long as it lasts. The next operation after its end starts the next one."""
        call = self._stub.Session()
        sent: dict[int, _Open] = {}
        reader = asyncio.get_running_loop().create_task(self._read(call, sent), name="txcoord.wire.read")
        first = True
        trouble: BaseException | None = None
        try:
            while not reader.done():
                if not self._queue:
                    self._kick = asyncio.get_running_loop().create_future()
                    await asyncio.wait({self._kick, reader}, return_when=asyncio.FIRST_COMPLETED)
                    continue
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
                message = pb.SessionRequest()
                if first:
                    message.namespace = self._namespace
                    if self._hello is not None:
                        message.log_id = self._hello.log_id
                    first = False
                self._take_into(message, sent)
                if message.operations:
                    self.messages_sent += 1
                    await call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            trouble = error
        finally:
            self._runner = None
            call.cancel()
            reader.cancel()
            result = (await asyncio.gather(reader, return_exceptions=True))[0]
            self._lose(sent, result if isinstance(result, Exception) else trouble)
            if self._queue and not self._closed:
                self._wake()

    def _take_into(self, message: pb.SessionRequest, sent: dict[int, _Open]) -> None:
        size = _OVERHEAD_BYTES
        while self._queue and len(message.operations) < self._max_operations:
            item = self._queue[0]
            if item.future.done():
                self._queue.popleft()
                continue  # Its caller has given up.
            # Each comes with its tag and length.
            size += item.size + 16
            if size > self._max_bytes and message.operations:
                return
            self._queue.popleft()
            sent[item.operation.op_id] = item
            message.operations.append(item.operation)

    async def _read(self, call: Any, sent: dict[int, _Open]) -> None:
        while True:
            response = await call.read()
            if response is _EOF:
                return
            self.clock.observe(response.log_time_us)
            for result in response.results:
                item = sent.pop(result.op_id, None)
                if item is not None and not item.future.done():
                    item.future.set_result(result)

    def _lose(self, sent: dict[int, _Open], error: BaseException | None) -> None:
        """The stream is gone: whoever waits for an answer sends again."""
        text = "the stream to the coordinator ended"
        refusal: grpc.aio.AioRpcError | None = None
        if isinstance(error, grpc.aio.AioRpcError):
            text = f"{error.code().name}: {error.details()}"
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                # Another log than the one that Hello told of: what is open was meant for that one.
                self._hello = None
                refusal = error
        for item in sent.values():
            if not item.future.done():
                item.future.set_exception(_Lost(text) if refusal is None else _refused(refusal))
                item.future.exception()  # Its caller may have gone.

    async def drain(self, seconds: float) -> list[str]:
        """Let what was told arrive; the names of what has not."""
        return await self.tasks.drain(seconds)

    async def close(self) -> None:
        """End the stream and the channel."""
        self._closed = True
        runner = self._runner
        if runner is not None:
            runner.cancel()
            await asyncio.gather(runner, return_exceptions=True)
        for item in self._queue:
            if not item.future.done():
                item.future.set_exception(_Lost("the Coordinator was closed"))
        await self._channel.close(None)


def _refused(call: grpc.aio.AioRpcError) -> TxcoordError:
    error = _refusals.error_of_call(call)
    error.definite = False
    return error


def _give_up(future: asyncio.Future[pb.OperationResult]) -> None:
    if not future.done():
        future.set_exception(_Lost("no answer in time"))


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _target(address: str) -> str:
    """A gRPC target; ``grpc://host:port`` is forgiven."""
    return address.removeprefix("grpc://")


def wait_level(name: str) -> c.WaitLevel:
    """The wire's name of a wait level."""
    try:
        return _LEVELS[name]
    except KeyError:
        known = ", ".join(_LEVELS)
        raise Rejected(f"wait={name!r}: one of {known}", reason=reasons.BAD_REQUEST) from None


_LEVELS: dict[str, c.WaitLevel] = {
    "accepted": c.WAIT_LEVEL_ACCEPTED,
    "decided": c.WAIT_LEVEL_DECIDED,
    "committed": c.WAIT_LEVEL_COMMITTED,
    "delivered": c.WAIT_LEVEL_DELIVERED,
}
LEVELS: Sequence[str] = tuple(_LEVELS)
