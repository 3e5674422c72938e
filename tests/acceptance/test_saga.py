"""Sagas, as *Behaviours* lists them: over gRPC, with participants on PostgreSQL and on MariaDB."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy import text

from tests.acceptance.mariadb.conftest import site_on
from tests.support.acceptance import INSERT, Site, eventually, new_gid
from tests.support.acceptance_participants import Shop, fail, pend, refuse, shop_on
from tests.support.databases import Databases
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord_client import (
    Aborted,
    AlreadyCommitted,
    Coordinator,
    Ended,
    Refused,
    Rejected,
    Retry,
    Saga,
    Transaction,
    Unavailable,
    saga,
)


@pytest.fixture(scope="module")
def shared(
    pg18: PostgresServer, mariadb: MariaDBServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    databases = Databases()
    site = site_on(tmp_path_factory.mktemp("saga"), pg18, mariadb, databases)
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


class Flows:
    """Three steps, on both services."""

    def __init__(self, shop: Shop) -> None:
        self.pack = shop.stock.action("pack")
        self.label = shop.coupons.action("label", takes="pack")
        self.send = shop.stock.action("send")
        self.hand_over = shop.coupons.action("hand_over", undo=False)
        self.ended: list[Ended] = []
        self.told = self._told(shop)
        self.in_order: Saga = saga("ship").step(self.pack).step(self.label).step(self.send)
        self.side_by_side: Saga = (
            saga("ship")
            .step(self.pack, after=[])
            .step(self.send, after=[])
            .step(self.label, after=["pack", "send"])
        )

    def _told(self, shop: Shop) -> Any:
        async def told(ended: Ended) -> None:
            self.ended.append(ended)
            await shop.coupons.script.play("told", ended.data["body"])

        return shop.coupons.participant.callback(told)

    def ends(self, body: str) -> list[Ended]:
        return [ended for ended in self.ended if ended.data == {"body": body}]


@pytest.fixture
async def shop(site: Site) -> AsyncIterator[Shop]:
    async with shop_on(site) as shop:
        shop.flows = Flows(shop)  # type: ignore[attr-defined]
        await shop.leave()
        await shop.serve()  # With these steps.
        yield shop


@pytest.fixture
def flows(shop: Shop) -> Any:
    return shop.flows  # type: ignore[attr-defined]


@pytest.fixture
async def coord(shop: Shop) -> AsyncIterator[Coordinator]:
    async with shop.coordinator() as coord:
        yield coord


def steps(shop: Shop, body: str) -> tuple[list[str], list[str]]:
    return shop.stock.steps(body), shop.coupons.steps(body)


async def test_in_order_and_results_are_read_by_later_steps_and_by_the_client(
    shop: Shop, flows: Flows, coord: Coordinator
) -> None:
    body = new_gid("order")
    run = await coord.submit(flows.in_order, gid=body, data={"body": body})
    assert (await run.wait()).state == "COMMITTED"
    packed = {"body": body, "step": "pack"}
    assert run.results == {
        "pack": packed,
        "label": {"body": body, "step": "label", "saw": packed},
        "send": {"body": body, "step": "send"},
    }
    assert steps(shop, body) == (["action pack", "action send"], ["action label"])


async def test_side_by_side_and_a_graph(shop: Shop, flows: Flows, coord: Coordinator) -> None:
    body = new_gid("graph")
    both = asyncio.Barrier(2)
    for name in ("pack", "send"):
        shop.stock.script.next[f"action {name} {body}"] = [both.wait]  # Each waits for the other.
    run = await coord.submit(flows.side_by_side, data={"body": body})
    assert (await run.wait()).state == "COMMITTED"
    assert run.results["label"]["saw"] == {"body": body, "step": "pack"}


async def test_one_step_refused_and_done_steps_are_compensated_in_reverse(
    shop: Shop, flows: Flows, coord: Coordinator
) -> None:
    body = new_gid("no")
    order: list[str] = []
    for script in (shop.stock.script, shop.coupons.script):
        for name in ("pack", "label", "send"):
            script.next[f"compensate {name} {body}"] = [lambda name=name: order.append(name)]  # type: ignore[misc]
    shop.stock.script.next[f"action send {body}"] = [refuse("NO_ROAD")]
    run = await coord.submit(flows.in_order, data={"body": body})
    with pytest.raises(Aborted) as aborted:
        await run.wait()
    assert (aborted.value.reason, aborted.value.decided_by) == ("NO_ROAD", "branch")
    assert run.refused.startswith("send: NO_ROAD")
    assert order == ["label", "pack"]
    assert steps(shop, body) == (["action pack", "compensate pack"], ["action label", "compensate label"])


async def test_steps_never_started_are_not_compensated(shop: Shop, flows: Flows, coord: Coordinator) -> None:
    body = new_gid("never")
    shop.coupons.script.next[f"action label {body}"] = [refuse()]
    run = await coord.submit(flows.in_order, data={"body": body})
    with pytest.raises(Aborted):
        await run.wait()
    called = [op for op, b in shop.stock.script.seen if b == body]
    assert called == ["action pack", "compensate pack"]
    assert steps(shop, body) == (["action pack", "compensate pack"], [])


async def test_a_pending_step_suspends_only_its_path(shop: Shop, flows: Flows, coord: Coordinator) -> None:
    body = new_gid("pending")
    go_on = asyncio.Event()

    def ask_later() -> None:
        if not go_on.is_set():
            shop.stock.script.next[f"action pack {body}"].append(ask_later)
            pend()()

    shop.stock.script.next[f"action pack {body}"] = [ask_later]
    run = await coord.submit(flows.side_by_side, data={"body": body})
    await eventually(lambda: "action send" in shop.stock.steps(body))
    assert (await run.wait(timeout=0.3)).state == "RUNNING"
    go_on.set()
    assert (await run.wait()).state == "COMMITTED"


async def test_a_failing_step_is_tried_again(shop: Shop, flows: Flows, coord: Coordinator) -> None:
    body = new_gid("fails")
    shop.coupons.script.next[f"action label {body}"] = [fail, fail]
    run = await coord.submit(flows.in_order, data={"body": body})
    assert (await run.wait()).state == "COMMITTED"
    assert shop.coupons.script.seen.count(("action label", body)) == 3
    assert steps(shop, body) == (["action pack", "action send"], ["action label"])


async def test_the_budget_of_a_step_and_then_compensation(
    shop: Shop, flows: Flows, coord: Coordinator
) -> None:
    body = new_gid("budget")
    flow = saga("ship").step(flows.pack).step(flows.label, retries=1)
    shop.coupons.script.next[f"action label {body}"] = [fail, fail, fail]
    run = await coord.submit(flow, data={"body": body})
    with pytest.raises(Aborted) as aborted:
        await run.wait()
    assert aborted.value.reason == "RETRIES_SPENT"
    # It may have run, for all that is known: it is compensated too, which finds nothing to undo.
    assert shop.coupons.script.seen.count(("action label", body)) == 2
    assert steps(shop, body) == (["action pack", "compensate pack"], [])


async def test_a_forward_step_is_never_given_up(shop: Shop, flows: Flows, coord: Coordinator) -> None:
    body = new_gid("forward")
    flow = saga("ship").step(flows.pack).step(flows.hand_over, forward=True)
    go_on = asyncio.Event()

    def no() -> None:
        if not go_on.is_set():
            shop.coupons.script.next[f"action hand_over {body}"].append(no)
            refuse()()

    shop.coupons.script.next[f"action hand_over {body}"] = [no]
    run = await coord.submit(flow, data={"body": body}, timeout=1.0)
    await eventually(lambda: shop.coupons.script.seen.count(("action hand_over", body)) >= 2)
    with pytest.raises(Rejected) as rejected:
        await run.abort()
    assert rejected.value.reason == "ONLY_FORWARD"
    go_on.set()
    assert (await run.wait()).state == "COMMITTED"
    assert steps(shop, body) == (["action pack"], ["action hand_over"])


async def test_abort_by_the_client_and_by_the_deadline(shop: Shop, flows: Flows, coord: Coordinator) -> None:
    for by in ("client", "deadline"):
        body = new_gid(by)
        shop.coupons.script.next[f"action label {body}"] = [pend(0.2) for _ in range(100)]
        run = await coord.submit(
            flows.in_order, data={"body": body}, timeout=1.0 if by == "deadline" else None
        )
        await eventually(lambda body=body: shop.coupons.script.seen.count(("action label", body)))  # type: ignore[misc]
        if by == "client":
            assert (await run.abort()).aborted
        with pytest.raises(Aborted) as aborted:
            await run.wait()
        assert aborted.value.decided_by == by
        assert steps(shop, body) == (["action pack", "compensate pack"], [])


@pytest.mark.parametrize("refused", ["", "try", "step"])
async def test_tries_that_the_coordinator_runs(
    shop: Shop, flows: Flows, coord: Coordinator, refused: str
) -> None:
    body = new_gid("tries")
    flow = (
        saga("buy")
        .tcc(shop.stock.reserve)
        .tcc(shop.coupons.reserve, name="coupon")
        .step(flows.pack)
        .step(flows.hand_over, forward=True)
    )
    if refused == "try":
        shop.coupons.script.next[f"try {body}"] = [refuse("NO_COUPON")]
    elif refused == "step":
        shop.stock.script.next[f"action pack {body}"] = [refuse("NO_COUPON")]
    run = await coord.submit(flow, data={"body": body, "n": 3})
    if not refused:
        assert (await run.wait()).state == "COMMITTED"
        assert run.results["Reserve"] == run.results["coupon"] == {"body": body, "n": 3}
        # Confirmed when everything is done, that which is never undone too.
        assert shop.stock.notes(body) == ["try", "confirm"]
        assert shop.coupons.notes(body) == ["try", "confirm"]
        assert steps(shop, body) == (
            ["try", "action pack", "confirm"],
            ["try", "action hand_over", "confirm"],
        )
        return
    with pytest.raises(Aborted) as aborted:
        await run.wait()
    assert (aborted.value.reason, aborted.value.decided_by) == ("NO_COUPON", "branch")
    assert shop.coupons.notes(body) == ([] if refused == "try" else ["try", "cancel"])
    assert steps(shop, body)[0] in ([], ["try", "cancel"])
    assert not shop.coupons.db.count(f"action hand_over {body}")


@pytest.mark.parametrize("refused", [False, True])
async def test_whoever_asked_is_told_of_the_end(
    shop: Shop, flows: Flows, coord: Coordinator, refused: bool
) -> None:
    body = new_gid("told")
    if refused:
        shop.stock.script.next[f"action send {body}"] = [refuse("NO_ROAD")]
    shop.coupons.script.next[f"told {body}"] = [fail, pend(0.05)]
    run = await coord.submit(flows.in_order, gid=body, data={"body": body}, on_end=flows.told)
    if refused:
        with pytest.raises(Aborted):
            await run.wait()
    else:
        await run.wait()
    await eventually(lambda: len(flows.ends(body)) >= 3)
    ends = flows.ends(body)
    assert {end.id for end in ends} == {f"{run.tx_id}.coupons.told"}
    last = ends[-1]
    assert (last.tx_id, last.gid, last.committed) == (run.tx_id, body, not refused)
    assert last.reason == ("NO_ROAD" if refused else "")

    async def over() -> bool:
        found = await coord.get(tx_id=run.tx_id)
        return found is not None and len(flows.ends(body)) == 3

    await eventually(over)


async def test_the_same_gid_again(shop: Shop, flows: Flows, coord: Coordinator) -> None:
    gid = new_gid("again")
    await (await coord.submit(flows.in_order, gid=gid, data={"body": gid})).wait()
    with pytest.raises(AlreadyCommitted):
        await coord.submit(flows.in_order, gid=gid, data={"body": gid})
    assert steps(shop, gid) == (["action pack", "action send"], ["action label"])


def test_mistakes_are_seen_when_it_is_built(shop: Shop, flows: Flows) -> None:
    for wrong in (
        lambda: saga("x").step(flows.pack).step(flows.pack),
        lambda: saga("x").step(flows.pack, after=["nobody"]),
        lambda: saga("x").step(flows.hand_over),
        lambda: saga("x").step(flows.hand_over, forward=True).step(flows.pack),
        lambda: saga("x").step(flows.pack, after=[]).step(flows.hand_over, after=[], forward=True),
        lambda: saga("x").step(shop.stock.reserve),
        lambda: saga("x").tcc(flows.pack),
        lambda: saga("x").step(flows.pack).tcc(shop.stock.reserve),
        lambda: saga("x").step(flows.pack, retries=1, retry=Retry(attempts=2)),
        lambda: Retry(factor=0.5),
    ):
        with pytest.raises(Rejected):
            wrong()
    for data in ({}, {"body": "x", "nobody": 1}):
        with pytest.raises(Rejected):
            flows.in_order.branches({"stock": "grpc://a:1", "coupons": "grpc://a:1"}, data)


@pytest.mark.parametrize(
    "moment",
    [
        "submit.after_write",
        "call.before=kill@2",
        "call.after=kill@2",
        "decide.before_write",
        "decide.after_write",
    ],
)
@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.timeout(120)
async def test_coordinator_killed(moment: str, refused: bool, mortal: Site, shop: Shop, flows: Flows) -> None:
    """Whoever submitted it is not needed: the coordinator comes back and goes on."""
    await asyncio.to_thread(mortal.restart, moment if "=" in moment else f"{moment}=kill")
    gid = new_gid("killed")
    if refused:
        shop.stock.script.next[f"action send {gid}"] = [refuse() for _ in range(9)]
    async with shop.coordinator(call_timeout=30.0) as coord:
        submitted = asyncio.ensure_future(coord.submit(flows.in_order, gid=gid, data={"body": gid}))
        await eventually(lambda: not mortal.coordinator.running, what="it died")
        assert mortal.coordinator.exit_code == -9
        await asyncio.to_thread(mortal.restart)
        run = await submitted
        if refused:
            with pytest.raises(Aborted):
                await run.wait()
            assert steps(shop, gid) == (
                ["action pack", "compensate pack"],
                ["action label", "compensate label"],
            )
            await coord.get(tx_id=run.tx_id)  # Its end is in the log: no later test has to undo it once more.
        else:
            assert (await run.wait()).state == "COMMITTED"
            assert steps(shop, gid) == (["action pack", "action send"], ["action label"])


async def test_inside_a_transaction_with_xa_and_tcc(shop: Shop, flows: Flows, coord: Coordinator) -> None:
    body = new_gid("mixed")
    flow = saga("ship").step(flows.pack).step(flows.label)
    async with coord.begin("order", gid=body) as g:
        async with g.xa(shop.stock.engine) as db:
            await db.execute(text(INSERT), {"body": f"xa {body}"})
        await g.tcc(shop.coupons.reserve, body=body)
        results = await g.saga(flow, body=body)
        assert results["label"]["saw"] == {"body": body, "step": "pack"}
    assert g.outcome is not None
    assert g.outcome.state == "COMMITTED"
    assert steps(shop, body) == (["action pack"], ["try", "action label", "confirm"])
    assert shop.site.accounts.count(f"xa {body}") == 1


async def test_inside_a_transaction_that_aborts(shop: Shop, flows: Flows, coord: Coordinator) -> None:
    body = new_gid("undone")
    flow = saga("ship").step(flows.pack).step(flows.label)
    with pytest.raises(ZeroDivisionError):
        async with coord.begin("order") as g:
            await g.saga(flow, body=body)
            await g.tcc(shop.coupons.reserve, body=body)
            raise ZeroDivisionError
    await eventually(
        lambda: (
            steps(shop, body)
            == (["action pack", "compensate pack"], ["action label", "try", "compensate label", "cancel"])
            or steps(shop, body)
            == (["action pack", "compensate pack"], ["action label", "try", "cancel", "compensate label"])
        )
    )


async def test_inside_a_transaction_and_refused(shop: Shop, flows: Flows, coord: Coordinator) -> None:
    body = new_gid("refused")
    shop.coupons.script.next[f"action label {body}"] = [fail, refuse("NO_LABEL")]
    flow = saga("ship").step(flows.pack).step(flows.label)
    with pytest.raises(Refused) as refused:
        async with coord.begin("order") as g:
            async with g.xa(shop.stock.engine) as db:
                await db.execute(text(INSERT), {"body": f"xa {body}"})
            await g.saga(flow, body=body)
    assert refused.value.reason == "NO_LABEL"
    await eventually(lambda: steps(shop, body) == (["action pack", "compensate pack"], []))

    async def how() -> tuple[str, str, str]:
        found = await coord.get(tx_id=g.tx_id)
        return (found.state, found.decided_by, found.reason) if found is not None else ("", "", "")

    async def aborted() -> bool:
        return await how() == ("ABORTED", "branch", "NO_LABEL")

    await eventually(aborted)
    assert shop.site.accounts.count(f"xa {body}") == 0


async def test_inside_a_transaction_until_the_deadline(shop: Shop, flows: Flows, coord: Coordinator) -> None:
    body = new_gid("late")
    shop.coupons.script.next[f"action label {body}"] = [pend(0.2) for _ in range(100)]
    flow = saga("ship").step(flows.pack).step(flows.label)
    with pytest.raises((Refused, Rejected, Unavailable)):
        async with coord.begin("order", timeout=1.0) as g:
            await g.saga(flow, body=body)
    await eventually(lambda: steps(shop, body) == (["action pack", "compensate pack"], []))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "moment", ["enlist.after_write", "call.after", "call.before=kill@2", "commit.after_write"]
)
async def test_inside_a_transaction_and_coordinator_killed(
    moment: str, mortal: Site, shop: Shop, flows: Flows
) -> None:
    """Its client asks the next one."""
    await asyncio.to_thread(mortal.restart, moment if "=" in moment else f"{moment}=kill")
    body = new_gid("killed")
    flow = saga("ship").step(flows.pack).step(flows.label)

    async def order() -> Transaction:
        async with coord.begin("order") as g:
            await g.saga(flow, body=body)
        return g

    async with shop.coordinator(call_timeout=30.0) as coord:
        ordering = asyncio.ensure_future(order())
        await eventually(lambda: not mortal.coordinator.running, what="it died")
        await asyncio.to_thread(mortal.restart)
        g = await ordering
        assert g.outcome is not None
        assert g.outcome.state == "COMMITTED"
        assert steps(shop, body) == (["action pack"], ["action label"])
