"""What waits is handed off: the row says until when, the queue brings it to a node then, and the sweep is the net."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.support.node import Node
from tests.support.virtual import eventually, run
from txcoord.core.action import Answer, AnswerKind, Op, Retry
from txcoord.core.events import Answered, Operate
from txcoord.core.handing import first_due
from txcoord.core.model import TAKEN, Audit, BranchState, Decision, Tx, TxState
from txcoord.engine.gate import GateSettings
from txcoord.engine.live import WaitLevel
from txcoord.ports import Due, LogUnavailable

from .engine_support import a_shop
from .test_engine_calls import Place, a_place, step, submit, tcc, tried

MARGIN_US = 500_000
FAILED = Answer(AnswerKind.FAILED, reason="DOWN: it is down")


class Hand:
    """A queue that a test holds in its hand."""

    def __init__(self) -> None:
        self.taken: list[Due] = []
        self.carry: Callable[[Sequence[Due]], Awaitable[None]]

    async def start(self, carry: Callable[[Sequence[Due]], Awaitable[None]]) -> None:
        self.carry = carry

    def put(self, due: Due) -> None:
        self.taken.append(due)

    def hold(self, yes: bool) -> None:
        pass

    def depth(self) -> Mapping[str, int]:
        return {"hand": len(self.taken)}

    async def stop(self) -> None:
        pass


def seconds(*first: float) -> Retry:
    return Retry(schedule_us=tuple(round(s * 1_000_000) for s in first))


def until(place: Place, due: Due) -> float:
    return (due.due_us - place.clock.now_us()) / 1_000_000


async def waiting(place: Place, node: Node, hand: Hand, *pauses: float) -> tuple[Tx, Due]:
    """A transaction whose first confirm has failed, handed off."""
    place.participants.script["1", Op.CONFIRM] = [FAILED]
    tx = await tried(node, place.tx(), tcc("1", retry=seconds(*pauses or (20.0,))))
    await eventually(lambda: hand.taken)
    return tx, hand.taken.pop()


def test_the_row_says_until_when_and_nobody_has_it() -> None:
    async def main() -> None:
        async with a_place() as place:
            hand = Hand()
            node = await place.node(queue=hand)
            tx, due = await waiting(place, node, hand)
            row = place.storage.row(tx.tx_id)
            assert (row.owner, row.lease_until_us) == ("", due.due_us + MARGIN_US)
            assert (row.branches[0].attempts, row.branches[0].next_attempt_us) == (1, due.due_us)
            assert due == Due(tx.tx_id, row.epoch, due.due_us, "shop", "grpc://stock", "1", 2)
            assert 19 < until(place, due) <= 20
            assert not node.coordinator.live
            assert node.coordinator.calls.later == 0

    run(main())


def test_the_queue_brings_it_to_any_node_and_each_attempt_has_its_number() -> None:
    async def main() -> None:
        async with a_place() as place:
            hands = [Hand(), Hand()]
            nodes = [await place.node(f"n{n}", queue=hand) for n, hand in enumerate(hands)]
            tx, due = await waiting(place, nodes[0], hands[0], 2.0, 2.0, 2.0)
            place.participants.script["1", Op.CONFIRM] = [FAILED, FAILED]
            for number in (1, 0, 1):
                await asyncio.sleep(until(place, due))
                await hands[number].carry([due])
                row = place.storage.row(tx.tx_id)
                assert row.epoch > due.epoch
                if not row.ended:
                    due = hands[number].taken.pop()
            assert place.storage.row(tx.tx_id).state is TxState.COMMITTED
            assert [call[-1] for call in place.participants.calls] == [1, 2, 3, 4]

    run(main())


def test_duplicates_and_what_was_overtaken_claim_nothing() -> None:
    async def main() -> None:
        async with a_place() as place:
            hand, other = Hand(), Hand()
            node = await place.node(queue=hand)
            await place.node("n2", queue=other)
            tx, due = await waiting(place, node, hand, 2.0)
            await asyncio.sleep(until(place, due))
            await asyncio.gather(*(h.carry([due, due]) for h in (hand, other, hand)))
            await other.carry([due, replace(due, epoch=9), replace(due, tx_id="0" * 32)])
            assert place.storage.row(tx.tx_id).state is TxState.COMMITTED
            assert [call[-1] for call in place.participants.calls] == [1, 2]

    run(main())


def test_what_comes_one_by_one_is_claimed_together() -> None:
    async def main() -> None:
        async with a_place() as place:
            hand = Hand()
            node = await place.node(queue=hand)
            for _ in range(30):
                await waiting(place, node, hand, 2.0)
            claims: list[int] = []
            claim_due = node.log.claim_due

            async def counted(owner: str, lease_us: int, due: Sequence[tuple[str, int]]) -> list[Tx]:
                claims.append(len(due))
                return await claim_due(owner, lease_us, due)

            node.log.claim_due = counted  # type: ignore[method-assign]
            rows = [place.storage.row(tx_id) for tx_id in place.storage.rows]
            dues = [Due(tx.tx_id, tx.epoch, 0, "shop", "grpc://stock", "1", 2) for tx in rows]
            stale = [replace(due, epoch=due.epoch + 1) for due in dues]
            await asyncio.sleep(2)
            carried = []
            for pair in zip(dues, stale, strict=True):
                carried.extend(asyncio.ensure_future(hand.carry([one])) for one in pair)
                await asyncio.sleep(0.01)
            await asyncio.gather(*carried)
            assert sum(claims) == 60
            assert all(tx.ended for tx in place.storage.rows.values())
            assert len(claims) < 60
            # Those that come alone go at once, and then ten a second.
            began = place.clock.monotonic()
            claims.clear()
            for due in dues:
                carried.append(asyncio.ensure_future(hand.carry([due])))
                await asyncio.sleep(0.01)
            await asyncio.gather(*carried)
            assert len(claims) <= 10 * (place.clock.monotonic() - began) + 1

    run(main())


def test_what_comes_too_early_is_handed_off_again() -> None:
    async def main() -> None:
        async with a_place() as place:
            hand = Hand()
            node = await place.node(queue=hand)
            tx, due = await waiting(place, node, hand)
            await hand.carry([due])
            (again,) = hand.taken
            assert (again.due_us, again.epoch) == (due.due_us, due.epoch + TAKEN)
            assert len(place.participants.calls) == 1
            assert place.storage.row(tx.tx_id).owner == ""

    run(main())


def test_what_the_queue_loses_the_sweep_finds() -> None:
    async def main() -> None:
        async with a_place() as place:
            hand = Hand()
            node = await place.node(queue=hand)
            await place.node("n2", queue=Hand())
            tx, due = await waiting(place, node, hand)
            await asyncio.sleep(until(place, due) + MARGIN_US / 1_000_000 - 0.01)
            assert len(place.participants.calls) == 1
            await eventually(lambda: place.storage.row(tx.tx_id).ended, within_s=2)
            assert [call[-1] for call in place.participants.calls] == [1, 2]

    run(main())


def test_a_restart_neither_hastens_nor_loses_it() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.script["1", Op.CONFIRM] = [FAILED]
            tx = await tried(node, place.tx(), tcc("1", retry=seconds(20.0)))
            await eventually(lambda: place.storage.row(tx.tx_id).owner == "")
            await place.kill(node)
            await place.node()
            await asyncio.sleep(19)
            assert len(place.participants.calls) == 1
            await eventually(lambda: place.storage.row(tx.tx_id).ended, within_s=4)

    run(main())


def test_carry_returns_when_the_outcome_is_in_the_log() -> None:
    async def main() -> None:
        async with a_place() as place:
            hand = Hand()
            node = await place.node(queue=hand, lazy_s=3.0)
            tx, due = await waiting(place, node, hand)
            await asyncio.sleep(until(place, due))
            place.participants.held["1", Op.CONFIRM] = asyncio.Event()
            carried = asyncio.ensure_future(hand.carry([due]))
            await asyncio.sleep(2)
            assert not carried.done()  # It is on its way.
            place.participants.held["1", Op.CONFIRM].set()
            await asyncio.sleep(1)
            assert not node.coordinator.live
            assert not carried.done()  # It has ended, and that is lazy.
            await carried
            assert place.storage.row(tx.tx_id).ended

    run(main())


def test_carry_goes_on_when_the_log_comes_back() -> None:
    async def main() -> None:
        async with a_place() as place:
            hand = Hand()
            node = await place.node(queue=hand)
            tx, due = await waiting(place, node, hand)
            claim, lost = node.log.claim_due, [True]

            async def claim_due(*args: Any) -> list[Tx]:
                rows = await claim(*args)
                if lost and lost.pop():
                    raise LogUnavailable("the reply was lost")
                return rows

            node.log.claim_due = claim_due  # type: ignore[method-assign]
            await asyncio.sleep(until(place, due))
            place.storage.down = True
            carried = asyncio.ensure_future(hand.carry([due]))
            await asyncio.sleep(30)
            assert not carried.done()
            place.storage.down = False
            await carried
            assert place.storage.row(tx.tx_id).ended
            assert len(place.participants.calls) == 2

    run(main())


def test_who_waits_hears_of_it_from_the_log() -> None:
    async def main() -> None:
        async with a_place() as place:
            hand = Hand()
            node = await place.node(queue=hand)
            other = await place.node("n2", queue=hand)
            place.participants.script["1", Op.CONFIRM] = [FAILED]
            tx = await tried(node, place.tx(), tcc("1", retry=seconds(5.0)))
            waits = [
                asyncio.ensure_future(n.coordinator.wait(tx, WaitLevel.COMMITTED, 60)) for n in (node, other)
            ]
            await eventually(lambda: hand.taken)
            await asyncio.sleep(until(place, hand.taken[0]))
            await hand.carry(hand.taken)
            assert [(await told).state for told in waits] == [TxState.COMMITTED] * 2

    run(main())


def test_an_operator_overtakes_the_queue() -> None:
    async def main() -> None:
        async with a_place() as place:
            hand = Hand()
            node = await place.node(queue=hand)
            other = await place.node("n2", queue=Hand())
            tx, due = await waiting(place, node, hand, 3600.0)
            order = Operate("retry", "1", Audit("ann", "it is up again", "retry", place.clock.now_us()))
            told = await other.coordinator.operate(tx.tx_id, order)
            assert (await other.ended(told)).state is TxState.COMMITTED
            await hand.carry([due])
            assert len(place.participants.calls) == 2

    run(main())


def test_a_late_answer_claims_it() -> None:
    async def main() -> None:
        async with a_place() as place:
            hand = Hand()
            node = await place.node(queue=hand)
            other = await place.node("n2", queue=Hand())
            tx, due = await waiting(place, node, hand, 3600.0)
            event = Answered("1", Op.CONFIRM, 1, Answer(AnswerKind.DONE))
            assert (await other.coordinator.answered_late(tx.tx_id, event)).state is TxState.COMMITTED
            assert place.storage.row(tx.tx_id).state is TxState.COMMITTED
            await hand.carry([due])
            assert len(place.participants.calls) == 1

    run(main())


def test_a_branch_under_way_keeps_the_whole() -> None:
    async def main() -> None:
        async with a_place() as place:
            hand = Hand()
            node = await place.node(queue=hand)
            place.participants.script["1", Op.CONFIRM] = [FAILED]
            place.participants.held["2", Op.CONFIRM] = asyncio.Event()
            tx = await tried(
                node,
                place.tx(),
                tcc("1", retry=seconds(20.0)),
                tcc("2", retry=Retry(call_timeout_us=90_000_000)),
            )
            await asyncio.sleep(4)
            assert not hand.taken
            assert place.storage.row(tx.tx_id).owner == "n1"
            place.participants.held["2", Op.CONFIRM].set()
            await eventually(lambda: hand.taken)
            row = place.storage.row(tx.tx_id)
            assert [b.state for b in row.branches] == [BranchState.FINISHING, BranchState.DONE]

    run(main())


@pytest.mark.parametrize("decision", [Decision.COMMIT, Decision.ABORT])
def test_every_kind(decision: Decision) -> None:
    """Finishes of XA branches, confirms, cancels and compensations."""

    async def main() -> None:
        async with a_place() as place, a_shop() as shop:
            node = shop.node()
            tx = shop.tx()
            shop.b.down = True
            branches = shop.prepared(tx)
            if decision is Decision.COMMIT:
                await node.commit(tx, *branches)
            else:
                await node.begin(tx)
                await node.rollback(tx, *branches, begun=True)
            await eventually(lambda: shop.storage.row(tx.tx_id).owner == "")
            shop.b.down = False
            await eventually(lambda: shop.storage.row(tx.tx_id).ended)
            if decision is Decision.COMMIT:
                return
            other = await place.node()
            place.participants.script["1", Op.COMPENSATE] = [FAILED]
            place.participants.script["2", Op.ACTION] = [Answer(AnswerKind.REFUSED, reason="NO")]
            tx = await submit(other, place.tx(), step("1", retry=seconds(5.0)), step("2", "1"))
            await eventually(lambda: place.storage.row(tx.tx_id).owner == "")
            await eventually(lambda: place.storage.row(tx.tx_id).ended)
            assert place.effects(tx) == {"1": [Op.ACTION, Op.COMPENSATE]}

    run(main())


def test_a_running_plan_is_never_handed_off() -> None:
    async def main() -> None:
        async with a_place() as place:
            hand = Hand()
            node = await place.node(queue=hand)
            place.participants.script["1", Op.ACTION] = [FAILED]
            tx = await submit(node, place.tx(), step("1", retry=seconds(20.0)))
            await asyncio.sleep(10)
            row = place.storage.row(tx.tx_id)
            assert (row.owner, row.state) == ("n1", TxState.RUNNING)
            assert first_due(row, 0) is None
            assert not hand.taken

    run(main())


def test_a_thousand_that_wait_are_not_live_and_all_end() -> None:
    async def main() -> None:
        async with a_place() as place:
            # Each is called, though its target has not answered any.
            node = await place.node(gate=GateSettings(enough=10_000))
            place.participants.script["1", Op.CONFIRM] = [FAILED] * 1000
            txs = [await tried(node, place.tx(), tcc("1", retry=seconds(30.0, 30.0))) for _ in range(1000)]
            await eventually(lambda: not node.coordinator.live)
            assert node.queue.depth() == {"waiting": 1000, "due": 0}
            await eventually(lambda: all(place.storage.row(tx.tx_id).ended for tx in txs), within_s=35)
            assert node.queue.depth() == {"waiting": 0, "due": 0}

    run(main())
