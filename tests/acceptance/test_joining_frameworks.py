"""Applications as the frameworks' own tutorials write them, called inside a global transaction: with one line at
start-up they take part with all their rows, or with none. Each test reads the databases afterwards."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from flask import Flask, abort, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Mapped, mapped_column

from tests.acceptance import test_joining_django as djangos
from tests.support.acceptance import Client, Site, client_of, eventually, new_gid
from tests.support.acceptance_http import serving_asgi, serving_wsgi
from tests.support.acceptance_sync import sync_client
from tests.support.joining_fastapi import fastapi_async, fastapi_threads
from txcoord_client import Aborted

# ---- the applications; FastAPI's are in tests.support.joining_fastapi ----


def flask_app(url: str) -> tuple[Flask, Any]:
    """Flask-SQLAlchemy, as its quickstart has it."""
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    db = SQLAlchemy()
    db.init_app(app)

    class Entry(db.Model):  # type: ignore[name-defined,misc]
        __tablename__ = "note"
        body: Mapped[str] = mapped_column(primary_key=True)

    @app.post("/notes/<body>")
    def add(body: str) -> dict[str, str]:
        db.session.add(Entry(body=f"{body}-1"))
        db.session.commit()
        db.session.add(Entry(body=f"{body}-2"))
        db.session.commit()
        # A read that nobody ends: Flask-SQLAlchemy removes the session with the request.
        assert db.session.get(Entry, f"{body}-2") is not None
        return {"added": body}

    @app.get("/notes/<body>")
    def read(body: str) -> list[str]:
        return list(db.session.scalars(db.select(Entry.body).filter(Entry.body.startswith(body))))

    @app.post("/caught/<body>")
    def caught(body: str) -> dict[str, str]:
        try:
            db.session.add(Entry(body=f"{body}-undone"))
            db.session.flush()
            db.session.execute(db.text("INSERT INTO note (body) VALUES (NULL)"))
        except IntegrityError:
            db.session.rollback()
        db.session.add(Entry(body=f"{body}-1"))
        db.session.commit()
        return {"added": body}

    @app.post("/sold-out/<body>")
    def sold_out(body: str) -> None:
        db.session.add(Entry(body=body))
        db.session.commit()
        abort(409, "sold out")

    @app.post("/stream/<body>")
    def stream(body: str) -> Any:
        def lines() -> Iterator[str]:
            with app.app_context():
                for number in (1, 2):
                    db.session.add(Entry(body=f"{body}-{number}"))
                    db.session.commit()
                    yield f"{number}\n"

        return app.response_class(lines(), mimetype="text/csv")

    @app.post("/forgot/<body>")
    def forgot(body: str) -> dict[str, str]:
        """Without a commit it never was one."""
        db.session.add(Entry(body=body))
        db.session.flush()
        return {"flushed": request.path}

    with app.app_context():
        return app, db.engine


def django_app(atomic_requests: bool) -> Any:
    """Views with the ORM, ``atomic``, and ``ATOMIC_REQUESTS``."""
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler
    from django.db import IntegrityError, connection, connections, transaction
    from django.http import HttpRequest, HttpResponse, JsonResponse
    from django.urls import path

    Entry = djangos.note_model()

    def add(request: HttpRequest, body: str) -> HttpResponse:
        Entry.objects.create(body=f"{body}-1")
        with transaction.atomic():
            Entry.objects.create(body=f"{body}-2")
        return JsonResponse({"added": body})

    def notes(request: HttpRequest, body: str) -> HttpResponse:
        if request.method == "POST":
            return add(request, body)
        found = Entry.objects.filter(body__startswith=body).values_list("body", flat=True)
        return JsonResponse(list(found), safe=False)

    def caught(request: HttpRequest, body: str) -> HttpResponse:
        try:
            with transaction.atomic():
                Entry.objects.create(body=f"{body}-undone")
                with connection.cursor() as cursor:
                    cursor.execute("INSERT INTO note (body) VALUES (NULL)")
        except IntegrityError:
            pass
        Entry.objects.create(body=f"{body}-1")
        return JsonResponse({"added": body})

    def sold_out(request: HttpRequest, body: str) -> HttpResponse:
        Entry.objects.create(body=body)
        return HttpResponse("sold out", status=409)

    views = {"notes": notes, "caught": caught, "sold-out": sold_out}
    settings.ROOT_URLCONF = type(
        "urls", (), {"urlpatterns": [path(f"{name}/<body>", view) for name, view in views.items()]}
    )
    connections.settings["default"]["ATOMIC_REQUESTS"] = atomic_requests
    return WSGIHandler()


# ---- whoever calls them ----


class Called:
    """One of the applications, served, and its caller."""

    def __init__(self, caller: Client, site: Site, http: httpx.AsyncClient) -> None:
        self.caller, self.site, self.http = caller, site, http
        self.body = new_gid()

    async def call(self, path: str, method: str = "POST") -> httpx.Response:
        return await self.http.request(method, f"/{path}/{self.body}")

    async def notes(self) -> list[str]:
        """In the callee's database, once all has ended; where the caller's is there, both are."""
        await eventually(lambda: not self.site.prepared())
        sql = f"SELECT body FROM note WHERE body LIKE '{self.body}%' ORDER BY body"
        return [body.removeprefix(f"{self.body}-") for body in self.site.ledger.sql(sql).split()]

    async def committed(self, path: str) -> httpx.Response:
        """Call it inside a transaction that has work of its own."""
        async with self.caller.coord.begin("order") as g:
            await self.caller.write(g, self.caller.accounts, self.body)
            reply = await self.call(path)
            assert reply.status_code == 200, reply.text
            assert len(self.site.ledger.prepared(g.tx_id)) == 1
            assert self.site.counts(self.body)[0] == 0
        assert self.site.accounts.count(self.body) == 1
        return reply


KINDS = ["fastapi", "fastapi in threads", "flask", "django", "django with ATOMIC_REQUESTS"]


@pytest.fixture(params=KINDS)
async def called(site: Site, request: pytest.FixtureRequest, django_settings: None) -> AsyncIterator[Called]:
    kind: str = request.param
    async with client_of(site) as caller, AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(site, kind))
        transport = caller.coord.httpx_transport(propagate_to="127.0.0.1")
        http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url=url))
        yield Called(caller, site, http)


@pytest.fixture(scope="module")
def django_settings(site_with_django: Site) -> None:
    """Django's settings are the process's."""


site_with_django = djangos.site_with_django


@contextlib.asynccontextmanager
async def serving(site: Site, kind: str) -> AsyncIterator[str]:
    """Serve it: each has its own one line for ``instrument``, and its middleware."""
    async with AsyncExitStack() as stack:
        if kind == "fastapi":
            callee = await stack.enter_async_context(client_of(site))
            engine = create_async_engine(site.ledger.url)
            stack.push_async_callback(engine.dispose)
            callee.coord.instrument(engine, resource="ledger")
            app: Any = callee.coord.asgi(fastapi_async(engine))
            yield await stack.enter_async_context(serving_asgi(app))
            return
        threads = stack.enter_context(sync_client(site))
        coord = threads.coord
        if kind == "fastapi in threads":
            coord.instrument(threads.ledger, resource="ledger")
            yield await stack.enter_async_context(serving_asgi(coord.asgi(fastapi_threads(threads.ledger))))
        elif kind == "flask":
            flask, flask_engine = flask_app(site.ledger.url.replace("+asyncpg", "+psycopg"))
            stack.callback(flask_engine.dispose)
            coord.instrument(flask_engine, resource="ledger")
            flask.wsgi_app = coord.wsgi(flask.wsgi_app)  # type: ignore[method-assign]
            yield stack.enter_context(serving_wsgi(flask))
        else:
            using = djangos.using(site, "refuse", database=site.ledger, resource="ledger")
            shop = await asyncio.to_thread(
                using.__enter__
            )  # Django refuses to be used in an event loop's thread.
            stack.push_async_callback(asyncio.to_thread, using.__exit__)
            yield stack.enter_context(serving_wsgi(shop.coord.wsgi(django_app("ATOMIC" in kind))))


async def test_it_votes_with_all_its_rows(called: Called) -> None:
    assert (await called.committed("notes")).json() == {"added": called.body}
    assert await called.notes() == ["1", "2"]


async def test_all_is_undone_when_the_caller_fails(called: Called) -> None:
    with pytest.raises(ZeroDivisionError):
        async with called.caller.coord.begin("order"):
            assert (await called.call("notes")).status_code == 200
            raise ZeroDivisionError
    assert await called.notes() == []


async def test_reading_is_no_vote_against_it(called: Called) -> None:
    async with called.caller.coord.begin("order") as g:
        await called.caller.write(g, called.caller.accounts, called.body)
        assert (await called.call("notes", "GET")).json() == []
        assert called.site.ledger.prepared(g.tx_id) == []
    assert called.site.counts(called.body) == (1, 0)


async def test_a_caught_exception_undoes_only_its_unit(called: Called) -> None:
    await called.committed("caught")
    assert await called.notes() == ["1"]


async def test_an_error_reply_undoes_what_was_committed(called: Called) -> None:
    with pytest.raises(Aborted) as caught:
        async with called.caller.coord.begin("order") as g:
            await called.caller.write(g, called.caller.accounts, called.body)
            reply = await called.call("sold-out")
            assert reply.status_code == 409
            assert "sold out" in reply.text
    assert caught.value.reason == "APPLICATION_ERROR"
    assert await called.notes() == []
    assert called.site.counts(called.body) == (0, 0)


async def test_without_the_header_nothing_is_written(called: Called) -> None:
    """A caller that lost the context, or never had one: the write fails, and says why."""
    with contextlib.suppress(httpx.HTTPError):
        reply = await called.call("notes")
        assert reply.status_code == 500
    assert await called.notes() == []
    assert (await called.call("notes", "GET")).status_code == 200


async def test_two_calls_in_one_transaction(called: Called) -> None:
    async with called.caller.coord.begin("order"):
        assert (await called.call("notes")).status_code == 200
        called.body, first = new_gid(), called.body
        assert (await called.call("notes")).status_code == 200
    assert await called.notes() == ["1", "2"]
    called.body = first
    assert await called.notes() == ["1", "2"]


@pytest.mark.parametrize("called", KINDS[:2], indirect=True)
async def test_a_background_task_belongs_to_it(called: Called) -> None:
    await called.committed("later")
    assert await called.notes() == ["1"]


@pytest.mark.parametrize("called", KINDS[:3], indirect=True)
async def test_a_streaming_reply(called: Called) -> None:
    assert (await called.committed("stream")).text == "1\n2\n"
    assert await called.notes() == ["1", "2"]


@pytest.mark.parametrize("called", ["flask"], indirect=True)
async def test_what_was_never_committed_is_not(called: Called) -> None:
    async with called.caller.coord.begin("order") as g:
        await called.caller.write(g, called.caller.accounts, called.body)
        assert (await called.call("forgot")).status_code == 200
    assert called.site.counts(called.body) == (1, 0)
