"""TCC and sagas with participants behind FastAPI, on PostgreSQL and on MariaDB. What is left out is as over gRPC."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from sqlalchemy import text

from tests.acceptance.mariadb.conftest import site_on
from tests.support.acceptance import INSERT, Site, eventually, new_gid
from tests.support.acceptance_participants import Hold, Shop, WebShop, fail, pend, refuse, shop_on
from tests.support.databases import Databases
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord_client import (
    Aborted,
    Coordinator,
    OutcomeUnknown,
    Participant,
    Refused,
    Rejected,
    Transaction,
    Unavailable,
    saga,
)
from txcoord_client._answers import Answer, Call
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import participant_pb2 as pb
from txcoord_client.protocol import over_http


@pytest.fixture(scope="module")
def shared(
    pg18: PostgresServer, mariadb: MariaDBServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    databases = Databases()
    site = site_on(tmp_path_factory.mktemp("http"), pg18, mariadb, databases)
    try:
        yield site
    finally:
        site.stop()
        databases.drop_all()


@pytest.fixture
def site(shared: Site) -> Site:
    """A coordinator that lives."""
    if not shared.coordinator.running or shared.coordinator.env.get("TXCOORD_FAILPOINTS"):
        shared.restart()
    return shared


@pytest.fixture
def mortal(shared: Site) -> Iterator[Site]:
    """One that is killed, and started again: in a thread, with which it would die."""
    yield shared
    shared.coordinator.kill9()


@pytest.fixture
async def shop(site: Site) -> AsyncIterator[Shop]:
    async with shop_on(site, WebShop) as shop:
        yield shop


@pytest.fixture
async def coord(shop: Shop) -> AsyncIterator[Coordinator]:
    async with shop.coordinator() as coord:
        yield coord


async def reserve_both(g: Transaction, shop: Shop, body: str) -> list[Hold]:
    return await asyncio.gather(
        g.tcc(shop.stock.reserve, body=body, n=2), g.tcc(shop.coupons.reserve, body=body)
    )


async def ended(coord: Coordinator, g: Transaction) -> str:
    async def look() -> str:
        found = await coord.get(tx_id=g.tx_id)
        return str(found.state) if found is not None and found.state in ("COMMITTED", "ABORTED") else ""

    return str(await eventually(look, what=f"{g.tx_id} has ended"))


async def test_confirmed_also_after_failures_and_pending(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("web")
    shop.stock.script.next[f"confirm {body}"] = [fail, pend()]
    seen: list[Call] = []
    execute = shop.stock.participant.execute

    async def watched(call: Call) -> Answer:
        seen.append(call)
        return await execute(call)

    shop.stock.participant.execute = watched  # type: ignore[method-assign]
    async with coord.begin("order", gid=body, headers={"tenant": "7"}) as g:
        assert await reserve_both(g, shop, body) == [Hold(body, 2), Hold(body, 1)]
        async with g.xa(shop.stock.engine) as db:
            await db.execute(text(INSERT), {"body": f"action {body}"})
    assert g.outcome is not None
    assert g.outcome.state == "COMMITTED"
    assert shop.notes(body) == (["try", "confirm", "action"], ["try", "confirm"])
    assert [(call.op, call.attempt) for call in seen] == [
        ("try", 1),
        ("confirm", 1),
        ("confirm", 2),
        ("confirm", 3),
    ]
    assert all(call.headers == {"tenant": "7"} and call.gid == body for call in seen)


async def test_refused_and_what_was_tried_is_cancelled(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("web")
    shop.coupons.script.next[f"try {body}"] = [refuse("NO_COUPON")]
    with pytest.raises(Refused) as refused:
        async with coord.begin("order") as g:
            await g.tcc(shop.stock.reserve, body=body)
            await g.tcc(shop.coupons.reserve, body=body)
    assert (refused.value.reason, refused.value.facts) == ("NO_COUPON", {"left": "0"})
    assert await ended(coord, g) == "ABORTED"
    assert shop.notes(body) == (["try", "cancel"], [])


async def test_a_participant_that_is_away(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("web")
    async with coord.begin("order", wait="decided") as g:
        await reserve_both(g, shop, body)
        await shop.leave()
    with pytest.raises(Unavailable):
        async with coord.begin("order") as none:
            # Enlisted, and its try never comes: its cancel is an empty success.
            await none.tcc(shop.stock.reserve, body=f"{body}-none", call_timeout=0.3)
    await shop.serve()
    assert await ended(coord, g) == "COMMITTED"
    assert await ended(coord, none) == "ABORTED"
    assert shop.notes(body) == (["try", "confirm"], ["try", "confirm"])
    assert shop.notes(f"{body}-none") == ([], [])


async def test_fifty_branches_travel_together(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("web")
    async with coord.begin("order") as g:
        await asyncio.gather(*(g.tcc(shop.stock.reserve, body=body, n=n) for n in range(50)))
    assert shop.notes(body) == (["try"] * 50 + ["confirm"] * 50, [])


async def test_a_saga(shop: Shop, coord: Coordinator) -> None:
    flow = saga("ship").step(shop.stock.action("pack")).step(shop.coupons.action("label", takes="pack"))
    body, other = new_gid("web"), new_gid("web")
    run = await coord.submit(flow, gid=body, data={"body": body})
    assert (await run.wait()).state == "COMMITTED"
    assert run.results["label"]["saw"] == {"body": body, "step": "pack"}
    shop.coupons.script.next[f"action label {other}"] = [refuse("NO_LABEL")]
    run = await coord.submit(flow, data={"body": other})
    with pytest.raises(Aborted):
        await run.wait()
    assert shop.stock.steps(other) == ["action pack", "compensate pack"]
    assert shop.coupons.steps(other) == []


@pytest.mark.timeout(120)
async def test_coordinator_killed_between_decision_and_confirm(mortal: Site) -> None:
    await asyncio.to_thread(mortal.restart, "commit.after_write=kill")
    body = new_gid("web")
    g: Transaction | None = None
    async with shop_on(mortal, WebShop) as shop:
        async with shop.coordinator(call_timeout=2.0) as coord:
            with contextlib.suppress(Unavailable, OutcomeUnknown, Aborted):
                async with coord.begin("order", timeout=3.0) as g:
                    await reserve_both(g, shop, body)
        assert g is not None
        await eventually(lambda: not mortal.coordinator.running, what="it died")
        await asyncio.to_thread(mortal.restart)
        async with shop.coordinator() as coord:
            assert await ended(coord, g) == "COMMITTED"
        assert shop.notes(body) == (["try", "confirm"], ["try", "confirm"])


async def test_what_is_no_request_of_a_coordinator(shop: Shop, coord: Coordinator) -> None:
    url = shop.address + over_http.PATH
    kind = {"content-type": over_http.REQUEST_TYPE}
    async with httpx.AsyncClient() as http:
        assert (await http.get(url)).status_code == 405
        assert (await http.post(url, json={})).status_code == 415
        assert (await http.post(url, content=b"\x0b", headers=kind)).status_code == 400
        assert (await http.post(url, content=b"x" * 5_000_000, headers=kind)).status_code == 413
        asked = pb.ExecuteRequest(contexts=[pb.ActionContext(tx_id="0" * 32)])
        reply = await http.post(url, content=asked.SerializeToString(), headers=kind)
        assert (reply.status_code, reply.content) == (200, b"")
        asked.actions.add(branch="1", op=c.BRANCH_OP_TRY, operation="stock.Nothing")
        reply = await http.post(url, content=asked.SerializeToString(), headers=kind)
        [frame] = over_http.Frames().feed(reply.content)
        [answer] = pb.ExecuteResponse.FromString(frame).answers
        assert (answer.kind, answer.reason) == (c.ANSWER_KIND_FAILED, "UNKNOWN_OPERATION")
    with pytest.raises(Rejected, match="sync"):
        Participant("stock").wsgi()


async def test_hung_calls_end_with_their_caller(shop: Shop, coord: Coordinator) -> None:
    """Or each would hold one of the participant's rooms for ever."""
    body = new_gid("web")
    never, ends = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        try:
            await never.wait()
        finally:
            ends.set()

    shop.stock.script.next[f"try {body}"] = [hang]
    with pytest.raises(Unavailable):
        async with coord.begin("order") as g:
            await g.tcc(shop.stock.reserve, body=body, call_timeout=0.3)
    await asyncio.wait_for(ends.wait(), 20)
    assert await ended(coord, g) == "ABORTED"
    assert shop.notes(body) == ([], [])
