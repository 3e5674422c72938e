"""A participant as an ASGI application: many actions in one POST, each answer as soon as it is there.

For both kinds of participants: those that work in threads are waited for by the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from ._asgi_types import Application, Receive, Scope, Send
from ._pb import participant_pb2 as pb
from ._serving import Begin, answers
from .protocol import over_http

Ask = Callable[[pb.QueryBackRequest, str], Awaitable[pb.QueryBackResponse]]
"""Answers the questions of a request, which came with this authorization."""
PATHS = (over_http.PATH, over_http.QUERY_BACK_PATH)


class Problem(Exception):
    """Why a request is not taken."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Endpoint:
    """The one endpoint, wherever it is mounted, and the one for questions beside it."""

    def __init__(self, begin: Begin, ask: Ask) -> None:
        self._begin = begin
        self._ask = ask

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            headers = {k.lower(): v.decode("latin-1") for k, v in scope["headers"]}
            asks = scope["path"].endswith(over_http.QUERY_BACK_PATH)
            length = headers.get(b"content-length", "")
            check(scope["method"], headers.get(b"content-type", ""), length, asks=asks)
            body = await _body(receive)
            if asks:
                found = await self._ask(question(body), headers.get(b"authorization", ""))
                await _say(send, 200, answered(found), over_http.JSON_TYPE)
                return
            request = parsed(body)
        except Problem as problem:
            await _say(send, problem.status, str(problem))
            return
        except ConnectionResetError:
            return
        work = asyncio.ensure_future(self._work(request, headers.get(b"authorization", ""), send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not work.done():
                # The coordinator waits no longer: it asks again.
                work.cancel()
        if not work.cancelled() and work.done():
            work.result()

    async def _work(self, request: pb.ExecuteRequest, authorization: str, send: Send) -> None:
        started = False
        async with aclosing(answers(self._begin, request, authorization)) as found:
            async for response, last in found:
                data = over_http.frame(response.SerializeToString())
                if not started:
                    started = True
                    length = [(b"content-length", str(len(data)).encode())] if last else []
                    await _start(send, 200, over_http.REPLY_TYPE, length)
                await send({"type": "http.response.body", "body": data, "more_body": not last})
        if not started:
            await _start(send, 200, over_http.REPLY_TYPE, [(b"content-length", b"0")])
            await send({"type": "http.response.body", "body": b""})


class Mount:
    """The endpoint: alone, below whatever path it is mounted at; before another application, at its own paths only.
    What is elsewhere is that one's, and whoever guards paths in front of it must not be passed by another of them."""

    def __init__(self, endpoint: Endpoint, app: Application | None) -> None:
        self._endpoint = endpoint
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._is_here(scope):
            await self._endpoint(scope, receive, send)
        elif self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await _say(send, 404, f"there are only {' and '.join(PATHS)} here")
        else:
            await send({"type": "websocket.close", "code": 1000})

    def _is_here(self, scope: Scope) -> bool:
        path: str = scope["path"]
        if self._app is None:
            return path.endswith(PATHS)
        # Where the application itself is mounted, its path begins with that, or it was taken away already.
        return path in PATHS or path.removeprefix(scope.get("root_path", "").rstrip("/")) in PATHS


def check(method: str, content_type: str, length: str, *, asks: bool = False) -> None:
    """Is it a request for a participant? ``asks``: a question. Raises Problem."""
    if method != "POST":
        raise Problem(405, f"POST {PATHS[asks]}")
    if over_http.media_type(content_type) != (over_http.JSON_TYPE if asks else over_http.REQUEST_TYPE):
        what = f"{over_http.JSON_TYPE} is expected: txcoord.v1.QueryBackRequest"
        raise Problem(
            415, what if asks else f"{over_http.REQUEST_TYPE} is expected: txcoord.v1.ExecuteRequest"
        )
    if length.isdecimal() and int(length) > over_http.MOST_REQUEST:
        raise Problem(413, f"at most {over_http.MOST_REQUEST} bytes")


def parsed(body: bytes) -> pb.ExecuteRequest:
    """The request. Raises Problem."""
    try:
        return pb.ExecuteRequest.FromString(body)
    except DecodeError as error:
        raise Problem(400, f"this is no txcoord.v1.ExecuteRequest: {error}") from error


def question(body: bytes) -> pb.QueryBackRequest:
    """What is asked, in JSON. Raises Problem."""
    try:
        return json_format.Parse(body, pb.QueryBackRequest(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"this is no txcoord.v1.QueryBackRequest: {error}") from error


def answered(response: pb.QueryBackResponse) -> str:
    """What is answered, in JSON."""
    return json_format.MessageToJson(response, indent=None)


def fastapi_router(endpoint: Endpoint) -> Any:
    """A router of FastAPI with the endpoint; what is required of the router's requests is required of these too."""
    from fastapi import APIRouter, Request, Response

    class Passed(Response):
        """A response that is made as it is sent."""

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await endpoint(scope, receive, send)

    async def execute(request: Any) -> Response:
        return Passed()

    execute.__annotations__ = {"request": Request, "return": Response}
    router = APIRouter()
    for path in PATHS:
        router.add_api_route(path, execute, methods=["POST"], include_in_schema=False, response_model=None)
    return router


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ConnectionResetError("the caller has gone")
        body += message.get("body", b"")
        if len(body) > over_http.MOST_REQUEST:
            raise Problem(413, f"at most {over_http.MOST_REQUEST} bytes")
        if not message.get("more_body"):
            return bytes(body)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        what = (await receive())["type"]
        await send({"type": f"{what}.complete"})
        if what == "lifespan.shutdown":
            return


async def _start(send: Send, status: int, kind: str, more: list[tuple[bytes, bytes]]) -> None:
    headers = [(b"content-type", kind.encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _say(send: Send, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
    body = text.encode()
    more = [(b"content-length", str(len(body)).encode())]
    if status == 405:
        more.append((b"allow", b"POST"))
    await _start(send, status, kind, more)
    await send({"type": "http.response.body", "body": body})
