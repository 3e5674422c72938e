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
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc

from . import _refusals
from ._aio import Task, Tasks
from ._asking import ask
from ._clock import LogClock
from ._levels import wait_level
from ._nodes import Node, Nodes
from ._pb import coordinator_pb2 as pb
from ._registering import Registrations
from ._streams import Lost, Open, Stream
from .access import Access
from .errors import AlreadyAborted, AlreadyCommitted, Rejected, TxcoordError, Unavailable
from .protocol import reasons

__all__ = ["Wire", "wait_level"]

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
# Where there is another coordinator to go to:
_HELLO_S = 2.0
_SILENT_S = 1.0
"""So long nothing may be heard of what is open, before the coordinator is asked whether it is there."""
_LOG_AWAY_S = 1.0
"""So long it may answer that its log is away."""


class Wire:
    """The connection of one process and event loop to the coordinator, or to one of several."""

    def __init__(
        self,
        address: str,
        namespace: str,
        *,
        version: str,
        call_timeout: float = 5.0,
        max_operations: int = 1_000,
        access: Access | None = None,
    ) -> None:
        self.clock = LogClock()
        self.tasks = Tasks()
        self.messages_sent = 0
        """Stream messages and unary calls sent, for the cost counters."""
        self._namespace = namespace
        self._version = version
        self._call_timeout = call_timeout
        self._max_operations = max_operations
        self._max_bytes = 4 * 1024 * 1024
        self._nodes = Nodes(address, access or Access(), lambda: random.random())
        self._registrations = told = Registrations(self._nodes)
        self.register, self.deregister = told.add, told.remove
        self.ask: Callable[[str, Any, float], Awaitable[Any]] = lambda *what: ask(self, *what)
        self._hello: pb.HelloResponse | None = None
        self._saying_hello: asyncio.Task[pb.HelloResponse] | None = None
        self._numbers = itertools.count(1)
        self._queue: deque[Open] = deque()
        self._kick: asyncio.Future[None] | None = None
        self._runner: asyncio.Task[None] | None = None
        self._ending: dict[asyncio.Task[None], None] = {}
        """Streams that were left, and probes."""
        self._closed = False

    # ---- hello ----

    async def hello(self, until: float, *, fresh: bool = False) -> pb.HelloResponse:
        """Who is there; asked once for all callers. ``until`` is by the loop's clock."""
        if self._hello is not None and not fresh:
            return self._hello
        if self._closed:
            raise self._is_closed()
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
            if task.cancelled():
                raise self._is_closed()
            try:
                return task.result()
            except Unavailable:
                # Whoever asked may have had less time than we have.
                if own or loop.time() >= until:
                    raise

    @staticmethod
    def _is_closed() -> Rejected:
        return Rejected("this Coordinator is closed", reason="CLOSED")

    async def _say_hello(self, until: float) -> pb.HelloResponse:
        async def once(left: float) -> pb.HelloResponse:
            return await self._greet(await self._nodes.pick(), left)

        answer: pb.HelloResponse = await self._retrying(once, until)
        return answer

    async def _greet(self, node: Node, left: float) -> pb.HelloResponse:
        """Say hello to this one. Raises Unavailable where it is to be said again, perhaps to another."""
        limit = self._hello_s if self._nodes.several else 5.0
        try:
            answer = await self._ask_hello(node, min(left, limit))
        except grpc.aio.AioRpcError as error:
            refusal = _refusals.error_of_call(error)
            refusal.definite = True  # Hello does nothing.
            if isinstance(refusal, Unavailable):
                self._nodes.leave(node)
            try:
                raise refusal from error
            finally:
                # Its frame and it would keep each other, the call, and so what connects, until all is collected.
                del refusal
        known = self._hello if self._nodes.several else None
        if known is not None and known.log_id not in (answer.log_id, *answer.earlier_log_ids):
            # What was begun under one log would be unknown in the other. (One that was restored is the same log.)
            self._nodes.leave(node)
            raise Unavailable(
                f"the coordinator at {node.address} has the log {answer.log_id}, the one before had {known.log_id}: "
                "all addresses of one Coordinator must share a log",
                reason=reasons.OTHER_LOG,
                definite=True,
            )
        self._hello = node.hello = answer
        self.clock.observe(answer.log_time_us)
        self._max_operations = answer.limits.max_operations or self._max_operations
        self._max_bytes = answer.limits.max_message_bytes or self._max_bytes
        return answer

    async def _ask_hello(self, node: Node, timeout: float) -> pb.HelloResponse:
        self.messages_sent += 1
        request = pb.HelloRequest(
            namespace=self._namespace,
            client="txcoord-client-python",
            client_version=self._version,
            instance=f"{socket.gethostname()}/{os.getpid()}",
        )
        answer: pb.HelloResponse = await node.call("Hello", request, timeout)
        return answer

    @property
    def _hello_s(self) -> float:
        return self._nodes.share(self._call_timeout - _SILENT_S, _HELLO_S)

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
            raise self._is_closed()
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        operation = pb.Operation(op_id=number)
        sent = getattr(operation, name)
        sent.CopyFrom(request)
        if getattr(sent, "wait_us", 0):  # Also when it is sent again: an answer after our time is none.
            sent.wait_us = max(min(sent.wait_us, int((left - _REPLY_S) * 1e6)), 1)
        size = operation.ByteSize()
        if size > self._max_bytes - _OVERHEAD_BYTES:
            raise Rejected(
                f"{name}: {size} bytes are more than the coordinator takes ({self._max_bytes})",
                reason=reasons.TOO_LARGE,
            )
        item = Open(operation, size, loop.create_future())
        self._queue.append(item)
        self._wake()
        timer = loop.call_later(left, _give_up, item.future)
        try:
            return await item.future
        except Lost as lost:
            raise Unavailable(str(lost), definite=False, retry_after=lost.retry_after) from None
        finally:
            timer.cancel()

    def _wake(self) -> None:
        if self._runner is None or self._runner.done():
            self._runner = asyncio.get_running_loop().create_task(self._run(), name="txcoord.wire")
        elif self._kick is not None and not self._kick.done():
            self._kick.set_result(None)

    async def _run(self) -> None:
        """One stream, as long as it lasts and is not left. The next operation after its end starts the next one."""
        stream: Stream | None = None
        first = True
        trouble: BaseException | None = None
        try:
            stream = await self._open()
            while stream is not None and not stream.reader.done() and not stream.leaving:
                if not self._queue:
                    self._kick = asyncio.get_running_loop().create_future()
                    await asyncio.wait({self._kick, stream.reader}, return_when=asyncio.FIRST_COMPLETED)
                    continue
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
                if stream.leaving:
                    break
                message = pb.SessionRequest()
                if first:
                    message.namespace = self._namespace
                    if self._hello is not None:
                        message.log_id = self._hello.log_id
                    first = False
                self._take_into(message, stream)
                if message.operations:
                    self.messages_sent += 1
                    await stream.call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError) as error:
            trouble = error
        finally:
            self._runner = None
            if stream is not None:
                if stream.leaving and trouble is None and not stream.reader.done() and not self._closed:
                    self._aside(self._see_off(stream))
                else:
                    await self._end(stream, trouble)
            if self._queue and not self._closed:
                self._wake()

    async def _open(self) -> Stream | None:
        """A stream to the coordinator that is to be asked now; None: it does not answer, try the next one."""
        loop = asyncio.get_running_loop()
        node = await self._nodes.pick()
        if self._nodes.several and node.hello is None:
            away_s = node.away_until - loop.time()
            if away_s > 0:
                await asyncio.sleep(min(away_s, _LONGEST_PAUSE_S))  # None is well.
            try:
                await self._greet(node, self._hello_s)
            except TxcoordError as error:
                log.info("the coordinator at %s cannot be used: %s", node.address, error)
                self._nodes.leave(node)
                return None
        stream = Stream(node)
        node.users += 1
        stream.heard_at = loop.time()
        stream.reader = loop.create_task(self._read(stream), name="txcoord.wire.read")
        return stream

    async def _see_off(self, stream: Stream) -> None:
        """What is open on a stream that was left is still answered."""
        stream.retire()
        try:
            await asyncio.wait({stream.emptied, stream.reader}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._end(stream, None)

    async def _end(self, stream: Stream, trouble: BaseException | None) -> None:
        stream.node.users -= 1
        if stream.timer is not None:
            stream.timer.cancel()
        stream.call.cancel()
        stream.reader.cancel()
        result = (await asyncio.gather(stream.reader, return_exceptions=True))[0]
        if not stream.leaving:
            self._nodes.leave(stream.node)
        self._lose(stream, result if isinstance(result, Exception) else trouble)

    def _aside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="txcoord.wire.aside")
        self._ending[task] = None
        task.add_done_callback(self._ending.pop)

    def _take_into(self, message: pb.SessionRequest, stream: Stream) -> None:
        loop = asyncio.get_running_loop()
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
            item.sent_at = loop.time()
            stream.sent[item.operation.op_id] = item
            message.operations.append(item.operation)
            if stream.timer is None and self._nodes.several:
                stream.timer = loop.call_later(_SILENT_S, self._look_at, stream)

    async def _read(self, stream: Stream) -> None:
        while True:
            response = await stream.call.read()
            if response is _EOF:
                return
            stream.heard_at = asyncio.get_running_loop().time()
            self.clock.observe(response.log_time_us)
            for result in response.results:
                item = stream.sent.pop(result.op_id, None)
                if item is not None and not item.future.done():
                    item.future.set_result(result)
                self._judge(stream, result)
            if response.draining:
                self._leave(stream)
            if stream.leaving:
                stream.retire()

    def _judge(self, stream: Stream, result: pb.OperationResult) -> None:
        """Is its coordinator the right one to ask? It may be leaving, or have lost its log for long."""
        reason = result.status.reason if result.HasField("status") else ""
        if reason == reasons.SHUTTING_DOWN:
            self._leave(stream)
        elif reason != reasons.LOG_UNAVAILABLE:
            stream.node.well()
        elif stream.node.log_away_since is None:
            stream.node.log_away_since = stream.heard_at
        elif stream.heard_at - stream.node.log_away_since > _LOG_AWAY_S:
            self._leave(stream)

    def _leave(self, stream: Stream) -> None:
        """New operations go to another coordinator, if there is one."""
        if stream.leaving or not self._nodes.several:
            return
        log.info("the coordinator at %s is left for another one", stream.node.address)
        self._nodes.leave(stream.node)
        stream.leaving = True
        if self._kick is not None and not self._kick.done():
            self._kick.set_result(None)

    # ---- one that hangs ----

    def _look_at(self, stream: Stream) -> None:
        """Has anything been heard of what is open? Waiting long is no fault, but a coordinator that hangs is one."""
        loop = asyncio.get_running_loop()
        stream.timer = None
        oldest = next(iter(stream.sent.values()), None)
        if oldest is None or stream.reader.done():
            return
        too_long = max(stream.heard_at, oldest.sent_at) + _SILENT_S
        if loop.time() < too_long:
            stream.timer = loop.call_at(too_long, self._look_at, stream)
        else:
            self._aside(self._probe(stream))

    async def _probe(self, stream: Stream) -> None:
        try:
            await self._ask_hello(stream.node, self._hello_s)
        except grpc.aio.AioRpcError as error:
            if _refusals.error_of_call(error).reason != reasons.SHUTTING_DOWN:
                log.warning(
                    "the coordinator at %s does not answer: %s", stream.node.address, error.code().name
                )
                self._leave(stream)
                stream.leaving = False  # Nothing more comes: what is open goes to another one now.
                stream.call.cancel()
                return
        loop = asyncio.get_running_loop()
        stream.heard_at = loop.time()
        if stream.sent and stream.timer is None and not stream.reader.done():
            # It is there, so what is open takes long: there is no hurry to ask again.
            stream.timer = loop.call_later(3 * _SILENT_S, self._look_at, stream)

    def _lose(self, stream: Stream, error: BaseException | None) -> None:
        """The stream is gone: whoever waits for an answer sends again."""
        text = "the stream to the coordinator ended"
        refusal: grpc.aio.AioRpcError | None = None
        retry_after = 0.0
        if isinstance(error, grpc.aio.AioRpcError):
            text = _refusals.text_of(error)
            retry_after = getattr(_refusals.error_of_call(error), "retry_after", 0.0)
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION and not self._nodes.several:
                # Another log than the one that Hello told of: what is open was meant for that one.
                self._hello = None
                refusal = error
            elif error.code() in _refusals.NOT_LET_IN:
                refusal = error
        for item in stream.sent.values():
            if not item.future.done():
                lost = Lost(text, retry_after)
                item.future.set_exception(lost if refusal is None else _refusals.error_of_stream(refusal))
                item.future.exception()  # Its caller may have gone.

    async def drain(self, seconds: float) -> list[str]:
        """Let what was told arrive; the names of what has not."""
        return await self.tasks.drain(seconds)

    async def close(self) -> None:
        """End the stream and the channel."""
        self._closed = True
        await self._registrations.close()
        runner = self._runner
        if runner is not None:
            runner.cancel()
            await asyncio.gather(runner, return_exceptions=True)
        hello = self._saying_hello
        # It would go on until the time of who has asked is over, and connect again and again.
        ending = [*self._ending, *([hello] if hello is not None else [])]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        for item in self._queue:
            if not item.future.done():
                item.future.set_exception(Lost("the Coordinator was closed"))
        await self._nodes.close()


def _give_up(future: asyncio.Future[pb.OperationResult]) -> None:
    if not future.done():
        future.set_exception(Lost("no answer in time"))


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
