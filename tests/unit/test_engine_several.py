"""Several nodes on one log, on virtual time."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.node import xa
from tests.support.virtual import eventually, run
from txcoord.core.errors import Refused
from txcoord.core.model import TAKEN, Decision, TxState
from txcoord.engine.live import WaitLevel
from txcoord.ports import LogUnavailable

from .engine_support import a_shop, refused_reason


def test_any_node_gives_the_same_answer() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            a, b, c = (shop.node(name) for name in ("n1", "n2", "n3"))
            tx = shop.tx(gid="order-1")
            await a.begin(tx)
            branches = shop.prepared(tx)
            told = await b.ended(await b.commit(tx, *branches, begun=True))
            again = await c.ended(await c.commit(tx, *branches, begun=True))
            assert (told.state, again.state) == (TxState.COMMITTED, TxState.COMMITTED)
            assert (await a.rollback(tx, begun=True)).decision is Decision.COMMIT
            with pytest.raises(Refused) as refused:
                await a.begin(tx)
            assert refused_reason(refused) == "ALREADY_COMMITTED"

    run(main())


def test_decisions_race_by_the_compare_and_set() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            nodes = [shop.node(f"n{i}") for i in range(4)]
            for turn in range(20):
                tx = shop.tx(gid=f"order-{turn}")
                await nodes[turn % 4].begin(tx)
                branches = shop.prepared(tx)
                racing = [
                    node.commit(tx, *branches, begun=True)
                    if (i + turn) % 2
                    else node.rollback(tx, begun=True)
                    for i, node in enumerate(nodes)
                ]
                decisions = {told.decision for told in await asyncio.gather(*racing)}
                assert len(decisions) == 1
                ended = [await node.ended(shop.storage.row(tx.tx_id)) for node in nodes]
                assert len({(t.state, t.decided_by, t.decided_us) for t in ended}) == 1
            await asyncio.sleep(1)
            for database in (shop.a, shop.b):
                assert not database.prepared
                assert len(database.committed) == len(set(database.committed))

    run(main())


def test_who_waits_elsewhere_is_told_soon() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node, other = shop.node(), shop.node("n2")
            tx = shop.tx(gid="order-1")
            begun = await node.begin(tx)
            shop.b.hold = asyncio.Event()
            decision = asyncio.ensure_future(other.coordinator.wait(begun, WaitLevel.DECIDED, 60))
            end = asyncio.ensure_future(other.ended(begun))
            expected = asyncio.ensure_future(
                other.coordinator.waiting.expect(tx.tx_id, WaitLevel.COMMITTED, 60)
            )
            await asyncio.sleep(5)
            await node.commit(tx, *shop.prepared(tx), begun=True)
            await asyncio.sleep(0.2)
            assert [t.done() for t in (decision, end, expected)] == [True, False, False]
            await asyncio.sleep(5)
            shop.b.hold.set()
            await asyncio.sleep(0.25)
            assert [t.done() for t in (end, expected)] == [True, True]
            assert end.result().state is TxState.COMMITTED
            assert len(other.coordinator.waiting) == 0

    run(main())


def test_a_late_prepare_is_ended_and_the_row_of_the_node_that_carries_it_out_left_alone() -> None:
    """What that one writes bears the same epoch: a note of another one would put an older state of the row back."""

    async def main() -> None:
        async with a_shop() as shop:
            node, other = shop.node(), shop.node("n2")
            tx = shop.tx()
            one, two = shop.prepared(tx)
            shop.b.busy.add(two.xid)
            await node.commit(tx, one, two)
            late = xa(tx, "3", "b")
            shop.b.prepare(late.xid)
            await other.recovery.scan(shop.b)
            assert late.xid in shop.b.rolled_back
            assert other.coordinator.alarms == {"not_in_commit_list": 1}
            await other.log.settle()
            assert "branch.finished_late" not in {h.what for h in shop.storage.histories[tx.tx_id]}
            assert shop.storage.row(tx.tx_id).owner == "n1"
            shop.b.busy.clear()
            await eventually(lambda: shop.storage.row(tx.tx_id).ended, within_s=300)

    run(main())


def test_thousands_who_wait_elsewhere_are_one_question_each_time() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node, other = shop.node(), shop.node("n2")
            asked = 0
            news = other.log.news

            async def counted(*arguments: list[str]) -> tuple[set[str], set[str]]:
                nonlocal asked
                asked += 1
                await asyncio.sleep(0.1)  # The log is slow: it is asked less often then.
                return await news(*arguments)

            other.log.news = counted  # type: ignore[method-assign, assignment]
            txs = [shop.tx() for _ in range(2_000)]
            waits = [
                asyncio.ensure_future(other.coordinator.waiting.expect(tx.tx_id, WaitLevel.DECIDED, 60))
                for tx in txs
            ]
            await asyncio.sleep(10)
            assert 15 <= asked <= 25
            await asyncio.gather(*(node.commit(tx, *shop.prepared(tx)) for tx in txs))
            await asyncio.sleep(1)
            assert all(w.done() and w.result() is not None for w in waits)
            before = asked
            await asyncio.sleep(10)
            assert asked - before <= 1, "nobody waits any more"

    run(main())


def test_a_log_that_was_away_keeps_nobody_waiting_after_it() -> None:
    """Its last question took as long as a statement may, and had no answer: that says nothing of how busy it is."""

    async def main() -> None:
        async with a_shop() as shop:
            node, other = shop.node(), shop.node("n2")
            news, asked = other.log.news, 0

            async def away(*arguments: list[str]) -> tuple[set[str], set[str]]:
                nonlocal asked
                asked += 1
                if asked > 1:
                    return await news(*arguments)
                await asyncio.sleep(10)
                raise LogUnavailable("no answer")

            other.log.news = away  # type: ignore[method-assign, assignment]
            tx = shop.tx()
            told = asyncio.ensure_future(other.coordinator.waiting.expect(tx.tx_id, WaitLevel.DECIDED, 60))
            await asyncio.sleep(5)
            await node.commit(tx, *shop.prepared(tx))
            await asyncio.sleep(7)
            assert told.done()

    run(main())


def test_a_node_that_was_stopped_drops_what_was_taken_over() -> None:
    """It wakes in the middle of phase two, finishes what it had begun, and changes nothing in the log."""

    async def main() -> None:
        async with a_shop() as shop:
            stopped, other = shop.node(lease_us=2_000_000), shop.node("n2", lease_us=2_000_000)
            tx = shop.tx()
            shop.b.hold = asyncio.Event()
            decided = await stopped.commit(tx, *shop.prepared(tx))
            waiting = asyncio.ensure_future(stopped.ended(decided))
            await asyncio.sleep(3)  # Its loops do not run: it does not renew its lease.
            assert await other.recovery.take_over() == 1
            taken = shop.storage.row(tx.tx_id)
            assert (taken.owner, taken.epoch) == ("n2", decided.epoch + TAKEN)
            await stopped.recovery.take_over()
            assert stopped.coordinator.live.get(tx.tx_id) is None
            assert shop.storage.row(tx.tx_id) == taken
            shop.b.hold.set()
            assert (await other.ended(decided)).state is TxState.COMMITTED
            assert (await waiting).state is TxState.COMMITTED
            row = shop.storage.row(tx.tx_id)
            assert (row.owner, row.epoch, row.state) == ("n2", taken.epoch + 1, TxState.COMMITTED)
            assert not row.heuristic

    run(main())


def test_what_a_stopped_node_writes_late_conflicts() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            stopped, other = shop.node(lease_us=2_000_000), shop.node("n2", lease_us=2_000_000)
            tx = shop.tx()
            shop.b.hold = asyncio.Event()
            decided = await stopped.commit(tx, *shop.prepared(tx))
            await asyncio.sleep(10)  # Nobody renews its lease.
            assert await other.recovery.take_over() == 1
            epoch = shop.storage.row(tx.tx_id).epoch
            shop.b.down = True
            shop.b.hold.set()
            # Both have tried; what the stopped one writes of it is refused.
            await eventually(lambda: stopped.coordinator.live.get(tx.tx_id) is None)
            assert shop.storage.row(tx.tx_id).epoch == epoch
            assert stopped.coordinator.live.get(tx.tx_id) is None
            shop.b.down = False
            assert (await other.ended(decided)).state is TxState.COMMITTED
            await other.log.settle()
            assert shop.storage.row(tx.tx_id).epoch == epoch + 1, "the end alone"

    run(main())


def test_the_duty_of_scanning_moves_when_its_node_dies() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            first, second = shop.node(), shop.node("n2")
            await first.start()
            await second.start()
            await asyncio.sleep(60)
            counts = [n.recovery.scans.get("a", 0) for n in (first, second)]
            assert sorted(counts)[0] == 0, "one scans"
            scanner, idle = (first, second) if counts[0] else (second, first)
            await shop.kill(scanner)
            await asyncio.sleep(35)
            assert idle.recovery.scans["a"] >= 1

    run(main())
