"""Operators and plans that run: a step that never gets done is seen, called at once, or given up."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.virtual import eventually, run
from txcoord.core.action import Op, Retry
from txcoord.core.errors import Refused
from txcoord.core.events import Operate
from txcoord.core.model import Audit, BranchState, TxState

from .test_engine_callbacks import callback
from .test_engine_calls import a_place, step, submit

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
