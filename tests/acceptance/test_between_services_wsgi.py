"""Over HTTP with threads: requests and httpx to WSGI, Flask and Django, and to `def` endpoints of FastAPI."""

# ruff: noqa: PT012, SIM117 - what raises is the end of a whole transaction

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import flask
import httpx
import pytest
import requests
from fastapi import BackgroundTasks, FastAPI
from requests.adapters import HTTPAdapter
from sqlalchemy import text
from urllib3.util.retry import Retry

from tests.support.acceptance import INSERT, Site, client_of, new_gid
from tests.support.acceptance_http import Plain, between, serving_asgi, serving_wsgi
from tests.support.acceptance_sync import Pair, SyncClient, soon, sync_client, sync_pair
from txcoord_client import Aborted, Rejected


@pytest.fixture
def pair(site: Site) -> Iterator[Pair]:
    with sync_pair(site) as pair:
        yield pair


def undone(site: Site, body: str, tx_id: str) -> None:
    """Nothing of it is there, and nothing is left prepared: at the latest after its deadline and grace."""
    soon(lambda: not site.prepared(tx_id))
    assert site.counts(body) == (0, 0)


def writing(pair: Pair, body: str, answer: Any = b"done") -> Any:
    def handler() -> Any:
        pair.write(body)
        return answer

    return handler


# ---- all goes well ----


@pytest.mark.parametrize("client", ["requests", "httpx"])
def test_the_branch_of_a_called_service_is_committed_with_the_whole(
    site: Site, pair: Pair, client: str
) -> None:
    body = new_gid()
    url = pair.handle(writing(pair, body))
    http: Any
    if client == "requests":
        http = pair.session()
    else:
        transport = pair.caller.coord.httpx_transport(propagate_to="127.0.0.1")
        http = pair.stack.enter_context(httpx.Client(transport=transport))
    with pair.caller.coord.begin("order", gid=body) as g:
        pair.caller.write(g, pair.caller.accounts, body)
        reply = http.post(url, json={})
        assert (reply.status_code, reply.text) == (200, "done")
        assert "txcoord-context" not in reply.request.headers, "the client's own request stays as it was"
        [xid] = site.ledger.prepared(g.tx_id)
        assert xid.endswith(f"{g.tx_id}.2.1")
    assert site.counts(body) == (1, 1)
    assert (reply := http.get(url)).status_code == 500, "outside of a transaction it is a plain call"


async def test_an_async_caller_and_a_chain_of_every_kind(site: Site, pair: Pair) -> None:
    """async caller -> Flask -> gRPC with threads: one transaction."""
    body = new_gid()
    with sync_client(site) as third:

        def last(request: bytes, context: Any) -> bytes:
            with third.coord.xa(third.accounts) as db:
                db.execute(text(INSERT), {"body": body})
            return b"last"

        onward = pair.stub(pair.grpc(last, third), pair.callee)
        app = flask.Flask(__name__)
        app.wsgi_app = pair.callee.coord.wsgi(app.wsgi_app)  # type: ignore[method-assign]

        @app.post("/note")
        def note() -> Any:
            pair.write(body)
            return {"said": onward(b"").decode()}

        url = pair.stack.enter_context(serving_wsgi(app))
        async with client_of(site) as caller:
            transport = caller.coord.httpx_transport(propagate_to="127.0.0.1")
            async with httpx.AsyncClient(transport=transport) as http, caller.coord.begin("order") as g:
                assert (await http.post(f"{url}/note")).json() == {"said": "last"}
                assert len(site.prepared(g.tx_id)) == 2
    assert site.counts(body) == (1, 1)


