"""``ParticipantService`` on a server of ``grpc.aio``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import grpc

from ._answers import Answer, Call
from ._pb import participant_pb2 as pb
from ._pb import participant_pb2_grpc
from .errors import Rejected
from .protocol import reasons


class Participant(Protocol):
    """What is served."""

    name: str
    concurrency: int
    _operations: Any

    async def execute(self, call: Call) -> Answer: ...


class Servicer(participant_pb2_grpc.ParticipantServiceServicer):
    """Runs what is asked side by side, and sends each answer as soon as it is there."""

    def __init__(self, participants: Sequence[Participant]) -> None:
        self._by_operation = {name: p for p in participants for name in p._operations}
        self._room = {p.name: asyncio.Semaphore(p.concurrency) for p in participants}

    async def Execute(
        self, request: pb.ExecuteRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.ExecuteResponse]:
        """Many actions of many transactions."""
        left = {
            asyncio.ensure_future(self._one(Call.from_pb(request, action))): action
            for action in request.actions
            if action.context < len(request.contexts)
        }
        try:
            while left:
                done, _ = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                response = pb.ExecuteResponse()
                for task in done:
                    action = left.pop(task)
                    tx_id = request.contexts[action.context].tx_id
                    response.answers.append(task.result().to_pb(tx_id, action))
                yield response
        finally:
            # Nobody waits any more. What runs is rolled back, or asked for again.
            for task in left:
                task.cancel()

    async def QueryBack(
        self, request: pb.QueryBackRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.QueryBackResponse:
        """Of messages, which this version does not carry out."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no messages are sent by this service")
        raise AssertionError("abort raises")

    async def _one(self, call: Call) -> Answer:
        participant = self._by_operation.get(call.operation)
        if participant is None:
            return Answer.failed(
                Rejected(f"there is no operation {call.operation!r} here", reason=reasons.UNKNOWN_OPERATION)
            )
        async with self._room[participant.name]:
            return await participant.execute(call)
