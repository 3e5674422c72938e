"""Participants over gRPC: those with the SDK many branches a call, any unary method one branch a call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from txcoord_client._pb import participant_pb2_grpc

from ...core.action import Answer, AnswerKind
from ...ports import CallRequest
from . import execute

_OPTIONS = [
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    # One that was away is found soon after it is back; when it is called again is the coordinator's to say.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_retries", 0),
]
_MOST_CHANNELS = 1_000


class GrpcCaller:
    """``ports.Caller`` for targets ``grpc://host:port``."""

    def __init__(self, *, node: str) -> None:
        self._node = node
        self.log_id = ""
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._closing: set[asyncio.Future[None]] = set()
        self.messages = 0
        """Messages sent and received, for the cost counters."""

    async def call(
        self, target: str, requests: Sequence[CallRequest], timeout_s: float
    ) -> AsyncIterator[tuple[CallRequest, Answer]]:
        """One call of ``Execute``; for methods of its own, one call for each branch."""
        scheme, _, address = target.partition("://")
        if scheme != "grpc" or not address:
            answer = Answer(
                AnswerKind.FAILED, reason=f"UNKNOWN_PARTICIPANT: {target[:200]!r} cannot be called"
            )
            for request in requests:
                yield request, answer
            return
        channel = self._channel(address)
        left = {
            (r.tx.tx_id, r.branch.id, int(execute.OPS[r.op])): r
            for r in requests
            if r.branch.action is not None
        }
        stub: Any = participant_pb2_grpc.ParticipantServiceStub(channel)
        streams: list[Any] = []
        try:
            for message in execute.requests_of(list(left.values()), node=self._node, log_id=self.log_id):
                self.messages += 1
                streams.append(stub.Execute(message, timeout=timeout_s))
            for stream in streams:
                async for response in stream:
                    self.messages += 1
                    for said in response.answers:
                        asked = left.pop(execute.key_of(said), None)
                        if asked is not None:
                            yield asked, execute.answer_of(said)
            why = "NO_ANSWER: the participant ended the call without an answer"
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                why = f"TIMED_OUT: no answer within {timeout_s:g} s"
            else:
                why = f"{error.code().name}: {error.details()}"[:500]
        finally:
            for stream in streams:
                stream.cancel()
        for request in left.values():
            yield request, Answer(AnswerKind.FAILED, reason=why)

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.pop(address, None)
        if channel is None:
            channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._channels[address] = channel  # The one that was used last is the last.
        if len(self._channels) > _MOST_CHANNELS:
            oldest = next(iter(self._channels))
            old = self._channels.pop(oldest)
            self._closing.add(task := asyncio.ensure_future(old.close(grace=30.0)))
            task.add_done_callback(self._closing.discard)
        return channel

    async def close(self) -> None:
        """Disconnect."""
        channels, self._channels = list(self._channels.values()), {}
        await asyncio.gather(*(channel.close(None) for channel in channels))
