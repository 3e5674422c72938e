"""The pytest plugin, used as a user would: the fixture ``txcoord``, with participants that the test plays."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

import txcoord_client.sync as sync
from txcoord.testing import Txcoord
from txcoord_client import (
    Aborted,
    Coordinator,
    OutcomeUnknown,
    Participant,
    Pending,
    Refused,
    Unavailable,
    saga,
)

# A caller's declarations, without a database, and its Coordinator, made when its module was.
stock = Participant("stock")
ship = Participant("ship")
coord = Coordinator("dns:///txcoord.internal:7070", participants={"stock": "grpc://stock:9000"})


@stock.tcc
class Reserve:
    async def attempt(self, db: Any, *, sku: str) -> None: ...
    async def confirm(self, db: Any) -> None: ...
    async def cancel(self, db: Any) -> None: ...


@ship.action
async def pack(db: Any, *, order: str) -> None: ...


@pack.compensate
async def unpack(db: Any) -> None: ...


@ship.action
async def send(db: Any, *, pack: Any) -> None: ...


@send.compensate
async def unsend(db: Any) -> None: ...


flow = saga("ship").step(pack).step(send)


async def checkout(gid: str, **options: Any) -> str:
    async with coord.begin("checkout", gid=gid, **options) as g:
        await g.tcc(Reserve, sku="a")
    assert g.outcome is not None
    return str(g.outcome.state)


@pytest.fixture(autouse=True)
def played(txcoord: Txcoord) -> None:
    txcoord.stub("stock")
    txcoord.stub("ship", returns=lambda order="", pack=None: {"order": order or pack["order"]})


async def test_a_commit(txcoord: Txcoord) -> None:
    assert await checkout("order-1") == "COMMITTED"
    txcoord.assert_committed("order-1")
    txcoord.assert_committed()
    txcoord.assert_effects_once()
    assert [(c.operation, c.op) for c in txcoord.calls("stock")] == [
        ("stock.Reserve", "try"),
        ("stock.Reserve", "confirm"),
    ]


async def test_a_failing_confirm_and_a_crash(txcoord: Txcoord) -> None:
    txcoord.fail("stock.confirm", times=2, code="UNAVAILABLE")
    txcoord.crash_after("decision")
    await checkout("order-2")
    await txcoord.settle(advance="1h")
    txcoord.assert_committed("order-2")
    txcoord.assert_effects_once()
    assert [c.answer for c in txcoord.calls("stock.confirm")] == ["failed", "failed", "done"]
    assert "the coordinator is killed" in txcoord.story()


async def test_a_lost_answer_has_no_second_effect(txcoord: Txcoord) -> None:
    txcoord.fail("stock.Reserve.try", lost=True)
    txcoord.fail("stock.Reserve.confirm", lost=True)
    await checkout("order-3")
    await txcoord.settle()
    assert [(c.op, c.lost, c.repeated) for c in txcoord.calls()] == [
        ("try", True, False),
        ("try", False, True),
        ("confirm", True, False),
        ("confirm", False, True),
    ]
    txcoord.assert_effects_once("order-3")


async def test_a_refusal(txcoord: Txcoord) -> None:
    txcoord.refuse("stock.try", "OUT_OF_STOCK", left=0)
    with pytest.raises(Refused) as refused:
        await checkout("order-4")
    assert (refused.value.reason, refused.value.facts) == ("OUT_OF_STOCK", {"left": "0"})
    await txcoord.settle()
    txcoord.assert_aborted("order-4", reason="OUT_OF_STOCK")
    txcoord.assert_effects_once()


async def test_the_users_own_exception(txcoord: Txcoord) -> None:

    async def broken() -> None:
        async with coord.begin(gid="order-5") as g:
            await g.tcc(Reserve, sku="a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await broken()
    await txcoord.settle()
    txcoord.assert_aborted("order-5")
    assert [c.op for c in txcoord.calls()] == ["try", "cancel"]


async def test_time_stands_still_until_somebody_waits(txcoord: Txcoord) -> None:
    began_us = txcoord.now_us
    async with coord.begin(gid="order-6", timeout=30) as g:
        await g.tcc(Reserve, sku="a")
        assert txcoord.now_us == began_us
        await txcoord.advance("29s")
        assert txcoord.state("order-6") == "ACTIVE"
    txcoord.assert_committed("order-6")
    assert txcoord.now_us == began_us + 29_000_000


async def test_the_deadline(txcoord: Txcoord) -> None:

    async def slow() -> None:
        async with coord.begin(gid="order-7", timeout=30) as g:
            await g.tcc(Reserve, sku="a")
            await txcoord.advance("32s")

    with pytest.raises(Aborted):
        await slow()
    await txcoord.settle()
    txcoord.assert_aborted("order-7", reason="DEADLINE")
    txcoord.assert_effects_once()


async def test_a_confirm_that_hangs_is_asked_again(txcoord: Txcoord) -> None:
    txcoord.hang("stock.confirm")
    assert await checkout("order-8") == "COMMITTED"  # 5 s later, by the coordinator's clock
    assert [c.attempt for c in txcoord.calls("stock.confirm")] == [2]


async def test_a_try_that_hangs_fails_the_whole(txcoord: Txcoord) -> None:
    txcoord.hang("stock.try", times=None)
    with pytest.raises(Unavailable):
        await checkout("order-9")
    await txcoord.settle()
    txcoord.assert_aborted("order-9")


async def test_what_never_gets_done_is_parked(txcoord: Txcoord) -> None:
    txcoord.refuse("stock.confirm", "NO_SUCH_HOLD")  # a broken promise: nothing to try again
    assert await checkout("order-10") == "COMMITTING"
    txcoord.assert_parked("order-10")
    await txcoord.settle()
    with pytest.raises(
        AssertionError, match=r"(?s)order-10 is COMMITTING \(PARKED\), not COMMITTED.*for a person"
    ):
        txcoord.assert_committed("order-10")


async def test_a_coordinator_that_is_away(txcoord: Txcoord) -> None:
    txcoord.crash(restart=False)
    with pytest.raises(Unavailable):
        await checkout("order-11")
    txcoord.restart()
    assert await checkout("order-11") == "COMMITTED"


async def test_a_commit_whose_answer_is_lost(txcoord: Txcoord) -> None:
    txcoord.crash_after("decision", restart=False)
    with pytest.raises(OutcomeUnknown) as unknown:
        await checkout("order-12")
    txcoord.restart()
    assert (await coord.settle(unknown.value)).committed
    await txcoord.settle()
    txcoord.assert_committed(unknown.value)


@pytest.mark.parametrize("place", ["begin", "enlist", "decision"])
async def test_a_crash_before_anything_is_written(txcoord: Txcoord, place: str) -> None:
    txcoord.crash_before(place)
    assert await checkout("order-13") == "COMMITTED"
    txcoord.assert_effects_once()


@pytest.mark.parametrize("place", ["submit", "call", "decision"])
async def test_a_saga(txcoord: Txcoord, place: str) -> None:
    txcoord.crash_after(place)
    run = await coord.submit(flow, gid="ship-1", data={"order": "o"})
    await run.wait()
    assert run.results["send"] == {"order": "o"}
    txcoord.assert_committed("ship-1")
    txcoord.assert_effects_once()


async def test_a_saga_that_is_compensated(txcoord: Txcoord) -> None:
    txcoord.refuse("ship.send", "NO_COURIER")
    run = await coord.submit(flow, gid="ship-2", data={"order": "o"})
    with pytest.raises(Aborted):
        await run.wait()
    txcoord.assert_aborted(run, reason="NO_COURIER")
    txcoord.assert_effects_once()
    assert [(c.operation, c.op) for c in txcoord.calls() if c.effect] == [
        ("ship.pack", "action"),
        ("ship.pack", "compensate"),
    ]


async def test_a_saga_that_has_to_wait(txcoord: Txcoord) -> None:
    days = iter([1, 1, 1])

    def later(**_: object) -> str:
        if next(days, None):
            raise Pending(retry_after=86_400)
        return "sent"

    txcoord.stub("ship.send", returns=later)
    run = await coord.submit(flow, gid="ship-3", data={"order": "o"})
    assert (await run.wait(timeout=10)).state == "RUNNING"
    began_us = txcoord.now_us
    await txcoord.settle()
    txcoord.assert_committed(run)
    assert 2.9 < (txcoord.now_us - began_us) / 86_400e6 < 3.1


async def test_a_saga_within_a_transaction(txcoord: Txcoord) -> None:
    async with coord.begin(gid="mix-1") as g:
        await g.tcc(Reserve, sku="a")
        assert await g.saga(flow, order="o") == {"pack": {"order": "o"}, "send": {"order": "o"}}
    txcoord.assert_committed("mix-1")
    txcoord.assert_effects_once()


async def test_several_at_once(txcoord: Txcoord) -> None:
    txcoord.fail("stock.confirm", times=5)
    await asyncio.gather(*(checkout(f"many-{n}") for n in range(20)))
    await txcoord.settle()
    txcoord.assert_committed()
    txcoord.assert_effects_once()
    assert len(txcoord.calls("stock.try")) == 20


def test_the_synchronous_sdk(txcoord: Txcoord) -> None:
    declared = sync.Participant("stock")

    @declared.tcc
    class Take:
        def attempt(self, db: Any, *, sku: str) -> None: ...
        def confirm(self, db: Any) -> None: ...
        def cancel(self, db: Any) -> None: ...

    txcoord.fail("stock.confirm", times=3)
    txcoord.crash_after("decision")
    with sync.Coordinator("txcoord:7070") as here, here.begin("checkout", gid="sync-1") as g:
        g.tcc(Take, sku="a")
    txcoord.settle_sync()
    txcoord.assert_committed("sync-1")

    def broken() -> None:
        with txcoord.sync_coordinator() as here, here.begin(gid="sync-2") as g:
            g.tcc(Take, sku="a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    txcoord.assert_aborted("sync-2")  # what is under way in threads is waited for
    txcoord.assert_effects_once()


# ---- mistakes of the test ----


async def test_an_assert_that_fails_tells_the_story(txcoord: Txcoord) -> None:
    txcoord.fail("stock.confirm", times=None)
    await checkout("order-20", timeout=10)
    with pytest.raises(AssertionError) as failed:
        txcoord.assert_committed("order-20")
    told = re.sub(r" *\+\d+\.\d+ s|\d+\.\d+ s", "T", str(failed.value))
    assert told.splitlines()[:6] == [
        "order-20 is COMMITTING, not COMMITTED",
        "order-20 (checkout) is COMMITTING: commit was decided by client",
        "T  begun, to be done within T",
        "T  branch 1: stock.Reserve try: done",
        "T  decided commit by client",
        "T  branch 1: stock.Reserve confirm: failed UNAVAILABLE: txcoord.fail",
    ]
    assert (
        "branch 1, tcc stock.Reserve is FINISHING; it is asked again in T: `await txcoord.settle()`" in told
    )
    with pytest.raises(AssertionError, match="has not ended yet"):
        txcoord.assert_effects_once()


async def test_effects_that_are_missing(txcoord: Txcoord) -> None:
    """A stub without the barrier's rules, as a participant with a bug."""
    played = txcoord.stub("stock")
    played.execute = lambda call, do=played.execute: do(  # type: ignore[method-assign]
        type(call)(call.tx_id, f"{call.branch}-{call.op}-{call.attempt}", call.op, call.operation)
    )
    txcoord.fail("stock.confirm", lost=True)
    await checkout("order-21")
    with pytest.raises(AssertionError, match="its confirm took effect 2 times"):
        txcoord.assert_effects_once()


