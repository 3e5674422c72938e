"""Over HTTP, httpx to ASGI: the context goes along, the vote comes back, and what brings none aborts."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from tests.support.acceptance import INSERT, Site, client_of, eventually, new_gid
from tests.support.acceptance_http import Between, Plain, asgi_app
from tests.support.acceptance_http_pair import Http
from txcoord_client import Aborted, Rejected


@pytest.fixture
async def http(site: Site) -> AsyncIterator[Http]:
    async with client_of(site) as caller, client_of(site) as callee, AsyncExitStack() as stack:
        yield Http(caller, callee, stack)


async def undone(site: Site, body: str, tx_id: str) -> None:
    """Nothing of it is there, and nothing is left prepared: at the latest after its deadline and grace."""
    await eventually(lambda: not site.prepared(tx_id))
    assert site.counts(body) == (0, 0)


# ---- all goes well ----


async def test_the_branch_of_a_called_service_is_committed_with_the_whole(site: Site, http: Http) -> None:
    body = new_gid()
    url = await http.handle(http.writing(body, {"left": 3}))
    client = await http.http()
    async with http.caller.coord.begin("order", gid=body) as g:
        await http.caller.write(g, http.caller.accounts, body)
        reply = await client.post(url, json={})
        assert (reply.status_code, reply.json(), reply.headers["x-served-by"]) == (200, {"left": 3}, "notes")
        [xid] = site.ledger.prepared(g.tx_id)
        assert xid.endswith(f"{g.tx_id}.2.1")
        assert "txcoord-context" not in reply.request.headers, "the client's own request stays as it was"
    assert site.counts(body) == (1, 1)
    shown = json.loads(site.txcoord("tx", "show", body, "--json"))
    assert [(b["branch"], b["state"]) for b in shown["branches"]] == [("1", "DONE"), ("2.1", "DONE")]


async def test_a_chain_of_services_is_one_transaction_and_the_votes_below_come_up(
    site: Site, http: Http
) -> None:
    """A -> B (1) -> C (1.2) -> its database (1.2.1)."""
    body = new_gid()
    async with client_of(site) as third:

        async def last(request: dict[str, Any]) -> Any:
            async with third.coord.xa(third.accounts) as db:
                await db.execute(text(INSERT), {"body": body})
            return "last"

        below = await http.serve(asgi_app(last), third)
        onward = await http.http(by=http.callee)

        async def middle(request: dict[str, Any]) -> Any:
            await http.write(body)
            return (await onward.post(below)).json()

        url = await http.handle(middle)
        client = await http.http()
        async with http.caller.coord.begin("order", gid=body):
            assert (await client.post(url)).json() == "last"
        assert site.counts(body) == (1, 1)
        shown = json.loads(site.txcoord("tx", "show", body, "--json"))
        assert [b["branch"] for b in shown["branches"]] == ["1.1", "1.2.1"]

        # And a no comes up from the lowest: the middle one's own work is undone with it.
        other = new_gid()

        async def refuse(request: dict[str, Any]) -> Any:
            third.coord.current.set_rollback_only("SOLD_OUT", "no seats")
            return "sorry"

        refusing = await http.serve(asgi_app(refuse), third)

        async def swallow(request: dict[str, Any]) -> Any:
            await http.write(other)
            assert (await onward.post(refusing)).status_code == 409
            return "never mind"

        url = await http.handle(swallow)
        with pytest.raises(Aborted) as caught:
            async with http.caller.coord.begin("order") as g:
                assert (await client.post(url)).status_code == 409
        assert caught.value.reason == "SOLD_OUT"
        await undone(site, other, g.tx_id)


async def test_services_that_read_or_do_nothing_vote_too(site: Site, http: Http) -> None:
    body = new_gid()

    async def read(request: dict[str, Any]) -> Any:
        async with http.callee.coord.xa(http.callee.ledger) as db:
            return (await db.execute(text("SELECT count(*) FROM note"))).scalar()

    async def nothing(request: dict[str, Any]) -> Any:
        return None

    reads, pings = await http.handle(read), await http.handle(nothing)
    client = await http.http()
    async with http.caller.coord.begin("order") as g:
        await http.caller.write(g, http.caller.accounts, body)
        assert (await client.get(reads)).json() >= 0
        assert (await client.get(pings)).json() is None
        assert not site.ledger.prepared(g.tx_id)
    assert site.counts(body) == (1, 0)


async def test_the_handler_sees_the_transaction_but_not_its_header(site: Site, http: Http) -> None:
    """An application that passes headers on would send the context to whom it pleases."""
    body = new_gid()
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        g = http.callee.coord.current
        seen.update(gid=g.gid, headers=g.headers, mine=g.initiator, sent=dict(scope["headers"]))
        await asgi_app(http.writing(body))(scope, receive, send)

    client = await http.http()
    url = await http.serve(app)
    async with http.caller.coord.begin("order", gid=body, headers={"tenant": "a"}):
        await client.get(url, headers={"x-mine": "1"})
    sent = seen.pop("sent")
    assert sent[b"x-mine"] == b"1"
    assert b"txcoord-context" not in sent
    assert seen == {"gid": body, "headers": {"tenant": "a"}, "mine": False}


async def test_outside_of_a_transaction_nothing_is_sent(site: Site, http: Http) -> None:
    client = await http.http()
    with Plain() as plain:
        await client.get(plain.url)
        async with http.caller.coord.begin("order"):
            with http.caller.coord.outside():
                await client.get(plain.url, headers={"Txcoord-Context": "what came in here"})
        assert len(plain.seen) == 2
        assert not any("txcoord-context" in headers for headers in plain.seen)


# ---- to whom it goes ----


async def test_third_parties_get_no_header(site: Site, http: Http) -> None:
    body = new_gid()
    url = await http.handle(http.writing(body))
    client = await http.http(to=(url.removeprefix("http://"), "*.shop.internal"))
    with Plain() as plain:
        async with http.caller.coord.begin("order"):
            await client.get(plain.url)
            # Neither what the application itself passes on.
            await client.get(plain.url, headers={"Txcoord-Context": "x"})
            await client.post(url)
        assert len(plain.seen) == 2
        assert not any("txcoord-context" in headers for headers in plain.seen)
    assert site.counts(body) == (0, 1)


async def test_a_redirect_to_another_host_does_not_take_it_along(site: Site, http: Http) -> None:
    body = new_gid()
    with Plain() as plain:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            headers = [(b"location", plain.url.encode()), (b"content-length", b"0")]
            await http.write(body)
            await send({"type": "http.response.start", "status": 302, "headers": headers})
            await send({"type": "http.response.body"})

        url = await http.serve(app)
        client = await http.http(to=(url.removeprefix("http://"),), follow_redirects=True)
        async with http.caller.coord.begin("order"):
            assert (await client.get(url)).text == "ok"
        assert len(plain.seen) == 1
        assert "txcoord-context" not in plain.seen[0]
    assert site.counts(body) == (0, 1), "the service itself took part"


async def test_a_redirect_within_the_named_hosts_is_another_call(site: Site, http: Http) -> None:
    body = new_gid()
    url = await http.handle(http.writing(body))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 307, "headers": [(b"location", url.encode())]})
        await send({"type": "http.response.body"})

    moved = await http.serve(app)
    client = await http.http(follow_redirects=True)
    async with http.caller.coord.begin("order") as g:
        assert (await client.post(moved, json={})).status_code == 200
        assert site.ledger.prepared(g.tx_id)[0].endswith(".2.1")
    assert site.counts(body) == (0, 1)


# ---- no vote ----


async def test_a_service_that_takes_no_part_aborts(site: Site, http: Http) -> None:
    body = new_gid()
    client = await http.http()
    with Plain() as plain, pytest.raises(Aborted, match="without a vote") as caught:
        async with http.caller.coord.begin("order") as g:
            await http.caller.write(g, http.caller.accounts, body)
            assert (await client.get(plain.url)).text == "ok"
    assert caught.value.reason == "VOTE_MISSING"
    assert "txcoord-context" in plain.seen[0]
    await undone(site, body, g.tx_id)


@pytest.mark.parametrize("how", ["lost", "garbled", "twice", "of another call"])
async def test_a_vote_that_does_not_arrive_whole_aborts(site: Site, http: Http, how: str) -> None:
    """A proxy that drops headers it doesn't know, a cache that answers with what it kept."""
    body = new_gid()
    kept: list[str] = []

    def meddle(number: int, headers: dict[str, str]) -> dict[str, str] | None:
        kept.append(headers["txcoord-vote"])
        if how == "lost":
            headers.pop("txcoord-vote")
        elif how == "garbled":
            headers["txcoord-vote"] = "%%%"
        elif how == "twice":
            headers["txcoord-vote"] += f", {kept[-1]}"
        else:
            headers["txcoord-vote"] = kept[0]
        return headers

    url = await http.handle(http.writing(body))
    between = await http.stack.enter_async_context(Between(int(url.rpartition(":")[2]), meddle))
    client = await http.http()
    with pytest.raises(Aborted, match="without a vote") as caught:
        async with http.caller.coord.begin("order", timeout=3) as g:
            await http.caller.write(g, http.caller.accounts, body)
            assert (await client.post(between.url)).status_code == 200
            if how == "of another call":
                assert (await client.post(between.url)).status_code == 200
    assert caught.value.reason == "VOTE_MISSING"
    await undone(site, body, g.tx_id)


