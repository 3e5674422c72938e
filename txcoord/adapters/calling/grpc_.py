"""Participants over gRPC: those with the SDK many branches a call, any unary method one branch a call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from txcoord_client._pb import participant_pb2_grpc

from ...core.action import Answer, AnswerKind
from ...ports import CallRequest
from . import execute, grpc_plain, plain

_OPTIONS = [
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    # One that was away is found soon after it is back; when it is called again is the coordinator's to say.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_retries", 0),
]
_MOST_CHANNELS = 1_000
_LAST_CALLS_S = 30.0
Queue = asyncio.Queue[tuple[CallRequest, Answer]]


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
        channel = self._channel(target.removeprefix("grpc://"))
        answered: Queue = asyncio.Queue()
        own = [r for r in requests if plain.method_of(r)]
        others = [r for r in requests if not plain.method_of(r)]
        tasks = [asyncio.ensure_future(self._unary(channel, r, timeout_s, answered)) for r in own]
        if others:
            tasks.append(asyncio.ensure_future(self._execute(channel, others, timeout_s, answered)))
        try:
            for _ in requests:
                yield await answered.get()
        finally:
            for task in tasks:
                task.cancel()

    async def _execute(
        self, channel: grpc.aio.Channel, requests: Sequence[CallRequest], timeout_s: float, answered: Queue
    ) -> None:
        left = {(r.tx.tx_id, r.branch.id, int(execute.OPS[r.op])): r for r in requests}
        why = "NO_ANSWER: the participant ended the call without an answer"
        streams: list[Any] = []
        try:
            stub: Any = participant_pb2_grpc.ParticipantServiceStub(channel)
            for message in execute.requests_of(requests, node=self._node, log_id=self.log_id):
                self.messages += 1
                streams.append(stub.Execute(message, timeout=timeout_s))
            for stream in streams:
                async for response in stream:
                    self.messages += 1
                    for said in response.answers:
                        asked = left.pop(execute.key_of(said), None)
                        if asked is not None:
                            answered.put_nowait((asked, execute.answer_of(said)))
        except grpc.aio.AioRpcError as error:
            why = grpc_plain.failure_of(error, timeout_s)
        except Exception as error:
            why = f"OTHER: {type(error).__name__}: {error}"
        finally:
            for stream in streams:
                stream.cancel()
        for request in left.values():
            answered.put_nowait((request, Answer(AnswerKind.FAILED, reason=why)))

    async def _unary(
        self, channel: grpc.aio.Channel, request: CallRequest, timeout_s: float, answered: Queue
    ) -> None:
        try:
            raw: Any = channel  # Bytes in, bytes out.
            method = raw.unary_unary(plain.method_of(request))
            self.messages += 2
            reply = await method(
                request.branch.payload, timeout=timeout_s, metadata=grpc_plain.metadata_of(request)
            )
            answer = plain.done(bytes(reply), "application/octet-stream")
        except grpc.aio.AioRpcError as error:
            answer = grpc_plain.answer_of(error, request, timeout_s)
        except Exception as error:
            answer = Answer(AnswerKind.FAILED, reason=f"OTHER: {type(error).__name__}: {error}")
        answered.put_nowait((request, answer))

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.pop(address, None)
        if channel is None:
            channel = grpc.aio.insecure_channel(f"dns:///{address}", options=_OPTIONS)
        self._channels[address] = channel  # The one that was used last is the last.
        if len(self._channels) > _MOST_CHANNELS:
            oldest = self._channels.pop(next(iter(self._channels)))
            self._closing.add(task := asyncio.ensure_future(oldest.close(grace=_LAST_CALLS_S)))
            task.add_done_callback(self._closing.discard)
        return channel

    async def close(self) -> None:
        """Disconnect."""
        channels, self._channels = list(self._channels.values()), {}
        await asyncio.gather(*(channel.close(None) for channel in channels))
