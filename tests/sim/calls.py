"""Calls of participants: ``ParticipantService.Execute`` without gRPC, with real protobuf bytes in between."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Self

import grpc

from txcoord_client._pb import participant_pb2 as pb

from .loop import Process

if TYPE_CHECKING:
    from .participants import SimParticipant
    from .world import World


def error(code: grpc.StatusCode, text: str, trailing: Any = ()) -> grpc.aio.AioRpcError:
    """As gRPC says it."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), text)


_GONE = (grpc.StatusCode.UNAVAILABLE, "connection reset")


class ExecuteCall:
    """One call, from the side of whoever makes it. Its answers are iterated over."""

    def __init__(
        self,
        world: World,
        process: Process,
        place: SimParticipant,
        request: Any,
        timeout: float | None,
        metadata: Any = None,
    ) -> None:
        self._world = world
        self._process = process
        self._place = place
        self._data = request.SerializeToString()
        self._inbox: deque[Any] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._down = 0.0
        self._over = False
        """For the caller."""
        self._serving: asyncio.Task[Any] | None = None
        said = ",".join(f"{a.branch}:{pb_op(a.op)}@{a.attempt}" for a in request.actions)
        do = world.point("execute", process, place.name, said)
        for action in request.actions:
            world.checker.effects.asked(
                request.contexts[action.context].tx_id, action.branch, pb_op(action.op)
            )
        process.when_dead.append(self.cancel)
        if timeout is not None:
            world.loop.call_later(timeout, self._too_late, context=process.context)
        self._send(do)

    def _send(self, do: str) -> None:
        world, process = self._world, self._process
        delay = world.net.delay(process.name, self._place.name)
        if do == "lose_request":
            self._break(*_GONE)
        elif do.startswith("late"):
            # It arrives when nobody waits for it any more.
            world.net.send(delay + float(do[4:]), self._arrive, False)
            self._break(*_GONE)
        elif do == "lose_reply":
            world.net.send(delay, self._arrive, False)
            world.net.send(delay * 10, self._break, *_GONE)
        else:
            world.net.send(delay, self._arrive, True, do == "crash_server")
            if do == "twice":
                world.net.send(delay * 20, self._arrive, False)
            elif do == "crash_client":
                world.crash(process)
            elif do.startswith("stop_client"):
                world.stop(process, float(do[11:]))

    # ---- the caller's side ----

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> pb.ExecuteResponse:
        while not self._inbox:
            self._reader = self._world.loop.create_future()
            await self._reader
        item = self._inbox[0]
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        self._inbox.popleft()
        return pb.ExecuteResponse.FromString(item)

    def cancel(self) -> None:
        """Nobody waits any more: the other side hears of that."""
        if not self._over:
            self._over = True
            delay = self._world.net.delay(self._process.name, self._place.name)
            self._world.net.send(delay, self._cancelled)

    def _too_late(self) -> None:
        if not self._over:
            self._receive(error(grpc.StatusCode.DEADLINE_EXCEEDED, "too late"), 0.0)
            self.cancel()

    def _break(self, code: grpc.StatusCode, text: str) -> None:
        if not self._over:
            self._receive(
                error(code, text), self._world.net.delay(self._place.name, self._process.name), last=True
            )

    def _receive(self, item: Any, delay: float, *, last: bool = False) -> None:
        loop = self._world.loop
        self._down = max(self._down, loop.now + delay)
        self._over = self._over or last
        loop.call_at(self._down, self._received, item, context=self._process.context)

    def _received(self, item: Any) -> None:
        self._inbox.append(item)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # ---- the participant's side ----

    def _arrive(self, heard: bool, crash: bool = False) -> None:
        place, process = self._place, self._place.process
        if process is None or not process.alive or place.servicer is None:
            if heard:
                self._break(grpc.StatusCode.UNAVAILABLE, "connection refused")
            return
        if heard:
            process.when_dead.append(lambda: self._break(*_GONE))
        if place.hung_until > self._world.loop.now:
            # It is done when nobody expects it any more.
            self._world.net.send(place.hung_until - self._world.loop.now, self._arrive, heard, crash)
            return
        serving = process.start(self._serve(process, heard, crash), "execute")
        if heard and not place.threads:
            self._serving = serving

    async def _serve(self, process: Process, heard: bool, crash: bool) -> None:
        world, place = self._world, self._place
        assert place.servicer is not None
        request = pb.ExecuteRequest.FromString(self._data)
        async for response in place.servicer.Execute(request, _Context()):  # type: ignore[arg-type]
            if crash:
                world.crash(process)
                return
            if heard and not self._over:
                self._receive(response.SerializeToString(), world.net.delay(place.name, self._process.name))
        if heard and not self._over:
            self._receive(None, world.net.delay(place.name, self._process.name), last=True)

    def _cancelled(self) -> None:
        serving, process = self._serving, self._place.process
        if serving is not None and process is not None and process.alive:
            self._world.loop.call_soon(serving.cancel, context=process.context)


class _Context:
    """A servicer's."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """None is sent."""
        return ()


def pb_op(op: int) -> str:
    """For the trace."""
    from txcoord_client._pb import common_pb2 as c

    return c.BranchOp.Name(op).rsplit("_", 1)[1].lower()  # type: ignore[arg-type]
