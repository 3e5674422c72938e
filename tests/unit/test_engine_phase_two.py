"""Phase two: lanes, back-off, fencing, and what a crash leaves behind."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from tests.support.node import xa
from tests.support.virtual import eventually, run
from txcoord.core.backoff import Backoff
from txcoord.core.model import BranchState, Change, ChangeKind, TxState, Written
from txcoord_client.protocol import marker

from .engine_support import a_shop


def test_one_stuck_branch_and_a_thousand_others() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            stuck = shop.tx()
            one, two = shop.prepared(stuck)
            shop.b.busy.add(two.xid)
            shop.b.crash_on = two.xid
            waiting = await node.commit(stuck, one, two)

            async def other() -> TxState:
                tx = shop.tx()
                return (await node.ended(await node.commit(tx, *shop.prepared(tx)))).state

            began = shop.clock.monotonic()
            ends = Counter(await asyncio.gather(*(other() for _ in range(1_000))))
            assert ends == {TxState.COMMITTED: 1_000}
            assert shop.clock.monotonic() - began < 1
            assert (await node.ended(waiting, timeout_s=1)).state is TxState.COMMITTING
            shop.b.busy.clear()
            shop.b.crash_on = ""
            assert (await node.ended(waiting, timeout_s=300)).state is TxState.COMMITTED

    run(main())


def test_a_dead_database_delays_only_its_own() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            shop.b.hold = asyncio.Event()  # the worst: it does not even refuse
            for _ in range(100):
                tx = shop.tx()
                await node.commit(tx, *shop.prepared(tx))
            assert node.coordinator.phase_two.depth()["b"] >= 90
            tx = shop.tx()
            one = xa(tx, "1", "a")
            shop.a.prepare(one.xid)
            assert (await node.ended(await node.commit(tx, one), timeout_s=1)).state is TxState.COMMITTED
            shop.b.hold.set()
            await asyncio.wait_for(node.coordinator.live.drained(), 10)
            assert len(shop.b.committed) == 100
            await asyncio.gather(*(node.coordinator.live.drained() for _ in range(3)))

    run(main())


def test_back_off_is_never_earlier_than_due_and_one_chain_only() -> None:
    """Also when the row is adopted again and an operator retries: each attempt comes once."""

    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node(backoff=Backoff())
            tx = shop.tx()
            one, two = shop.prepared(tx)
            shop.b.down = True
            await node.commit(tx, one, two)
            due = 0
            for turn in range(400):
                await asyncio.sleep(0.25)
                stands = await node.coordinator.get(tx.tx_id)
                assert stands is not None
                branch = stands.branch("2")
                assert branch is not None
                tries = [at_us for xid, at_us in shop.b.attempts if xid == two.xid]
                assert branch.attempts == len(tries), "two chains of attempts"
                if branch.next_attempt_us != due:
                    assert tries[-1] >= due
                    due = branch.next_attempt_us
                if turn % 10 == 5:
                    await node.log.settle()
                    assert await node.recovery._take_over(all_of_owner=True) == 0
                assert node.coordinator.phase_two.later <= 1
            delays = [b - a for a, b in pairwise(tries)]
            assert max(delays) < 61_000_000
            assert min(delays) >= Backoff().floor_us

    run(main())


def test_a_lane_survives_whatever_one_branch_brings_about() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node(finish_width=2)
            tell = node.coordinator.phase_two._tell
            broken = {"left": 5}

            def fails(tx_id: str, event: object) -> None:
                if broken["left"]:
                    broken["left"] -= 1
                    raise RuntimeError("a bug")
                tell(tx_id, event)  # type: ignore[arg-type]

            node.coordinator.phase_two._tell = fails
            txs = [shop.tx() for _ in range(8)]
            for tx in txs:
                one = xa(tx, "1", "a")
                shop.a.prepare(one.xid)
                await node.commit(tx, one)
            await eventually(lambda: len(shop.a.committed) == 8)
            # What the bug has swallowed comes again when the row is taken over.
            for live in node.coordinator.live:
                node.coordinator.adopt(replace(live.tx, epoch=live.tx.epoch + 1))
            await asyncio.wait_for(node.coordinator.live.drained(), 10)

    run(main())


def test_an_attempt_that_cancels_itself_is_tried_again() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node(finish_width=1)
            finish = shop.a.finish
            once = [True]

            async def cancelled(xid: str, commit: bool):  # type: ignore[no-untyped-def]
                if once:
                    once.clear()
                    raise asyncio.CancelledError
                return await finish(xid, commit)

            shop.a.finish = cancelled  # type: ignore[method-assign]
            tx = shop.tx()
            one = xa(tx, "1", "a")
            shop.a.prepare(one.xid)
            assert (await node.ended(await node.commit(tx, one))).state is TxState.COMMITTED

    run(main())


def test_an_unknown_resource_is_retried_and_seen() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            decided = await node.commit(tx, xa(tx, "1", "gone"))
            told = await node.ended(decided, timeout_s=10)
            assert told.state is TxState.COMMITTING
            assert told.branches[0].reason.startswith("UNKNOWN_RESOURCE")
            assert told.branches[0].attempts >= 2

    run(main())


# ---- what a crash leaves ----


def test_a_lost_end_record_is_repeated_harmlessly() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node(lazy_s=None)
            tx = shop.tx()
            one, two = shop.prepared(tx)
            assert (await node.ended(await node.commit(tx, one, two))).state is TxState.COMMITTED
            await shop.kill(node)
            assert shop.storage.row(tx.tx_id).state is TxState.COMMITTING
            again = shop.node()
            await again.start()
            await eventually(lambda: shop.storage.row(tx.tx_id).state is TxState.COMMITTED, within_s=2)
            row = shop.storage.row(tx.tx_id)
            assert not row.heuristic
            assert Counter(shop.a.committed) == {one.xid: 1}, "once in effect"
            assert again.coordinator.alarms == {}

    run(main())


def test_a_lost_end_record_long_after_its_window() -> None:
    """All nodes were down for months: the marker still tells, because it is older than nothing that needs it."""

    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node(lazy_s=None)
            tx = shop.tx()
            one, two = shop.prepared(tx)
            shop.b.down = True
            await node.commit(tx, one, two)
            await eventually(lambda: bool(shop.a.committed))
            await shop.kill(node)
            await asyncio.sleep(300 * 86_400.0)
            again = shop.node()
            for database in (shop.a, shop.b):
                # Before phase two has a chance: its transaction is still on its way, so its markers stay.
                shop.b.down = False
                assert await again.recovery.prune_markers(database) == 0
            shop.b.down = True
            await again.start()
            await asyncio.sleep(5)
            shop.b.down = False
            await eventually(lambda: shop.storage.row(tx.tx_id).state is TxState.COMMITTED, within_s=120)
            assert not shop.storage.row(tx.tx_id).heuristic
            assert (tx.tx_id, "1", marker.XA) in shop.a.markers

    run(main())


@pytest.mark.parametrize(
    "point", ["commit.before_write", "commit.after_write", "finish.before", "finish.after"]
)
@pytest.mark.parametrize("same_name", [True, False])
def test_killed_at_any_point_the_outcome_is_one(point: str, same_name: bool) -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node(lazy_s=None)
            await node.start()
            reached = asyncio.Event()

            async def stop_here(_name: str) -> None:
                reached.set()
                await asyncio.Event().wait()

            node.failpoints.on(point, stop_here)
            tx = shop.tx()
            one, two = shop.prepared(tx)
            call = asyncio.ensure_future(node.commit(tx, one, two))
            await reached.wait()
            await asyncio.sleep(0.1)
            call.cancel()
            await shop.kill(node)
            again = shop.node("n1" if same_name else "n2")
            await again.start()
            began = shop.clock.monotonic()
            told = await again.ended(await again.commit(tx, one, two))
            assert told.state is TxState.COMMITTED
            assert Counter(shop.a.committed) == {one.xid: 1}
            assert Counter(shop.b.committed) == {two.xid: 1}
            # Its own rows at once, those of another node when their lease has ended.
            assert shop.clock.monotonic() - began < (2 if same_name else 13)

    run(main())


# ---- fencing ----


def test_the_late_progress_of_an_old_owner_changes_nothing() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            old, new = shop.node("old"), shop.node("new")
            tx = shop.tx()
            one, two = shop.prepared(tx)
            shop.b.hold = asyncio.Event()
            decided = await old.commit(tx, one, two)
            waiting = asyncio.ensure_future(old.ended(decided))
            await asyncio.sleep(11)  # the old one stalls: it does not renew its lease
            assert await new.recovery.take_over() == 1
            assert shop.storage.row(tx.tx_id).owner == "new"
            stale = old.coordinator.live.get(tx.tx_id)
            assert stale is not None
            before = shop.storage.row(tx.tx_id)
            late = replace(stale.tx, state=TxState.ABORTED, owner="old")
            change = Change(ChangeKind.PROGRESS, late, expected_epoch=stale.tx.epoch, forced=False)
            assert (await old.log.write(change)).written is Written.CONFLICT
            assert shop.storage.row(tx.tx_id) == before
            shop.b.hold.set()
            assert (await waiting).state is TxState.COMMITTED
            await eventually(lambda: shop.storage.row(tx.tx_id).state is TxState.COMMITTED)
            assert shop.storage.row(tx.tx_id).owner == "new"
            await eventually(lambda: not old.coordinator.live and not new.coordinator.live)
            assert (len(shop.a.committed), len(shop.b.committed)) == (1, 1)

    run(main())


def test_who_has_lost_a_row_forgets_it() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            old, new = shop.node("old"), shop.node("new")
            await new.start()
            tx = shop.tx()
            shop.b.hold = asyncio.Event()
            await old.commit(tx, *shop.prepared(tx))
            # Nobody renews its lease.
            await eventually(lambda: shop.storage.row(tx.tx_id).owner == "new", within_s=30)
            shop.b.down = True
            shop.b.hold.set()
            await eventually(lambda: not old.coordinator.live, within_s=61)
            shop.b.down = False
            await eventually(lambda: not new.coordinator.live, within_s=61)
            await new.log.settle()
            here = await old.coordinator.get(tx.tx_id)
            assert here is not None
            assert here.state is TxState.COMMITTED

    run(main())


@pytest.mark.parametrize("hangs", [True, False])
def test_a_long_stuck_row_stays_with_its_node(hangs: bool) -> None:
    """While it is tried its lease is renewed, so that nodes do not take it from each other; and what waits is in that
    node's queue."""

    async def main() -> None:
        async with a_shop() as shop:
            node, other = shop.node(), shop.node("n2")
            await node.start()
            await other.start()
            tx = shop.tx()
            shop.b.down = True
            if hangs:
                shop.b.hold = asyncio.Event()
            await node.commit(tx, *shop.prepared(tx))
            await asyncio.sleep(300)
            row = shop.storage.row(tx.tx_id)
            if hangs:
                assert (row.owner, row.epoch) == ("n1", 1)
            else:
                assert row.owner in ("", "n1")
                assert not other.coordinator.live

    run(main())


