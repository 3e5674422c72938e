"""A participant behind HTTP, working in threads: WSGI and Django's views, ASGI and FastAPI too."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from http import HTTPStatus
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from .._asgi_types import Application
from .._pb import participant_pb2 as pb
from .._serving_asgi import Endpoint, Mount, Problem, check, fastapi_router, parsed
from ..protocol import over_http
from ._serving import Participant, Runner, answers


def asgi(participants: Sequence[Participant], app: Application | None) -> Mount:
    """An ASGI application with the endpoint, before ``app`` if there is one."""
    return Mount(Endpoint(Runner(participants).begin_in_loop), app)


def fastapi(participants: Sequence[Participant]) -> Any:
    """A router of FastAPI."""
    return fastapi_router(Endpoint(Runner(participants).begin_in_loop))


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

    return [path(over_http.PATH[1:], csrf_exempt(execute), name="txcoord")]


class WsgiMount:
    """The endpoint below whatever path it is mounted at; what is elsewhere is the inner application's."""

    def __init__(self, runner: Runner, app: WSGIApplication | None) -> None:
        self._runner = runner
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # Before another application it is at its one path only: as in ``_serving_asgi``.
        path = str(environ.get("PATH_INFO", ""))
        if path == over_http.PATH or (self._app is None and path.endswith(over_http.PATH)):
            return self._serve(environ, start_response)
        if self._app is not None:
            return self._app(environ, start_response)
        return _say(start_response, 404, f"there is only POST {over_http.PATH} here")

    def _serve(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        length = environ.get("CONTENT_LENGTH") or ""
        try:
            check(environ["REQUEST_METHOD"], environ.get("CONTENT_TYPE", ""), length)
            if not length.isdecimal():
                raise Problem(411, "a Content-Length is needed")
            request = parsed(environ["wsgi.input"].read(int(length)))
        except Problem as problem:
            return _say(start_response, problem.status, str(problem))
        start_response("200 OK", [("Content-Type", over_http.REPLY_TYPE)])
        return _frames(self._runner, request, environ.get("HTTP_AUTHORIZATION", ""))


def _frames(runner: Runner, request: pb.ExecuteRequest, authorization: str) -> Generator[bytes, None, None]:
    with closing(answers(runner, request, authorization)) as found:
        for response, _ in found:
            yield over_http.frame(response.SerializeToString())


def _say(start_response: StartResponse, status: int, text: str) -> Iterable[bytes]:
    body = text.encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    if status == 405:
        headers.append(("Allow", "POST"))
    start_response(f"{status} {HTTPStatus(status).phrase}", headers)
    return [body]
