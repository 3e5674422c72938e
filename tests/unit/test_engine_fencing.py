"""Who is cut off, or late, changes nothing; who takes something back dies as anybody does: on virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.support.virtual import eventually, run
from txcoord.core.action import Answer, AnswerKind, Op
from txcoord.core.errors import Refused
from txcoord.core.events import Answered, Operate
from txcoord.core.model import Audit, BranchState, Kind, Tx, TxState
from txcoord_client.protocol import marker

from .engine_support import a_shop
from .test_engine_calls import a_place, tcc, tried
from .test_engine_deliveries import committed, message, sent

DAY_US = 86_400_000_000
TOMORROW = Answer(AnswerKind.PENDING, retry_after_us=DAY_US)


def state(tx: Tx, branch: str) -> BranchState:
    found = tx.branch(branch)
    assert found is not None
    return found.state


def order(action: str, branch: str) -> Operate:
    return Operate(action, branch, Audit("ann", "it hurts", action, 0))


def test_news_of_one_that_was_cut_off_pass_for_nobody_elses() -> None:
    """n1 ends the confirm, then the notification, and can write neither; n2 takes the row over meanwhile."""

    async def main() -> None:
        async with a_place() as place:
            n1, n2 = await place.node("n1"), await place.node("n2")
            tx = place.tx()
            no = Answer(AnswerKind.REFUSED, reason="NO")
            place.participants.script["2", Op.NOTIFY] = [no, no]
            gate = place.participants.held["1", Op.CONFIRM] = asyncio.Event()
            await n1.enlist(tx, tcc("1"))
            ready = replace(tcc("1"), state=BranchState.READY)
            await n1.commit(tx, ready, message("2", kind=Kind.NOTIFY), begun=True)
            await asyncio.sleep(0.5)
            n1.log.lazy_s = None
            n1.recovery.stop()
            del place.participants.held["1", Op.CONFIRM]
            gate.set()
            await asyncio.sleep(1)
            again = place.participants.held["1", Op.CONFIRM] = asyncio.Event()
            await eventually(lambda: place.storage.row(tx.tx_id).owner == "n2")
            before = place.storage.row(tx.tx_id)
            n1.log._flush()
            assert place.storage.row(tx.tx_id) == before
            again.set()
            await eventually(lambda: place.storage.row(tx.tx_id).rests)
            row = place.storage.row(tx.tx_id)
            assert (row.state, state(row, "1"), state(row, "2")) == (
                TxState.COMMITTED,
                BranchState.DONE,
                BranchState.PARKED,
            )
            assert len(sent(place)) == 2
            assert n2.coordinator.live.get(tx.tx_id) is None

    run(main())


@pytest.mark.parametrize("action", ["skip", "park", "retry"])
def test_an_order_that_was_decided_before_a_delivery_ended_is_not_written_over_its_end(action: str) -> None:
    async def main() -> None:
        async with a_place() as place:
            n1, n2 = await place.node("n1"), await place.node("n2")
            tx = place.tx()
            gate = place.participants.held["2", Op.MESSAGE] = asyncio.Event()
            await committed(n1, tx, message("2"))
            await asyncio.sleep(0.5)

            async def meanwhile(_: str) -> None:
                gate.set()
                await asyncio.sleep(0.2)

            n2.failpoints.on("operate.before_write", meanwhile)
            with pytest.raises(Refused, match="is done"):
                await n2.coordinator.operate(tx.tx_id, order(action, "2"))
            await asyncio.sleep(5)
            assert state(place.storage.row(tx.tx_id), "2") is BranchState.DONE
            assert sent(place) == ["2"]

    run(main())


def test_what_is_wanted_back_while_it_is_handed_off_is_leased_as_usual() -> None:
    async def main() -> None:
        async with a_place() as place:
            n1 = await place.node("n1")
            await place.node("n2")
            place.participants.script["1", Op.CONFIRM] = [TOMORROW]
            place.participants.hung.add("grpc://other")
            tx = place.tx()
            branches = [tcc("1"), tcc("2", target="grpc://other", after=("1",))]
            await n1.enlist(tx, *branches)
            await n1.commit(tx, *(replace(b, state=BranchState.READY) for b in branches), begun=True)
            while (live := n1.coordinator.live.get(tx.tx_id)) is None or live.tx.owner:  # noqa: ASYNC110 - on virtual time
                await asyncio.sleep(0.001)
            late = Answered("1", Op.CONFIRM, 1, Answer(AnswerKind.DONE))
            await n1.coordinator.answered_late(tx.tx_id, late)
            await asyncio.sleep(1)
            await place.kill(n1)
            place.participants.hung.clear()
            await eventually(lambda: place.storage.row(tx.tx_id).ended, within_s=120, step_s=1)

    run(main())


def test_an_order_about_what_is_handed_off_makes_no_lease_until_its_due_time() -> None:
    async def main() -> None:
        async with a_place() as place:
            n1, n2 = await place.node("n1"), await place.node("n2")
            place.participants.script["1", Op.CONFIRM] = [TOMORROW]
            tx = await tried(n1, place.tx(), tcc("1"))
            await eventually(lambda: not place.storage.row(tx.tx_id).owner)
            place.participants.hung.add("grpc://stock")
            await n2.coordinator.operate(tx.tx_id, order("retry", "1"))
            await asyncio.sleep(1)
            await place.kill(n2)
            place.participants.hung.clear()
            await eventually(lambda: place.storage.row(tx.tx_id).ended, within_s=120, step_s=1)

    run(main())


def test_local_transactions_that_stay_open_keep_nobody_else_from_being_asked() -> None:
    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            await node.start()
            for number in range(12):
                tx = shop.tx(gid=f"open-{number}", one_phase="a", deadline_s=1)
                await node.begin(tx)
                shop.a.open_keys.add((tx.tx_id, marker.ONE_BRANCH, marker.ONE))
            await asyncio.sleep(2)
            tx = shop.tx(gid="crashed", one_phase="a", deadline_s=1)
            await node.begin(tx)
            await eventually(lambda: shop.storage.row(tx.tx_id).decision is not None, within_s=8, step_s=0.1)

    run(main())
