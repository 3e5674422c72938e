"""Deliveries in the engine: they leave only once the whole is COMMITTED, each has an end of its own, and none of them
changes the transaction's."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.support.node import Node
from tests.support.virtual import eventually, run
from txcoord.core.action import Action, Answer, AnswerKind, Delivery, Op, Retry
from txcoord.core.events import Operate
from txcoord.core.model import (
    Audit,
    Branch,
    BranchState,
    ChangeKind,
    DecidedBy,
    Kind,
    TargetRule,
    Tx,
    TxState,
)
from txcoord.engine.carrier import RETRY
from txcoord.engine.live import WaitLevel

from .test_engine_calls import Place, a_place, step, submit, tcc

REFUSED = Answer(AnswerKind.REFUSED, reason="NO_SUCH_ORDER")
DOWN = Answer(AnswerKind.FAILED, reason="UNAVAILABLE")


def message(number: str, target: str = "grpc://mail", kind: Kind = Kind.MESSAGE, **more: Any) -> Branch:
    return Branch(number, kind, resource=target, action=Action("Told", **more))


async def committed(node: Node, tx: Tx, *branches: Branch) -> Tx:
    """Enlist what is called, then commit with all of it."""
    called = [b for b in branches if b.kind is Kind.TCC]
    if called:
        await node.enlist(tx, *called)
    voted = (replace(b, state=BranchState.READY) if b.kind is Kind.TCC else b for b in branches)
    return await node.commit(tx, *voted, begun=bool(called))


async def delivered(node: Node, tx: Tx, timeout_s: float = 600) -> Tx:
    return await node.coordinator.wait(tx, WaitLevel.DELIVERED, timeout_s)


def sent(place: Place) -> list[str]:
    return [call[2] for call in place.participants.calls if call[3] in (Op.MESSAGE, Op.NOTIFY)]


def state_of(tx: Tx, branch: str) -> str:
    found = tx.branch(branch)
    assert found is not None
    return found.state.value


@pytest.mark.parametrize("kind", [Kind.MESSAGE, Kind.NOTIFY])
def test_it_leaves_once_the_whole_is_committed_and_has_a_state_of_its_own(kind: Kind) -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            held = place.participants.held["1", Op.CONFIRM] = asyncio.Event()
            tx = place.tx()
            done = await committed(node, tx, tcc("1"), message("2", kind=kind), message("3", kind=kind))
            await asyncio.sleep(1)
            assert done.state is TxState.COMMITTING
            assert not sent(place)
            assert {b.state for b in done.branches[1:]} == {BranchState.READY}
            held.set()
            ended = await node.ended(done)
            assert ended.state is TxState.COMMITTED
            assert not ended.ended_us
            ended = await delivered(node, ended)
            assert sorted(sent(place)) == ["2", "3"]
            assert {b.state for b in ended.branches} == {BranchState.DONE}
            assert ended.ended_us
            await eventually(lambda: place.storage.row(tx.tx_id).ended_us > 0)
            assert len(node.coordinator.live) == 0

    run(main())


def test_many_are_one_forced_write_and_one_lazy_write_and_none_for_whoever_has_none() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            tx = place.tx()
            done = await committed(node, tx, *(message(str(n), f"grpc://mail{n}") for n in range(1, 30)))
            assert done.state is TxState.COMMITTED
            await delivered(node, done)
            await eventually(lambda: place.storage.row(tx.tx_id).ended_us > 0)
            assert len(place.effects(tx)) == 29
            assert [(c.kind, c.forced) for c, _ in place.storage.written] == [
                (ChangeKind.INSERT, True),
                (ChangeKind.PROGRESS, False),
            ]
            place.storage.written.clear()
            done = await node.ended(await committed(node, place.tx(), tcc("1"), message("2"), message("3")))
            await delivered(node, done)
            await eventually(lambda: place.storage.row(done.tx_id).ended_us > 0)
            # Enlisted, decided, COMMITTED, delivered.
            assert [c.forced for c, _ in place.storage.written] == [True, True, False, False]

    run(main())


def test_with_a_local_transaction_they_are_one_forced_write_and_two_lazy_ones() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            tx = place.tx(one_phase="accounts")
            await node.enlist(tx, message("2"), message("3"))
            assert not sent(place)
            done = await node.report(tx, Branch("1", Kind.XA, BranchState.DONE, "accounts"))
            assert (done.state, done.decided_by) == (TxState.COMMITTED, DecidedBy.DATABASE)
            await delivered(node, done)
            await eventually(lambda: place.storage.row(tx.tx_id).ended_us > 0)
            assert [c.forced for c, _ in place.storage.written] == [True, False, False]
            assert place.effects(tx) == {"2": [Op.MESSAGE], "3": [Op.MESSAGE]}
            # The report is lost with the log's database: the row is as it was, and its deadline asks there.
            place.storage.lose_unforced()
            assert place.storage.row(tx.tx_id).state is TxState.ACTIVE

    run(main())


def test_nothing_leaves_when_it_is_aborted() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            tx = place.tx()
            await node.enlist(tx, tcc("1"), message("2"))
            done = await node.ended(await node.rollback(tx, message("3"), begun=True))
            assert done.state is TxState.ABORTED
            assert done.ended_us
            assert (state_of(done, "2"), state_of(done, "3")) == ("undone", "undone")
            late = await node.enlist(place.tx(), message("1"))
            await eventually(lambda: place.storage.row(late.tx_id).state is TxState.ABORTED)  # Its deadline.
            await asyncio.sleep(10)
            assert not sent(place)

    run(main())


def test_a_no_parks_it_at_once_and_its_neighbours_arrive() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.script["1", Op.MESSAGE] = [REFUSED]
            tx = place.tx()
            done = await delivered(node, await committed(node, tx, message("1"), message("2")))
            assert done.state is TxState.COMMITTED
            assert done.parked == 1
            assert not done.shown_parked
            assert (state_of(done, "1"), state_of(done, "2")) == ("parked", "done")
            assert sent(place).count("1") == 1
            await eventually(lambda: place.storage.row(tx.tx_id).parked == 1)
            row = place.storage.row(tx.tx_id)
            assert row.rests
            assert not row.ended_us
            await eventually(lambda: len(node.coordinator.live) == 0)
            await node.coordinator.operate(
                tx.tx_id, Operate("retry", "1", Audit("ann", "mended", "retry", 0))
            )
            await eventually(lambda: place.storage.row(tx.tx_id).ended_us > 0)
            assert place.effects(tx) == {"1": [Op.MESSAGE], "2": [Op.MESSAGE]}

    run(main())


def test_failures_are_tried_for_as_long_as_is_said_and_then_parked() -> None:
    async def main() -> None:
        assert RETRY.give_up_us == 86_400_000_000
        async with a_place() as place:
            node = await place.node(retry=replace(RETRY, give_up_us=300_000_000))
            place.participants.script["1", Op.MESSAGE] = [DOWN] * 1_000
            place.participants.script["2", Op.MESSAGE] = [DOWN] * 3
            tx = place.tx()
            began_s = place.clock.monotonic()
            done = await committed(node, tx, message("1"), message("2", retry=Retry(max_attempts=3)))
            done = await delivered(node, done, 3_600)
            assert sent(place).count("2") == 3
            assert done.parked == 2
            assert 300 <= place.clock.monotonic() - began_s < 370
            assert done.branch("1").reason.startswith("RETRIES_SPENT")  # type: ignore[union-attr]

    run(main())


def test_a_parked_branch_holds_the_deliveries_back() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.script["1", Op.CONFIRM] = [REFUSED]
            tx = place.tx()
            done = await node.ended(await committed(node, tx, tcc("1"), message("2")))
            assert done.shown_parked
            assert state_of(done, "2") == "ready"
            await asyncio.sleep(100)
            assert not sent(place)
            await node.coordinator.operate(
                tx.tx_id, Operate("skip", "1", Audit("ann", "given up", "skip", 0))
            )
            await eventually(lambda: place.storage.row(tx.tx_id).ended_us > 0)
            assert sent(place) == ["2"]

    run(main())


def test_not_before_its_time_also_after_a_crash() -> None:
    async def main() -> None:
        for lazy_s in (0.001, None):
            async with a_place() as place:
                node = await place.node(lazy_s=lazy_s)
                due_us = place.clock.now_us() + 300_000_000
                tx = place.tx()
                later = message("1", delivery=Delivery(deliver_at_us=due_us))
                done = await committed(node, tx, later, message("2"))
                assert done.state is TxState.COMMITTED
                await asyncio.sleep(60)
                assert sent(place) == ["2"]
                await place.kill(node)
                await place.node("n2")
                await eventually(
                    lambda place=place, tx=tx: place.storage.row(tx.tx_id).ended_us > 0,
                    within_s=600,
                    step_s=1,
                )
                when = [call[0] for call in place.participants.calls if call[2] == "1"]
                assert len(when) == 1
                # The queue has died with its node: the sweep finds what is overdue.
                assert due_us <= when[0] < due_us + 2_000_000
                assert place.effects(tx) == {"1": [Op.MESSAGE], "2": [Op.MESSAGE]}

    run(main())


def test_a_node_dies_before_it_has_delivered() -> None:
    async def main() -> None:
        for lazy_s in (0.001, None):
            async with a_place() as place:
                node = await place.node(lazy_s=lazy_s)
                place.participants.hung.add("grpc://hung")
                tx = place.tx()
                branches = tcc("1"), message("2", "grpc://hung"), message("3")
                done = await node.ended(await committed(node, tx, *branches))
                assert done.state is TxState.COMMITTED
                await asyncio.sleep(1)
                await place.kill(node)
                place.participants.hung.clear()
                await place.node("n2")
                await eventually(lambda place=place, tx=tx: place.storage.row(tx.tx_id).ended_us > 0)
                assert place.effects(tx) == {
                    "1": [Op.CONFIRM],
                    "2": [Op.MESSAGE],
                    "3": [Op.MESSAGE],
                }

    run(main())


def test_a_plan_with_deliveries_is_forced_when_it_commits() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            tx = place.tx()
            done = await delivered(node, await submit(node, tx, step("1"), message("2")))
            assert done.state is TxState.COMMITTED
            assert [call[3] for call in place.participants.calls] == [Op.ACTION, Op.MESSAGE]
            await eventually(lambda: place.storage.row(tx.tx_id).ended_us > 0)
            place.storage.lose_unforced()
            await eventually(lambda: place.storage.row(tx.tx_id).ended_us > 0)
            assert place.storage.row(tx.tx_id).state is TxState.COMMITTED
            assert sent(place) == ["2", "2"]
            assert place.effects(tx)["2"] == [Op.MESSAGE]
            place.participants.script["1", Op.ACTION] = [REFUSED]
            other = place.tx()
            done = await node.ended(await submit(node, other, step("1"), message("2")))
            assert done.state is TxState.ABORTED
            assert len(sent(place)) == 2

    run(main())


def test_one_that_is_put_off_is_not_forgotten() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            paused = TargetRule("grpc://mail", paused=True, actor="ann", reason="works")
            node.coordinator.gate.rules_are([paused])
            tx = place.tx()
            assert (await committed(node, tx, message("1"))).state is TxState.COMMITTED
            await asyncio.sleep(300)
            assert not sent(place)
            node.coordinator.gate.rules_are([])
            done = await delivered(node, tx, 60)
            assert done.branches[0].state is BranchState.DONE
            assert place.effects(tx) == {"1": [Op.MESSAGE]}

    run(main())