def test_calls_of_several_threads_are_several_branches(site: Site, pair: Pair) -> None:
    body = new_gid()
    url = pair.handle(writing(pair, body))
    session = pair.session()
    with pair.caller.coord.begin("order") as g:
        contexts = [copy_context() for _ in range(6)]
        threads = [threading.Thread(target=context.run, args=(session.post, url)) for context in contexts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(site.ledger.prepared(g.tx_id)) == 6
    assert site.counts(body) == (0, 6)


def test_a_stream_of_flask_is_drained_inside(site: Site, pair: Pair) -> None:
    body = new_gid()
    app = flask.Flask(__name__)
    app.wsgi_app = pair.callee.coord.wsgi(app.wsgi_app)  # type: ignore[method-assign]

    @app.get("/rows")
    def rows() -> Any:
        def lines() -> Iterator[str]:
            for number in range(3):
                pair.write(body)
                yield f"{number}\n"

        return flask.Response(lines(), mimetype="text/csv")

    @app.get("/events")
    def events() -> Any:
        return flask.Response(iter(["data: tick\n\n"]), mimetype="text/event-stream")

    url = pair.stack.enter_context(serving_wsgi(app))
    session = pair.session()
    with pair.caller.coord.begin("order") as g:
        assert session.get(f"{url}/rows").text == "0\n1\n2\n"
        assert len(site.ledger.prepared(g.tx_id)) == 1
    assert site.counts(body) == (0, 3)
    with pytest.raises(Aborted) as caught, pair.caller.coord.begin("order"):
        reply = session.get(f"{url}/events")
        assert (reply.status_code, reply.json()["reason"]) == (501, "NOT_SUPPORTED")
    assert caught.value.reason == "NOT_SUPPORTED"


def test_a_django_view_takes_part(site: Site, pair: Pair) -> None:
    body = new_gid()
    url = pair.serve(django_app({"note": lambda: pair.write(body)}))
    session = pair.session()
    with pair.caller.coord.begin("order") as g:
        pair.caller.write(g, pair.caller.accounts, body)
        assert session.get(f"{url}/note").text == "done"
        assert len(site.ledger.prepared(g.tx_id)) == 1
    assert site.counts(body) == (1, 1)
    other = new_gid()
    with pytest.raises(Aborted, match="answered 404"), pair.caller.coord.begin("order") as g:
        pair.caller.write(g, pair.caller.accounts, other)
        assert session.get(f"{url}/nothing").status_code == 404
    undone(site, other, g.tx_id)


def django_app(views: dict[str, Any]) -> Any:
    """A Django application with these views. Its settings are the process's."""
    import django
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.http import HttpRequest, HttpResponse
    from django.urls import path

    def view(work: Any) -> Any:
        def run(request: HttpRequest) -> HttpResponse:
            work()
            return HttpResponse("done")

        return run

    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF="", SECRET_KEY="x", DATABASES={}, DEBUG=False)
        django.setup()
    settings.ROOT_URLCONF = type("urls", (), {"urlpatterns": [path(k, view(v)) for k, v in views.items()]})
    return WSGIHandler()


async def test_def_endpoints_of_fastapi_take_part_by_the_synchronous_coordinator(
    site: Site, pair: Pair
) -> None:
    """They run in threads; background tasks too."""
    body = new_gid()
    app = FastAPI()

    @app.post("/note")
    def note(tasks: BackgroundTasks) -> dict[str, str]:
        pair.write(body)
        tasks.add_task(pair.write, body)
        return {"did": "it"}

    async with client_of(site) as caller, serving_asgi(pair.callee.coord.asgi(app)) as url:
        transport = caller.coord.httpx_transport(propagate_to="127.0.0.1")
        async with httpx.AsyncClient(transport=transport) as http, caller.coord.begin("order") as g:
            assert (await http.post(f"{url}/note")).json() == {"did": "it"}
            assert len(site.ledger.prepared(g.tx_id)) == 1
    assert site.counts(body) == (0, 2)


# ---- to whom it goes ----


def test_third_parties_and_redirects_to_them_get_no_header(site: Site, pair: Pair) -> None:
    body = new_gid()
    with Plain() as plain:

        def app(environ: Any, start_response: Any) -> Any:
            pair.write(body)
            start_response("302 Found", [("Location", plain.url), ("Content-Length", "0")])
            return []

        url = pair.serve(app)
        session = pair.session(to=(url.removeprefix("http://"),))
        with pair.caller.coord.begin("order"):
            assert session.get(plain.url, headers={"Txcoord-Context": "what came in here"}).text == "ok"
            assert session.get(url).text == "ok"
        assert len(plain.seen) == 2
        assert not any("txcoord-context" in headers for headers in plain.seen)
    assert site.counts(body) == (0, 1)


def test_nobody_named_is_refused(pair: Pair) -> None:
    for make in (pair.caller.coord.requests_adapter, pair.caller.coord.httpx_transport):
        with pytest.raises(Rejected, match="nobody is named"):
            make()


# ---- no vote, or a no ----


def test_a_service_that_takes_no_part_aborts(site: Site, pair: Pair) -> None:
    body = new_gid()
    session = pair.session()
    with Plain() as plain, pytest.raises(Aborted, match="without a vote") as caught:
        with pair.caller.coord.begin("order") as g:
            pair.caller.write(g, pair.caller.accounts, body)
            assert session.get(plain.url).text == "ok"
    assert caught.value.reason == "VOTE_MISSING"
    undone(site, body, g.tx_id)


def test_a_lost_reply_aborts_also_when_the_caller_catches_it(site: Site, pair: Pair) -> None:
    body = new_gid()
    url = pair.handle(writing(pair, body))
    session = pair.session()
    with between(url, lambda *_: None) as proxy, pytest.raises(Aborted) as caught:
        with pair.caller.coord.begin("order", timeout=3) as g:
            pair.caller.write(g, pair.caller.accounts, body)
            with pytest.raises(requests.ConnectionError):
                session.post(proxy.url)
            assert len(site.ledger.prepared(g.tx_id)) == 1, "it is prepared there, and nobody knows"
    assert caught.value.reason == "VOTE_MISSING"
    undone(site, body, g.tx_id)


