"""Branches that their own sessions finish: the holder's time, its reports, and waiting for what is not known yet."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.node import xa
from tests.support.virtual import eventually, run
from txcoord.core.errors import Refused
from txcoord.core.events import HolderReported, Operate
from txcoord.core.model import Audit, Branch, BranchState, DecidedBy, Decision, Tx, TxState
from txcoord.engine.coordinator import Coordinator
from txcoord.engine.live import WaitLevel
from txcoord.engine.recovery import RecoverySettings

from .engine_support import Shop, a_shop, refused_reason


def held(shop: Shop, tx: Tx) -> tuple[Branch, Branch]:
    """Both branches of a transaction, prepared by sessions that live."""
    one, two = xa(tx, "1", "a", session=71), xa(tx, "2", "b", session=72)
    shop.a.prepare(one.xid)
    shop.b.prepare(two.xid)
    return one, two


async def say(c: Coordinator, tx: Tx, branch: Branch, committed: bool | None) -> Tx | None:
    return await c.holder_reported(tx, HolderReported(branch.id, branch.resource, branch.xid, committed))


# ---- the holder's time ----


def test_holders_finish_and_report_and_nobody_disturbs_them() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            one, two = held(shop, tx)
            waiting = asyncio.ensure_future(node.ended(await node.commit(tx, one, two)))
            began = shop.clock.monotonic()
            for db, branch in ((shop.a, one), (shop.b, two)):
                db.commit_by_hand(branch.xid)
                await say(node.coordinator, tx, branch, True)
            assert (await waiting).state is TxState.COMMITTED
            assert shop.clock.monotonic() - began < 0.05
            await asyncio.sleep(10)
            assert shop.a.attempts == shop.b.attempts == []
            assert node.coordinator.phase_two.later == 0
            assert not node.coordinator.alarms

    run(main())


@pytest.mark.parametrize("commit", [True, False])
def test_a_holder_that_is_silent_has_its_time_and_no_more(commit: bool) -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            branches = held(shop, tx)
            act = node.commit if commit else node.rollback
            decided = await act(tx, *branches)
            decided_us = shop.clock.now_us()
            end = await node.ended(decided)
            assert end.state is (TxState.COMMITTED if commit else TxState.ABORTED)
            for db in (shop.a, shop.b):
                ((_, at_us),) = db.attempts
                assert 2_000_000 <= at_us - decided_us < 2_100_000

    run(main())


@pytest.mark.parametrize("commit", [True, False])
def test_a_report_to_another_node_or_to_nobody_costs_little(commit: bool) -> None:
    """The branch is looked at now and then."""

    async def main() -> None:
        async with a_shop() as shop:
            node, other = shop.node(), shop.node("n2")
            tx = shop.tx(gid="order-1")
            branches = held(shop, tx)
            await node.begin(tx)
            act = node.commit if commit else node.rollback
            decided = await act(tx, *branches, begun=True)
            for db, branch in zip((shop.a, shop.b), branches, strict=True):
                (db.commit_by_hand if commit else db.roll_back_by_hand)(branch.xid)
            told = await say(other.coordinator, tx, branches[0], commit)
            assert told is not None
            assert told.decision is decided.decision
            end = await node.ended(decided, timeout_s=0.2)
            assert end.ended
            assert shop.a.attempts == shop.b.attempts == []

    run(main())


def test_a_database_that_cannot_be_looked_at_is_finished_in_its_time() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            branches = held(shop, tx)
            shop.a.down = True
            decided = await node.commit(tx, *branches)
            await asyncio.sleep(1.5)
            assert shop.a.attempts == []
            shop.a.down = False
            assert (await node.ended(decided, timeout_s=1)).state is TxState.COMMITTED

    run(main())


def test_a_holder_that_lets_go_is_followed_at_once() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            for wait_s in (0.0, 0.1005, 0.5):  # before, in the middle of, and after a look
                tx = shop.tx()
                one, two = held(shop, tx)
                decided = await node.commit(tx, one, two)
                await asyncio.sleep(wait_s)
                began = shop.clock.monotonic()
                await say(node.coordinator, tx, one, None)
                await say(node.coordinator, tx, two, None)
                assert (await node.ended(decided)).state is TxState.COMMITTED
                assert shop.clock.monotonic() - began < 0.05
                assert not node.coordinator.phase_two._hurried

    run(main())


def test_take_over_and_restart_give_the_holder_its_time_anew() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            branches = held(shop, tx)
            await node.commit(tx, *branches)
            await asyncio.sleep(1.9)
            await shop.kill(node)
            again = shop.node()
            await again.start()
            began_us = shop.clock.now_us()
            await asyncio.sleep(1.9)
            assert shop.a.attempts == []
            await eventually(lambda: shop.storage.row(tx.tx_id).state is TxState.COMMITTED, within_s=1)
            assert shop.a.attempts[0][1] >= began_us + 2_000_000

    run(main())


def test_an_operator_who_retries_takes_nothing_from_the_holder() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            branches = held(shop, tx)
            decided = await node.commit(tx, *branches)
            audit = Audit("ann", "now", "retry", shop.clock.now_us())
            await node.coordinator.operate(tx.tx_id, Operate("retry", "1", audit))
            await asyncio.sleep(0.3)
            assert shop.a.attempts == []
            assert (await node.ended(decided)).state is TxState.COMMITTED

    run(main())


def test_an_orphan_is_fenced_first_then_its_session_has_its_time() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node(recovery=RecoverySettings(scan_s=1.0))
            await node.start()
            tx = shop.tx(deadline_s=1)
            one = xa(tx, "1", "a", session=71)
            shop.a.prepare(one.xid)
            await eventually(lambda: tx.tx_id in shop.storage.rows)
            fenced_us = shop.storage.row(tx.tx_id).decided_us
            assert shop.a.attempts == []
            await eventually(lambda: shop.a.rolled_back == [one.xid])
            assert shop.a.attempts[0][1] - fenced_us >= 2_000_000

    run(main())


def test_one_that_is_prepared_too_late_is_left_to_its_holder_first() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx(gid="order-1")
            await node.begin(tx)
            await node.ended(await node.rollback(tx, begun=True))
            one, two = held(shop, tx)
            await node.recovery.scan(shop.a)
            await node.recovery.scan(shop.a)
            assert shop.a.attempts == []
            await asyncio.sleep(2.0)
            await node.recovery.scan(shop.a)
            assert shop.a.rolled_back == [one.xid]
            await node.recovery.scan(shop.b)
            shop.b.roll_back_by_hand(two.xid)
            await node.recovery.scan(shop.b)
            assert shop.b.attempts == []

    run(main())


def test_strays_are_left_to_their_holders_first() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx(gid="order-1")
            await node.begin(tx)
            await node.rollback(tx, begun=True)
            one, two = held(shop, tx)
            await node.rollback(tx, one, two, begun=True)
            await asyncio.sleep(1.9)
            assert shop.a.attempts == []
            await eventually(lambda: shop.a.rolled_back == [one.xid] and shop.b.rolled_back == [two.xid])

    run(main())


# ---- reports ----


def test_a_report_against_the_decision_is_alarmed_and_the_database_asked() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            for commit in (True, False):
                tx = shop.tx(gid=f"order-{commit}")
                await node.begin(tx)
                one, two = held(shop, tx)
                act = node.commit if commit else node.rollback
                decided = await act(tx, one, two, begun=True)
                (shop.a.roll_back_by_hand if commit else shop.a.commit_by_hand)(one.xid)
                await say(node.coordinator, tx, one, not commit)
                (shop.b.commit_by_hand if commit else shop.b.roll_back_by_hand)(two.xid)
                await say(node.coordinator, tx, two, commit)
                end = await node.ended(decided, timeout_s=1)
                first = end.branch("1")
                assert first is not None
                assert (first.heuristic, first.state) == (True, BranchState.PARKED)
            assert node.coordinator.alarms == {"reported_against_decision": 2, "heuristic": 2}
            assert len(shop.a.attempts) == 2, "it was asked, not believed"

    run(main())


def test_a_lie_does_no_harm() -> None:
    """Told "rolled back" of a branch that is still prepared: it is committed, as was decided."""

    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            one, two = held(shop, tx)
            decided = await node.commit(tx, one, two)
            await say(node.coordinator, tx, one, False)
            shop.b.commit_by_hand(two.xid)
            await say(node.coordinator, tx, two, True)
            end = await node.ended(decided, timeout_s=1)
            assert (end.state, shop.a.committed) == (TxState.COMMITTED, [one.xid])

    run(main())


@pytest.mark.parametrize("committed", [True, False])
def test_a_report_before_the_decision_is_refused_and_alarmed(committed: bool) -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx(gid="order-1")
            one, _ = held(shop, tx)
            await node.begin(tx)
            await node.enlist(tx, one, begun=True)
            with pytest.raises(Refused) as refused:
                await say(node.coordinator, tx, one, committed)
            assert refused_reason(refused) == "IN_PROGRESS"
            assert node.coordinator.alarms == {"reported_before_decision": 1}
            told = await say(node.coordinator, tx, one, None)
            assert told is not None
            assert told.decision is None

    run(main())


def test_reports_of_what_nobody_knows() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            one, two = held(shop, tx)
            assert await say(node.coordinator, tx, one, False) is None, "presumed abort"
            with pytest.raises(Refused) as refused:
                await say(node.coordinator, tx, one, True)
            assert refused_reason(refused) == "NOT_FOUND"
            assert node.coordinator.alarms == {"committed_unknown": 1}
            decided = await node.commit(tx, one)
            with pytest.raises(Refused) as refused:
                await say(node.coordinator, tx, two, True)
            assert refused_reason(refused) == "BAD_BRANCH"
            with pytest.raises(Refused) as refused:
                await say(node.coordinator, tx, xa(tx, "1", "a", session=99), True)
            assert refused_reason(refused) == "BAD_BRANCH"
            assert node.coordinator.alarms == {"committed_unknown": 1, "bad_report": 2}
            shop.a.commit_by_hand(one.xid)
            for _ in range(2):
                await say(node.coordinator, tx, one, True)
            assert (await node.ended(decided)).state is TxState.COMMITTED
            late = await say(node.coordinator, tx, one, True)
            assert late is not None
            assert late.state is TxState.COMMITTED

    run(main())


# ---- waiting for what is not known yet ----


def test_a_holder_hears_of_a_decision_that_nobody_had_heard_of() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            expect = node.coordinator.waiting.expect
            tx, gone, never = shop.tx(), shop.tx(), shop.tx()
            waits = [asyncio.ensure_future(expect(t.tx_id, WaitLevel.DECIDED, 5)) for t in (tx, gone, never)]
            await asyncio.sleep(0.5)
            one, two = held(shop, tx)
            await node.commit(tx, one, two)
            undone = await node.rollback(gone, *held(shop, gone), sealed=True, logged=False)
            await asyncio.sleep(0.01)
            assert [w.done() for w in waits] == [True, True, False]
            told = [w.result() for w in waits[:2]]
            assert [t.decision for t in told if t is not None] == [Decision.COMMIT, Decision.ABORT]
            assert gone.tx_id not in shop.storage.rows, "no row says it"
            await node.ended(undone)
            later = await expect(gone.tx_id, WaitLevel.COMMITTED, 1)
            assert later is not None
            assert later.state is TxState.ABORTED
            again = await say(node.coordinator, gone, xa(gone, "1", "a", session=71), False)
            assert again is not None
            assert again.state is TxState.ABORTED
            assert await waits[2] is None
            assert len(node.coordinator.waiting) == 0

    run(main())


def test_a_decision_of_another_node_is_seen_by_who_waits_here() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node, other = shop.node(), shop.node("n2")
            tx = shop.tx(gid="order-1")
            await node.begin(tx)
            first = asyncio.ensure_future(other.coordinator.waiting.expect(tx.tx_id, WaitLevel.DECIDED, 3))
            await asyncio.sleep(0.1)
            await node.commit(tx, *held(shop, tx), begun=True)
            began = shop.clock.monotonic()
            told = await first
            assert shop.clock.monotonic() - began < 0.3
            assert told is not None
            assert told.decision is Decision.COMMIT

    run(main())


def test_a_deadline_reaches_who_waits() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            await node.start()
            tx = shop.tx(gid="order-1", deadline_s=2)
            await node.begin(tx)
            told = await node.coordinator.waiting.expect(tx.tx_id, WaitLevel.DECIDED, 30)
            assert told is not None
            assert told.decided_by is DecidedBy.DEADLINE

    run(main())


def test_thousands_wait_at_the_cost_of_a_few_questions() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            reads = 0
            read = node.log.read

            async def counted(tx_ids: list[str]) -> dict[str, Tx]:
                nonlocal reads
                reads += 1
                return await read(tx_ids)

            node.log.read = counted  # type: ignore[method-assign, assignment]
            txs = [shop.tx() for _ in range(3_000)]
            waits = [
                asyncio.ensure_future(node.coordinator.waiting.expect(tx.tx_id, WaitLevel.DECIDED, 20))
                for tx in txs
            ]
            await asyncio.sleep(10)
            assert reads <= 2
            waits[0].cancel()
            await asyncio.gather(*(node.rollback(tx, sealed=True, logged=False) for tx in txs))
            told = await asyncio.gather(*waits, return_exceptions=True)
            assert isinstance(told[0], asyncio.CancelledError)
            assert all(isinstance(t, Tx) and t.decision is Decision.ABORT for t in told[1:])
            assert len(node.coordinator.waiting) == 0

    run(main())


def test_a_log_that_is_down_is_not_stormed_by_who_waits() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            shop.storage.down = True
            began = shop.clock.monotonic()
            assert await node.coordinator.waiting.expect(shop.tx().tx_id, WaitLevel.DECIDED, 3) is None
            assert shop.clock.monotonic() - began >= 3

    run(main())


# ---- several databases on one server ----


def test_two_databases_of_one_server_keep_to_their_own() -> None:
    """Both lists show the branches of both; each is judged by the scan of its own database."""

    async def main() -> None:
        async with a_shop() as shop:
            for db in (shop.a, shop.b):
                db.lists_server = True
            shop.a.beside, shop.b.beside = shop.b, shop.a
            node = shop.node()
            shop.a.hold = shop.b.hold = None
            tx = shop.tx()
            one, two = held(shop, tx)
            decided = await node.commit(tx, one, two)
            for _ in range(3):
                await node.recovery.scan(shop.a)
                await node.recovery.scan(shop.b)
            assert (await node.ended(decided)).state is TxState.COMMITTED
            assert (shop.a.committed, shop.b.committed) == ([one.xid], [two.xid])
            orphan = shop.tx(deadline_s=0.1)
            lost = xa(orphan, "1", "b", session=5)
            shop.b.prepare(lost.xid)
            await asyncio.sleep(6)
            await node.recovery.scan(shop.a)
            assert orphan.tx_id not in shop.storage.rows, "not in this database"
            await node.recovery.scan(shop.b)
            await eventually(lambda: shop.b.rolled_back == [lost.xid])
            assert not node.coordinator.alarms

    run(main())


def test_limbo_is_alarmed_once() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            for found, alarms in ((2, 0), (2, 1), (2, 1), (0, 1), (1, 1), (0, 1), (1, 1), (1, 2), (1, 2)):
                shop.a.limbo = found
                await node.recovery.scan(shop.a)
                assert node.coordinator.alarms.get("in_limbo", 0) == alarms
            tx = shop.tx()
            shop.a.says = "IN_LIMBO: nobody knows its name"
            decided = await node.commit(tx, *shop.prepared(tx))
            pending = await node.ended(decided, timeout_s=30)
            assert pending.state is TxState.COMMITTING, "the decision is kept, and tried again"
            assert node.coordinator.alarms == {"in_limbo": 3}
            shop.a.says = ""
            assert (await node.ended(decided, timeout_s=300)).state is TxState.COMMITTED

    run(main())
