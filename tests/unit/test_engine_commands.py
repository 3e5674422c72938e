"""Commands on the real engine: what is answered when the log, a node or a caller goes away half-way."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.support.node import xa
from tests.support.virtual import eventually, run
from txcoord.core.errors import Refused
from txcoord.core.events import Begin
from txcoord.core.model import BranchState, ChangeKind, DecidedBy, Decision, TxState
from txcoord.ports import LogUnavailable
from txcoord_client.protocol import marker

from .engine_support import a_shop, refused_reason

DAY_S = 86_400.0


def test_a_commit_is_one_forced_write_and_one_lazy_one() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            decided = await node.commit(tx, *shop.prepared(tx))
            assert (decided.state, decided.decided_by) == (TxState.COMMITTING, DecidedBy.CLIENT)
            assert len(shop.a.prepared) == 1, "decided is not committed"
            done = await node.ended(decided)
            assert done.state is TxState.COMMITTED
            assert (len(shop.a.committed), len(shop.b.committed)) == (1, 1)
            await node.log.settle()
            row = shop.storage.row(tx.tx_id)
            assert (row.state, row.decision) == (TxState.COMMITTED, Decision.COMMIT)
            assert [b.state for b in row.branches] == [BranchState.DONE] * 2
            assert [c.kind for c, _ in shop.storage.written] == [ChangeKind.INSERT, ChangeKind.PROGRESS]
            assert node.log.forced_flushes == 1
            assert len(node.coordinator.live) == 0

    run(main())


def test_committed_is_not_told_before_the_last_branch_is_proven() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            shop.b.down = True
            decided = await node.commit(tx, *shop.prepared(tx))
            told = await node.ended(decided, timeout_s=5)
            assert told.state is TxState.COMMITTING
            shop.b.down, shop.b.lose_replies = False, 3
            told = await node.ended(decided, timeout_s=300)
            assert told.state is TxState.COMMITTED
            assert shop.b.lose_replies == 0
            assert shop.b.committed == [xa(tx, "2", "b").xid], "once in effect"

    run(main())


def test_the_log_says_no_reply_but_has_written() -> None:
    """The caller hears that it is not known; the decision is carried out at once, not when its lease ends."""

    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            one, two = shop.prepared(tx)
            node.log.lose_replies = 1
            with pytest.raises(LogUnavailable):
                await node.commit(tx, one, two)
            await eventually(lambda: shop.a.committed and shop.b.committed, within_s=1)
            again = await node.commit(tx, one, two)
            assert (await node.ended(again)).state is TxState.COMMITTED

    run(main())


def test_a_caller_that_leaves_during_its_commit() -> None:
    """Its write stays in the group commit's queue; what it decides is carried out all the same."""

    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node(latency_s=0.1)
            tx = shop.tx()
            call = asyncio.ensure_future(node.commit(tx, *shop.prepared(tx)))
            await asyncio.sleep(0.05)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert not shop.storage.rows
            await eventually(lambda: shop.a.committed and shop.b.committed, within_s=1)
            assert shop.storage.row(tx.tx_id).decision is Decision.COMMIT

    run(main())


@pytest.mark.parametrize("same_node", [True, False])
def test_the_same_request_at_any_moment_gets_the_same_answer(same_node: bool) -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            other = node if same_node else shop.node("n2")
            tx = shop.tx()
            one, two = shop.prepared(tx)
            shop.b.down = True
            first = await node.commit(tx, one, two)
            second = await other.commit(tx, one, two)
            assert (first.decision, second.decision) == (Decision.COMMIT, Decision.COMMIT)
            with pytest.raises(Refused) as refused:
                await other.commit(tx, replace(one, resource="b"), two)
            assert refused_reason(refused) == "CONTENT_MISMATCH"
            shop.b.down = False
            assert (await node.ended(first)).state is TxState.COMMITTED
            assert (await other.ended(second)).state is TxState.COMMITTED
            assert (await other.commit(tx, one, two)).state in (TxState.COMMITTING, TxState.COMMITTED)
            assert (await other.rollback(tx)).decision is Decision.COMMIT

    run(main())


def test_a_replay_after_the_deadline_is_answered_from_its_row() -> None:
    """Also after W, where a first contact would be EXPIRED: what is known is answered."""

    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            branches = shop.prepared(tx)
            await node.ended(await node.commit(tx, *branches))
            for wait_s in (60.0, 50 * DAY_S):
                await asyncio.sleep(wait_s)
                assert (await node.commit(tx, *branches)).state is TxState.COMMITTED
            stranger = replace(tx, tx_id=shop.tx().tx_id)
            with pytest.raises(Refused) as refused:
                await node.commit(stranger)
            assert refused_reason(refused) == "EXPIRED"
            assert not refused.value.refusal.definite

    run(main())


