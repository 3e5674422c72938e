"""Calls of participants by whoever runs a try, for threads. See ``_participants`` above."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import grpc

from .._http_tries import Http, NoAnswer
from .._participants import AWAY, FIRST_PAUSE_S, LONGEST_PAUSE_S
from .._pb import common_pb2 as c
from .._pb import participant_pb2 as pb
from .._pb import participant_pb2_grpc
from .._places import ParticipantAt, place_of, refuse_misspelt, said_of, target_of
from ..errors import Unavailable
from ..protocol import reasons
from . import _aio


class Participants:
    """Where participants are, and channels to them."""

    def __init__(self, places: Mapping[str, ParticipantAt]) -> None:
        self._places = places
        self._channels: dict[ParticipantAt, grpc.Channel] = {}
        self._http: dict[ParticipantAt, Http] = {}
        self._lock = threading.Lock()

    def place(self, name: str) -> ParticipantAt:
        """Where a participant is. Raises Rejected."""
        return place_of(self._places, name)

    def target(self, name: str) -> str:
        """What a branch of a participant names."""
        return target_of(self._places, name)

    def run(self, place: ParticipantAt, request: pb.ExecuteRequest, until: float) -> c.BranchAnswer:
        """Ask for one action until it is answered, again where that may help. Raises Unavailable, and
        Rejected for an operation that is not there and arguments that do not fit."""
        pause = FIRST_PAUSE_S
        why = "it has not answered in time"
        while (left := until - _aio.now()) > 0:
            wait = pause
            try:
                answer = self._ask(place, request, left)
            except NoAnswer as error:
                why = str(error)
                if not error.again:
                    break
            else:
                if answer is not None:
                    if answer.kind in (c.ANSWER_KIND_DONE, c.ANSWER_KIND_REFUSED):
                        return answer
                    refuse_misspelt(place, answer, request.actions[0].attempt)
                    why = said_of(answer)
                    wait = max(answer.retry_after_us / 1e6, pause)
            time.sleep(max(min(wait, until - _aio.now()), 0.0))
            pause = min(pause * 2, LONGEST_PAUSE_S)
            request.actions[0].attempt += 1
        raise Unavailable(f"{place.address}: {why}", reason=reasons.PARTICIPANT_UNAVAILABLE, definite=False)

    def _ask(self, place: ParticipantAt, request: pb.ExecuteRequest, left: float) -> c.BranchAnswer | None:
        if place.is_http:
            with self._lock:
                http = self._http.get(place)
                if http is None:
                    http = self._http[place] = Http(place)
            return http.ask(request, left)
        shown = [("authorization", place.authorization)] if place.token else None
        try:
            for response in self._stub(place).Execute(request, timeout=left, metadata=shown):
                for answer in response.answers:
                    found: c.BranchAnswer = answer
                    return found
        except grpc.RpcError as error:
            raise NoAnswer(f"{error.code().name}: {error.details()}", again=error.code() in AWAY) from error
        return None

    def _stub(self, place: ParticipantAt) -> Any:
        with self._lock:
            channel = self._channels.get(place)
            if channel is None:
                credentials = place.credentials()
                channel = self._channels[place] = (
                    grpc.insecure_channel(place.host, place.options)
                    if credentials is None
                    else grpc.secure_channel(place.host, credentials, place.options)
                )
        return participant_pb2_grpc.ParticipantServiceStub(channel)

    def close(self) -> None:
        """Disconnect."""
        with self._lock:
            channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()
        clients, self._http = list(self._http.values()), {}
        for client in clients:
            client.close()