async def test_a_lost_reply_aborts_also_when_the_caller_catches_it(site: Site, http: Http) -> None:
    body = new_gid()
    url = await http.handle(http.writing(body))
    between = await http.stack.enter_async_context(Between(int(url.rpartition(":")[2]), lambda *_: None))
    client = await http.http()
    with pytest.raises(Aborted) as caught:
        async with http.caller.coord.begin("order", timeout=3) as g:
            await http.caller.write(g, http.caller.accounts, body)
            with pytest.raises(httpx.RemoteProtocolError):
                await client.post(between.url)
            assert len(site.ledger.prepared(g.tx_id)) == 1, "it is prepared there, and nobody knows"
    assert caught.value.reason == "VOTE_MISSING"
    await undone(site, body, g.tx_id)


async def test_a_host_that_is_not_there_aborts(site: Site, http: Http) -> None:
    """``retries=`` of httpx tries to connect again: nothing has been sent by then."""
    with Plain() as plain:
        pass
    client = await http.http(inner=httpx.AsyncHTTPTransport(retries=1))
    with pytest.raises(Aborted, match="ConnectError") as caught:
        async with http.caller.coord.begin("order"):
            with pytest.raises(httpx.ConnectError):
                await client.get(plain.url)
    assert caught.value.reason == "VOTE_MISSING"


