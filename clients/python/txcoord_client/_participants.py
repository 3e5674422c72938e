"""Calls of participants by whoever runs a try: the initiator's side.

``sync/_participants.py`` says the same for threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import grpc

from . import _aio
from ._http_tries import AsyncHttp, NoAnswer, is_http
from ._pb import common_pb2 as c
from ._pb import participant_pb2 as pb
from ._pb import participant_pb2_grpc
from ._together import Asked, Together
from .errors import Rejected, Unavailable
from .protocol import reasons

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
AWAY = (grpc.StatusCode.UNAVAILABLE,)


def address_of(addresses: Mapping[str, str], name: str) -> str:
    """The address of a participant. Raises Rejected."""
    found = addresses.get(name)
    if found is None:
        raise Rejected(
            f"participant {name!r} has no address: Coordinator(participants={{{name!r}: 'grpc://host:port'}}), or "
            "'http://host:port'",
            reason=reasons.UNKNOWN_PARTICIPANT,
            facts={"participant": name},
        )
    return found


class Participants:
    """Where participants are, and channels to them."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._addresses = addresses
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._http: AsyncHttp | None = None
        self._together: dict[str, Together] = {}

    def target(self, name: str) -> str:
        """The address of a participant. Raises Rejected."""
        return address_of(self._addresses, name)

    async def run(self, target: str, request: pb.ExecuteRequest, until: float) -> c.BranchAnswer:
        """Ask for one action until it is answered, again where that may help. Raises Unavailable."""
        pause = FIRST_PAUSE_S
        why = "it has not answered in time"
        alone = False
        while until - _aio.now() > 0:
            wait = pause
            asked = Asked(request, until, alone=alone)
            try:
                answer = await self._ask(target, asked)
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
                    why = f"{answer.reason}: {answer.message}"
                    wait = max(answer.retry_after_us / 1e6, pause)
            await asyncio.sleep(max(min(wait, until - _aio.now()), 0.0))
            pause = min(pause * 2, LONGEST_PAUSE_S)
            request.actions[0].attempt += 1
        raise Unavailable(f"{target}: {why}", reason=reasons.PARTICIPANT_UNAVAILABLE, definite=False)

    async def _ask(self, target: str, asked: Asked) -> c.BranchAnswer | None:
        if is_http(target):
            if self._http is None:
                self._http = AsyncHttp()
            asked.alone = True
            left = asked.until - _aio.now()
            try:
                async with asyncio.timeout(left):
                    return await self._http.ask(target, asked.request, left)
            except TimeoutError:
                return None
        try:
            return await self._at(target).ask(asked)
        except grpc.aio.AioRpcError as error:
            raise NoAnswer(f"{error.code().name}: {error.details()}", again=error.code() in AWAY) from error

    def _at(self, target: str) -> Together:
        found = self._together.get(target)
        if found is None:
            channel = grpc.aio.insecure_channel(target.removeprefix("grpc://"))
            self._channels[target] = channel
            stub = participant_pb2_grpc.ParticipantServiceStub(channel)
            found = self._together[target] = Together(stub)
        return found

    async def close(self) -> None:
        """Disconnect."""
        channels, self._channels = list(self._channels.values()), {}
        self._together = {}
        for channel in channels:
            await channel.close(None)
        http, self._http = self._http, None
        if http is not None:
            await http.close()
