"""Participants over HTTP: those with the SDK many branches a call, any endpoint one branch a call."""

from __future__ import annotations

import asyncio
import io
import socket
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from google.protobuf.message import DecodeError
from yarl import URL

from txcoord_client._pb import participant_pb2 as pb
from txcoord_client.protocol import over_http

from ...core.action import Answer, AnswerKind, Op
from ...core.targets import Target
from ...ports import CallRequest, NotAnswered
from . import execute, http_plain, plain, query_back, webhooks
from .credentials import Credentials
from .dialling import Dialling, DiallingRefused, NotFound
from .webhooks import Webhooks

_IDLE_S = 4.0
"""How long a connection is kept that nobody uses: usual servers keep them for 5 s."""
_MOST_CONNECTIONS = 100
"""To one target."""
_ONE_PIECE = 64 * 1024
_MOST_OF_A_FAILURE = 1_000
Queue = asyncio.Queue[tuple[CallRequest, Answer]]


@dataclass(frozen=True, slots=True)
class _To:
    session: aiohttp.ClientSession
    base: str
    timeout_s: float
    authorization: str


class HttpCaller:
    """``ports.Caller`` for targets ``http://host:port/path`` and ``https://…``."""

    def __init__(
        self,
        *,
        node: str,
        credentials: Credentials,
        dialling: Dialling,
        webhooks: Webhooks | None = None,
        dialling_hooks: Dialling | None = None,
    ) -> None:
        self._webhooks = webhooks or Webhooks(dialling.targets)
        self._dialling_hooks = dialling_hooks or dialling
        self._hooks: aiohttp.ClientSession | None = None
        self._node = node
        self._credentials = credentials
        self._dialling = dialling
        self.log_id = ""
        self._session: aiohttp.ClientSession | None = None
        self.messages = 0
        """Requests sent and replies received, for the cost counters."""

    async def call(
        self, target: str, requests: Sequence[CallRequest], timeout_s: float
    ) -> AsyncIterator[tuple[CallRequest, Answer]]:
        """One POST for all; for paths of their own, and for notifications, one for each branch."""
        found = Target.parse(target)
        hooks: list[CallRequest] = []
        asked: list[CallRequest] = []
        for r in requests:
            (hooks if found is not None and webhooks.is_one(r, found) else asked).append(r)
        answered: Queue = asyncio.Queue()
        tasks = [
            asyncio.ensure_future(self._notify(found, target, r, timeout_s, answered)) for r in hooks if found
        ]
        try:
            if found is None:
                raise aiohttp.InvalidURL(target[:200])
            if asked:
                await self._dialling.to(found)
            authorization = self._credentials.authorization(found) if asked else ""
            session = self._session or self._open()
        except Exception as error:
            for request in asked:
                answered.put_nowait((request, Answer(AnswerKind.FAILED, reason=failure_of(error, timeout_s))))
        else:
            to = _To(session, target.rstrip("/"), timeout_s, authorization)
            own = [r for r in asked if plain.method_of(r)]
            others = [r for r in asked if not plain.method_of(r)]
            tasks.extend(asyncio.ensure_future(self._post(to, r, answered)) for r in own)
            if others:
                tasks.append(asyncio.ensure_future(self._execute(to, others, answered)))
        try:
            for _ in requests:
                yield await answered.get()
        finally:
            for task in tasks:
                task.cancel()

    # ---- with the SDK ----

    async def _execute(self, to: _To, requests: Sequence[CallRequest], answered: Queue) -> None:
        left = {(r.tx.tx_id, r.branch.id, int(execute.OPS[r.op])): r for r in requests}
        bears = all(map(_bears_repetition, requests))
        messages = execute.requests_of(requests, node=self._node, log_id=self.log_id)
        whys = await asyncio.gather(*(self._one(to, m, bears, left, answered) for m in messages))
        why = next((w for w in whys if w), "NO_ANSWER: the participant ended the reply without an answer")
        for request in left.values():
            answered.put_nowait((request, Answer(AnswerKind.FAILED, reason=why)))

    async def _one(
        self,
        to: _To,
        message: pb.ExecuteRequest,
        bears: bool,
        left: dict[execute.Key, CallRequest],
        answered: Queue,
    ) -> str:
        """Send one message, and pass on what is answered; why it has failed."""
        headers = {"content-type": over_http.REQUEST_TYPE, "accept": over_http.REQUEST_TYPE}
        try:
            async with asyncio.timeout(to.timeout_s):
                reply = await self._send(to, over_http.PATH, headers, message.SerializeToString(), bears)
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
            return failure_of(error, to.timeout_s)

    def _pass_on(self, frame: bytes, left: dict[execute.Key, CallRequest], answered: Queue) -> None:
        for said in pb.ExecuteResponse.FromString(frame).answers:
            asked = left.pop(execute.key_of(said), None)
            if asked is not None:
                answered.put_nowait((asked, execute.answer_of(said)))

    # ---- without ----

    async def _post(self, to: _To, request: CallRequest, answered: Queue) -> None:
        try:
            async with asyncio.timeout(to.timeout_s):
                reply = await self._send(
                    to,
                    plain.method_of(request),
                    http_plain.headers_of(request, self._dialling.targets),
                    request.branch.sent,
                    _bears_repetition(request),
                )
                try:
                    most = execute.MOST_RESULT if 200 <= reply.status < 300 else _MOST_OF_A_FAILURE
                    body = await _start_of(reply, most + 1)
                finally:
                    reply.release()
                self.messages += 1
                answer = http_plain.answer_of(reply.status, reply.headers, body)
        except Exception as error:
            answer = Answer(AnswerKind.FAILED, reason=failure_of(error, to.timeout_s))
        answered.put_nowait((request, answer))

    async def _notify(
        self, target: Target, base: str, request: CallRequest, timeout_s: float, answered: Queue
    ) -> None:
        """To whoever it may be, who is shown nothing but what was asked for."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._dialling_hooks.to(target)
                headers, body = webhooks.prepared(request, target, self._webhooks, time.time())
                if self._hooks is None:
                    self._hooks = self._session_of(self._dialling_hooks, ssl.create_default_context())
                to = _To(self._hooks, base.rstrip("/"), timeout_s, "")
                reply = await self._send(to, plain.method_of(request), headers, body, True)
                try:
                    said = await _start_of(reply, _MOST_OF_A_FAILURE)
                finally:
                    reply.release()
                self.messages += 1
                answer = webhooks.answer_of(reply.status, reply.headers, said)
        except Exception as error:
            answer = Answer(AnswerKind.FAILED, reason=failure_of(error, timeout_s))
        answered.put_nowait((request, answer))

    async def query_back(
        self, target: Target, request: pb.QueryBackRequest, timeout_s: float
    ) -> pb.QueryBackResponse:
        """What became of local transactions, in JSON. Raises NotAnswered."""
        name = str(target)
        headers = {"content-type": over_http.JSON_TYPE, "accept": over_http.JSON_TYPE}
        try:
            async with asyncio.timeout(timeout_s):
                await self._dialling.to(target)
                to = _To(
                    self._session or self._open(), name, timeout_s, self._credentials.authorization(target)
                )
                body = query_back.to_json(request)
                reply = await self._send(to, over_http.QUERY_BACK_PATH, headers, body, True)
                try:
                    said = await _start_of(reply, query_back.MOST_REPLY + 1)
                finally:
                    reply.release()
        except Exception as error:
            raise NotAnswered(name, failure_of(error, timeout_s)) from error
        self.messages += 1
        if reply.status != 200:
            found = http_plain.answer_of(reply.status, reply.headers, said[:_MOST_OF_A_FAILURE])
            raise NotAnswered(
                name, http_plain.failure_of(reply.status, reply.headers, said), found.retry_after_us
            )
        kind = reply.headers.get("Content-Type", "")
        if over_http.media_type(kind) != over_http.JSON_TYPE or len(said) > query_back.MOST_REPLY:
            raise NotAnswered(name, f"BAD_REPLY: {len(said)} bytes of {kind[:100]!r}: JSON is needed")
        return query_back.from_json(said, name)

    # ---- the wire ----

    async def _send(
        self, to: _To, path: str, headers: dict[str, str], body: bytes, again: bool
    ) -> aiohttp.ClientResponse:
        if to.authorization:
            headers["authorization"] = to.authorization
        url = URL(to.base + path, encoded=True)
        while True:
            self.messages += 1
            try:
                # A large one is sent piece by piece.
                data = body if len(body) <= _ONE_PIECE else io.BytesIO(body)
                return await to.session.post(url, data=data, headers=headers, allow_redirects=False)
            except (aiohttp.ServerDisconnectedError, ConnectionResetError):
                # Perhaps only a connection that it had let go of as we took it.
                if not again:
                    raise
                again = False

    def _open(self) -> aiohttp.ClientSession:
        self._session = self._session_of(self._dialling, self._credentials.tls.context())
        return self._session

    def _session_of(self, dialling: Dialling, tls: ssl.SSLContext) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                limit_per_host=_MOST_CONNECTIONS,
                keepalive_timeout=_IDLE_S,
                resolver=_Resolver(dialling),
                use_dns_cache=False,
                ssl=tls,
            ),
            # Who calls limits the time. What is compressed could be larger than anything.
            timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None),
            auto_decompress=False,
            headers={"accept-encoding": "identity", "user-agent": "txcoord"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def close(self) -> None:
        """Disconnect."""
        sessions, self._session, self._hooks = (self._session, self._hooks), None, None
        for session in sessions:
            if session is not None:
                await session.close()


class _Resolver(AbstractResolver):
    """Hosts are looked up by whoever knows which addresses may be dialled."""

    def __init__(self, dialling: Dialling) -> None:
        self._dialling = dialling

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in await self._dialling.addresses(
                host, port, own=self._dialling.targets.is_own(host, port)
            )
        ]

    async def close(self) -> None:
        pass


def _bears_repetition(request: CallRequest) -> bool:
    """May it be called twice within one attempt? The no to an only attempt of a first call says that it did nothing:
    of two calls one could have done it all the same."""
    return request.op not in (Op.TRY, Op.ACTION)


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
    cause = getattr(error, "os_error", error)
    match error:
        case _ if isinstance(cause, DiallingRefused):
            return str(cause)[:500]
        case TimeoutError():
            return f"TIMED_OUT: no answer within {timeout_s:g} s"
        case aiohttp.ClientSSLError():
            return f"TLS: {text}"[:500]
        case aiohttp.ClientConnectionError() | ConnectionError() | NotFound():
            return f"UNAVAILABLE: {text}"[:500]
        case aiohttp.ClientPayloadError():
            return f"UNAVAILABLE: the reply broke off: {text}"[:500]
        case aiohttp.InvalidURL():
            return f"UNKNOWN_PARTICIPANT: {text}"[:500]
        case aiohttp.ClientResponseError() | over_http.BadFrame() | DecodeError():
            return f"BAD_REPLY: {text}"[:500]
        case _:
            return f"OTHER: {type(error).__name__}: {text}"[:500]
