"""Operators and plans that run: a step that never gets done is seen, called at once, or given up."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.support.virtual import eventually, run
from txcoord.core.action import Answer, AnswerKind, Op, Retry
from txcoord.core.errors import Refused
from txcoord.core.events import Operate
from txcoord.core.model import FOREVER_US, Audit, BranchState, DecidedBy, TxState

from .test_engine_callbacks import callback
from .test_engine_calls import a_place, step, submit, tcc, tried

AUDIT = Audit("ann", "the carrier is bankrupt", "any", 0)


def test_a_step_that_is_never_undone_and_never_done_is_seen_and_skipped() -> None:
    async def main() -> None:
        for at_another in (False, True):
            async with a_place() as place:
                node, other = await place.node(), await place.node("n2")
                place.participants.hung.add("grpc://far")
                forward = step("2", "1", forward=True, target="grpc://far", retry=Retry(max_attempts=3))
                last = step("3", "2", forward=True)
                tx = place.tx(deadline_s=5.0)
                done = await submit(node, tx, step("1"), forward, last, callback())
                await eventually(lambda node=node: node.coordinator.alarms.get("step_stuck") == 1)
                assert place.storage.row(tx.tx_id).state is TxState.RUNNING  # Past its deadline.
                where = other if at_another else node
                for order, branch in (("skip", "1"), ("park", "2"), ("skip", "3"), ("retry", "3")):
                    with pytest.raises(Refused):
                        await where.coordinator.operate(tx.tx_id, Operate(order, branch, AUDIT))
                await where.coordinator.operate(tx.tx_id, Operate("skip", "2", AUDIT))
                ended = await where.ended(done)
                assert (ended.state, ended.heuristic) == (TxState.COMMITTED, True)
                assert place.effects(tx).keys() >= {"1", "3"}
                assert "2" not in place.effects(tx)
                await eventually(lambda place=place, tx=tx: place.storage.row(tx.tx_id).ended)
                row = place.storage.row(tx.tx_id)
                assert [b.state for b in row.branches[:3]] == [
                    BranchState.DONE,
                    BranchState.SKIPPED,
                    BranchState.DONE,
                ]
                assert place.storage.audit_rows[tx.tx_id] == [AUDIT]

    run(main())


def test_a_step_that_waits_is_called_at_once() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.hung.add("grpc://ship")
            tx = place.tx(deadline_s=7200.0)
            done = await submit(
                node, tx, step("1", retry=Retry(first_us=3_000_000_000, schedule_us=(3_600_000_000,)))
            )
            await asyncio.sleep(10)
            place.participants.hung.clear()
            began = place.clock.monotonic()
            await node.coordinator.operate(tx.tx_id, Operate("retry", "1", AUDIT))
            assert (await node.ended(done)).state is TxState.COMMITTED
            assert place.clock.monotonic() - began < 5
            assert place.effects(tx) == {"1": [Op.ACTION]}

    run(main())


def test_a_retry_may_count_from_the_beginning() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.script["1", Op.CONFIRM] = [Answer(AnswerKind.FAILED, reason="BROKEN")] * 4
            budget = Retry(schedule_us=(1_000_000, 3_600_000_000, 3_600_000_000))
            tx = await tried(node, place.tx(), tcc("1", retry=budget))
            for reset in (False, True):
                await asyncio.sleep(5)
                await node.coordinator.operate(tx.tx_id, Operate("retry", "1", AUDIT, reset=reset))
            assert (await node.ended(tx)).state is TxState.COMMITTED
            assert [attempt for *_, attempt in place.participants.calls] == [1, 2, 3, 1, 2]

    run(main())


def test_what_its_client_decides_takes_no_orders() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            tx = place.tx()
            await node.enlist(tx, step("1"))
            for order in ("retry", "skip", "park"):
                with pytest.raises(Refused) as refused:
                    await node.coordinator.operate(tx.tx_id, Operate(order, "1", AUDIT))
                assert refused.value.refusal.reason == "NOT_SUPPORTED"

    run(main())


def test_a_plan_in_doubt_whose_participant_never_comes_back_is_aborted_by_an_operators_word() -> None:
    async def main() -> None:
        for before, at_another in ((1, False), (2, False), (2, True)):
            async with a_place() as place:
                node = await place.node()
                place.participants.hung.add("grpc://far")
                tx = place.tx(deadline_s=5.0)
                await submit(node, tx, step("1"), step("2", "1", target="grpc://far"), step("3", "2"))
                await eventually(lambda place=place: len(place.participants.calls) > 1)
                if before > 1:
                    await place.kill(node)
                    node = await place.node("n2")
                    await asyncio.sleep(120)
                    assert node.coordinator.alarms == {"plan_in_doubt": 1}
                for wrong in ("1", "3"):
                    with pytest.raises(Refused) as refused:
                        await node.coordinator.operate(tx.tx_id, Operate("not_done", wrong, AUDIT))
                    assert refused.value.refusal.reason == "NOT_PARKED"
                if before > 1:
                    asked = await node.coordinator.operate(tx.tx_id, Operate("not_done", "2", AUDIT))
                    assert (asked.state, asked.version) == (
                        TxState.RUNNING,
                        place.storage.row(tx.tx_id).version,
                    )
                    if at_another:
                        # That one may have committed meanwhile: what was seen before says nothing.
                        node = await place.node("n3")
                        asked = await node.coordinator.operate(tx.tx_id, Operate("not_done", "2", AUDIT))
                        assert asked.state is TxState.RUNNING
                    await asyncio.sleep(20)
                done = await node.coordinator.operate(tx.tx_id, Operate("not_done", "2", AUDIT))
                assert (done.decided_by, done.reason) == (DecidedBy.OPERATOR, "ABORTED_BY_OPERATOR")
                with pytest.raises(Refused) as refused:
                    await node.coordinator.operate(tx.tx_id, Operate("not_done", "2", AUDIT))
                assert refused.value.refusal.reason == "DECIDED"
                assert not place.storage.row(tx.tx_id).ended  # Its compensation waits for the participant.
                await node.coordinator.operate(tx.tx_id, Operate("skip", "2", AUDIT))
                await eventually(lambda place=place, tx=tx: place.storage.row(tx.tx_id).ended)
                row = place.storage.row(tx.tx_id)
                assert (row.state, row.heuristic) == (TxState.ABORTED, True)
                assert place.effects(tx)["1"] == [Op.ACTION, Op.COMPENSATE]
                assert len(place.storage.audit_rows[tx.tx_id]) == before + 1 + at_another

    run(main())


def test_an_operators_first_word_asks_the_participants_who_may_know_better() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.held["3", Op.ACTION] = asyncio.Event()
            tx = place.tx(deadline_s=600.0)
            await submit(node, tx, step("1"), step("2", "1"), step("3", "2"))
            await eventually(lambda: len(place.participants.calls) > 2)
            await place.kill(node)  # What is done is told by nobody but its participants.
            place.participants.held["2", Op.ACTION] = gate = asyncio.Event()
            place.participants.held["3", Op.ACTION].set()
            other = await place.node("n2")
            await eventually(lambda: len(place.participants.calls) > 4, within_s=120)
            gate.set()
            await other.coordinator.operate(tx.tx_id, Operate("not_done", "2", AUDIT))
            await eventually(lambda: place.storage.row(tx.tx_id).ended)
            # The third was not done, and does not begin any more.
            row = place.storage.row(tx.tx_id)
            assert (row.state, row.decided_by, row.heuristic) == (TxState.ABORTED, DecidedBy.OPERATOR, False)
            assert place.effects(tx) == {"1": [Op.ACTION, Op.COMPENSATE], "2": [Op.ACTION, Op.COMPENSATE]}

    run(main())


def test_a_plan_without_deadline_that_somebody_wants_aborted_is_seen_when_it_waits() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.hung.add("grpc://far")
            tx = replace(place.tx(), deadline_us=FOREVER_US)
            await submit(node, tx, step("1"), step("2", "1", target="grpc://far"))
            await eventually(lambda: len(place.participants.calls) > 1)
            await place.kill(node)
            other = await place.node("n2")
            await asyncio.sleep(300)
            assert not other.coordinator.alarms
            await other.rollback(tx, begun=True)
            await asyncio.sleep(50)
            assert not other.coordinator.alarms
            await asyncio.sleep(300)
            assert other.coordinator.alarms == {"plan_in_doubt": 1}

    run(main())
