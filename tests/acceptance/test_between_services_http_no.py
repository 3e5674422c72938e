"""Over HTTP, httpx to ASGI: the no of a service, and what it lets in."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from tests.support.acceptance import INSERT, Site, client_of, eventually, new_gid
from tests.support.acceptance_http import Between, asgi_app
from tests.support.acceptance_http_pair import Http
from txcoord_client import Aborted, _carrying
from txcoord_client._pb import common_pb2 as c


@pytest.fixture
async def http(site: Site) -> AsyncIterator[Http]:
    async with client_of(site) as caller, client_of(site) as callee, AsyncExitStack() as stack:
        yield Http(caller, callee, stack)


async def undone(site: Site, body: str, tx_id: str) -> None:
    """Nothing of it is there, and nothing is left prepared: at the latest after its deadline and grace."""
    await eventually(lambda: not site.prepared(tx_id))
    assert site.counts(body) == (0, 0)


# ---- a no ----


@pytest.mark.parametrize("status", [404, 409, 500, 503])
async def test_an_error_reply_aborts_and_comes_as_it_is(site: Site, http: Http, status: int) -> None:
    body = new_gid()

    async def handler(request: dict[str, Any]) -> Any:
        await http.write(body)
        return status, {"error": "sold out"}

    url = await http.handle(handler)
    client = await http.http()
    with pytest.raises(Aborted, match=f"answered {status}") as caught:
        async with http.caller.coord.begin("order") as g:
            await http.caller.write(g, http.caller.accounts, body)
            reply = await client.post(url)
            assert (reply.status_code, reply.json()) == (status, {"error": "sold out"})
            assert not site.ledger.prepared(g.tx_id), "undone before the reply left"
    assert caught.value.reason == "APPLICATION_ERROR"
    await undone(site, body, g.tx_id)


async def test_an_exception_of_the_application_aborts(site: Site, http: Http) -> None:
    body = new_gid()

    async def handler(request: dict[str, Any]) -> Any:
        await http.write(body)
        raise RuntimeError("no more seats")

    url = await http.handle(handler)
    client = await http.http()
    with pytest.raises(Aborted, match="no more seats") as caught:
        async with http.caller.coord.begin("order") as g:
            await http.caller.write(g, http.caller.accounts, body)
            reply = await client.post(url)
            assert (reply.status_code, reply.headers["content-type"]) == (500, "application/problem+json")
            assert reply.json()["reason"] == "APPLICATION_ERROR"
    assert caught.value.reason == "APPLICATION_ERROR"
    await undone(site, body, g.tx_id)


async def test_what_cannot_be_prepared_replaces_the_reply(site: Site, http: Http) -> None:
    body = new_gid()

    async def handler(request: dict[str, Any]) -> Any:
        await http.write(body)
        async with http.callee.coord.xa(http.callee.ledger) as db:
            await db.execute(text("CREATE TEMPORARY TABLE basket (i int)"))
        return "all well"

    url = await http.handle(handler)
    client = await http.http()
    with pytest.raises(Aborted) as caught:
        async with http.caller.coord.begin("order") as g:
            reply = await client.post(url)
            assert (reply.status_code, reply.headers["content-type"]) == (503, "application/problem+json")
            assert reply.json()["reason"] == "PREPARE_NOT_POSSIBLE"
            assert "all well" not in reply.text
    assert caught.value.reason == "PREPARE_NOT_POSSIBLE"
    await undone(site, body, g.tx_id)


async def test_a_second_call_that_waits_for_the_first_is_told_so(site: Site, http: Http) -> None:
    body = new_gid()

    async def handler(request: dict[str, Any]) -> Any:
        async with http.callee.coord.xa(http.callee.ledger) as db:
            await db.execute(text("SET LOCAL lock_timeout = '200ms'"))
            await db.execute(text("SELECT pg_advisory_xact_lock(hashtext(:body))"), {"body": body})
            await db.execute(text(INSERT), {"body": body})
        return "done"

    url = await http.handle(handler)
    client = await http.http()
    with pytest.raises(Aborted, match="an earlier call of this one") as caught:
        async with http.caller.coord.begin("order") as g:
            assert (await client.post(url)).status_code == 200
            assert (await client.post(url)).status_code == 503
    assert (caught.value.reason, caught.value.retriable) == ("LOCK_TIMEOUT", True)
    await undone(site, body, g.tx_id)


# ---- what comes in ----


async def test_contexts_that_make_no_sense_are_refused(site: Site, http: Http) -> None:
    async def handler(request: dict[str, Any]) -> Any:
        pytest.fail("it ran")

    url = await http.handle(handler)
    async with client_of(site, namespace="other") as stranger, httpx.AsyncClient() as bare:
        for header in ("", "x", "!!", "AAAA"):
            reply = await bare.get(url, headers={"Txcoord-Context": header})
            assert (reply.status_code, reply.json()["reason"]) == (400, "BAD_REQUEST"), header
        twice = await bare.get(url, headers=[("Txcoord-Context", "x"), ("Txcoord-Context", "x")])
        assert twice.status_code == 400
        client = await http.http(by=stranger)
        with pytest.raises(Aborted):
            async with stranger.coord.begin("order"):
                reply = await client.get(url)
                assert (reply.status_code, reply.json()["reason"]) == (409, "BAD_NAMESPACE")


async def test_a_transaction_of_another_log_is_refused(site: Site, http: Http) -> None:
    async def handler(request: dict[str, Any]) -> Any:
        pytest.fail("it ran")

    url = await http.handle(handler)
    client = await http.http()
    with pytest.raises(Aborted) as caught:
        async with http.caller.coord.begin("order") as g:
            g._log_id = "0123456789"
            reply = await client.get(url)
            assert (reply.status_code, reply.json()["reason"]) == (409, "BAD_XID")
            g.deadline_us += 10**14
            g._log_id = g._runtime.log_id
            reply = await client.get(url)
            assert (reply.status_code, reply.json()["reason"]) == (400, "DEADLINE_TOO_FAR")
    assert caught.value.reason == "BAD_XID", "the callee's own reason, not only that a vote is missing"


async def test_a_service_without_its_coordinator_says_so(site: Site, http: Http) -> None:
    async def handler(request: dict[str, Any]) -> Any:
        pytest.fail("it ran")

    async with client_of(site, call_timeout=0.3) as lonely:
        lonely.coord.address = "127.0.0.1:1"
        url = await http.serve(asgi_app(handler), lonely)
        client = await http.http()
        with pytest.raises(Aborted) as caught:
            async with http.caller.coord.begin("order"):
                reply = await client.get(url)
                assert (reply.status_code, reply.json()["reason"]) == (503, "UNAVAILABLE")
        assert caught.value.reason == "UNAVAILABLE"


@pytest.mark.parametrize("id", ["1.1", "21.1", "2", ""])
async def test_a_vote_for_another_calls_branch_is_none(site: Site, http: Http, id: str) -> None:
    """It would take the place of what the other call has prepared, which would not be committed then."""
    body = new_gid()
    url = await http.handle(http.writing(body))
    forged = c.CallVote(branch="2", branches=[c.Branch(id=id, kind=c.KIND_XA, vote=c.VOTE_PREPARED)])

    def meddle(number: int, headers: dict[str, str]) -> dict[str, str] | None:
        if number == 2:
            headers["txcoord-vote"] = _carrying.vote_header(forged)
        return headers

    between = await http.stack.enter_async_context(Between(int(url.rpartition(":")[2]), meddle))
    client = await http.http()
    with pytest.raises(Aborted, match="not its own") as caught:
        async with http.caller.coord.begin("order", timeout=3) as g:
            forged.tx_id = g.tx_id
            await client.post(between.url)
            await client.post(between.url)
    assert caught.value.reason == "VOTE_MISSING"
    await undone(site, body, g.tx_id)
