"""TCC, as *Behaviours* lists it: over gRPC, with participants on PostgreSQL and on MariaDB."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import text

from tests.acceptance.mariadb.conftest import site_on
from tests.support.acceptance import INSERT, Site, eventually, new_gid
from tests.support.acceptance_participants import Hold, Shop, fail, pend, refuse, shop_on
from tests.support.databases import Databases
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord_client import Aborted, Coordinator, Refused, Transaction, Unavailable


@pytest.fixture(scope="module")
def shared(
    pg18: PostgresServer, mariadb: MariaDBServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    databases = Databases()
    site = site_on(tmp_path_factory.mktemp("tcc"), pg18, mariadb, databases)
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
async def shop(site: Site) -> AsyncIterator[Shop]:
    async with shop_on(site) as shop:
        yield shop


@pytest.fixture
async def coord(shop: Shop) -> AsyncIterator[Coordinator]:
    async with shop.coordinator() as coord:
        yield coord


async def reserve_both(g: Transaction, shop: Shop, body: str) -> tuple[Hold, Hold]:
    one, two = await asyncio.gather(
        g.tcc(shop.stock.reserve, body=body, n=2), g.tcc(shop.coupons.reserve, body=body)
    )
    return one, two


async def ended(coord: Coordinator, g: Transaction) -> str:
    async def look() -> str:
        found = await coord.get(tx_id=g.tx_id)
        return str(found.state) if found is not None and found.state in ("COMMITTED", "ABORTED") else ""

    return str(await eventually(look, what=f"{g.tx_id} has ended"))


async def test_all_tried_and_all_confirmed_once(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("confirm")
    async with coord.begin("order", gid=body) as g:
        assert await reserve_both(g, shop, body) == (Hold(body, 2), Hold(body, 1))
    assert g.outcome is not None
    assert g.outcome.state == "COMMITTED"
    assert shop.notes(body) == (["try", "confirm"], ["try", "confirm"])


async def test_without_a_gid(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("bare")
    async with coord.begin("order") as g:
        await reserve_both(g, shop, body)
    assert shop.notes(body) == (["try", "confirm"], ["try", "confirm"])


async def test_try_refused_and_all_tried_branches_are_cancelled(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("refused")
    shop.coupons.script.next[f"try {body}"] = [refuse("NO_COUPON")]
    with pytest.raises(Refused) as refused:
        async with coord.begin("order") as g:
            await g.tcc(shop.stock.reserve, body=body)
            await g.tcc(shop.coupons.reserve, body=body)
    assert (refused.value.reason, refused.value.facts) == ("NO_COUPON", {"left": "0"})
    assert await ended(coord, g) == "ABORTED"
    found = await coord.get(tx_id=g.tx_id)
    assert found is not None
    assert (found.reason, found.decided_by) == ("NO_COUPON", "branch")
    # Its refused try left nothing, and its cancel is an empty success: no code of the service is called.
    assert shop.notes(body) == (["try", "cancel"], [])


async def test_user_exception_aborts_and_comes_back_unchanged(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("mine")
    mine = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with coord.begin("order") as g:
            await reserve_both(g, shop, body)
            raise mine
    assert caught.value is mine
    assert await ended(coord, g) == "ABORTED"
    assert shop.notes(body) == (["try", "cancel"], ["try", "cancel"])


async def test_a_deadline_cancels_what_was_tried(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("late")
    with pytest.raises(Aborted) as aborted:
        async with coord.begin("order", timeout=0.5) as g:
            await reserve_both(g, shop, body)
            await eventually(lambda: shop.notes(body) == (["try", "cancel"], ["try", "cancel"]))
    assert aborted.value.reason == "DEADLINE"
    assert await ended(coord, g) == "ABORTED"


async def test_confirm_is_tried_until_it_is_done_and_pending_is_asked_again(
    shop: Shop, coord: Coordinator
) -> None:
    body = new_gid("again")
    shop.stock.script.next[f"confirm {body}"] = [fail, fail]
    shop.coupons.script.next[f"confirm {body}"] = [pend(), pend()]
    async with coord.begin("order") as g:
        await reserve_both(g, shop, body)
    assert g.outcome is not None
    assert g.outcome.state == "COMMITTED"
    assert shop.stock.script.ops(body) == ["try", "confirm", "confirm", "confirm"]
    assert shop.coupons.script.ops(body) == ["try", "confirm", "confirm", "confirm"]
    assert shop.notes(body) == (["try", "confirm"], ["try", "confirm"])


async def test_a_refused_confirm_is_parked_and_an_operator_retries(
    site: Site, shop: Shop, coord: Coordinator
) -> None:
    body = new_gid("parked")
    shop.stock.script.next[f"confirm {body}"] = [refuse()]
    async with coord.begin("order", wait="decided") as g:
        await reserve_both(g, shop, body)

    async def parked() -> bool:
        found = await coord.get(tx_id=g.tx_id)
        return found is not None and found.parked == 1

    await eventually(parked)
    assert shop.notes(body) == (["try"], ["try", "confirm"])
    await asyncio.to_thread(
        site.txcoord, "tx", "retry", g.tx_id, "--branch", "1", "--reason", "mended", "--yes"
    )
    assert await ended(coord, g) == "COMMITTED"
    assert shop.notes(body) == (["try", "confirm"], ["try", "confirm"])


async def test_a_participant_that_is_away_is_called_when_it_is_back(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("away")
    async with coord.begin("order", wait="decided") as g:
        await reserve_both(g, shop, body)
        await shop.leave()
    assert g.outcome is not None
    assert g.outcome.state == "COMMITTING"
    await shop.serve()
    assert await ended(coord, g) == "COMMITTED"
    assert shop.notes(body) == (["try", "confirm"], ["try", "confirm"])


async def test_a_participant_that_is_away_at_the_try(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("unreached")
    await shop.leave()
    with pytest.raises(Unavailable):
        async with coord.begin("order") as g:
            await g.tcc(shop.stock.reserve, body=body, call_timeout=0.3)
    await shop.serve()
    assert await ended(coord, g) == "ABORTED"
    assert shop.notes(body) == ([], [])


async def test_coordinator_unreachable_at_begin_and_the_callback_never_runs(shop: Shop) -> None:
    async with Coordinator("127.0.0.1:1", call_timeout=0.3) as nobody:
        with pytest.raises(Unavailable):
            async with nobody.begin("order"):
                pytest.fail("work without a coordinator")


async def test_mixed_with_xa(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("mixed")
    async with coord.begin("order", gid=body) as g:
        await g.tcc(shop.coupons.reserve, body=body)
        async with g.xa(shop.stock.engine) as db:
            await db.execute(text(INSERT), {"body": f"action {body}"})
    assert shop.notes(body) == (["action"], ["try", "confirm"])
    other = new_gid("mixed")
    with pytest.raises(ZeroDivisionError):
        async with coord.begin("order", gid=other) as g:
            async with g.xa(shop.stock.engine) as db:
                await db.execute(text(INSERT), {"body": f"action {other}"})
            await g.tcc(shop.coupons.reserve, body=other)
            raise ZeroDivisionError
    assert await ended(coord, g) == "ABORTED"
    assert shop.notes(other) == ([], ["try", "cancel"])
