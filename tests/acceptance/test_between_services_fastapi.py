"""FastAPI services, written as its tutorial does it, inside a caller's transaction: dependencies that commit after the
body was sent, middleware that streams every reply, background tasks, streams."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated, Any

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.support.acceptance import INSERT, Client, Site, client_of, eventually, new_gid
from tests.support.acceptance_http import serving_asgi
from txcoord_client import Aborted


async def database(request: Request) -> AsyncIterator[AsyncConnection]:
    """Since FastAPI 0.118 what follows the yield runs when the body has been sent."""
    shop: Shop = request.app.state.shop
    async with shop.callee.coord.xa(shop.callee.ledger) as db:
        yield db
        await db.execute(text(shop.at_the_end))
        shop.steps.append("dependency ended")


Db = Annotated[AsyncConnection, Depends(database)]


class Shop:
    """A caller, and a FastAPI application of the callee."""

    def __init__(self, caller: Client, callee: Client) -> None:
        self.caller = caller
        self.callee = callee
        self.steps: list[str] = []
        self.at_the_end = "SELECT 1"
        self.app = FastAPI()
        self.app.state.shop = self
        self.url = ""
        self.http: httpx.AsyncClient


@pytest.fixture(params=["alone", "behind middleware"])
async def shop(request: pytest.FixtureRequest, site: Site) -> AsyncIterator[Shop]:
    async with client_of(site) as caller, client_of(site) as callee, AsyncExitStack() as stack:
        shop = Shop(caller, callee)
        if request.param == "behind middleware":

            @shop.app.middleware("http")
            async def timed(request: Request, call_next: Any) -> Any:
                reply = await call_next(request)
                reply.headers["x-timed"] = "yes"
                return reply

        shop.url = await stack.enter_async_context(serving_asgi(callee.coord.asgi(shop.app)))
        transport = caller.coord.httpx_transport(propagate_to="127.0.0.1")
        shop.http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url=shop.url))
        yield shop


async def undone(site: Site, body: str, tx_id: str) -> None:
    await eventually(lambda: not site.prepared(tx_id))
    assert site.counts(body) == (0, 0)


async def test_a_dependency_that_ends_after_the_body_is_prepared_with_it(site: Site, shop: Shop) -> None:
    body = new_gid()

    @shop.app.post("/note")
    async def note(db: Db) -> dict[str, str]:
        await db.execute(text(INSERT), {"body": body})
        return {"did": "it"}

    async with shop.caller.coord.begin("order") as g:
        await shop.caller.write(g, shop.caller.accounts, body)
        reply = await shop.http.post("/note")
        assert (reply.status_code, reply.json()) == (200, {"did": "it"})
        assert shop.steps == ["dependency ended"]
        assert len(site.ledger.prepared(g.tx_id)) == 1
    assert site.counts(body) == (1, 1)


async def test_a_commit_of_the_dependency_that_fails_replaces_the_reply(site: Site, shop: Shop) -> None:
    """The body was sent by then: to the application all is well."""
    body = new_gid()

    shop.at_the_end = "SELECT 1/0"

    @shop.app.post("/note")
    async def note(db: Db) -> dict[str, str]:
        await db.execute(text(INSERT), {"body": body})
        return {"did": "it"}

    with pytest.raises(Aborted, match="division by zero") as caught:
        async with shop.caller.coord.begin("order") as g:
            await shop.caller.write(g, shop.caller.accounts, body)
            reply = await shop.http.post("/note")
            assert reply.status_code == 500
            assert "did" not in reply.text
    assert caught.value.reason == "APPLICATION_ERROR"
    await undone(site, body, g.tx_id)


async def test_background_tasks_run_before_the_reply_and_inside(site: Site, shop: Shop) -> None:
    body = new_gid()

    async def later() -> None:
        async with shop.callee.coord.xa(shop.callee.ledger) as db:
            await db.execute(text(INSERT), {"body": body})

    @shop.app.post("/note")
    async def note(tasks: BackgroundTasks) -> dict[str, str]:
        tasks.add_task(later)
        return {"will": "do"}

    async with shop.caller.coord.begin("order") as g:
        assert (await shop.http.post("/note")).json() == {"will": "do"}
        assert len(site.ledger.prepared(g.tx_id)) == 1
    assert site.counts(body) == (0, 1)


async def test_a_background_task_that_fails_aborts(site: Site, shop: Shop) -> None:
    body = new_gid()

    async def later() -> None:
        raise RuntimeError("no mail today")

    @shop.app.post("/note")
    async def note(db: Db, tasks: BackgroundTasks) -> dict[str, str]:
        await db.execute(text(INSERT), {"body": body})
        tasks.add_task(later)
        return {"will": "do"}

    with pytest.raises(Aborted, match="no mail today"):
        async with shop.caller.coord.begin("order") as g:
            assert (await shop.http.post("/note")).status_code == 500
    await undone(site, body, g.tx_id)


async def test_an_http_exception_is_a_no_with_its_own_words(site: Site, shop: Shop) -> None:
    body = new_gid()

    @shop.app.post("/note")
    async def note(db: Db) -> None:
        await db.execute(text(INSERT), {"body": body})
        raise HTTPException(409, "sold out")

    with pytest.raises(Aborted) as caught:
        async with shop.caller.coord.begin("order") as g:
            reply = await shop.http.post("/note")
            assert (reply.status_code, reply.json()) == (409, {"detail": "sold out"})
    assert caught.value.reason == "APPLICATION_ERROR"
    await undone(site, body, g.tx_id)


async def test_a_short_stream_is_held_back_and_an_event_stream_refused(site: Site, shop: Shop) -> None:
    body = new_gid()

    @shop.app.get("/rows")
    async def rows() -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            async with shop.callee.coord.xa(shop.callee.ledger) as db:
                for number in range(3):
                    await db.execute(text(INSERT), {"body": body})
                    yield f"{number}\n"

        return StreamingResponse(lines(), media_type="text/csv")

    @shop.app.get("/events")
    async def events() -> StreamingResponse:
        async def endless() -> AsyncIterator[str]:
            while True:
                yield "data: tick\n\n"
                await asyncio.sleep(0)

        return StreamingResponse(endless(), media_type="text/event-stream")

    async with shop.caller.coord.begin("order") as g:
        assert (await shop.http.get("/rows")).text == "0\n1\n2\n"
        assert len(site.ledger.prepared(g.tx_id)) == 1
    assert site.counts(body) == (0, 3)
    other = new_gid()
    with pytest.raises(Aborted) as caught:
        async with shop.caller.coord.begin("order") as g:
            await shop.caller.write(g, shop.caller.accounts, other)
            reply = await shop.http.get("/events")
            assert (reply.status_code, reply.json()["reason"]) == (501, "NOT_SUPPORTED")
    assert caught.value.reason == "NOT_SUPPORTED"
    await undone(site, other, g.tx_id)


async def test_without_a_transaction_the_application_is_as_ever(site: Site, shop: Shop) -> None:
    seen: list[Any] = []

    @shop.app.get("/plain")
    async def plain() -> dict[str, bool]:
        seen.append(shop.callee.coord.current_or_none())
        return {"plain": True}

    reply = await shop.http.get("/plain")
    assert (reply.json(), seen) == ({"plain": True}, [None])
    assert "txcoord-vote" not in reply.headers
