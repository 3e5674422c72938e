"""A participant behind HTTP, working in threads: WSGI and Django's views, ASGI and FastAPI too."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from http import HTTPStatus
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from .._asgi_types import Application
from .._pb import participant_pb2 as pb
from .._serving_asgi import (
    PATHS,
    Endpoint,
    Mount,
    Problem,
    answered,
    check,
    fastapi_router,
    parsed,
    question,
)
from ..protocol import over_http
from ._serving import Participant, Runner, answers


def asgi(participants: Sequence[Participant], app: Application | None) -> Mount:
    """An ASGI application with the endpoint, before ``app`` if there is one."""
    return Mount(_endpoint(participants), app)


def fastapi(participants: Sequence[Participant]) -> Any:
    """A router of FastAPI."""
    return fastapi_router(_endpoint(participants))


def _endpoint(participants: Sequence[Participant]) -> Endpoint:
    runner = Runner(participants)
    return Endpoint(runner.begin_in_loop, runner.query_back_in_loop)


def wsgi(participants: Sequence[Participant], app: WSGIApplication | None) -> WsgiMount:
    """A WSGI application with the endpoint, before ``app`` if there is one."""
    return WsgiMount(Runner(participants), app)


def django_urls(participants: Sequence[Participant]) -> list[Any]:
    """URL patterns of Django with a view."""
    from django.http import HttpResponse, StreamingHttpResponse
    from django.urls import path
    from django.views.decorators.csrf import csrf_exempt

    runner = Runner(participants)

    def execute(request: Any) -> Any:
        try:
            check(request.method, request.content_type, request.headers.get("Content-Length", ""))
            asked = parsed(request.read(over_http.MOST_REQUEST + 1))
        except Problem as problem:
            return HttpResponse(str(problem), status=problem.status, content_type="text/plain; charset=utf-8")
        return StreamingHttpResponse(
            _frames(runner, asked, request.headers.get("Authorization", "")),
            content_type=over_http.REPLY_TYPE,
        )

    def query_back(request: Any) -> Any:
        try:
            length = request.headers.get("Content-Length", "")
            check(request.method, request.content_type, length, asks=True)
            asked = question(request.read(over_http.MOST_REQUEST + 1))
        except Problem as problem:
            return HttpResponse(str(problem), status=problem.status, content_type="text/plain; charset=utf-8")
        found = runner.query_back(asked, request.headers.get("Authorization", ""))
        return HttpResponse(answered(found), content_type=over_http.JSON_TYPE)

    return [
        path(over_http.PATH[1:], csrf_exempt(execute), name="txcoord"),
        path(over_http.QUERY_BACK_PATH[1:], csrf_exempt(query_back), name="txcoord-query-back"),
    ]


class WsgiMount:
    """The endpoint below whatever path it is mounted at; what is elsewhere is the inner application's."""

    def __init__(self, runner: Runner, app: WSGIApplication | None) -> None:
        self._runner = runner
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # Before another application it is at its own paths only: as in ``_serving_asgi``.
        path = str(environ.get("PATH_INFO", ""))
        if path in PATHS or (self._app is None and path.endswith(PATHS)):
            return self._serve(environ, start_response)
        if self._app is not None:
            return self._app(environ, start_response)
        return _say(start_response, 404, f"there are only {' and '.join(PATHS)} here")

    def _serve(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        length = environ.get("CONTENT_LENGTH") or ""
        asks = str(environ.get("PATH_INFO", "")).endswith(over_http.QUERY_BACK_PATH)
        authorization = environ.get("HTTP_AUTHORIZATION", "")
        try:
            check(environ["REQUEST_METHOD"], environ.get("CONTENT_TYPE", ""), length, asks=asks)
            if not length.isdecimal():
                raise Problem(411, "a Content-Length is needed")
            body = environ["wsgi.input"].read(int(length))
            if asks:
                found = self._runner.query_back(question(body), authorization)
                return _say(start_response, 200, answered(found), over_http.JSON_TYPE)
            request = parsed(body)
        except Problem as problem:
            return _say(start_response, problem.status, str(problem))
        start_response("200 OK", [("Content-Type", over_http.REPLY_TYPE)])
        return _frames(self._runner, request, authorization)


def _frames(runner: Runner, request: pb.ExecuteRequest, authorization: str) -> Generator[bytes, None, None]:
    with closing(answers(runner, request, authorization)) as found:
        for response, _ in found:
            yield over_http.frame(response.SerializeToString())


def _say(
    start_response: StartResponse, status: int, text: str, kind: str = "text/plain; charset=utf-8"
) -> Iterable[bytes]:
    body = text.encode()
    headers = [("Content-Type", kind), ("Content-Length", str(len(body)))]
    if status == 405:
        headers.append(("Allow", "POST"))
    start_response(f"{status} {HTTPStatus(status).phrase}", headers)
    return [body]
