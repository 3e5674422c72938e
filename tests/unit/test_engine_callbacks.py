"""Completion callbacks in the engine: at least once, with a stable id, whichever way it ends, and parked in sight."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.support.node import Node
from tests.support.virtual import eventually, run
from txcoord.core.action import Action, Answer, AnswerKind, Op, Retry
from txcoord.core.events import Begin, Operate
from txcoord.core.model import Audit, Branch, BranchState, Kind, Tx, TxState
from txcoord.engine.live import WaitLevel

from .test_engine_calls import Place, a_place, step, submit, tcc


def callback(name: str = "shop", target: str = "grpc://shop", **more: object) -> Branch:
    action = Action("ended", name, **more)  # type: ignore[arg-type]
    return Branch(f"c:{name}", Kind.CALLBACK, resource=target, action=action)


def told(place: Place) -> list[str]:
    return [call[2] for call in place.participants.calls if call[3] is Op.CALLBACK]


async def delivered(node: Node, tx: Tx) -> Tx:
    return await node.coordinator.wait(tx, WaitLevel.DELIVERED, 600)


def test_whoever_asked_is_told_whichever_way_it_ends() -> None:
    async def main() -> None:
        for refused in (False, True):
            async with a_place() as place:
                node = await place.node()
                if refused:
                    no = Answer(AnswerKind.REFUSED, reason="NO")
                    place.participants.script["2", Op.ACTION] = [no]
                tx = place.tx()
                done = await submit(node, tx, step("1"), step("2", "1"), callback(), callback("bill"))
                ended = await node.ended(done)
                assert ended.state is (TxState.ABORTED if refused else TxState.COMMITTED)
                assert (await delivered(node, ended)).ended_us
                assert sorted(told(place)) == ["c:bill", "c:shop"]
                ops = [call[3] for call in place.participants.calls]
                assert set(ops[-2:]) == {Op.CALLBACK}  # After everything else.
                await eventually(lambda place=place, tx=tx: place.storage.rows[tx.tx_id].ended_us > 0)
                assert len(node.coordinator.live) == 0

    run(main())


def test_a_transaction_that_its_client_decides() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            tx = replace(place.tx(gid="g"), branches=(callback(),))
            await node.coordinator.begin(Begin(tx))
            await node.enlist(tx, tcc("1"), callback("stock"), begun=True)
            ready = replace(tcc("1"), state=BranchState.READY)
            done = await node.commit(tx, ready, begun=True)
            assert (await delivered(node, done)).state is TxState.COMMITTED
            assert sorted(told(place)) == ["c:shop", "c:stock"]

    run(main())


def test_it_does_not_hold_the_end_up_and_is_tried_again_then_parked_in_sight_and_replayed() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.hung.add("grpc://shop")
            tx = place.tx()
            asked = callback(retry=Retry(max_attempts=3))
            done = await submit(node, tx, step("1"), asked)
            began = place.clock.monotonic()
            assert (await node.ended(done)).state is TxState.COMMITTED
            assert place.clock.monotonic() - began < 1
            await delivered(node, done)
            await eventually(lambda: place.storage.row(tx.tx_id).parked == 1)
            row = place.storage.row(tx.tx_id)
            assert (row.state, row.rests, row.ended_us) == (TxState.COMMITTED, True, 0)
            assert row.branch("c:shop").reason.startswith("RETRIES_SPENT")  # type: ignore[union-attr]
            assert told(place) == ["c:shop"] * 3
            await eventually(lambda: len(node.coordinator.live) == 0)
            place.participants.hung.clear()
            audit = Audit("ann", "it is back", "retry", 0)
            await node.coordinator.operate(tx.tx_id, Operate("retry", "c:shop", audit))
            await eventually(lambda: place.storage.rows[tx.tx_id].ended_us > 0)
            assert place.storage.row(tx.tx_id).parked == 0
            assert place.effects(tx)["c:shop"] == [Op.CALLBACK]

    run(main())


def test_a_node_dies_before_it_has_told() -> None:
    async def main() -> None:
        for lazy_s in (0.001, None):
            async with a_place() as place:
                node = await place.node(lazy_s=lazy_s)
                place.participants.hung.add("grpc://shop")
                tx = place.tx()
                done = await submit(node, tx, step("1"), callback())
                assert (await node.ended(done)).state is TxState.COMMITTED
                await asyncio.sleep(1)
                await place.kill(node)
                place.participants.hung.clear()
                other = await place.node("n2")
                await eventually(lambda place=place, tx=tx: place.storage.rows[tx.tx_id].ended_us > 0)
                row = place.storage.row(tx.tx_id)
                assert (row.state, row.owner) == (TxState.COMMITTED, other.coordinator.settings.node)
                assert place.effects(tx) == {"1": [Op.ACTION], "c:shop": [Op.CALLBACK]}

    run(main())


def test_a_commit_that_is_lost_is_told_again() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            tx = place.tx()
            await delivered(node, await submit(node, tx, step("1"), callback()))
            place.storage.lose_unforced()
            await eventually(lambda: place.storage.rows[tx.tx_id].ended_us > 0)
            assert place.storage.row(tx.tx_id).state is TxState.COMMITTED
            assert told(place) == ["c:shop"] * 2

    run(main())
