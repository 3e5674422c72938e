"""The wire of the synchronous SDK: the asynchronous one, in a loop of its own on one background thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

from .._clock import LogClock
from .._pb import coordinator_pb2 as pb
from .._wire import Wire as AsyncWire
from .._wire import wait_level
from ..access import Access
from ..errors import Rejected, Unavailable
from . import _aio

__all__ = ["Told", "Wire", "wait_level"]

log = logging.getLogger("txcoord.client")
T = TypeVar("T")
_SPARE_S = 5.0
"""The loop's own time-outs come first; who still waits after that much more waits for a dead thread."""


class Told(Generic[T]):
    """An operation on its way."""

    def __init__(self, future: concurrent.futures.Future[T]) -> None:
        self._future = future

    def wait(self, seconds: float) -> T | None:
        """Wait so long for its answer; None: there is none."""
        try:
            return self._future.result(max(seconds, 0.0))
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            return None


class Wire:
    """The connection of one process to the coordinator. Times are those of ``time.monotonic()``."""

    def __init__(
        self,
        address: str,
        namespace: str,
        *,
        version: str,
        call_timeout: float = 5.0,
        access: Access | None = None,
    ) -> None:
        self.clock = LogClock()
        self._access = access
        self._address = address
        self._namespace = namespace
        self._version = version
        self._call_timeout = call_timeout
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._wire: AsyncWire | None = None

    @property
    def messages_sent(self) -> int:
        """Stream messages and unary calls sent, for the cost counters."""
        return self._wire.messages_sent if self._wire is not None else 0

    @property
    def under_way(self) -> int:
        """How many operations that nobody waits for have no answer yet."""
        return self._wire.under_way if self._wire is not None else 0

    def hello(self, until: float, *, fresh: bool = False) -> pb.HelloResponse:
        """Who is there."""
        wire = self._started()
        if not fresh and wire.known is not None:
            return wire.known

        async def say() -> pb.HelloResponse:
            return await wire.hello(_loops(until), fresh=fresh)

        return self._run(say(), until)

    def call(self, name: str, request: Any, until: float, *, tx_id: str = "", gid: str = "") -> Any:
        """Send an operation, again if need be; see the asynchronous one."""
        wire = self._started()

        async def send() -> Any:
            return await wire.call(name, request, _loops(until), tx_id=tx_id, gid=gid)

        return self._run(send(), until)

    def ask(self, method: str, request: Any, until: float) -> Any:
        """A unary call that changes nothing."""
        wire = self._started()

        async def send() -> Any:
            return await wire.ask(method, request, _loops(until))

        return self._run(send(), until)

    def tell(
        self, name: str, request: Any, until: float, unheard: str, *, tx_id: str = "", gid: str = ""
    ) -> Told[Any]:
        """Send an operation whose answer nobody needs."""
        wire = self._started()

        async def send() -> Any:
            return await wire.tell(name, request, _loops(until), unheard, tx_id=tx_id, gid=gid).ended()

        loop = self._loop
        if loop is None:
            closed: concurrent.futures.Future[Any] = concurrent.futures.Future()
            closed.set_result(None)
            log.warning("%s of %s: the Coordinator is closed", unheard, tx_id)
            return Told(closed)
        return Told(asyncio.run_coroutine_threadsafe(send(), loop))

    def register(self, request: pb.RegisterParticipantRequest, until: float) -> int:
        """Tell the coordinators where a participant is, until :meth:`deregister`; see the asynchronous one."""
        wire = self._started()

        async def tell() -> int:
            return await wire.register(request, _loops(until))

        return self._run(tell(), until)

    def deregister(self, number: int) -> None:
        """It is to be called no more."""
        wire = self._wire
        if wire is not None and self._loop is not None:
            self._run(wire.deregister(number), _aio.now())

    def close(self) -> None:
        """Disconnect, and end the thread."""
        with self._lock:
            loop, thread, wire = self._loop, self._thread, self._wire
            self._loop = self._thread = None
        if loop is None or thread is None or not thread.is_alive():
            return

        async def leave() -> None:
            if wire is not None:
                await wire.close()

        asyncio.run_coroutine_threadsafe(leave(), loop).result(_SPARE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_SPARE_S)

    def drain(self, seconds: float) -> list[str]:
        """Let what was told arrive; the names of what has not."""
        if self._wire is None or self._loop is None:
            return []
        return self._run(self._wire.drain(seconds), _aio.now() + seconds)

    def _run(self, work: Coroutine[Any, Any, T], until: float) -> T:
        loop = self._loop
        if loop is None:
            work.close()
            raise Rejected("this Coordinator is closed", reason="CLOSED")
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result(max(until - _aio.now(), 0.0) + _SPARE_S)
        except concurrent.futures.TimeoutError:
            if not future.done():
                future.cancel()
                raise Unavailable("the thread of the wire does not answer", definite=False) from None
            raise
        except BaseException:
            future.cancel()  # A signal's handler raised here: nobody waits any more.
            raise

    def _started(self) -> AsyncWire:
        wire = self._wire
        if wire is not None:
            return wire
        with self._lock:
            if self._wire is None:
                self._loop = loop = asyncio.new_event_loop()
                ready: concurrent.futures.Future[AsyncWire] = concurrent.futures.Future()
                self._thread = threading.Thread(
                    target=self._serve, args=(loop, ready), name="txcoord.wire", daemon=True
                )
                self._thread.start()
                self._wire = ready.result()
            return self._wire

    def _serve(self, loop: asyncio.AbstractEventLoop, ready: concurrent.futures.Future[AsyncWire]) -> None:
        asyncio.set_event_loop(loop)

        async def make() -> AsyncWire:
            wire = AsyncWire(
                self._address,
                self._namespace,
                version=self._version,
                call_timeout=self._call_timeout,
                access=self._access,
            )
            wire.clock = self.clock
            return wire

        try:
            ready.set_result(loop.run_until_complete(make()))
            loop.run_forever()
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
            raise
        finally:
            loop.close()


def _loops(until: float) -> float:
    """A time of ``time.monotonic()`` by the running loop's clock."""
    return until - _aio.now() + asyncio.get_running_loop().time()
