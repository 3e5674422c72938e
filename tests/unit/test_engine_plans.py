"""Plans and steps in the engine: what is told of them, their deadlines, their gids."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.support.virtual import eventually, run
from txcoord.core.errors import Refused
from txcoord.core.events import Submit
from txcoord.core.model import BranchState, Decision, TxState

from .test_engine_calls import a_place, run_steps, step, submit, tcc


def test_an_active_transaction_is_shown_with_what_other_nodes_have_enlisted() -> None:
    async def main() -> None:
        async with a_place() as place:
            node, other = await place.node(), await place.node("n2")
            tx = place.tx()
            await run_steps(node, tx, step("1"))
            await other.enlist(tx, tcc("9"), begun=True)
            found = await node.coordinator.get(tx.tx_id)
            assert found is not None
            assert {b.id: b.state for b in found.branches} == {"1": BranchState.READY, "9": BranchState.OPEN}

    run(main())


def test_deadlines_of_plans_share_their_flushes() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node(latency_s=0.2)
            place.participants.hung.add("grpc://ship")
            until_us = place.clock.now_us() + 20_000_000
            asked = [replace(place.tx(), deadline_us=until_us) for _ in range(30)]
            plans = await asyncio.gather(*(submit(node, tx, step("1")) for tx in asked))
            before = node.log.forced_flushes
            await eventually(
                lambda: all(place.storage.row(tx.tx_id).decision is Decision.ABORT for tx in plans)
            )
            assert node.log.forced_flushes - before < 5

    run(main())


def test_a_submit_takes_its_gid_over_from_an_aborted_attempt_it_names() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            first = place.tx(gid="order-1")
            await node.coordinator.submit(Submit(replace(first, branches=(step("1"),))))
            await node.ended(await node.rollback(first, begun=True))
            again = replace(place.tx(gid="order-1"), branches=(step("1"),))
            with pytest.raises(Refused) as refused:
                await node.coordinator.submit(Submit(again))
            assert refused.value.refusal.reason == "ALREADY_ABORTED"
            with pytest.raises(Refused):  # Not for this reason.
                await node.coordinator.submit(
                    Submit(again), may_take_over=frozenset({"DEADLINE"}), retry_of=first.tx_id
                )
            done = await node.coordinator.submit(Submit(again), retry_of=first.tx_id)
            assert (await node.ended(done)).state is TxState.COMMITTED

    run(main())
