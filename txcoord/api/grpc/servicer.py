"""CoordinatorService: unary calls, Batch, and the Session stream that the SDK uses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client._pb import coordinator_pb2_grpc as rpc
from txcoord_client.protocol import reasons

from ...core.errors import Refusal, Refused
from .. import tokens
from . import status
from .guard import of_operation
from .mapping import bad
from .operations import Operations
from .participants import Participants

_LONG_S = 3600.0
_NOTHING_NEW = frozenset({"wait", "report", "participant"})
"""Operations that a node answers until it leaves, since they begin nothing."""
_TURNS = 3
"""Turns of the loop before results leave: what is ready in them travels along. Not a timer: an idle loop turns at
once."""


def _longest(left_s: float | None) -> float:
    """How long an operation may wait. Past the call's own deadline gRPC answers DEADLINE_EXCEEDED; the transaction
    goes on."""
    return _LONG_S if left_s is None else left_s + 1.0


class CoordinatorServicer(rpc.CoordinatorServiceServicer):
    """Answers what services and SDKs ask."""

    def __init__(
        self,
        operations: Operations,
        *,
        max_operations: int,
        now_us: Callable[[], int],
        participants: Participants | None = None,
    ) -> None:
        self._ops = operations
        self._participants = participants
        self._max_operations = max_operations
        self._now_us = now_us
        self._sessions: dict[Outbox, None] = {}
        """In the order in which they came: a simulation is the same each time."""
        self.draining = False
        """Nothing new is taken."""
        self.leaving = False
        """Nor is anybody waited for."""
        self.messages = 0
        """Requests and stream messages received, for the cost counters."""

    # ---- unary ----

    async def Hello(self, request: pb.HelloRequest, context: Any) -> Any:
        async def run() -> pb.HelloResponse:
            self._refuse_when_draining("hello")  # Whoever comes anew goes to another node.
            return await self._ops.hello(request)

        return await self._guarded(run(), context)

    async def Begin(self, request: pb.BeginRequest, context: Any) -> Any:
        return await self._unary("begin", request, context)

    async def Enlist(self, request: pb.EnlistRequest, context: Any) -> Any:
        return await self._unary("enlist", request, context)

    async def RegisterCallback(self, request: pb.RegisterCallbackRequest, context: Any) -> Any:
        text = "callbacks are asked for with begin, submit, enlist or commit (TransactionSpec.callbacks)"
        await status.abort(context, bad(reasons.NOT_SUPPORTED, text, "UNIMPLEMENTED"))

    async def Vote(self, request: pb.VoteRequest, context: Any) -> Any:
        return await self._unary("vote", request, context)

    async def Commit(self, request: pb.CommitRequest, context: Any) -> Any:
        return await self._unary("commit", request, context)

    async def Submit(self, request: pb.SubmitRequest, context: Any) -> Any:
        return await self._unary("submit", request, context)

    async def PrepareMessage(self, request: pb.PrepareMessageRequest, context: Any) -> Any:
        return await self._unary("prepare_message", request, context)

    async def SubmitMessage(self, request: pb.SubmitMessageRequest, context: Any) -> Any:
        return await self._unary("submit_message", request, context)

    async def Rollback(self, request: pb.RollbackRequest, context: Any) -> Any:
        return await self._unary("rollback", request, context)

    async def Report(self, request: pb.ReportRequest, context: Any) -> Any:
        return await self._unary("report", request, context)

    async def Wait(self, request: pb.WaitRequest, context: Any) -> Any:
        return await self._unary("wait", request, context)

    async def Get(self, request: pb.GetRequest, context: Any) -> Any:
        return await self._unary("get", request, context)

    async def List(self, request: pb.ListRequest, context: Any) -> Any:
        async def run() -> pb.ListResponse:
            return await self._ops.list(request, self._ops.namespace(request.namespace))

        return await self._guarded(run(), context)

    async def RegisterParticipant(self, request: pb.RegisterParticipantRequest, context: Any) -> Any:
        async def run() -> pb.RegisterParticipantResponse:
            return await self._registry().register(request)

        return await self._guarded(run(), context)

    async def HeartbeatParticipant(self, request: pb.HeartbeatParticipantRequest, context: Any) -> Any:
        async def run() -> pb.HeartbeatParticipantResponse:
            return await self._registry().heartbeat(request)

        return await self._guarded(run(), context)

    def _registry(self) -> Participants:
        self._refuse_when_draining("participant")
        if self._participants is None:
            raise bad(reasons.NOT_SUPPORTED, "participants do not register here", "UNIMPLEMENTED")
        return self._participants

    async def ListDeliveries(self, request: pb.ListDeliveriesRequest, context: Any) -> Any:
        async def run() -> pb.ListDeliveriesResponse:
            return await self._ops.deliveries(request, self._ops.namespace(request.namespace))

        return await self._guarded(run(), context)

    async def _unary(self, name: str, request: Any, context: Any) -> Any:
        self.messages += 1
        left = context.time_remaining()

        async def run() -> Any:
            self._refuse_when_draining(name)
            most_s = _longest(left)
            return await self._ops.by_name[name](request, self._ops.namespace(request.namespace), most_s)

        return await self._guarded(run(), context)

    async def _guarded(self, work: Any, context: Any) -> Any:
        try:
            response = await work
        except Exception as error:
            await status.abort(context, error)
        response.log_time_us = self._now_us()
        return response

    # ---- many at once ----

    async def Batch(self, request: pb.BatchRequest, context: Any) -> Any:
        async def run() -> pb.BatchResponse:
            if self.leaving:
                self._refuse_when_draining("batch")
            self._ops.check_log(request.log_id)
            self._check_count(len(request.operations))
            alone = len(request.operations) == 1
            left = context.time_remaining()
            most_s = _longest(left) if alone else 0.0
            results = await asyncio.gather(
                *(self._operation(op, request.namespace, most_s) for op in request.operations)
            )
            return pb.BatchResponse(results=results, draining=self.draining)

        self.messages += 1
        return await self._guarded(run(), context)

    async def Session(
        self, request_iterator: AsyncIterator[pb.SessionRequest], context: Any
    ) -> AsyncIterator[pb.SessionResponse]:
        outbox = Outbox()
        self._sessions[outbox] = None
        reader = asyncio.ensure_future(self._read_session(request_iterator, outbox))
        try:
            while True:
                results = await outbox.take()
                if results is None:
                    break
                yield pb.SessionResponse(results=results, log_time_us=self._now_us(), draining=self.draining)
            error = reader.exception() if reader.done() and not reader.cancelled() else None
            if isinstance(error, Refused):
                await status.abort(context, error)
        finally:
            self._sessions.pop(outbox, None)
            reader.cancel()
            # What was asked for goes on; only its answer has nowhere to go.

    async def _read_session(self, requests: AsyncIterator[pb.SessionRequest], outbox: Outbox) -> None:
        namespace = ""
        first = True
        try:
            async for request in requests:
                self.messages += 1
                if first:
                    self._ops.check_log(request.log_id)
                    namespace, first = request.namespace, False
                self._check_count(len(request.operations))
                for op in request.operations:
                    outbox.expect()
                    task = asyncio.ensure_future(self._answer(op, namespace, outbox))
                    outbox.tasks.add(task)
                    task.add_done_callback(outbox.tasks.discard)
        finally:
            outbox.no_more()

    async def _answer(self, op: pb.Operation, namespace: str, outbox: Outbox) -> None:
        outbox.put(await self._operation(op, namespace, _LONG_S))

    async def _operation(self, op: pb.Operation, namespace: str, most_s: float) -> pb.OperationResult:
        name = op.WhichOneof("request")
        try:
            self._refuse_when_draining(name or "")
            run = self._ops.by_name.get(name or "")
            if name is None or run is None:
                raise bad(reasons.NOT_SUPPORTED, f"operation {name!r} is not known here", "UNIMPLEMENTED")
            tokens.demand(of_operation(name))
            request = getattr(op, name)
            response = await run(request, self._ops.namespace(request.namespace or namespace), most_s)
        except Exception as error:
            return pb.OperationResult(op_id=op.op_id, status=status.of(error))
        return pb.OperationResult(op_id=op.op_id, **{name: response})

    def _check_count(self, count: int) -> None:
        if count > self._max_operations:
            raise bad(reasons.TOO_LARGE, f"{count} operations in one message; at most {self._max_operations}")

    def _refuse_when_draining(self, name: str) -> None:
        if not self.draining or name == "get" or (name in _NOTHING_NEW and not self.leaving):
            return
        why = "this node is leaving" if self.leaving else "this node is drained by an operator"
        raise Refused(Refusal("UNAVAILABLE", reasons.SHUTTING_DOWN, why, True, retry_after_us=100_000))

    def drain(self) -> None:
        """Take nothing new; what is open is still answered: who only waits, that he should ask elsewhere."""
        self.leaving = True
        self.take_work(False)
        self._ops.leave()

    def take_work(self, yes: bool) -> None:
        """Take new work, or nothing new: clients that know another node go there."""
        self.draining = self.leaving or not yes
        for outbox in self._sessions:
            outbox.wake()

    async def drained(self) -> None:
        """Wait until every open operation of every session is answered."""
        while any(outbox.open for outbox in self._sessions):
            await asyncio.gather(*(t for o in self._sessions for t in o.tasks), return_exceptions=True)
            await asyncio.sleep(0)


class Outbox:
    """Results of one session on their way out: while one message is being sent, the next one fills."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Future[None]] = set()
        self.open = 0
        self._results: list[pb.OperationResult] = []
        self._closed = False
        self._nudged = False
        self._waiting: asyncio.Future[None] | None = None

    def expect(self) -> None:
        """One more operation is open."""
        self.open += 1

    def put(self, result: pb.OperationResult) -> None:
        """It is answered."""
        self.open -= 1
        self._results.append(result)
        self._wake()

    def no_more(self) -> None:
        """The client sends no more."""
        self._closed = True
        self._wake()

    def wake(self) -> None:
        """Send a message even without results."""
        self._nudged = True
        self._wake()

    async def take(self) -> list[pb.OperationResult] | None:
        """All results that are there, waiting for the first; None when no more will come."""
        while not self._results and not self._nudged:
            if self._closed and not self.open:
                return None
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        self._nudged = False
        results, self._results = self._results, []
        return results

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