def test_leases_of_what_ends_soon_are_not_renewed() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            renewed: list[int] = []
            renew = node.log.renew

            async def counting(owner: str, tx_ids: Sequence[str], lease_us: int) -> None:
                renewed.append(len(tx_ids))
                await renew(owner, tx_ids, lease_us)

            node.log.renew = counting  # type: ignore[method-assign]
            await node.start()
            shop.a.latency_s = 0.5
            for _ in range(100):
                tx = shop.tx()
                await node.commit(tx, *shop.prepared(tx))
                await asyncio.sleep(0.1)
            await asyncio.wait_for(node.coordinator.live.drained(), 10)
            assert not renewed

    run(main())


def test_two_nodes_of_one_name_do_no_harm() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node("twin")
            await node.start()
            shop.b.hold = asyncio.Event()
            told = []
            for _ in range(20):
                tx = shop.tx()
                told.append(await node.commit(tx, *shop.prepared(tx)))
            twin = shop.node("twin")
            await twin.start()
            shop.b.hold.set()
            ends = await asyncio.gather(*(node.ended(t) for t in told), *(twin.ended(t) for t in told))
            assert {t.state for t in ends} == {TxState.COMMITTED}
            assert Counter(Counter(shop.b.committed).values()) == {1: 20}
            await asyncio.sleep(30)
            assert {r.state for r in shop.storage.rows.values()} == {TxState.COMMITTED}
            assert not any(shop.storage.row(i).heuristic for i in shop.storage.rows)

    run(main())


