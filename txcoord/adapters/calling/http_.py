"""Participants over HTTP: those with the SDK many branches a call, any endpoint one branch a call."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
from google.protobuf.message import DecodeError
from yarl import URL

from txcoord_client._pb import participant_pb2 as pb
from txcoord_client.protocol import over_http

from ...core.action import Answer, AnswerKind
from ...ports import CallRequest
from . import execute, http_plain, plain

_IDLE_S = 4.0
"""How long a connection is kept that nobody uses: usual servers keep them for 5 s."""
_MOST_CONNECTIONS = 100
"""To one target."""
_ONE_PIECE = 64 * 1024
_MOST_OF_A_FAILURE = 1_000
Queue = asyncio.Queue[tuple[CallRequest, Answer]]


class HttpCaller:
    """``ports.Caller`` for targets ``http://host:port/path`` and ``https://…``."""

    def __init__(self, *, node: str) -> None:
        self._node = node
        self.log_id = ""
        self._session: aiohttp.ClientSession | None = None
        self.messages = 0
        """Requests sent and replies received, for the cost counters."""

    async def call(
        self, target: str, requests: Sequence[CallRequest], timeout_s: float
    ) -> AsyncIterator[tuple[CallRequest, Answer]]:
        """One POST for all; for paths of their own, one for each branch."""
        answered: Queue = asyncio.Queue()
        own = [r for r in requests if plain.method_of(r)]
        others = [r for r in requests if not plain.method_of(r)]
        tasks = [asyncio.ensure_future(self._post(target, r, timeout_s, answered)) for r in own]
        if others:
            tasks.append(asyncio.ensure_future(self._execute(target, others, timeout_s, answered)))
        try:
            for _ in requests:
                yield await answered.get()
        finally:
            for task in tasks:
                task.cancel()

    # ---- with the SDK ----

    async def _execute(
        self, target: str, requests: Sequence[CallRequest], timeout_s: float, answered: Queue
    ) -> None:
        left = {(r.tx.tx_id, r.branch.id, int(execute.OPS[r.op])): r for r in requests}
        messages = execute.requests_of(requests, node=self._node, log_id=self.log_id)
        whys = await asyncio.gather(*(self._one(target, m, timeout_s, left, answered) for m in messages))
        why = next((w for w in whys if w), "NO_ANSWER: the participant ended the reply without an answer")
        for request in left.values():
            answered.put_nowait((request, Answer(AnswerKind.FAILED, reason=why)))

    async def _one(
        self,
        target: str,
        message: pb.ExecuteRequest,
        timeout_s: float,
        left: dict[execute.Key, CallRequest],
        answered: Queue,
    ) -> str:
        """Send one message, and pass on what is answered; why it has failed."""
        headers = {"content-type": over_http.REQUEST_TYPE, "accept": over_http.REQUEST_TYPE}
        try:
            async with asyncio.timeout(timeout_s):
                reply = await self._send(
                    f"{target.rstrip('/')}{over_http.PATH}", headers, message.SerializeToString()
                )
                try:
                    if reply.status != 200:
                        body = await _start_of(reply, _MOST_OF_A_FAILURE)
                        return http_plain.failure_of(reply.status, reply.headers, body)
                    kind = reply.headers.get("Content-Type", "")
                    if over_http.media_type(kind) != over_http.REQUEST_TYPE:
                        return f"NO_PARTICIPANT: it answered with {kind[:100]!r}: is the SDK mounted there?"
                    frames = over_http.Frames()
                    async for data in reply.content.iter_any():
                        for frame in frames.feed(data):
                            self.messages += 1
                            self._pass_on(frame, left, answered)
                    return "" if frames.empty else "BAD_REPLY: the reply ends within an answer"
                finally:
                    reply.release()
        except Exception as error:
            return failure_of(error, timeout_s)

    def _pass_on(self, frame: bytes, left: dict[execute.Key, CallRequest], answered: Queue) -> None:
        for said in pb.ExecuteResponse.FromString(frame).answers:
            asked = left.pop(execute.key_of(said), None)
            if asked is not None:
                answered.put_nowait((asked, execute.answer_of(said)))

    # ---- without ----

    async def _post(self, target: str, request: CallRequest, timeout_s: float, answered: Queue) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                reply = await self._send(
                    f"{target.rstrip('/')}{plain.method_of(request)}",
                    http_plain.headers_of(request),
                    request.branch.payload,
                )
                try:
                    most = execute.MOST_RESULT if 200 <= reply.status < 300 else _MOST_OF_A_FAILURE
                    body = await _start_of(reply, most + 1)
                finally:
                    reply.release()
                self.messages += 1
                answer = http_plain.answer_of(reply.status, reply.headers, body)
        except Exception as error:
            answer = Answer(AnswerKind.FAILED, reason=failure_of(error, timeout_s))
        answered.put_nowait((request, answer))

    # ---- the wire ----

    async def _send(self, url: str, headers: dict[str, str], body: bytes) -> aiohttp.ClientResponse:
        self.messages += 1
        session = self._session or self._open()
        again = True
        while True:
            try:
                # A large one is sent piece by piece.
                data = body if len(body) <= _ONE_PIECE else io.BytesIO(body)
                return await session.post(
                    URL(url, encoded=True), data=data, headers=headers, allow_redirects=False
                )
            except (aiohttp.ServerDisconnectedError, ConnectionResetError):
                # Perhaps only a connection that it had let go of as we took it. A call bears repetition.
                if not again:
                    raise
                again = False

    def _open(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, limit_per_host=_MOST_CONNECTIONS, keepalive_timeout=_IDLE_S, ttl_dns_cache=10
            ),
            # Who calls limits the time. What is compressed could be larger than anything.
            timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None),
            auto_decompress=False,
            headers={"accept-encoding": "identity", "user-agent": "txcoord"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        return self._session

    async def close(self) -> None:
        """Disconnect."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


async def _start_of(reply: aiohttp.ClientResponse, most: int) -> bytes:
    """So much of the body; a connection with more to come is closed."""
    out = bytearray()
    async for data in reply.content.iter_any():
        out += data
        if len(out) >= most:
            reply.close()
            break
    return bytes(out[:most])


def failure_of(error: Exception, timeout_s: float) -> str:
    """Why a call failed."""
    text: Any = " ".join(str(error).split()) or type(error).__name__
    match error:
        case TimeoutError():
            return f"TIMED_OUT: no answer within {timeout_s:g} s"
        case aiohttp.ClientSSLError():
            return f"TLS: {text}"[:500]
        case aiohttp.ClientConnectionError() | ConnectionError():
            return f"UNAVAILABLE: {text}"[:500]
        case aiohttp.ClientPayloadError():
            return f"UNAVAILABLE: the reply broke off: {text}"[:500]
        case aiohttp.InvalidURL():
            return f"UNKNOWN_PARTICIPANT: {text}"[:500]
        case aiohttp.ClientResponseError() | over_http.BadFrame() | DecodeError():
            return f"BAD_REPLY: {text}"[:500]
        case _:
            return f"OTHER: {type(error).__name__}: {text}"[:500]
