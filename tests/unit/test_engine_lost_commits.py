"""A saga's COMMIT that the log's database loses, in the engine: see ADR 0011."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from tests.support.virtual import eventually, run
from txcoord.core.action import Answer, AnswerKind, Op, Retry
from txcoord.core.model import Change, ChangeKind, DecidedBy, Decision, Kind, TxState

from .test_engine_calls import a_place, step, submit


def test_it_is_lost_after_it_was_told_and_found_again_whoever_wants_it_aborted() -> None:
    async def main() -> None:
        for way in ("nobody asks", "another node is told to abort", "its deadline has passed"):
            async with a_place() as place:
                node, other = await place.node(), await place.node("n2")
                tx = place.tx(deadline_s=5.0)
                done = await node.ended(await submit(node, tx, step("1"), step("2", "1")))
                assert done.state is TxState.COMMITTED
                place.storage.lose_unforced()
                assert place.storage.row(tx.tx_id).decision is None
                if way == "another node is told to abort":
                    asked = await other.rollback(tx, begun=True)
                    assert (await other.ended(asked)).state is TxState.COMMITTED
                await asyncio.sleep(30)
                row = place.storage.row(tx.tx_id)
                assert (row.state, place.effects(tx)) == (
                    TxState.COMMITTED,
                    {n: [Op.ACTION] for n in "12"},
                ), way

    run(main())


def test_a_budget_that_is_spent_after_the_loss_gives_nothing_up() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            tx = place.tx()
            once = Retry(max_attempts=1)
            await node.ended(await submit(node, tx, step("1", retry=once), step("2", "1", retry=once)))
            place.storage.lose_unforced()
            place.participants.script["2", Op.ACTION] = [Answer(AnswerKind.FAILED, reason="BUSY")] * 3
            await asyncio.sleep(60)
            assert place.storage.row(tx.tx_id).state is TxState.COMMITTED
            assert len(place.participants.calls) == 2 + 1 + 4

    run(main())


def test_a_budget_that_is_spent_after_a_take_over_ends_what_was_not_done() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.held["2", Op.ACTION] = asyncio.Event()
            tx = place.tx()
            await submit(node, tx, step("1"), step("2", "1", retry=Retry(max_attempts=2)), step("3", "2"))
            await eventually(lambda: any(c[2] == "2" for c in place.participants.calls))
            await place.kill(node)
            del place.participants.held["2", Op.ACTION]
            place.participants.script["2", Op.ACTION] = [Answer(AnswerKind.FAILED, reason="BUSY")] * 2
            await place.node("n2")
            await eventually(lambda: place.storage.row(tx.tx_id).ended)
            row = place.storage.row(tx.tx_id)
            assert (row.state, row.reason) == (TxState.ABORTED, "RETRIES_SPENT")
            assert place.effects(tx) == {"1": [Op.ACTION, Op.COMPENSATE]}

    run(main())


def test_nothing_begins_any_more_once_an_abort_was_asked_for_at_another_node() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.held["2", Op.ACTION] = asyncio.Event()
            tx = place.tx()
            await submit(node, tx, step("1"), step("2", "1"), step("3", "2"))
            await eventually(lambda: any(c[2] == "2" for c in place.participants.calls))
            await place.kill(node)
            del place.participants.held["2", Op.ACTION]
            other = await place.node("n2")
            asked = await other.rollback(tx, begun=True)
            again = await other.rollback(tx, begun=True)
            assert {asked.state, again.state} <= {TxState.RUNNING, TxState.ABORTING}
            row = await other.ended(again)
            assert (row.state, row.decided_by) == (TxState.ABORTED, DecidedBy.CLIENT)
            assert place.effects(tx) == {"1": [Op.ACTION, Op.COMPENSATE]}

    run(main())


def test_the_node_that_does_not_know_whether_it_has_committed_is_in_doubt() -> None:
    """Another one may have read it, and told it; then the database has lost it."""

    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            gate = place.participants.held["1", Op.ACTION] = asyncio.Event()
            tx = place.tx()
            await submit(node, tx, step("1"))
            await eventually(lambda: bool(place.participants.calls))
            node.log.lose_replies = 1
            gate.set()
            await eventually(lambda: place.storage.row(tx.tx_id).ended)
            place.storage.lose_unforced()
            live = node.coordinator.live.get(tx.tx_id)
            assert live is not None
            await eventually(lambda: live.tx.in_doubt)
            assert (await node.rollback(tx, begun=True)).state is not TxState.ABORTING
            assert (await node.ended(tx)).state is TxState.COMMITTED

    run(main())


def test_a_commit_that_confirms_tries_is_forced() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            for count in (1, 5, 20):
                before = node.log.forced_flushes
                steps = [step(str(n)) for n in range(1, count)]
                one = replace(step(str(count)), kind=Kind.TCC)
                done = await node.ended(await submit(node, place.tx(), *steps, one))
                assert done.state is TxState.COMMITTED
                assert node.log.forced_flushes - before == 2

    run(main())


def test_an_abort_that_was_on_its_way_beside_the_commit_does_not_outlive_it() -> None:
    """It was decided while the COMMIT was being written, and comes to the log after that was told and lost."""

    async def main() -> None:
        for way in ("a client", "its deadline"):
            async with a_place() as place:
                node = await place.node()
                tx = place.tx(deadline_s=5.0)
                write, sent, gate = node.log.write, asyncio.Event(), asyncio.Event()

                async def held(change: Change, write: Any = write, sent: Any = sent, gate: Any = gate) -> Any:
                    if change.tx.decision is Decision.COMMIT:
                        sent.set()
                    elif change.kind is ChangeKind.AMEND:
                        await gate.wait()
                    return await write(change)

                node.log.write = held
                asked = await submit(node, tx, step("1"))
                await sent.wait()
                if way == "a client":
                    other = asyncio.create_task(node.rollback(tx, begun=True))
                else:
                    place.clock.now_us = lambda late=tx.deadline_us + 1: late
                    live = node.coordinator.live.get(tx.tx_id)
                    assert live is not None
                    other = asyncio.create_task(node.coordinator.expire(live.tx))
                assert (await node.ended(asked)).state is TxState.COMMITTED
                place.storage.lose_unforced()
                gate.set()
                await other
                await eventually(lambda place=place, tx=tx: place.storage.row(tx.tx_id).ended)
                assert place.storage.row(tx.tx_id).state is TxState.COMMITTED, way
                assert place.effects(tx) == {"1": [Op.ACTION]}, way

    run(main())


def test_a_plan_in_doubt_that_nobody_can_end_is_seen() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.held["1", Op.ACTION] = asyncio.Event()
            tx = place.tx(deadline_s=5.0)
            await submit(node, tx, step("1"))
            await eventually(lambda: bool(place.participants.calls))
            await place.kill(node)
            del place.participants.held["1", Op.ACTION]
            place.participants.script["1", Op.ACTION] = [Answer(AnswerKind.FAILED, reason="GONE")] * 100
            other = await place.node("n2")
            await asyncio.sleep(30)
            assert not other.coordinator.alarms
            await asyncio.sleep(300)
            assert other.coordinator.alarms == {"plan_in_doubt": 1}
            assert place.storage.row(tx.tx_id).decision is None
            place.participants.script.clear()
            await eventually(lambda: place.storage.row(tx.tx_id).ended, within_s=120)
            assert other.coordinator.alarms == {"plan_in_doubt": 1}

    run(main())


def test_a_plan_whose_row_is_gone_is_let_go_of_and_seen() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            gate = place.participants.held["1", Op.ACTION] = asyncio.Event()
            tx = place.tx()
            await submit(node, tx, step("1"))
            await eventually(lambda: bool(place.participants.calls))
            del place.storage.rows[tx.tx_id]
            gate.set()
            await eventually(lambda: bool(node.coordinator.alarms))
            assert node.coordinator.alarms == {"plan_not_decided": 1}
            assert node.coordinator.live.get(tx.tx_id) is None

    run(main())
