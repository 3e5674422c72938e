"""A participant behind HTTP: ASGI, FastAPI and Django's asynchronous views.

``sync/_serving_http.py`` says the same for threads, and for WSGI.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from ._asgi_types import Application
from ._pb import participant_pb2 as pb
from ._serving import Participant, Runner, answers
from ._serving_asgi import Endpoint, Mount, Problem, answered, check, fastapi_router, parsed, question
from .errors import Rejected
from .protocol import over_http, reasons


def asgi(participants: Sequence[Participant], app: Application | None) -> Mount:
    """An ASGI application with the endpoint, before ``app`` if there is one."""
    return Mount(_endpoint(participants), app)


def fastapi(participants: Sequence[Participant]) -> Any:
    """A router of FastAPI."""
    return fastapi_router(_endpoint(participants))


def _endpoint(participants: Sequence[Participant]) -> Endpoint:
    runner = Runner(participants)
    return Endpoint(runner.begin, runner.query_back)


def wsgi(participants: Sequence[Participant], app: Any) -> Any:
    """Not of this kind of participants. Raises Rejected."""
    raise Rejected(
        "WSGI works with threads: declare the participant with txcoord_client.sync",
        reason=reasons.NOT_SUPPORTED,
    )


def django_urls(participants: Sequence[Participant]) -> list[Any]:
    """URL patterns of Django with an asynchronous view."""
    from django.http import HttpResponse, StreamingHttpResponse
    from django.urls import path
    from django.views.decorators.csrf import csrf_exempt

    runner = Runner(participants)
    begin = runner.begin

    async def frames(asked: pb.ExecuteRequest, authorization: str) -> AsyncIterator[bytes]:
        async with aclosing(answers(begin, asked, authorization)) as found:
            async for response, _ in found:
                yield over_http.frame(response.SerializeToString())

    async def execute(request: Any) -> Any:
        try:
            check(request.method, request.content_type, request.headers.get("Content-Length", ""))
            asked = parsed(request.read(over_http.MOST_REQUEST + 1))
        except Problem as problem:
            return HttpResponse(str(problem), status=problem.status, content_type="text/plain; charset=utf-8")
        found = frames(asked, request.headers.get("Authorization", ""))
        return StreamingHttpResponse(found, content_type=over_http.REPLY_TYPE)

    async def query_back(request: Any) -> Any:
        try:
            length = request.headers.get("Content-Length", "")
            check(request.method, request.content_type, length, asks=True)
            asked = question(request.read(over_http.MOST_REQUEST + 1))
        except Problem as problem:
            return HttpResponse(str(problem), status=problem.status, content_type="text/plain; charset=utf-8")
        found = await runner.query_back(asked, request.headers.get("Authorization", ""))
        return HttpResponse(answered(found), content_type=over_http.JSON_TYPE)

    return [
        path(over_http.PATH[1:], csrf_exempt(execute), name="txcoord"),
        path(over_http.QUERY_BACK_PATH[1:], csrf_exempt(query_back), name="txcoord-query-back"),
    ]
