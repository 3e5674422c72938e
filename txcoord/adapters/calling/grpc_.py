"""Participants over gRPC: those with the SDK many branches a call, any unary method one branch a call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from txcoord_client._pb import participant_pb2 as pb
from txcoord_client._pb import participant_pb2_grpc

from ...core.action import Answer, AnswerKind
from ...core.targets import Target
from ...ports import CallRequest, NotAnswered
from . import execute, grpc_plain, plain
from .credentials import Credentials
from .dialling import Dialling, DiallingRefused, NotFound

_OPTIONS = [
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    # One that was away is found soon after it is back; when it is called again is the coordinator's to say.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
]
_MOST_CHANNELS = 1_000
_LAST_CALLS_S = 30.0
Queue = asyncio.Queue[tuple[CallRequest, Answer]]
Metadata = list[tuple[str, str | bytes]]


class GrpcCaller:
    """``ports.Caller`` for targets ``grpc://host:port``, and ``grpcs://`` for TLS."""

    def __init__(self, *, node: str, credentials: Credentials, dialling: Dialling) -> None:
        self._node = node
        self._credentials = credentials
        self._dialling = dialling
        self.log_id = ""
        self._channels: dict[Target, tuple[str, grpc.aio.Channel]] = {}
        self._closing: set[asyncio.Future[None]] = set()
        self._over_ipv6: set[Target] = set()
        """Those which were not reached over IPv4 the last time."""
        self.messages = 0
        """Messages sent and received, for the cost counters."""

    async def call(
        self, target: str, requests: Sequence[CallRequest], timeout_s: float
    ) -> AsyncIterator[tuple[CallRequest, Answer]]:
        """One call of ``Execute``; for methods of its own, one call for each branch."""
        found = Target.parse(target)
        if found is None:
            for request in requests:
                yield request, Answer(AnswerKind.FAILED, reason=f"UNKNOWN_PARTICIPANT: {target[:200]!r}")
            return
        answered: Queue = asyncio.Queue()
        work = asyncio.ensure_future(self._all(found, requests, timeout_s, answered))
        try:
            for _ in requests:
                yield await answered.get()
        finally:
            work.cancel()

    async def _all(
        self, target: Target, requests: Sequence[CallRequest], timeout_s: float, answered: Queue
    ) -> None:
        try:
            channel = await self._channel(target)
            authorization = self._credentials.authorization(target)
        except Exception as error:
            for request in requests:
                answered.put_nowait((request, Answer(AnswerKind.FAILED, reason=not_reached(error))))
            return
        metadata: Metadata = [("authorization", authorization)] if authorization else []
        own = [r for r in requests if plain.method_of(r)]
        others = [r for r in requests if not plain.method_of(r)]
        calls = [self._unary(target, channel, r, timeout_s, metadata, answered) for r in own]
        if others:
            calls.append(self._execute(target, channel, others, timeout_s, metadata, answered))
        await (asyncio.gather(*calls) if len(calls) > 1 else calls[0])

    async def _execute(
        self,
        target: Target,
        channel: grpc.aio.Channel,
        requests: Sequence[CallRequest],
        timeout_s: float,
        metadata: Metadata,
        answered: Queue,
    ) -> None:
        left = {(r.tx.tx_id, r.branch.id, int(execute.OPS[r.op])): r for r in requests}
        why = "NO_ANSWER: the participant ended the call without an answer"
        streams: list[Any] = []
        try:
            stub: Any = participant_pb2_grpc.ParticipantServiceStub(channel)
            for message in execute.requests_of(requests, node=self._node, log_id=self.log_id):
                self.messages += 1
                streams.append(stub.Execute(message, timeout=timeout_s, metadata=metadata))
            for stream in streams:
                async for response in stream:
                    self.messages += 1
                    for said in response.answers:
                        asked = left.pop(execute.key_of(said), None)
                        if asked is not None:
                            answered.put_nowait((asked, execute.answer_of(said)))
        except grpc.aio.AioRpcError as error:
            self._failed(target, error)
            why = grpc_plain.failure_of(error, timeout_s)
        except Exception as error:
            why = f"OTHER: {type(error).__name__}: {error}"
        finally:
            for stream in streams:
                stream.cancel()
        for request in left.values():
            answered.put_nowait((request, Answer(AnswerKind.FAILED, reason=why)))

    async def _unary(
        self,
        target: Target,
        channel: grpc.aio.Channel,
        request: CallRequest,
        timeout_s: float,
        metadata: Metadata,
        answered: Queue,
    ) -> None:
        try:
            raw: Any = channel  # Bytes in, bytes out.
            method = raw.unary_unary(plain.method_of(request))
            self.messages += 2
            given = grpc_plain.metadata_of(request, self._dialling.targets)
            reply = await method(request.branch.sent, timeout=timeout_s, metadata=[*given, *metadata])
            answer = plain.done(bytes(reply), "application/octet-stream")
        except grpc.aio.AioRpcError as error:
            self._failed(target, error)
            answer = grpc_plain.answer_of(error, request, timeout_s)
        except Exception as error:
            answer = Answer(AnswerKind.FAILED, reason=f"OTHER: {type(error).__name__}: {error}")
        answered.put_nowait((request, answer))

    async def query_back(
        self, target: Target, request: pb.QueryBackRequest, timeout_s: float
    ) -> pb.QueryBackResponse:
        """What became of local transactions. Raises NotAnswered."""
        try:
            channel = await self._channel(target)
            authorization = self._credentials.authorization(target)
        except Exception as error:
            raise NotAnswered(str(target), not_reached(error)) from error
        stub: Any = participant_pb2_grpc.ParticipantServiceStub(channel)
        metadata: Metadata = [("authorization", authorization)] if authorization else []
        self.messages += 1
        try:
            response: pb.QueryBackResponse = await stub.QueryBack(
                request, timeout=timeout_s, metadata=metadata
            )
        except grpc.aio.AioRpcError as error:
            self._failed(target, error)
            raise NotAnswered(str(target), grpc_plain.failure_of(error, timeout_s)) from error
        self.messages += 1
        return response

    # ---- channels ----

    async def _channel(self, target: Target) -> grpc.aio.Channel:
        """One to the addresses that its host has now. Raises OSError."""
        try:
            place = self._place(target, await self._dialling.to(target))
        except DiallingRefused:
            if (known := self._channels.pop(target, None)) is not None:
                self._leave(known[1])
            raise
        except OSError:
            if target not in self._channels:
                raise
            place = self._channels[target][0]  # Nobody can say where it is now: perhaps where it was.
        known = self._channels.pop(target, None)
        if known is not None and known[0] != place:
            self._leave(known[1])
            known = None
        if known is None:
            known = place, self._open(target, place)
        self._channels[target] = known  # The one that was used last is the last.
        if len(self._channels) > _MOST_CHANNELS:
            self._leave(self._channels.pop(next(iter(self._channels)))[1])
        return known[1]

    def _place(self, target: Target, addresses: Sequence[str]) -> str:
        """As gRPC takes addresses: of one family at a time."""
        four = [f"{a}:{target.port}" for a in addresses if ":" not in a]
        six = [f"[{a}]:{target.port}" for a in addresses if ":" in a]
        if six and (not four or target in self._over_ipv6):
            return f"ipv6:{','.join(six)}"
        return f"ipv4:{','.join(four)}"

    def _open(self, target: Target, place: str) -> grpc.aio.Channel:
        host = f"[{target.host}]" if ":" in target.host else target.host
        options = [*_OPTIONS, ("grpc.default_authority", f"{host}:{target.port}")]
        if not target.tls:
            return grpc.aio.insecure_channel(place, options=options)
        options.append(("grpc.ssl_target_name_override", target.host))
        return grpc.aio.secure_channel(place, self._credentials.tls.channel(), options=options)

    def _failed(self, target: Target, error: grpc.aio.AioRpcError) -> None:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            self._dialling.forget(target.host, target.port)
            self._over_ipv6 = self._over_ipv6 & self._channels.keys() ^ {target}

    def _leave(self, channel: grpc.aio.Channel) -> None:
        """Close it after its last calls."""
        self._closing.add(task := asyncio.ensure_future(channel.close(grace=_LAST_CALLS_S)))
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Disconnect."""
        channels, self._channels = list(self._channels.values()), {}
        await asyncio.gather(*(channel.close(None) for _, channel in channels))


def not_reached(error: Exception) -> str:
    """Why it was not even called."""
    match error:
        case DiallingRefused():
            return str(error)[:500]
        case NotFound():
            return f"UNAVAILABLE: {error}"[:500]
        case _:
            return f"CREDENTIALS: {error}"[:500]
