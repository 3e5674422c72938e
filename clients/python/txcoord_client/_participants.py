"""Calls of participants by whoever runs a try: the initiator's side.

``sync/_participants.py`` says the same for threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import grpc

from . import _aio
from ._http_tries import AsyncHttp, NoAnswer
from ._pb import common_pb2 as c
from ._pb import participant_pb2 as pb
from ._pb import participant_pb2_grpc
from ._places import ParticipantAt, place_of, refuse_misspelt, said_of, target_of
from ._together import Asked, Together
from .errors import Unavailable
from .protocol import reasons

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
AWAY = (grpc.StatusCode.UNAVAILABLE,)


class Participants:
    """Where participants are, and channels to them."""

    def __init__(self, places: Mapping[str, ParticipantAt]) -> None:
        self._places = places
        self._channels: dict[ParticipantAt, grpc.aio.Channel] = {}
        self._http: dict[ParticipantAt, AsyncHttp] = {}
        self._together: dict[ParticipantAt, Together] = {}

    def place(self, name: str) -> ParticipantAt:
        """Where a participant is. Raises Rejected."""
        return place_of(self._places, name)

    def target(self, name: str) -> str:
        """What a branch of a participant names."""
        return target_of(self._places, name)

    async def run(self, place: ParticipantAt, request: pb.ExecuteRequest, until: float) -> c.BranchAnswer:
        """Ask for one action until it is answered, again where that may help. Raises Unavailable, and
        Rejected for an operation that is not there and arguments that do not fit."""
        pause = FIRST_PAUSE_S
        why = "it has not answered in time"
        alone = False
        while until - _aio.now() > 0:
            wait = pause
            asked = Asked(request, until, alone=alone)
            try:
                answer = await self._ask(place, asked)
            except NoAnswer as error:
                why = str(error)
                if not error.again:
                    if asked.alone:
                        break
                    # It may be the fault of another one that travelled along.
                    alone = True
                    wait = 0.0
            else:
                if answer is not None:
                    if answer.kind in (c.ANSWER_KIND_DONE, c.ANSWER_KIND_REFUSED):
                        return answer
                    refuse_misspelt(place, answer, request.actions[0].attempt)
                    why = said_of(answer)
                    wait = max(answer.retry_after_us / 1e6, pause)
            await asyncio.sleep(max(min(wait, until - _aio.now()), 0.0))
            pause = min(pause * 2, LONGEST_PAUSE_S)
            request.actions[0].attempt += 1
        raise Unavailable(f"{place.address}: {why}", reason=reasons.PARTICIPANT_UNAVAILABLE, definite=False)

    async def _ask(self, place: ParticipantAt, asked: Asked) -> c.BranchAnswer | None:
        if place.is_http:
            http = self._http.get(place)
            if http is None:
                http = self._http[place] = AsyncHttp(place)
            asked.alone = True
            left = asked.until - _aio.now()
            try:
                async with asyncio.timeout(left):
                    return await http.ask(asked.request, left)
            except TimeoutError:
                return None
        try:
            return await self._at(place).ask(asked)
        except grpc.aio.AioRpcError as error:
            raise NoAnswer(f"{error.code().name}: {error.details()}", again=error.code() in AWAY) from error

    def _at(self, place: ParticipantAt) -> Together:
        found = self._together.get(place)
        if found is None:
            credentials = place.credentials()
            channel = self._channels[place] = (
                grpc.aio.insecure_channel(place.host, place.options)
                if credentials is None
                else grpc.aio.secure_channel(place.host, credentials, place.options)
            )
            shown = [("authorization", place.authorization)] if place.token else None
            found = Together(participant_pb2_grpc.ParticipantServiceStub(channel), shown)
            self._together[place] = found
        return found

    async def close(self) -> None:
        """Disconnect."""
        channels, self._channels = list(self._channels.values()), {}
        self._together = {}
        for channel in channels:
            await channel.close(None)
        clients, self._http = list(self._http.values()), {}
        for client in clients:
            await client.close()