# ---- the log goes away ----


def test_the_log_goes_down_and_comes_back() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            await node.start()
            shop.a.latency_s = shop.b.latency_s = 0.05
            txs = [shop.tx(deadline_s=300) for _ in range(20)]
            decided = [await node.commit(tx, *shop.prepared(tx)) for tx in txs[:10]]
            shop.storage.down = True
            undecided = await asyncio.gather(
                *(node.commit(tx, *shop.prepared(tx)) for tx in txs[10:]), return_exceptions=True
            )
            assert all(isinstance(error, Exception) for error in undecided)
            # Decided before: phase two goes on without the log.
            done = await asyncio.gather(*(node.ended(t, timeout_s=5) for t in decided))
            assert {t.state for t in done} == {TxState.COMMITTED}
            await asyncio.sleep(60)
            assert len(shop.a.prepared) == 10, "nothing undecided was touched"
            shop.storage.down = False
            told = [await node.commit(tx, xa(tx, "1", "a"), xa(tx, "2", "b")) for tx in txs[10:]]
            ends = await asyncio.gather(*(node.ended(t) for t in told))
            assert {t.state for t in ends} == {TxState.COMMITTED}
            await eventually(lambda: {r.state for r in shop.storage.rows.values()} == {TxState.COMMITTED})
            assert node.coordinator.alarms == {}

    run(main())


