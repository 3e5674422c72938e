"""Calls of participants by whoever runs a try, for threads. See ``_participants`` above."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import grpc

from .._http_tries import Http, NoAnswer, is_http
from .._participants import AWAY, FIRST_PAUSE_S, LONGEST_PAUSE_S, address_of
from .._pb import common_pb2 as c
from .._pb import participant_pb2 as pb
from .._pb import participant_pb2_grpc
from ..errors import Unavailable
from ..protocol import reasons
from . import _aio


class Participants:
    """Where participants are, and channels to them."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._addresses = addresses
        self._channels: dict[str, grpc.Channel] = {}
        self._http: Http | None = None
        self._lock = threading.Lock()

    def target(self, name: str) -> str:
        """The address of a participant. Raises Rejected."""
        return address_of(self._addresses, name)

    def run(self, target: str, request: pb.ExecuteRequest, until: float) -> c.BranchAnswer:
        """Ask for one action until it is answered, again where that may help. Raises Unavailable."""
        pause = FIRST_PAUSE_S
        why = "it has not answered in time"
        while (left := until - _aio.now()) > 0:
            wait = pause
            try:
                answer = self._ask(target, request, left)
            except NoAnswer as error:
                why = str(error)
                if not error.again:
                    break
            else:
                if answer is not None:
                    if answer.kind in (c.ANSWER_KIND_DONE, c.ANSWER_KIND_REFUSED):
                        return answer
                    why = f"{answer.reason}: {answer.message}"
                    wait = max(answer.retry_after_us / 1e6, pause)
            time.sleep(max(min(wait, until - _aio.now()), 0.0))
            pause = min(pause * 2, LONGEST_PAUSE_S)
            request.actions[0].attempt += 1
        raise Unavailable(f"{target}: {why}", reason=reasons.PARTICIPANT_UNAVAILABLE, definite=False)

    def _ask(self, target: str, request: pb.ExecuteRequest, left: float) -> c.BranchAnswer | None:
        if is_http(target):
            with self._lock:
                if self._http is None:
                    self._http = Http()
                http = self._http
            return http.ask(target, request, left)
        try:
            for response in self._stub(target).Execute(request, timeout=left):
                for answer in response.answers:
                    found: c.BranchAnswer = answer
                    return found
        except grpc.RpcError as error:
            raise NoAnswer(f"{error.code().name}: {error.details()}", again=error.code() in AWAY) from error
        return None

    def _stub(self, target: str) -> Any:
        with self._lock:
            channel = self._channels.get(target)
            if channel is None:
                channel = self._channels[target] = grpc.insecure_channel(target.removeprefix("grpc://"))
        return participant_pb2_grpc.ParticipantServiceStub(channel)

    def close(self) -> None:
        """Disconnect."""
        with self._lock:
            channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()
        http, self._http = self._http, None
        if http is not None:
            http.close()
