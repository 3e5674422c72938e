"""*Every kind* of the list of behaviours, for TCC and sagas: over gRPC, with participants on PostgreSQL and MariaDB.

Lines 1, 2 and 7 are in the files of those kinds too, with what is special about each."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text

from tests.acceptance.mariadb.conftest import site_on
from tests.support.acceptance import INSERT, Site, eventually, new_gid
from tests.support.acceptance_participants import Shop, fail, pend, shop_on
from tests.support.acceptance_wire import Wire, refused, told, wire_to
from tests.support.databases import Databases
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord_client import (
    AlreadyCommitted,
    Coordinator,
    InProgress,
    Run,
    Saga,
    Transaction,
    Unavailable,
    saga,
)
from txcoord_client._answers import Call
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb


@pytest.fixture(scope="module")
def site(
    pg18: PostgresServer, mariadb: MariaDBServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    databases = Databases()
    site = site_on(tmp_path_factory.mktemp("kinds"), pg18, mariadb, databases)
    site.coordinator.env["TXCOORD_TARGETS__ALLOW"] = "loopback,nobody.invalid"
    site.restart()
    try:
        yield site
    finally:
        site.stop()
        databases.drop_all()


@pytest.fixture
async def shop(site: Site) -> AsyncIterator[Shop]:
    async with shop_on(site) as shop:
        shop.flow = (  # type: ignore[attr-defined]
            saga("ship").step(shop.stock.action("pack")).step(shop.coupons.action("label"))
        )
        await shop.leave()
        await shop.serve()  # With these steps.
        yield shop


@pytest.fixture
async def coord(shop: Shop) -> AsyncIterator[Coordinator]:
    async with shop.coordinator() as coord:
        yield coord


@pytest.fixture
async def wire(site: Site) -> AsyncIterator[Wire]:
    async with wire_to(site.address) as wire:
        yield wire


def flow_of(shop: Shop) -> Saga:
    flow: Saga = shop.flow  # type: ignore[attr-defined]
    return flow


@pytest.fixture(params=["tcc", "saga"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


LAST = {"tcc": "confirm", "saga": "action label"}
"""The op of coupons that a transaction of a kind ends with."""


async def started(kind: str, shop: Shop, coord: Coordinator, body: str, **more: Any) -> Transaction | Run:
    """A transaction of that kind, on both participants; it is decided, or on its way."""
    if kind == "saga":
        return await coord.submit(flow_of(shop), gid=body, data={"body": body}, **more)
    async with coord.begin("order", gid=body, wait="decided", **more) as g:
        await asyncio.gather(g.tcc(shop.stock.reserve, body=body), g.tcc(shop.coupons.reserve, body=body))
    return g


async def state_of(coord: Coordinator, body: str) -> str:
    found = await coord.get(body)
    return str(found.state) if found is not None else ""


async def ended(coord: Coordinator, body: str) -> str:
    async def look() -> str:
        state = await state_of(coord, body)
        return state if state in ("COMMITTED", "ABORTED") else ""

    return str(await eventually(look, what=f"{body} has ended"))


def done_by(kind: str, shop: Shop, body: str) -> tuple[list[str], list[str]]:
    if kind == "tcc":
        return shop.notes(body)
    return shop.stock.steps(body), shop.coupons.steps(body)


ONCE = {
    "tcc": (["try", "confirm"], ["try", "confirm"]),
    "saga": (["action pack"], ["action label"]),
}


# ---- 1 ----


async def test_1_committed_and_each_branch_once_in_effect(kind: str, shop: Shop, coord: Coordinator) -> None:
    body = new_gid("one")
    await started(kind, shop, coord, body)
    assert await ended(coord, body) == "COMMITTED"
    assert done_by(kind, shop, body) == ONCE[kind]


# ---- 3 ----


async def test_3_pending_stays_in_its_phase_and_is_asked_again_at_its_interval(
    kind: str, shop: Shop, coord: Coordinator
) -> None:
    body = new_gid("pending")
    asked: list[float] = []

    def ask_later() -> None:
        asked.append(time.monotonic())
        pend(0.3)()

    shop.coupons.script.next[f"{LAST[kind]} {body}"] = [
        ask_later,
        ask_later,
        lambda: asked.append(time.monotonic()),
    ]
    await started(kind, shop, coord, body)
    await eventually(lambda: asked)
    assert await state_of(coord, body) in ("COMMITTING", "RUNNING")
    assert await ended(coord, body) == "COMMITTED"
    assert all(after - before >= 0.3 for before, after in itertools.pairwise(asked)), asked
    assert done_by(kind, shop, body) == ONCE[kind]


# ---- 4 ----


async def test_4_a_failure_backs_off_and_its_due_time_is_in_the_log(
    kind: str, site: Site, shop: Shop, coord: Coordinator
) -> None:
    """Jitter, cap and what success resets are in tests/unit: their figures need no network."""
    body = new_gid("fails")
    calls: list[float] = []

    def no() -> None:
        calls.append(time.time())
        fail()

    shop.coupons.script.next[f"{LAST[kind]} {body}"] = [no] * 3
    await started(kind, shop, coord, body)
    assert await ended(coord, body) == "COMMITTED"
    assert len(calls) == 3
    assert done_by(kind, shop, body) == ONCE[kind]


# ---- 5 ----


async def test_5_the_same_request_twice_has_one_effect(
    kind: str, shop: Shop, coord: Coordinator, wire: Wire
) -> None:
    body = new_gid("twice")
    if kind == "saga":
        targets = dict.fromkeys(("stock", "coupons"), shop.address)
        tx_id = wire.tx().tx_id
        request = pb.SubmitRequest(
            tx_id=tx_id, gid=body, branches=flow_of(shop).branches(targets, {"body": body})
        )
        sent = await asyncio.gather(*(wire.call("Submit", request) for _ in range(5)))
        assert {answer.outcome.tx_id for answer in sent} <= {"", tx_id}
    else:
        tx = wire.tx(body)
        await tx.begin()
        branches = [
            c.Branch(
                id=number,
                kind=c.KIND_TCC,
                action=c.ActionPart(
                    target=shop.address,
                    operation=f"{service.name}.Reserve",
                    payload=b'{"body": "%s"}' % body.encode(),
                ),
            )
            for number, service in (("1", shop.stock), ("2", shop.coupons))
        ]
        for _ in range(2):
            await tx.enlist(*branches)
        for b, service in zip(branches, shop.services, strict=True):
            attempt = Call(tx.tx_id, b.id, "try", b.action.operation, b.action.payload, tx.deadline_us)
            for _ in range(2):
                assert (await service.participant.execute(attempt)).kind == c.ANSWER_KIND_DONE
        voted = [c.Branch(id=b.id, kind=c.KIND_TCC, vote=c.VOTE_PREPARED) for b in branches]
        answers = await asyncio.gather(*(tx.commit(*voted) for _ in range(5)))
        assert {told(answer) for answer in answers} == {("COMMITTED", "client", "")}
    assert await ended(coord, body) == "COMMITTED"
    assert done_by(kind, shop, body) == ONCE[kind]


async def test_5_the_same_gid_again(kind: str, shop: Shop, coord: Coordinator) -> None:
    body = new_gid("again")
    shop.coupons.script.next[f"{LAST[kind]} {body}"] = [pend(0.2)]
    await started(kind, shop, coord, body)
    with pytest.raises((InProgress, AlreadyCommitted)):
        await started(kind, shop, coord, body)
    assert await ended(coord, body) == "COMMITTED"
    with pytest.raises(AlreadyCommitted):
        await started(kind, shop, coord, body)
    assert done_by(kind, shop, body) == ONCE[kind]


# ---- 6 ----


async def test_6_enlist_after_the_decision_is_refused(shop: Shop, coord: Coordinator, wire: Wire) -> None:
    tx = wire.tx(new_gid("late"))
    await tx.begin()
    branch = c.Branch(
        id="1",
        kind=c.KIND_TCC,
        action=c.ActionPart(target=shop.address, operation="stock.Reserve", payload=b"{}"),
    )
    await tx.rollback()
    with refused("FAILED_PRECONDITION", "DECIDED"):
        await tx.enlist(branch)


# ---- 8 ----


async def test_8_each_wait_level_returns_when_it_is_so_and_not_before(
    shop: Shop, coord: Coordinator, wire: Wire
) -> None:
    """A saga is accepted before its first step has run, decided and committed after its last."""
    body = new_gid("wait")
    go_on = asyncio.Event()
    shop.stock.script.next[f"action pack {body}"] = [go_on.wait]
    run = await coord.submit(flow_of(shop), gid=body, data={"body": body})
    assert run.outcome is not None
    assert run.outcome.state == "RUNNING"

    async def reached(level: int) -> Any:
        item = pb.WaitItem(tx_id=run.tx_id, level=level)
        return (
            (await wire.call("Wait", pb.WaitRequest(items=[item], wait_us=20_000_000), 30.0))
            .results[0]
            .outcome
        )

    assert told(await reached(c.WAIT_LEVEL_ACCEPTED))[0] == "RUNNING"
    waiting = [
        asyncio.ensure_future(reached(level))
        for level in (c.WAIT_LEVEL_DECIDED, c.WAIT_LEVEL_COMMITTED, c.WAIT_LEVEL_DELIVERED)
    ]
    await eventually(lambda: ("action pack", body) in shop.stock.script.seen)
    assert not any(w.done() for w in waiting)
    go_on.set()
    assert {told(await w)[0] for w in waiting} == {"COMMITTED"}


async def test_8_decided_does_not_wait_for_confirms(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("decided")
    go_on = asyncio.Event()
    shop.stock.script.next[f"confirm {body}"] = [go_on.wait]
    g = await started("tcc", shop, coord, body)
    assert g.outcome is not None
    assert (g.outcome.state, g.outcome.committed) == ("COMMITTING", True)
    go_on.set()
    assert await ended(coord, body) == "COMMITTED"


async def test_8_the_exit_says_committing_when_time_is_up(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("hung")
    go_on = asyncio.Event()
    shop.stock.script.next[f"confirm {body}"] = [go_on.wait]
    async with coord.begin("order", gid=body, timeout=0.7, wait="committed") as g:
        await g.tcc(shop.stock.reserve, body=body)
    assert g.outcome is not None
    assert (g.outcome.state, g.outcome.committed) == ("COMMITTING", True)
    go_on.set()
    assert await ended(coord, body) == "COMMITTED"


# ---- 9 ----


async def test_9_headers_reach_every_call_retries_included_and_trace_context_too(
    kind: str, shop: Shop, coord: Coordinator
) -> None:
    body = new_gid("headers")
    seen: list[tuple[str, int, dict[str, str]]] = []
    execute = shop.coupons.participant.execute

    async def watched(call: Any) -> Any:
        if body.encode() in call.payload:
            seen.append((call.op, call.attempt, dict(call.headers)))
        return await execute(call)

    shop.coupons.participant.execute = watched  # type: ignore[method-assign]
    shop.coupons.script.next[f"{LAST[kind]} {body}"] = [fail]
    headers = {
        "tenant": "7",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    await started(kind, shop, coord, body, headers=headers)
    assert await ended(coord, body) == "COMMITTED"
    ops = [("try", 1), ("confirm", 1), ("confirm", 2)] if kind == "tcc" else [("action", 1), ("action", 2)]
    assert [(op, attempt) for op, attempt, _ in seen] == ops
    assert all(got == headers for _, _, got in seen)


# ---- 10 ----


async def test_10_a_steps_time_out_and_its_budget(shop: Shop, coord: Coordinator) -> None:
    """A call of a tenth of a second, four times; then the saga is given up, long before the default of 5 s."""
    body = new_gid("quick")
    forever = asyncio.Event()
    shop.coupons.script.next[f"action label {body}"] = [forever.wait] * 9
    pack, label = (step.operation for step in flow_of(shop).steps)

    class _Of:
        def __init__(self, operation: Any) -> None:
            self.__txcoord_operation__ = operation

    flow = saga("quick").step(_Of(pack)).step(_Of(label), timeout=0.1, retries=3)
    run = await coord.submit(flow, gid=body, data={"body": body})
    assert await ended(coord, body) == "ABORTED"
    forever.set()
    assert shop.stock.steps(body) == ["action pack", "compensate pack"]
    with contextlib.suppress(Exception):
        await run.wait()
    found = await coord.get(body)
    assert found is not None
    assert found.reason == "RETRIES_SPENT"


async def test_10_a_deadline_below_a_second(kind: str, shop: Shop, coord: Coordinator) -> None:
    body = new_gid("short")
    go_on = asyncio.Event()
    shop.coupons.script.next[f"{'try' if kind == 'tcc' else 'action label'} {body}"] = [go_on.wait] * 9
    with contextlib.suppress(Exception):
        await started(kind, shop, coord, body, timeout=0.4)
    assert await ended(coord, body) == "ABORTED"
    found = await coord.get(body)
    assert found is not None
    # The client of a try hears at its deadline that nobody answered, and may be the first to abort.
    assert found.reason in ("DEADLINE", "PARTICIPANT_UNAVAILABLE")[: 2 if kind == "tcc" else 1]
    go_on.set()


# ---- 11 ----


@contextlib.asynccontextmanager
async def speaking(answer: Callable[[asyncio.StreamWriter], None]) -> AsyncIterator[str]:
    """A service that speaks no gRPC; its address."""

    writers: list[asyncio.StreamWriter] = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        answer(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"grpc://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@pytest.mark.parametrize("how", ["unknown name", "unreachable", "garbage", "silent", "unknown operation"])
async def test_11_a_participant_that_is_wrong_is_tried_again_and_others_are_unaffected(
    how: str, site: Site, shop: Shop, coord: Coordinator, wire: Wire
) -> None:
    garbage: dict[str, Callable[[asyncio.StreamWriter], None]] = {
        "garbage": lambda writer: writer.write(b"220 mail.example ESMTP\r\n" * 20),
        "silent": lambda writer: None,
    }
    async with contextlib.AsyncExitStack() as stack:
        target, operation = shop.address, "stock.Reserve"
        if how in garbage:
            target = await stack.enter_async_context(speaking(garbage[how]))
        elif how == "unreachable":
            target = "grpc://127.0.0.1:1"
        elif how == "unknown name":
            target = "grpc://nobody.invalid:1"
        else:
            operation = "stock.Nothing"
        tx = wire.tx(new_gid("wrong"))
        await tx.begin()
        branch = c.Branch(
            id="1", kind=c.KIND_TCC, action=c.ActionPart(target=target, operation=operation, payload=b"{}")
        )
        await tx.enlist(branch)
        voted = c.Branch(id="1", kind=c.KIND_TCC, vote=c.VOTE_PREPARED)
        outcome = await tx.commit(voted, wait=c.WAIT_LEVEL_DECIDED)
        assert told(outcome)[0] == "COMMITTING"
        # Others go on, though they are called by the same node.
        for _ in range(3):
            body = new_gid("well")
            await started("tcc", shop, coord, body)
            assert await ended(coord, body) == "COMMITTED"
        if how == "silent":
            return  # Its first call lasts for 5 s; that others went on meanwhile is the point.

        def failures() -> int:
            shown = json.loads(site.txcoord("tx", "show", tx.tx_id, "--json"))
            return int(shown["branches"][0].get("attempts") or 0)

        await eventually(lambda: asyncio.to_thread(lambda: failures() >= 2), what="it was tried again")
        assert (await coord.get(tx_id=tx.tx_id)).state == "COMMITTING"  # type: ignore[union-attr]


# ---- 12 ----


async def test_12_fifty_branches_of_all_kinds(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("fifty")
    async with coord.begin("order", gid=body) as g:
        async with g.xa(shop.stock.engine) as db:
            await db.execute(text(INSERT), {"body": f"xa {body}"})
        await asyncio.gather(
            *(g.tcc(service.reserve, body=body, n=n) for n in range(23) for service in shop.services)
        )
        await g.saga(flow_of(shop), body=body)
    assert g.outcome is not None
    assert g.outcome.state == "COMMITTED"
    assert [shop.stock.notes(body).count(op) for op in ("try", "confirm")] == [23, 23]
    assert [shop.coupons.notes(body).count(op) for op in ("try", "confirm")] == [23, 23]
    assert (shop.stock.db.count(f"action pack {body}"), shop.stock.db.count(f"xa {body}")) == (1, 1)


async def test_12_nested_transactions_join_the_outer_one(shop: Shop, coord: Coordinator) -> None:
    body = new_gid("nested")
    with pytest.raises(ZeroDivisionError):
        async with coord.begin("order", gid=body) as g:
            await g.tcc(shop.stock.reserve, body=body)
            async with coord.begin("inner") as inner:
                assert inner.tx_id == g.tx_id
                await inner.tcc(shop.coupons.reserve, body=body)
                await inner.saga(flow_of(shop), body=body)
            raise ZeroDivisionError
    assert await ended(coord, body) == "ABORTED"
    assert shop.coupons.notes(body) == ["try", "cancel"]
    assert set(shop.stock.steps(body)) == {"try", "cancel", "action pack", "compensate pack"}
    assert set(shop.coupons.steps(body)) == {"try", "cancel", "action label", "compensate label"}


async def test_unavailable_is_told_as_such(shop: Shop) -> None:
    """A saga that cannot be handed over was not accepted, or may have been: never a false success."""
    async with Coordinator(
        "127.0.0.1:1", participants={"stock": shop.address, "coupons": shop.address}, call_timeout=0.3
    ) as nobody:
        with pytest.raises(Unavailable):
            await nobody.submit(flow_of(shop), data={"body": "x"})