def test_a_heuristic_outcome_is_written_when_the_log_is_back() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            one, two = shop.prepared(tx)
            shop.b.latency_s = 0.5
            decided = await node.commit(tx, one, two)
            shop.b.roll_back_by_hand(two.xid)
            shop.storage.down = True
            await asyncio.sleep(30)
            assert node.coordinator.alarms == {"heuristic": 1}
            shop.storage.down = False
            await eventually(lambda: shop.storage.row(tx.tx_id).heuristic, within_s=2)
            row = shop.storage.row(tx.tx_id)
            assert [b.state for b in row.branches] == [BranchState.DONE, BranchState.PARKED]
            assert [h.what for h in shop.storage.histories[tx.tx_id]] == ["branch.heuristic"]
            assert (await node.ended(decided)).shown_parked
            await eventually(lambda: not node.coordinator.live)

    run(main())


def test_memory_does_not_grow_with_what_has_ended() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            await node.start()
            for i in range(200):
                tx = shop.tx(gid=f"g{i}")
                await node.begin(tx)
                shop.b.lose_replies = i % 2
                if i % 3:
                    await node.ended(await node.commit(tx, *shop.prepared(tx), begun=True))
                else:
                    await node.ended(await node.rollback(tx, *shop.prepared(tx), sealed=True, begun=True))
            await asyncio.sleep(61)
            c = node.coordinator
            assert (len(c.live), len(c._rows), c.phase_two.later, len(c.phase_two._inflight)) == (0, 0, 0, 0)
            assert not c.phase_two._later

    run(main())
