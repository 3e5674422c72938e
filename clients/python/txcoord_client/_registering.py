"""Participants that tell the coordinators where they are, as long as they serve.

They tell every coordinator that this process knows, not only the one that it uses: each of them calls participants, and
what they share among themselves may be away.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import re
import secrets
import socket
from dataclasses import dataclass, field

import grpc

from . import _refusals
from ._nodes import Node, Nodes
from ._pb import coordinator_pb2 as pb
from .errors import TxcoordError, Unavailable

log = logging.getLogger("txcoord.client")
_CALL_S = 2.0
_AGAIN_S = 1.0
"""While no coordinator answers."""
_LEAVE_S = 1.0


def new_instance() -> str:
    """A name of this process, for people too."""
    host = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:60]
    return f"{host}/{os.getpid()}/{secrets.token_hex(4)}"


@dataclass(eq=False, slots=True)
class _Registered:
    """One instance."""

    request: pb.RegisterParticipantRequest
    first: asyncio.Future[None]
    """Done when a coordinator knows it, or none will."""
    at: set[str] = field(default_factory=set)
    """The coordinators that know it."""
    every_s: float = _AGAIN_S
    refused: set[str] = field(default_factory=set)
    """What was said of that."""
    task: asyncio.Task[None] | None = None

    @property
    def key(self) -> pb.HeartbeatParticipantRequest:
        asked = self.request
        return pb.HeartbeatParticipantRequest(
            namespace=asked.namespace, participant=asked.participant, instance=asked.instance
        )


class Registrations:
    """Those of one process and event loop."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._all: dict[int, _Registered] = {}
        self._numbers = itertools.count(1)

    async def add(self, request: pb.RegisterParticipantRequest, until: float) -> int:
        """Register, and go on until it is removed; answers its number. Waits for the first coordinator that knows it,
        at most until then (by the loop's clock). Raises what a coordinator refuses it with."""
        loop = asyncio.get_running_loop()
        one = _Registered(request, loop.create_future())
        one.task = loop.create_task(self._keep(one), name=f"txcoord.register:{request.participant}")
        number = next(self._numbers)
        self._all[number] = one
        try:
            await asyncio.wait({one.first}, timeout=max(until - loop.time(), 0.0))
            if one.first.done():
                one.first.result()
            else:
                one.first.cancel()
                log.warning(
                    "%s is not registered yet: no coordinator answers. It is tried again", request.participant
                )
        except BaseException:
            await self.remove(number)
            raise
        return number

    async def remove(self, number: int) -> None:
        """It is to be called no more. Not waited for long: who is not told finds it out."""
        one = self._all.pop(number, None)
        if one is None or one.task is None:
            return
        one.task.cancel()
        await asyncio.gather(one.task, return_exceptions=True)
        one.first.cancel()
        request = one.key
        request.leaving = True
        nodes = [node for node in self._nodes.known if node.address in one.at]
        calls = (node.call("HeartbeatParticipant", request, _LEAVE_S) for node in nodes)
        await asyncio.gather(*calls, return_exceptions=True)

    async def close(self) -> None:
        """All of them."""
        await asyncio.gather(*(self.remove(number) for number in list(self._all)))

    async def _keep(self, one: _Registered) -> None:
        while True:
            try:
                await self._nodes.pick()  # It looks names up.
                await asyncio.gather(*(self._tell(one, node) for node in self._nodes.known))
            except Exception:
                log.exception("%s could not be registered", one.request.participant)
            pause = one.every_s if one.at else _AGAIN_S
            await asyncio.sleep(pause * random.uniform(0.8, 1.0))

    async def _tell(self, one: _Registered, node: Node) -> None:
        try:
            if node.address in one.at:
                beat = await node.call("HeartbeatParticipant", one.key, _CALL_S)
                if beat.known:
                    return
            answer = await node.call("RegisterParticipant", one.request, _CALL_S)
        except grpc.aio.AioRpcError as call:
            # One that was restarted does not know it: it is told all when it is back.
            one.at.discard(node.address)
            error = _refusals.error_of_call(call)
            if not isinstance(error, Unavailable):
                self._refused(one, node, error)
            return
        one.at.add(node.address)
        one.every_s = max(answer.heartbeat_us / 1e6, 0.1)
        if not one.first.done():
            one.first.set_result(None)

    @staticmethod
    def _refused(one: _Registered, node: Node, error: TxcoordError) -> None:
        if not one.first.done():
            one.first.set_exception(error)
        elif str(error) not in one.refused:
            one.refused.add(str(error))
            log.warning("%s is not registered at %s: %s", one.request.participant, node.address, error)