def test_a_refusal_from_memory_is_checked_against_the_log() -> None:
    """The row moved on at another node: enlisting again is no definite failure."""

    async def main() -> None:
        async with a_shop() as shop:
            here, there = shop.node(), shop.node("n2")
            tx = shop.tx(gid="order-1", deadline_s=5)
            await here.begin(tx)
            branch = xa(tx, "1.1", "a", BranchState.OPEN)
            await there.enlist(tx, branch, begun=True)
            await asyncio.sleep(6)
            with pytest.raises(Refused) as refused:
                await here.enlist(tx, branch, begun=True)
            assert refused_reason(refused) == "DEADLINE"
            assert not refused.value.refusal.definite, "it has enlisted before"
            await there.rollback(tx, begun=True, sealed=True)
            with pytest.raises(Refused) as refused:
                await here.begin(tx)
            assert refused_reason(refused) == "ALREADY_ABORTED"

    run(main())


def test_commit_and_rollback_race_for_one_decision() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            nodes = [shop.node(f"n{i}") for i in range(3)]
            for i in range(60):
                tx = shop.tx()
                one, two = shop.prepared(tx)
                calls = [
                    nodes[i % 3].commit(tx, one, two),
                    nodes[(i + 1) % 3].rollback(tx, one, two, resources=("a",)),
                    nodes[(i + 2) % 3].rollback(tx, sealed=True),
                ]
                order = [calls[(i // 3 + k) % 3] for k in range(3)]
                told = await asyncio.gather(*order)
                assert len({t.decision for t in told}) == 1
                ends = {(await nodes[0].ended(t)).state for t in told}
                assert len(ends) == 1
                committed = {one.xid in shop.a.committed, two.xid in shop.b.committed}
                assert committed == {told[0].decision is Decision.COMMIT}

    run(main())


def test_a_rollback_that_overtakes_its_commit_wins() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            branches = shop.prepared(tx)
            undone = await node.rollback(tx, *branches)
            assert undone.decision is Decision.ABORT
            late = await node.commit(tx, *branches)
            assert late.decision is Decision.ABORT
            assert (await node.ended(late)).state is TxState.ABORTED
            assert not shop.a.committed

    run(main())


def test_an_unlogged_abort_writes_nothing_and_is_carried_out() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            branches = shop.prepared(tx)
            asked = await node.rollback(tx, *branches, sealed=True, logged=False)
            assert (await node.ended(asked)).state is TxState.ABORTED
            assert not shop.storage.written
            assert len(shop.a.rolled_back) == len(shop.b.rolled_back) == 1
            # Ended before anybody waited: there is no row to read it from.
            assert (await node.ended(asked, timeout_s=1)).state is TxState.ABORTED

    run(main())


def test_an_unlogged_abort_that_someone_has_committed_is_not_hidden() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            one, two = shop.prepared(tx)
            shop.a.commit_by_hand(one.xid)
            asked = await node.rollback(tx, one, two, sealed=True, logged=False)
            await eventually(lambda: tx.tx_id in shop.storage.rows)
            await eventually(lambda: not node.coordinator.live)
            row = shop.storage.row(tx.tx_id)
            assert row.heuristic
            assert row.parked == 1
            assert row.shown_parked or two.xid not in shop.b.prepared
            assert node.coordinator.alarms == {"heuristic": 1}
            assert (await node.ended(asked)).parked == 1

    run(main())


def test_an_unlogged_abort_becomes_logged_when_someone_insists() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            branches = shop.prepared(tx)
            shop.b.down = True
            await node.rollback(tx, *branches, sealed=True, logged=False)
            logged = await node.rollback(tx, *branches, sealed=True)
            assert shop.storage.row(tx.tx_id).decision is Decision.ABORT
            shop.b.down = False
            assert (await node.ended(logged)).state is TxState.ABORTED
            await node.log.settle()
            assert shop.storage.row(tx.tx_id).state is TxState.ABORTED, "its end is written too"

    run(main())


# ---- one-phase ----


def test_one_phase_against_abort_never_tells_two_stories() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node, other = shop.node(), shop.node("n2")
            for i in range(40):
                tx = shop.tx(gid=f"order-{i}", one_phase="a", deadline_s=30)
                await node.begin(tx)

                async def local_commit(tx=tx, i=i) -> bool:  # type: ignore[no-untyped-def]
                    await asyncio.sleep(0.0005 * (i % 8))
                    return shop.a.commit_one_phase(tx.tx_id, tx.deadline_us)

                committed, told = await asyncio.gather(local_commit(), other.rollback(tx, begun=True))
                assert told.decision is (Decision.COMMIT if committed else Decision.ABORT)
                if committed:
                    done = await node.report(tx, xa(tx, "1", "a", BranchState.DONE))
                    assert (done.state, done.decided_by) == (TxState.COMMITTED, DecidedBy.DATABASE)

    run(main())


def test_a_probe_covers_the_resource_that_the_row_names() -> None:
    """The asker knew of another one; the row that it met on writing names the right one."""

    async def main() -> None:
        async with a_shop() as shop:
            node, other = shop.node(), shop.node("n2")
            tx = shop.tx(gid="order-1", one_phase="b")

            async def begin_meanwhile(_name: str) -> None:
                await other.begin(tx)
                assert shop.b.commit_one_phase(tx.tx_id, tx.deadline_us)

            node.failpoints.on("probe.after", _once(begin_meanwhile))
            told = await node.rollback(replace(tx, gid=""), resources=("a",))
            assert told.decision is Decision.COMMIT

    run(main())


def test_an_open_local_commit_is_asked_again_and_a_dead_database_is_no_answer() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx(gid="order-1", one_phase="a")
            await node.begin(tx)
            shop.a.down = True
            with pytest.raises(Refused) as refused:
                await node.rollback(tx, begun=True)
            assert (refused.value.refusal.code, refused.value.refusal.definite) == ("UNAVAILABLE", False)
            shop.a.down = False
            key = (tx.tx_id, marker.ONE_BRANCH, marker.ONE)
            shop.a.open_keys.add(key)
            call = asyncio.ensure_future(node.rollback(tx, begun=True))
            await asyncio.sleep(2)
            assert not call.done()
            shop.a.open_keys.clear()
            shop.a.markers[key] = (marker.DONE, 0)
            assert (await call).decision is Decision.COMMIT
            assert shop.storage.row(tx.tx_id).decided_by is DecidedBy.DATABASE

    run(main())


def test_a_one_phase_commit_after_an_abort_is_alarmed() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            await node.rollback(tx, sealed=True)
            await node.report(tx, xa(tx, "1", "a", BranchState.DONE))
            assert node.coordinator.alarms == {"one_phase_after_abort": 1}
            assert shop.storage.row(tx.tx_id).heuristic

    run(main())


# ---- gids ----


def test_a_gid_is_taken_over_from_an_aborted_attempt_only() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            first = shop.tx(gid="order-1")
            await node.begin(first)
            second = shop.tx(gid="order-1")
            with pytest.raises(Refused) as refused:
                await node.begin(second)
            assert refused_reason(refused) == "IN_PROGRESS"
            await node.rollback(first, begun=True, sealed=True, reason="DEADLOCK")
            with pytest.raises(Refused) as refused:
                await node.coordinator.begin(
                    Begin(second), retry_of=first.tx_id, may_take_over=frozenset({"DEADLINE"})
                )
            assert refused_reason(refused) == "ALREADY_ABORTED"
            with pytest.raises(Refused) as refused:
                await node.coordinator.begin(Begin(second), retry_of=second.tx_id)
            assert refused_reason(refused) == "ALREADY_ABORTED", "another attempt has it"
            again = await node.coordinator.begin(
                Begin(second), retry_of=first.tx_id, may_take_over=frozenset({"DEADLOCK"})
            )
            assert again.state is TxState.ACTIVE
            found = await node.coordinator.get_by_gid("shop", "order-1")
            assert found is not None
            assert found.tx_id == second.tx_id
            await node.ended(await node.commit(second, *shop.prepared(second), begun=True))
            third = shop.tx(gid="order-1")
            with pytest.raises(Refused) as refused:
                await node.coordinator.begin(Begin(third), retry_of=second.tx_id)
            assert refused_reason(refused) == "ALREADY_COMMITTED"

    run(main())


def test_what_was_prepared_for_an_aborted_transaction_is_undone_when_its_caller_tells() -> None:
    """The deadline aborted a row that knew of no branch; no scan is needed to free the locks."""

    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            for tell in (node.commit, node.rollback):
                tx = shop.tx(gid=f"order-{tell.__name__}", deadline_s=1.0)
                await node.begin(tx)
                branches = shop.prepared(tx)
                await asyncio.sleep(2.0)
                await node.coordinator.expire(shop.storage.row(tx.tx_id))
                told = await tell(tx, *branches, begun=True)
                assert (told.decision, told.decided_by) == (Decision.ABORT, DecidedBy.DEADLINE)
                await eventually(lambda: not shop.a.prepared and not shop.b.prepared)

    run(main())


def test_a_branch_that_says_no_is_who_decided() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            told = await node.rollback(tx, xa(tx, "1", "a", BranchState.REFUSED), sealed=True)
            assert told.decided_by is DecidedBy.BRANCH

    run(main())


def _once(action):  # type: ignore[no-untyped-def]
    done = []

    async def act(name: str) -> None:
        if not done:
            done.append(name)
            await action(name)

    return act
