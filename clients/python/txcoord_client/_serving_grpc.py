"""``ParticipantService`` on a server of ``grpc.aio``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc

from ._pb import participant_pb2 as pb
from ._pb import participant_pb2_grpc
from ._serving import Participant, Runner, answers


class Servicer(participant_pb2_grpc.ParticipantServiceServicer):
    """Runs what is asked side by side, and sends each answer as soon as it is there."""

    def __init__(self, participants: Sequence[Participant]) -> None:
        self._runner = Runner(participants)

    async def Execute(
        self, request: pb.ExecuteRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.ExecuteResponse]:
        """Many actions of many transactions."""
        authorization = str(dict(context.invocation_metadata() or ()).get("authorization", ""))
        async with aclosing(answers(self._runner.begin, request, authorization)) as found:
            async for response, _ in found:
                yield response

    async def QueryBack(
        self, request: pb.QueryBackRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.QueryBackResponse:
        """What became of local transactions."""
        authorization = str(dict(context.invocation_metadata() or ()).get("authorization", ""))
        return await self._runner.query_back(request, authorization)
