"""TCC, as *Behaviours* lists it: over gRPC, with participants on PostgreSQL and on MariaDB."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import text

from tests.acceptance.mariadb.conftest import site_on
from tests.support.acceptance import INSERT, Site, eventually, new_gid
from tests.support.acceptance_participants import Hold, Shop, fail, pend, refuse, shop_on
from tests.support.databases import Databases
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord_client import Aborted, Coordinator, OutcomeUnknown, Refused, Transaction, Unavailable
from txcoord_client._answers import Answer, Call
from txcoord_client._pb import common_pb2 as c
from txcoord_client.protocol.identifiers import new_tx_id


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
def mortal(shared: Site) -> Iterator[Site]:
    """One that is killed, and started again: in a thread, with which it would die."""
    yield shared
    shared.coordinator.kill9()


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
    shown = await asyncio.to_thread(site.txcoord, "tx", "show", g.tx_id)
    assert "REFUSED_IN_PHASE_TWO" in shown
    assert shop.address in shown
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


@pytest.mark.parametrize(
    ("moment", "state"),
    [
        ("enlist.before_write", "ABORTED"),
        ("enlist.after_write", "ABORTED"),
        ("commit.before_write", "ABORTED"),
        ("commit.after_write", "COMMITTED"),
        ("call.before", "COMMITTED"),
        ("call.after", "COMMITTED"),
        ("call.after=kill@2", "COMMITTED"),
    ],
)
@pytest.mark.timeout(120)
async def test_coordinator_killed(moment: str, state: str, mortal: Site, shop: Shop) -> None:
    """Whoever began it dies as well, or it would say the same again: only the log goes on."""
    await asyncio.to_thread(mortal.restart, moment if "=" in moment else f"{moment}=kill")
    body = new_gid("killed")
    g: Transaction | None = None
    async with shop.coordinator(call_timeout=2.0) as coord:
        with contextlib.suppress(Unavailable, OutcomeUnknown, Aborted):
            async with coord.begin("order", timeout=3.0) as g:
                await reserve_both(g, shop, body)
    assert g is not None
    await eventually(lambda: not mortal.coordinator.running, what="it died")
    assert mortal.coordinator.exit_code == -9
    await asyncio.to_thread(mortal.restart)
    tx_id = g.tx_id
    async with shop.coordinator() as coord:
        if moment == "enlist.before_write":
            found = await coord.get(tx_id=tx_id)
            assert found is None or found.state == "ABORTED"
            assert shop.notes(body) == ([], [])
            return
        assert await ended(coord, g) == state
    tried = "call" in moment or "commit" in moment
    end = ["confirm"] if state == "COMMITTED" else ["cancel"]
    expected = ["try", *end] if tried else []
    assert shop.notes(body) == (expected, expected)


async def test_a_try_that_comes_after_its_cancel_does_nothing(shop: Shop, coord: Coordinator) -> None:
    """The cancel never met its try; the try, kept back on its way, arrives now."""
    body = new_gid("hanging")
    with pytest.raises(ZeroDivisionError):
        async with coord.begin("order") as g:
            await g.tcc(shop.coupons.reserve, body=body)
            # Enlisted, and its try lost on its way.
            await g._enlister.enlist(
                c.Branch(
                    id="7",
                    kind=c.KIND_TCC,
                    action=c.ActionPart(target=shop.address, operation="stock.Reserve", payload=b"{}"),
                )
            )
            raise ZeroDivisionError
    assert await ended(coord, g) == "ABORTED"
    payload = b'{"body": "%s"}' % body.encode()
    late = Call(g.tx_id, "7", "try", "stock.Reserve", payload, g.deadline_us)
    answer = await shop.stock.participant.execute(late)
    assert (answer.kind, answer.reason) == (c.ANSWER_KIND_REFUSED, "DECIDED")
    cancel = Call(g.tx_id, "7", "cancel", "stock.Reserve", payload, g.deadline_us)
    assert (await shop.stock.participant.execute(cancel)).kind == c.ANSWER_KIND_DONE
    assert shop.notes(body) == ([], ["try", "cancel"])


@pytest.mark.parametrize("which", ["stock", "coupons"])
async def test_any_number_of_times_acts_once(which: str, shop: Shop, coord: Coordinator) -> None:
    """Side by side and one after the other, on PostgreSQL and on MariaDB."""
    service = shop.stock if which == "stock" else shop.coupons
    for end in ("confirm", "cancel"):
        body = new_gid("many")
        tx_id = new_tx_id(time.time_ns() // 1000, secrets.randbits)
        operation, payload = f"{which}.Reserve", b'{"body": "%s", "n": 3}' % body.encode()
        deadline_us = time.time_ns() // 1000 + 30_000_000

        async def ask(
            op: str,
            tx_id: str = tx_id,
            operation: str = operation,
            payload: bytes = payload,
            by: int = deadline_us,
        ) -> Answer:
            answer = await service.participant.execute(Call(tx_id, "1", op, operation, payload, by))
            if answer.kind == c.ANSWER_KIND_FAILED:  # A deadlock of the repetitions: it is asked again.
                return await ask(op)
            return answer

        for op in ("try", end):
            answers = await asyncio.gather(*(ask(op) for _ in range(6)))
            assert {a.kind for a in answers} == {c.ANSWER_KIND_DONE}
            assert sum(not a.repeated for a in answers) == 1
        assert {a.result for a in await asyncio.gather(ask("try"), ask("try"))} == {
            b'{"body":"%s","n":3}' % body.encode()
        }
        assert service.notes(body) == ["try", end]


@pytest.mark.parametrize("which", ["stock", "coupons"])
async def test_a_cancel_waits_for_a_try_that_is_open(which: str, shop: Shop, coord: Coordinator) -> None:
    service = shop.stock if which == "stock" else shop.coupons
    body = new_gid("open")
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def stop() -> None:
        begun.set()
        await go_on.wait()

    service.script.next[f"try {body}"] = [stop]
    tx_id = new_tx_id(time.time_ns() // 1000, secrets.randbits)
    payload = b'{"body": "%s"}' % body.encode()
    attempt = asyncio.ensure_future(
        service.participant.execute(Call(tx_id, "1", "try", f"{which}.Reserve", payload))
    )
    await begun.wait()
    cancel = asyncio.ensure_future(
        service.participant.execute(Call(tx_id, "1", "cancel", f"{which}.Reserve", payload))
    )
    await asyncio.wait({cancel}, timeout=0.3)
    assert not cancel.done()
    go_on.set()
    assert (await attempt).kind == (await cancel).kind == c.ANSWER_KIND_DONE
    assert service.notes(body) == ["try", "cancel"]


async def test_a_try_after_the_deadline_does_nothing(shop: Shop, coord: Coordinator) -> None:
    for service in shop.services:
        body = new_gid("toolate")
        tx_id = new_tx_id(time.time_ns() // 1000, secrets.randbits)
        late = Call(tx_id, "1", "try", f"{service.name}.Reserve", b'{"body": "%s"}' % body.encode(), 1)
        answer = await service.participant.execute(late)
        assert (answer.kind, answer.reason) == (c.ANSWER_KIND_REFUSED, "DEADLINE")
        assert service.notes(body) == []


async def test_fifty_branches(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("fifty")
    async with coord.begin("order") as g:
        await asyncio.gather(*(g.tcc(shop.stock.reserve, body=body, n=n) for n in range(50)))
    assert shop.notes(body) == (["try"] * 50 + ["confirm"] * 50, [])


async def test_headers_and_labels_reach_every_call(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("headers")
    seen: list[Call] = []
    execute = shop.stock.participant.execute

    async def watched(call: Call) -> Answer:
        seen.append(call)
        return await execute(call)

    shop.stock.participant.execute = watched  # type: ignore[method-assign]
    shop.stock.script.next[f"confirm {body}"] = [fail]
    async with coord.begin("order", gid=body, headers={"tenant": "7"}) as g:
        await g.tcc(shop.stock.reserve, body=body)
    assert [(call.op, call.attempt) for call in seen] == [("try", 1), ("confirm", 1), ("confirm", 2)]
    assert all(call.headers == {"tenant": "7"} and call.gid == body for call in seen)
