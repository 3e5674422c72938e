"""The WSGI middleware against PEP 3333's rules, with a transaction of straw."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest

from tests.unit.test_carrying import TX, Tx, context
from txcoord_client import _carrying
from txcoord_client._pb import common_pb2 as c
from txcoord_client.wsgi import Middleware

HEADER = _carrying.context_header(context())


class Door:
    """Lets every transaction in; remembers in what order things happened."""

    def __init__(self) -> None:
        self.namespace = "default"
        self.current: ContextVar[Any] = ContextVar("current", default=None)
        self.tx = Tx()
        self.order: list[str] = []
        self.fails = ""

    def join(self, context: c.CallContext) -> Any:
        self.order.append("join")
        return self.tx

    def leave(self, tx: Any) -> None:
        if self.fails and not tx.rollback_only:
            tx.set_rollback_only(self.fails, "it failed")
        self.order.append("undone" if tx.rollback_only else "prepared")


class Server:
    """The side of the server."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.status = ""
        self.headers: dict[str, str] = {}
        self.body = b""

    def run(self, app: Any, **environ: Any) -> None:
        request = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": "/",
            "QUERY_STRING": "",
            "SERVER_NAME": "x",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "HTTP_TXCOORD_CONTEXT": HEADER,
            **environ,
        }
        # The standard library's own judge on both sides of it.
        parts: Any = validator(Middleware(validator(app), self.door))(request, self._start)
        try:
            for part in parts:
                self.body += part
        finally:
            parts.close()

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        self.door.order.append("start")
        self.status = status
        self.headers = {k.lower(): v for k, v in headers}
        return lambda data: pytest.fail("written past the body")

    @property
    def vote(self) -> c.CallVote:
        vote = _carrying.vote_in([self.headers["txcoord-vote"]])
        assert vote is not None
        return vote


TEXT = [("Content-Type", "text/plain")]


@pytest.fixture
def door() -> Door:
    return Door()


def test_nothing_leaves_before_the_iterable_is_closed_and_it_is_prepared(door: Door) -> None:
    class Parts:
        def __iter__(self) -> Iterator[bytes]:
            assert door.current.get() is door.tx
            yield b"a"
            yield b"b"
            door.order.append("drained")

        def close(self) -> None:
            assert door.current.get() is door.tx
            door.order.append("closed")

    def app(environ: Any, start_response: Any) -> Any:
        assert "HTTP_TXCOORD_CONTEXT" not in environ
        assert "wsgi.file_wrapper" not in environ
        start_response("200 OK", TEXT)
        return Parts()

    server = Server(door)
    server.run(app)
    assert door.order == ["join", "drained", "closed", "prepared", "start"]
    assert (server.status, server.body, server.vote.tx_id, server.vote.branch) == ("200 OK", b"ab", TX, "3")
    assert not server.vote.rollback_only
    assert door.current.get() is None


def test_what_is_written_comes_before_what_is_returned(door: Door) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", TEXT)
        write(b"written ")
        return iter([b"returned"])

    server = Server(door)
    server.run(app)
    assert server.body == b"written returned"


def test_a_generator_starts_its_reply_late(door: Door) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        def parts() -> Iterator[bytes]:
            start_response("201 Created", TEXT)
            yield b"x"

        return parts()

    server = Server(door)
    server.run(app)
    assert (server.status, server.body) == ("201 Created", b"x")


def test_plain_requests_pass(door: Door) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        assert environ["wsgi.file_wrapper"]
        start_response("200 OK", TEXT)
        return [b"x"]

    passed: list[str] = []
    answer = Middleware(app, door)({"wsgi.file_wrapper": 1}, lambda *a: passed.append(a[0]))  # type: ignore[arg-type, func-returns-value, return-value]
    assert (list(answer), passed, door.order) == ([b"x"], ["200 OK"], [])


def test_an_error_after_a_begun_reply_takes_its_place(door: Door) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        def parts() -> Iterator[bytes]:
            start_response("200 OK", TEXT)
            yield b"half"
            try:
                raise ValueError
            except ValueError as error:
                start_response("500 Oops", TEXT, (type(error), error, error.__traceback__))
            yield b"sorry"

        return parts()

    server = Server(door)
    server.run(app)
    assert (server.status, server.body, server.vote.reason) == ("500 Oops", b"sorry", "APPLICATION_ERROR")


@pytest.mark.parametrize("status", ["400 Bad Request", "503 Later"])
def test_an_error_reply_is_a_no_and_comes_as_it_is(door: Door, status: str) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response(status, TEXT)
        return [b"sold out"]

    server = Server(door)
    server.run(app)
    assert (server.status, server.body, server.vote.reason) == (status, b"sold out", "APPLICATION_ERROR")
    assert door.order[1] == "undone"


@pytest.mark.parametrize("where", ["call", "iterate", "close"])
def test_an_exception_is_a_no_and_is_logged(door: Door, where: str, caplog: pytest.LogCaptureFixture) -> None:
    class Parts:
        def __iter__(self) -> Iterator[bytes]:
            yield b"all well"
            if where == "iterate":
                raise RuntimeError("a bug")

        def close(self) -> None:
            door.order.append("closed")
            if where == "close":
                raise RuntimeError("a bug")

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        if where == "call":
            raise RuntimeError("a bug")
        return Parts()

    server = Server(door)
    with caplog.at_level(logging.ERROR, "txcoord.client"):
        server.run(app)
    assert (server.status, server.vote.reason) == ("500 Internal Server Error", "APPLICATION_ERROR")
    assert b"a bug" in server.body
    assert "all well" not in server.body.decode()
    assert "RuntimeError: a bug" in caplog.text
    assert where == "call" or "closed" in door.order


def test_an_exit_is_undone_and_goes_on(door: Door) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        Server(door).run(app)
    assert door.order == ["join", "undone"]


def test_an_event_stream_is_refused_at_its_first_word(door: Door) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        return pytest.fail("it went on")

    server = Server(door)
    server.run(app)
    assert (server.status, server.vote.reason) == ("501 Not Implemented", "NOT_SUPPORTED")


def test_a_reply_that_is_too_large_is_refused(door: Door) -> None:
    closed: list[bool] = []

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)

        def parts() -> Iterator[bytes]:
            try:
                while True:
                    yield b"x" * 65536
            finally:
                closed.append(True)

        return parts()

    server = Server(door)
    server.run(app)
    assert (server.status, server.vote.reason, closed) == ("500 Internal Server Error", "TOO_LARGE", [True])


def test_a_failed_prepare_replaces_the_reply(door: Door) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return [b"all well"]

    door.fails = "PREPARE_FULL"
    server = Server(door)
    server.run(app)
    assert (server.status, server.vote.reason) == ("503 Service Unavailable", "PREPARE_FULL")
    assert b"all well" not in server.body


def test_an_application_that_answers_nothing_is_a_no(door: Door) -> None:
    reply = Middleware(lambda environ, start_response: [], door)
    seen: list[Any] = []
    body = reply({"HTTP_TXCOORD_CONTEXT": HEADER}, lambda *a: seen.append(a))  # type: ignore[arg-type, func-returns-value, return-value]
    assert seen[0][0] == "500 Internal Server Error"
    assert b"without a whole reply" in b"".join(body)


def test_a_context_that_makes_no_sense_is_refused(door: Door) -> None:
    server = Server(door)
    server.run(lambda *_: pytest.fail("it ran"), HTTP_TXCOORD_CONTEXT="%")
    assert server.status == "400 Bad Request"
    assert "txcoord-vote" not in server.headers
