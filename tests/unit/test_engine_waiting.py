"""Waiting on the real engine, and the orders of operators."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.virtual import run
from txcoord.core.errors import Refused
from txcoord.core.events import Operate
from txcoord.core.model import Audit, ChangeKind, TxState, Written
from txcoord.engine.live import WaitLevel

from .engine_support import a_shop, refused_reason


def test_who_stops_waiting_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            shop.b.down = True
            decided = await node.commit(tx, *shop.prepared(tx))
            live = node.coordinator.live.get(tx.tx_id)
            assert live is not None
            waits = [asyncio.ensure_future(node.ended(decided, timeout_s=0.001)) for _ in range(50)]
            calls = [asyncio.ensure_future(node.ended(decided)) for _ in range(50)]
            await asyncio.gather(*waits)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            assert not live.waiters

    run(main())


def test_every_wait_is_woken_and_none_before_its_time() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node, other = shop.node(), shop.node("n2")
            tx = shop.tx(gid="order-1")
            begun = await node.begin(tx)
            early = [
                asyncio.ensure_future(n.coordinator.wait(begun, level, 50))
                for n in (node, other)
                for level in (WaitLevel.DECIDED, WaitLevel.COMMITTED)
            ]
            await asyncio.sleep(3)
            assert not any(task.done() for task in early)
            shop.b.hold = asyncio.Event()
            decided = await node.commit(tx, *shop.prepared(tx), begun=True)
            late = asyncio.ensure_future(node.ended(decided, timeout_s=30))
            await asyncio.sleep(1)
            assert [task.done() for task in (*early, late)] == [True, False, True, False, False]
            shop.b.hold.set()
            told = await asyncio.gather(*early, late)
            assert [t.state for t in told[1::2]] == [TxState.COMMITTED] * 2
            assert told[-1].state is TxState.COMMITTED

    run(main())


def test_a_wait_outlives_the_log() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node, other = shop.node(), shop.node("n2")
            tx = shop.tx()
            shop.b.hold = asyncio.Event()
            decided = await node.commit(tx, *shop.prepared(tx))
            there = asyncio.ensure_future(other.ended(decided, timeout_s=20))
            await asyncio.sleep(1)
            shop.storage.down = True
            await asyncio.sleep(1)
            short = await other.ended(decided, timeout_s=1)
            assert short.state is TxState.COMMITTING, "what is known stays true"
            shop.storage.down = False
            shop.b.hold.set()
            assert (await there).state is TxState.COMMITTED

    run(main())


# ---- operators ----


def _order(action: str, branch: str = "2") -> Operate:
    return Operate(action, branch, Audit("ann", "because", action, 0))


def test_an_order_is_not_written_over_the_end() -> None:
    """The transaction ends on its node while the order for it is on its way from another one."""

    async def main() -> None:
        async with a_shop() as shop:
            node, other = shop.node(), shop.node("n2", latency_s=0.05)
            tx = shop.tx()
            shop.b.latency_s = 0.07  # after the read and before the write of the order
            decided = await node.commit(tx, *shop.prepared(tx))
            with pytest.raises(Refused) as refused:
                await other.coordinator.operate(tx.tx_id, _order("skip"))
            assert refused_reason(refused) == "NOT_PARKED"
            assert (await node.ended(decided)).state is TxState.COMMITTED
            row = shop.storage.row(tx.tx_id)
            assert (row.state, row.heuristic) == (TxState.COMMITTED, False)
            orders = [w for c, w in shop.storage.written if c.kind is ChangeKind.OPERATE]
            assert orders == [Written.CONFLICT]

    run(main())


def test_a_parked_transaction_rests_in_the_log_alone() -> None:
    """An operator works on any node; the one that had it before answers what is so, not what it remembers."""

    async def main() -> None:
        async with a_shop() as shop:
            node, other = shop.node(), shop.node("n2")
            await node.start()
            tx = shop.tx()
            one, two = shop.prepared(tx)
            shop.b.roll_back_by_hand(two.xid)
            decided = await node.commit(tx, one, two)
            told = await node.ended(decided)
            assert told.shown_parked
            assert told.heuristic
            await asyncio.wait_for(node.coordinator.live.drained(), 5)
            await asyncio.sleep(60)
            assert shop.storage.row(tx.tx_id).owner == "n1", "nobody takes it over"
            assert shop.storage.row(tx.tx_id).epoch == 1
            resolved = await other.coordinator.operate(tx.tx_id, _order("resolve"))
            assert resolved.state is TxState.COMMITTED
            here = await node.coordinator.get(tx.tx_id)
            assert here is not None
            assert (here.state, here.heuristic) == (TxState.COMMITTED, True)
            assert [a.actor for a in await node.log.audits(tx.tx_id)] == ["ann"]

    run(main())


def test_a_parked_branch_is_left_alone_until_its_retry() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            shop.b.down = True
            decided = await node.commit(tx, *shop.prepared(tx))
            await asyncio.sleep(3)
            await node.coordinator.operate(tx.tx_id, _order("park"))
            tried = len(shop.b.attempts)
            shop.b.down = False
            await asyncio.sleep(200)
            assert len(shop.b.attempts) == tried, "what waited for its time is not carried out any more"
            assert shop.b.prepared
            await node.coordinator.operate(tx.tx_id, _order("retry"))
            assert (await node.ended(decided)).state is TxState.COMMITTED

    run(main())


def test_an_order_for_nothing_is_refused() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            with pytest.raises(Refused) as refused:
                await node.coordinator.operate("0" * 32, _order("retry"))
            assert refused_reason(refused) == "NOT_FOUND"

    run(main())
