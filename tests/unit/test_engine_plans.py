"""Plans and steps in the engine: what is told of them, their deadlines, their gids."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.support.virtual import eventually, run
from txcoord.core.action import Answer, AnswerKind, Op
from txcoord.core.errors import Refused
from txcoord.core.events import Operate, Submit
from txcoord.core.model import Audit, BranchState, Decision, TxState

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


def test_a_gid_is_not_released_while_participants_undo_its_old_attempt() -> None:
    """A service that goes by the gid, or by the order's number, would undo the new attempt."""

    async def main() -> None:
        for kind in ("saga", "tcc", "plan"):
            async with a_place() as place:
                node = await place.node()
                first = place.tx(gid="order-1")
                if kind == "plan":
                    place.participants.hung.add("grpc://far")
                    await submit(node, first, step("1"), step("2", "1", target="grpc://far"))
                    await eventually(lambda place=place: len(place.participants.calls) > 1)
                elif kind == "saga":
                    await run_steps(node, first, step("1"))
                else:
                    await node.enlist(first, tcc("1", "grpc://ship"))
                place.participants.hung.add("grpc://ship")
                await node.rollback(first, begun=True)
                again = replace(place.tx(gid="order-1", deadline_s=600), branches=(step("1"),))
                for _ in range(3):
                    with pytest.raises(Refused) as refused:
                        await node.coordinator.submit(Submit(again), retry_of=first.tx_id)
                    said = refused.value.refusal
                    assert (said.code, said.reason, said.definite) == ("UNAVAILABLE", "BEING_UNDONE", True)
                    assert said.retry_after_us > 0
                    assert said.facts == {"tx_id": first.tx_id, "branch": "2" if kind == "plan" else "1"}
                    await asyncio.sleep(20)
                place.participants.hung.clear()
                await eventually(
                    lambda place=place, first=first: place.storage.row(first.tx_id).ended, within_s=120
                )
                done = await node.coordinator.submit(Submit(again), retry_of=first.tx_id)
                assert (await node.ended(done)).state is TxState.COMMITTED, kind
                assert place.effects(again) == {"1": [Op.ACTION]}, kind

    run(main())


def test_a_parked_branch_keeps_the_gid_until_an_operator_has_settled_it() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            first = place.tx(gid="order-1")
            await run_steps(node, first, step("1"))
            place.participants.script["1", Op.COMPENSATE] = [Answer(AnswerKind.REFUSED, reason="NEVER")]
            await node.ended(await node.rollback(first, begun=True))
            again = replace(place.tx(gid="order-1"), branches=(step("1"),))
            with pytest.raises(Refused) as refused:
                await node.coordinator.submit(Submit(again), retry_of=first.tx_id)
            assert refused.value.refusal.reason == "BEING_UNDONE"
            assert "parked" in refused.value.refusal.message
            audit = Audit("ann", "undone by hand", "resolve", 0)
            await node.coordinator.operate(first.tx_id, Operate("resolve", "1", audit))
            done = await node.coordinator.submit(Submit(again), retry_of=first.tx_id)
            assert (await node.ended(done)).state is TxState.COMMITTED

    run(main())
