"""``ParticipantService`` on a server of ``grpc`` with threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

import grpc

from .._answers import Answer, Call
from .._pb import participant_pb2 as pb
from .._pb import participant_pb2_grpc
from ..errors import Rejected
from ..protocol import reasons


class Participant(Protocol):
    """What is served."""

    name: str
    concurrency: int
    _operations: Any

    def execute(self, call: Call) -> Answer: ...


class Servicer(participant_pb2_grpc.ParticipantServiceServicer):
    """Runs what is asked side by side, in threads of its own, and sends each answer as soon as it is there."""

    def __init__(self, participants: Sequence[Participant]) -> None:
        self._by_operation = {name: p for p in participants for name in p._operations}
        self._threads = {
            p.name: ThreadPoolExecutor(p.concurrency, thread_name_prefix=f"txcoord.{p.name}")
            for p in participants
        }

    def Execute(
        self, request: pb.ExecuteRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ExecuteResponse]:
        """Many actions of many transactions."""
        left: dict[Future[Answer], pb.BranchAction] = {
            self._start(Call.from_pb(request, action)): action
            for action in request.actions
            if action.context < len(request.contexts)
        }
        try:
            while left:
                done, _ = wait(left, return_when=FIRST_COMPLETED)
                response = pb.ExecuteResponse()
                for future in done:
                    action = left.pop(future)
                    tx_id = request.contexts[action.context].tx_id
                    response.answers.append(future.result().to_pb(tx_id, action))
                yield response
        finally:
            # Nobody waits any more: what has not begun does not begin.
            for future in left:
                future.cancel()

    def QueryBack(self, request: pb.QueryBackRequest, context: Any) -> pb.QueryBackResponse:
        """Of messages, which this version does not carry out."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "no messages are sent by this service")
        raise AssertionError("abort raises")

    def _start(self, call: Call) -> Future[Answer]:
        participant = self._by_operation.get(call.operation)
        if participant is None:
            nothing: Future[Answer] = Future()
            nothing.set_result(
                Answer.failed(
                    Rejected(
                        f"there is no operation {call.operation!r} here", reason=reasons.UNKNOWN_OPERATION
                    )
                )
            )
            return nothing
        return self._threads[participant.name].submit(participant.execute, call)