async def test_what_is_not_there(txcoord: Txcoord) -> None:
    with pytest.raises(AssertionError, match="no transaction was heard of"):
        txcoord.assert_committed()
    await checkout("order-22")
    with pytest.raises(AssertionError, match="no transaction order-23 was heard of; there are: order-22"):
        txcoord.assert_committed("order-23")
    with pytest.raises(AssertionError, match="order-22 is COMMITTED, not ABORTED"):
        txcoord.assert_aborted("order-22")


async def test_words_that_mean_nothing(txcoord: Txcoord) -> None:
    with pytest.raises(ValueError, match="there is no participant 'stok'; there are ship, stock"):
        txcoord.fail("stok.confirm")
    with pytest.raises(ValueError, match="one of begin, enlist, submit, decision, call, finish"):
        txcoord.crash_after("lunch")
    with pytest.raises(ValueError, match="'90s', '5m', '1h', '7d'"):
        await txcoord.settle(advance="an hour")
    with pytest.raises(ValueError, match="times=0"):
        txcoord.fail("stock", times=0)
    with pytest.raises(ValueError, match="has no db"):
        txcoord.serve(stock)
    with pytest.raises(RuntimeError, match=r"await txcoord\.settle"):
        txcoord.settle_sync()
    with pytest.raises(ValueError, match="name a participant"):
        txcoord.fail("")


async def test_a_participant_that_nobody_serves(txcoord: Txcoord) -> None:
    other = Participant("coupons")

    @other.tcc
    class Redeem:
        async def attempt(self, db: Any) -> None: ...
        async def confirm(self, db: Any) -> None: ...
        async def cancel(self, db: Any) -> None: ...

    here = txcoord.coordinator(participants={"coupons": "grpc://coupons:9000"})

    async def redeem() -> None:
        async with here.begin() as g:
            await g.tcc(Redeem)

    with pytest.raises(
        Unavailable, match=r"txcoord\.serve\(\.\.\.\) the participant, or txcoord\.stub\('coupons'\)"
    ):
        await redeem()
    txcoord.stub("coupons")
    await redeem()


async def test_what_never_came_to_pass(txcoord: Txcoord) -> None:
    txcoord.fail("stock.cancel")
    txcoord.crash_after("submit")
    await checkout("order-24")
    with pytest.raises(
        AssertionError, match=r"never came to pass: txcoord\.fail\('stock\.cancel'\), txcoord\.crash_after"
    ):
        txcoord.assert_all_used()
    txcoord._house.services.faults.asked.clear()
    txcoord._house.crashes.clear()
