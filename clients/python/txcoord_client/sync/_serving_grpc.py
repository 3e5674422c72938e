"""``ParticipantService`` on a server of ``grpc`` with threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import grpc

from .._pb import participant_pb2 as pb
from .._pb import participant_pb2_grpc
from ._serving import Participant, Runner, answers


class Servicer(participant_pb2_grpc.ParticipantServiceServicer):
    """Runs what is asked side by side, in threads of its own, and sends each answer as soon as it is there."""

    def __init__(self, participants: Sequence[Participant]) -> None:
        self._runner = Runner(participants)

    def Execute(
        self, request: pb.ExecuteRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ExecuteResponse]:
        """Many actions of many transactions."""
        authorization = str(dict(context.invocation_metadata()).get("authorization", ""))
        with closing(answers(self._runner, request, authorization)) as found:
            for response, _ in found:
                yield response

    def QueryBack(self, request: pb.QueryBackRequest, context: Any) -> pb.QueryBackResponse:
        """What became of local transactions."""
        authorization = str(dict(context.invocation_metadata()).get("authorization", ""))
        return self._runner.query_back(request, authorization)
