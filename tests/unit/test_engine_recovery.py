"""Recovery on the real engine: deadlines, take-over, the scanner, pruning."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.support.node import Node, xa, xid_of
from tests.support.virtual import eventually, run
from txcoord.core.events import Operate
from txcoord.core.model import TAKEN, Audit, BranchState, DecidedBy, Decision, Tx, TxState
from txcoord.engine.recovery import RecoverySettings
from txcoord.ports import LogIdentity
from txcoord_client.protocol import marker

from .engine_support import Shop, a_shop

DAY_S = 86_400.0

# ---- deadlines ----


def test_what_is_undecided_is_aborted_after_its_deadline_and_not_before() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            await node.start()
            tx = shop.tx(gid="order-1", deadline_s=2)
            await node.begin(tx)
            one = xa(tx, "1.1", "a")
            shop.a.prepare(one.xid)
            await node.enlist(tx, one, begun=True)
            await asyncio.sleep(1.9)
            assert shop.storage.row(tx.tx_id).decision is None
            await eventually(lambda: shop.storage.row(tx.tx_id).state is TxState.ABORTED, within_s=1)
            row = shop.storage.row(tx.tx_id)
            assert (row.decided_by, row.reason) == (DecidedBy.DEADLINE, "DEADLINE")
            assert row.decided_us > tx.deadline_us
            assert shop.a.rolled_back == [one.xid]
            late = await node.commit(tx, one, begun=True)
            assert (late.state, late.reason) == (TxState.ABORTED, "DEADLINE")

    run(main())


@pytest.mark.parametrize("hangs", [True, False])
def test_a_dead_database_holds_no_other_deadline_back(hangs: bool) -> None:
    """Those that may have been committed in one phase ask their database first, more of them than a sweep takes."""

    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node(recovery=RecoverySettings(batch=10))
            for i in range(50):
                await node.begin(shop.tx(gid=f"dead-{i}", one_phase="a", deadline_s=1))
            if hangs:
                shop.a.hold = asyncio.Event()
            shop.a.down = True
            await node.start()
            others = [shop.tx(gid=f"order-{i}", deadline_s=2) for i in range(20)]
            fast = [shop.tx(gid=f"fast-{i}", one_phase="b", deadline_s=2) for i in range(20)]
            for tx in (*others, *fast):
                await node.begin(tx)
            await asyncio.sleep(2)
            ids = [tx.tx_id for tx in (*others, *fast)]
            await eventually(
                lambda: all(shop.storage.row(i).state is TxState.ABORTED for i in ids), within_s=5
            )
            assert sum(r.decision is None for r in shop.storage.rows.values()) == 50
            shop.a.down = False
            if shop.a.hold:
                shop.a.hold.set()
            await eventually(lambda: all(r.ended for r in shop.storage.rows.values()), within_s=20)
            await eventually(lambda: not node.recovery.deadlines.asking)

    run(main())


def test_a_one_phase_commit_beats_its_deadline() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            await node.start()
            tx = shop.tx(gid="order-1", one_phase="a", deadline_s=2)
            await node.begin(tx)
            assert shop.a.commit_one_phase(tx.tx_id, tx.deadline_us)
            await eventually(lambda: shop.storage.row(tx.tx_id).ended)
            assert shop.storage.row(tx.tx_id).decided_by is DecidedBy.DATABASE
            late = shop.tx(gid="order-2", one_phase="a", deadline_s=2)
            await node.begin(late)
            await eventually(lambda: shop.storage.row(late.tx_id).ended)
            assert not shop.a.commit_one_phase(late.tx_id, late.deadline_us), "the tombstone is there"

    run(main())


def test_one_bad_row_stops_neither_sweep_nor_take_over() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            bad = replace(shop.tx(gid="bad", deadline_s=1), state=TxState.COMMITTED)
            shop.storage.rows[bad.tx_id] = bad  # undecided and ended: no version writes that
            good = shop.tx(gid="good", deadline_s=2)
            await node.begin(good)
            await asyncio.sleep(3)
            assert await node.recovery.sweep_deadlines() == 2
            assert shop.storage.row(good.tx_id).decision is Decision.ABORT

            lost = shop.node("lost")
            txs = [shop.tx() for _ in range(3)]
            shop.b.down = True
            for tx in txs:
                await lost.commit(tx, *shop.prepared(tx))
            await shop.kill(lost)
            shop.b.down = False
            await asyncio.sleep(11)
            adopt = node.coordinator.adopt

            def picky(tx: Tx) -> None:
                if tx.tx_id == txs[0].tx_id:
                    raise RuntimeError("a bug")
                adopt(tx)

            node.coordinator.adopt = picky  # type: ignore[method-assign]
            await node.recovery.take_over()
            await asyncio.wait_for(node.coordinator.live.drained(), 5)
            assert len(shop.b.committed) == 2

    run(main())


def test_a_restart_takes_all_its_rows_back_once() -> None:
    """More than a batch, and ends that are slow to be written: claiming again would outrun them for ever."""

    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            shop.a.hold = asyncio.Event()
            for _ in range(250):
                tx = shop.tx()
                await node.commit(tx, *shop.prepared(tx))
            await shop.kill(node)
            shop.a.hold.set()
            again = shop.node(lazy_s=2.0, recovery=RecoverySettings(batch=100))
            await asyncio.wait_for(again.start(), 5)
            await eventually(lambda: all(r.ended for r in shop.storage.rows.values()), within_s=8)
            assert len(shop.a.committed) == len(shop.b.committed) == 250
            assert max(r.epoch for r in shop.storage.rows.values()) <= 1 + 2 * TAKEN + 1

    run(main())


# ---- the scanner ----


async def _scan(node: Node, shop: Shop) -> None:
    for database in (shop.a, shop.b):
        await node.recovery.scan(database)


def test_an_orphan_is_fenced_and_rolled_back_after_its_grace_and_not_before() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx(deadline_s=10)
            one, two = shop.prepared(tx)
            grace_s = shop.storage.windows.grace_us / 1e6
            await asyncio.sleep(10 + grace_s - 0.1)
            await _scan(node, shop)
            assert not shop.storage.rows
            assert shop.a.prepared
            assert shop.b.prepared
            await asyncio.sleep(0.2)
            await _scan(node, shop)
            await eventually(lambda: not shop.a.prepared)
            row = shop.storage.row(tx.tx_id)
            assert (row.decision, row.decided_by, row.reason) == (Decision.ABORT, DecidedBy.SCANNER, "ORPHAN")
            await _scan(node, shop)
            assert not shop.b.prepared, "the other branch obeys the row"
            told = await node.commit(tx, one, two)
            assert told.decision is Decision.ABORT
            assert not shop.a.committed

    run(main())


def test_a_commit_against_the_fence_first_writer_wins() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node, other = shop.node(), shop.node("n2")
            outcomes = set()
            for turn in range(2):
                tx = shop.tx(deadline_s=10)
                one, two = shop.prepared(tx)
                if turn:
                    # Decided in time; the scanner has read the log before that.
                    async def commit(_name: str, tx=tx, one=one, two=two) -> None:  # type: ignore[no-untyped-def]
                        shop.clock.now_us = lambda: tx.deadline_us - 1  # type: ignore[method-assign]
                        shop.storage.clock = shop.clock.now_us
                        node.failpoints._actions.clear()
                        await other.commit(tx, one, two)
                        del shop.clock.now_us  # type: ignore[method-assign]
                        shop.storage.clock = shop.clock.now_us

                    node.failpoints.on("orphan.before_fence", commit)
                await asyncio.sleep(20)
                await _scan(node, shop)
                told = await other.commit(tx, one, two)
                outcomes.add(told.decision)
                await other.ended(told)
                await _scan(node, shop)
                assert (one.xid in shop.a.committed) is (two.xid in shop.b.committed)
                assert (one.xid in shop.a.committed) is (told.decision is Decision.COMMIT)
            assert outcomes == {Decision.COMMIT, Decision.ABORT}

    run(main())


def test_a_scan_during_phase_two_raises_no_alarm() -> None:
    """Listed as prepared, committed and ended before its row is read: no branch is late."""

    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node(latency_s=0.01)
            for database in (shop.a, shop.b):
                database.latency_s = 0.005
            scans = 0
            txs = []

            async def scan_on() -> None:
                nonlocal scans
                while True:
                    await _scan(node, shop)
                    scans += 1

            scanning = asyncio.ensure_future(scan_on())
            for i in range(200):
                tx = shop.tx()
                txs.append(tx)
                done = await node.commit(tx, *shop.prepared(tx))
                if i % 3:
                    await node.ended(done)
            await asyncio.wait_for(node.coordinator.live.drained(), 10)
            scanning.cancel()
            assert scans > 20
            assert node.coordinator.alarms == {}
            assert not any(shop.storage.histories.values())

    run(main())


@pytest.mark.parametrize("ended", [True, False])
def test_a_prepared_branch_that_commit_does_not_list_is_rolled_back_and_alarmed(ended: bool) -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            one, two = shop.prepared(tx)
            third = xa(tx, "3", "b")
            shop.b.prepare(third.xid)
            if not ended:
                shop.b.busy.add(two.xid)
            told = await node.commit(tx, one, two)
            await node.ended(told, timeout_s=3)
            await _scan(node, shop)
            assert third.xid in shop.b.rolled_back
            assert node.coordinator.alarms == {"not_in_commit_list": 1}
            await node.log.settle()
            late = [h for h in shop.storage.histories[tx.tx_id] if h.what == "branch.finished_late"]
            assert [(h.branch, h.reason) for h in late] == [("3", "NOT_IN_COMMIT_LIST")]
            shop.b.busy.clear()
            assert (await node.ended(told, timeout_s=300)).state is TxState.COMMITTED
            await node.log.settle()
            assert shop.storage.row(tx.tx_id).state is TxState.COMMITTED

    run(main())


def test_a_prepare_that_comes_late_is_rolled_back_while_another_branch_waits() -> None:
    """Its own phase two is over: nobody else would look at it again before the whole has ended."""

    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            one, two = xa(tx, "1", "a", BranchState.OPEN), xa(tx, "2", "b", BranchState.OPEN)
            shop.a.prepare(one.xid)
            shop.a.busy.add(one.xid)
            await node.rollback(tx, one, two)

            def undone() -> bool:
                live = node.coordinator.live.get(tx.tx_id)
                branch = live.tx.branch("2") if live is not None else None
                return branch is not None and branch.state is BranchState.UNDONE

            await eventually(undone)
            shop.b.prepare(two.xid)  # delayed on its way
            await _scan(node, shop)
            assert two.xid in shop.b.rolled_back
            assert one.xid in shop.a.prepared

    run(main())


def test_a_prepare_that_comes_after_the_rollback_is_rolled_back() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            one, two = xa(tx, "1", "a", BranchState.OPEN), xa(tx, "2", "b", BranchState.OPEN)
            shop.a.prepare(one.xid)
            told = await node.rollback(tx, one, two)
            assert (await node.ended(told)).state is TxState.ABORTED
            shop.b.prepare(two.xid)  # delayed on its way
            await _scan(node, shop)
            assert shop.b.rolled_back == [two.xid]
            assert node.coordinator.alarms == {}

    run(main())


def test_committed_but_prepared_is_committed_and_alarmed() -> None:
    """As after a database was restored from a backup that knows the branch as prepared."""

    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            one, two = shop.prepared(tx)
            await node.ended(await node.commit(tx, one, two))
            shop.b.prepared[two.xid] = 0
            shop.b.markers.clear()
            await _scan(node, shop)
            assert shop.b.committed.count(two.xid) == 2
            assert node.coordinator.alarms == {"committed_but_prepared": 1}

    run(main())


def test_what_an_operator_has_taken_is_left_to_him() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            one, two = shop.prepared(tx)
            shop.b.down = True
            await node.commit(tx, one, two)
            await asyncio.sleep(2)
            order = Operate("skip", "2", Audit("ann", "lost", "skip", 0))
            assert (await node.coordinator.operate(tx.tx_id, order)).state is TxState.COMMITTED
            shop.b.down = False
            await asyncio.sleep(100)
            await _scan(node, shop)
            assert list(shop.b.prepared) == [two.xid]

    run(main())


def test_foreign_ones_and_those_of_another_log_are_untouched() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx(deadline_s=1)
            foreign = ["someone-else", "txc1.short", xid_of(tx, "1", "zzzz000000").replace("z", "v")]
            for xid in foreign:
                shop.a.prepared[xid] = 0
            await asyncio.sleep(DAY_S)
            await _scan(node, shop)
            assert list(shop.a.prepared) == foreign
            assert not shop.storage.rows

    run(main())


def test_an_earlier_incarnation_is_never_presumed_aborted() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            shop.storage.identity = LogIdentity("vvvvvvvvvv", 2, ("0123456789",))
            node = shop.node()
            tx = shop.tx(deadline_s=1)
            shop.prepared(tx)
            await asyncio.sleep(DAY_S)
            await _scan(node, shop)
            assert shop.a.prepared
            assert shop.b.prepared
            assert not shop.storage.rows
            assert node.coordinator.alarms == {"earlier_incarnation": 2}

    run(main())


def test_one_bad_branch_stops_no_scan() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            txs = [shop.tx(deadline_s=1) for _ in range(3)]
            for tx in txs:
                shop.prepared(tx)

            async def fails(_name: str) -> None:
                node.failpoints._actions.clear()
                raise RuntimeError("a bug")

            node.failpoints.on("scan.before_judge", fails)
            await asyncio.sleep(10)
            await node.recovery.scan(shop.a)
            await eventually(lambda: len(shop.a.rolled_back) == 2)
            await node.recovery.scan(shop.a)
            await eventually(lambda: len(shop.a.rolled_back) == 3)

    run(main())


def test_after_w_a_fence_is_no_outcome() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx(deadline_s=1)
            one, two = shop.prepared(tx)
            await asyncio.sleep(46 * DAY_S)
            await _scan(node, shop)
            await _scan(node, shop)
            await eventually(lambda: not shop.a.prepared and not shop.b.prepared)
            for ask in (node.commit(tx, one, two), node.rollback(tx, one, two, resources=("a", "b"))):
                with pytest.raises(Exception, match="EXPIRED"):
                    await ask

    run(main())


def test_the_scanner_is_one_for_each_resource() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            nodes = [shop.node(f"n{i}") for i in range(3)]
            for node in nodes:
                await node.start()
            shop.b.down = True
            await asyncio.sleep(25)
            assert [n.recovery.scans for n in nodes] == [{"a": 3}, {}, {}]
            assert "b" in nodes[0].recovery.problems
            nodes[0].recovery.stop()
            shop.b.down = False
            await asyncio.sleep(60)
            assert sum("a" in n.recovery.scans for n in nodes[1:]) == 1
            assert sum("b" in n.recovery.scans for n in nodes[1:]) == 1

    run(main())


# ---- pruning ----


def test_markers_go_after_their_time_and_not_while_something_needs_them() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            await node.start()
            old = shop.tx()
            await node.ended(await node.commit(old, *shop.prepared(old)))
            await asyncio.sleep(60)
            stuck = shop.tx()
            one, two = shop.prepared(stuck)
            shop.b.busy.add(two.xid)
            await node.commit(stuck, one, two)
            await asyncio.sleep(5)
            newer = shop.tx()
            await node.ended(await node.commit(newer, *shop.prepared(newer)))
            await node.kill()
            keys = [(tx.tx_id, "1", marker.XA) for tx in (old, stuck, newer)]
            keep_s = shop.storage.windows.keep_until(0) / 1e6 + DAY_S
            shop.nodes.remove(node)

            await asyncio.sleep(keep_s)
            node = shop.node()
            assert await node.recovery.prune_markers(shop.a) == 0, "the newest is not past its P"
            await asyncio.sleep(300)
            assert await node.recovery.prune_markers(shop.a) == 0, (
                "within a day before the stuck one: its own?"
            )
            row = shop.storage.row(stuck.tx_id)
            assert row.state is TxState.COMMITTING
            shop.b.busy.clear()
            await node.start()
            await eventually(lambda: shop.storage.row(stuck.tx_id).ended, within_s=120)
            assert not shop.storage.row(stuck.tx_id).heuristic
            await asyncio.sleep(200)
            assert not any(key in shop.a.markers for key in keys)

    run(main())