def test_what_urllib3_sends_again_is_refused_by_the_marker(site: Site, pair: Pair) -> None:
    body = new_gid()

    def handler() -> bytes:
        with pair.callee.coord.xa(pair.callee.ledger) as db:
            db.execute(text("SET LOCAL lock_timeout = '200ms'"))
            db.execute(text(INSERT), {"body": body})
        return b"done"

    url = pair.handle(handler)
    again = HTTPAdapter(max_retries=Retry(total=2, allowed_methods=None, backoff_factor=0))
    session = pair.session(again)
    with between(url, lambda number, headers: None if number == 1 else headers) as proxy:
        with pytest.raises(Aborted) as caught, pair.caller.coord.begin("order", timeout=4) as g:
            reply = session.post(proxy.url, data=b"x")
            assert (reply.status_code, reply.json()["reason"]) == (503, "DECIDED")
        assert (proxy.count, caught.value.reason) == (2, "DECIDED")
    undone(site, body, g.tx_id)


@pytest.mark.parametrize("client", ["requests", "httpx"])
def test_a_reply_beyond_the_deadline_aborts(site: Site, pair: Pair, client: str) -> None:
    body = new_gid()
    go = threading.Event()

    def handler() -> bytes:
        pair.write(body)
        go.wait(20)
        return b"late"

    url = pair.handle(handler)
    http: Any = pair.session()
    late: Any = requests.ReadTimeout
    if client == "httpx":
        transport = pair.caller.coord.httpx_transport(propagate_to="127.0.0.1")
        http = pair.stack.enter_context(httpx.Client(transport=transport, timeout=None))
        late = httpx.ReadTimeout
    with pytest.raises(Aborted), pair.caller.coord.begin("order", timeout=1) as g:
        with pytest.raises(late):
            http.post(url)
        with pytest.raises(Rejected, match="was not sent"):
            http.post(url)
    go.set()
    undone(site, body, g.tx_id)


@pytest.mark.parametrize("status", ["404 Not Found", "503 Later"])
def test_an_error_reply_aborts_and_comes_as_it_is(site: Site, pair: Pair, status: str) -> None:
    body = new_gid()
    url = pair.handle(writing(pair, body, (status, b"sold out")))
    session = pair.session()
    with pytest.raises(Aborted, match=f"answered {status[:3]}") as caught:
        with pair.caller.coord.begin("order") as g:
            pair.caller.write(g, pair.caller.accounts, body)
            reply = session.post(url)
            assert (reply.status_code, reply.text) == (int(status[:3]), "sold out")
            assert not site.ledger.prepared(g.tx_id), "undone before the reply left"
    assert caught.value.reason == "APPLICATION_ERROR"
    undone(site, body, g.tx_id)


def test_an_exception_of_the_application_aborts(site: Site, pair: Pair) -> None:
    body = new_gid()

    def handler() -> bytes:
        pair.write(body)
        raise RuntimeError("no more seats")

    url = pair.handle(handler)
    session = pair.session()
    with pytest.raises(Aborted, match="no more seats"), pair.caller.coord.begin("order") as g:
        pair.caller.write(g, pair.caller.accounts, body)
        assert session.post(url).json()["reason"] == "APPLICATION_ERROR"
    undone(site, body, g.tx_id)


def test_what_cannot_be_prepared_replaces_the_reply(site: Site, pair: Pair) -> None:
    body = new_gid()

    def handler() -> bytes:
        pair.write(body)
        with pair.callee.coord.xa(pair.callee.ledger) as db:
            db.execute(text("CREATE TEMPORARY TABLE basket (i int)"))
        return b"all well"

    url = pair.handle(handler)
    session = pair.session()
    with pytest.raises(Aborted) as caught, pair.caller.coord.begin("order") as g:
        reply = session.post(url)
        assert (reply.status_code, reply.json()["reason"]) == (503, "PREPARE_NOT_POSSIBLE")
    assert caught.value.reason == "PREPARE_NOT_POSSIBLE"
    undone(site, body, g.tx_id)


def test_digest_authentication_sends_another_call(site: Site, pair: Pair) -> None:
    """Its first 401 is an error reply like another: the transaction cannot commit."""
    body = new_gid()
    headers = {"WWW-Authenticate": 'Digest realm="x", nonce="y", qop="auth"'}
    with Plain(401, headers) as plain, pytest.raises(Aborted):
        with pair.caller.coord.begin("order") as g:
            session = pair.session()
            session.get(plain.url, auth=requests.auth.HTTPDigestAuth("me", "secret"))
    assert len(plain.seen) == 2
    assert len({headers["txcoord-context"] for headers in plain.seen}) == 2
    undone(site, body, g.tx_id)


def test_a_service_that_is_used_without_its_coordinator_says_so(site: Site, pair: Pair) -> None:
    lonely = SyncClient(site, call_timeout=0.3)
    lonely.coord.address = "127.0.0.1:1"
    pair.stack.callback(lonely.close)

    url = pair.stack.enter_context(serving_wsgi(lonely.coord.wsgi(lambda *_: pytest.fail("it ran"))))
    session = pair.session()
    with pytest.raises(Aborted) as caught, pair.caller.coord.begin("order"):
        reply = session.get(url)
        assert (reply.status_code, reply.json()["reason"]) == (503, "UNAVAILABLE")
    assert caught.value.reason == "UNAVAILABLE"