class Twice(httpx.AsyncBaseTransport):
    """A transport that sends a request again when its reply is lost, as some do."""

    def __init__(self) -> None:
        self.inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self.inner.handle_async_request(request)
        except httpx.RemoteProtocolError:
            return await self.inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self.inner.aclose()


async def test_a_call_that_the_transport_sends_again_is_refused_by_its_marker(site: Site, http: Http) -> None:
    body = new_gid()

    async def handler(request: dict[str, Any]) -> Any:
        async with http.callee.coord.xa(http.callee.ledger) as db:
            await db.execute(text("SET LOCAL lock_timeout = '200ms'"))
            await db.execute(text(INSERT), {"body": body})
        return "done"

    url = await http.handle(handler)
    between = await http.stack.enter_async_context(
        Between(int(url.rpartition(":")[2]), lambda number, headers: None if number == 1 else headers)
    )
    client = await http.http(inner=Twice())
    with pytest.raises(Aborted) as caught:
        async with http.caller.coord.begin("order", timeout=4) as g:
            reply = await client.post(between.url, json={})
            assert (reply.status_code, reply.json()["reason"]) == (503, "DECIDED")
    assert (between.count, caught.value.reason) == (2, "DECIDED")
    await undone(site, body, g.tx_id)


async def test_a_reply_beyond_the_deadline_aborts(site: Site, http: Http) -> None:
    body = new_gid()
    go = asyncio.Event()

    async def handler(request: dict[str, Any]) -> Any:
        await http.write(body)
        await go.wait()
        return "late"

    url = await http.handle(handler)
    client = await http.http(timeout=None)
    with pytest.raises(Aborted):
        async with http.caller.coord.begin("order", timeout=1) as g:
            with pytest.raises(httpx.ReadTimeout):
                await client.post(url)
            with pytest.raises(Rejected, match="was not sent"):
                await client.post(url)
    go.set()
    await undone(site, body, g.tx_id)


async def test_a_call_that_is_still_under_way_at_the_end_aborts(site: Site, http: Http) -> None:
    body = new_gid()
    go, inside = asyncio.Event(), asyncio.Event()

    async def handler(request: dict[str, Any]) -> Any:
        await http.write(body)
        inside.set()
        await go.wait()
        return "done"

    url = await http.handle(handler)
    client = await http.http()
    with pytest.raises(Aborted, match="has not voted"):
        async with http.caller.coord.begin("order", timeout=4) as g:
            call = asyncio.ensure_future(client.post(url))
            await inside.wait()
    go.set()
    await asyncio.gather(call, return_exceptions=True)
    await undone(site, body, g.tx_id)


async def test_a_caller_that_hangs_up_gets_nothing_prepared(site: Site, http: Http) -> None:
    """Its vote would reach nobody: locks would be held to the deadline for nothing."""
    body = new_gid()
    inside, gone = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await http.write(body)
        await receive()
        inside.set()
        assert (await receive())["type"] == "http.disconnect"
        gone.set()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    url = await http.serve(app)
    client = await http.http()
    with pytest.raises(Aborted) as caught:
        async with http.caller.coord.begin("order", timeout=60) as g:
            call = asyncio.ensure_future(client.get(url))
            await inside.wait()
            call.cancel()
            await gone.wait()
            await asyncio.gather(call, return_exceptions=True)
    assert caught.value.reason == "VOTE_MISSING"
    await undone(site, body, g.tx_id)
