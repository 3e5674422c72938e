"""Calls of participants in the engine, on virtual time: lanes, time-outs, take-over, and races with a decision."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

from tests.support.fake_participant import Participants
from tests.support.node import Node, new_tx
from tests.support.virtual import VirtualClock, eventually, run
from txcoord.api.grpc.mapping import Limits
from txcoord.api.grpc.operations import Operations
from txcoord.core.action import Action, Answer, AnswerKind, Op, Retry
from txcoord.core.events import Enlist, Submit
from txcoord.core.model import Branch, BranchState, Decision, Kind, Tx, TxState, Windows
from txcoord.ports import LogUnavailable
from txcoord.testing.memory_log import Storage
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb


class Place:
    """A log, participants, and the nodes that come and go."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.storage = Storage(self.clock.now_us, Windows())
        self.participants = Participants(self.clock.now_us)
        self.nodes: list[Node] = []

    async def node(self, name: str = "n1", **more: Any) -> Node:
        node = Node(self.storage, {}, self.clock, name=name, caller=self.participants, **more)
        self.nodes.append(node)
        await node.start()
        return node

    async def kill(self, node: Node) -> None:
        self.nodes.remove(node)
        await node.kill()

    def tx(self, **more: Any) -> Tx:
        return new_tx(self.clock, **more)

    def effects(self, tx: Tx) -> dict[str, list[Op]]:
        return {b: ops for (t, b), ops in self.participants.effects.items() if t == tx.tx_id and ops}


@asynccontextmanager
async def a_place() -> AsyncIterator[Place]:
    place = Place()
    try:
        yield place
    finally:
        for node in place.nodes:
            await node.stop()


def tcc(number: str, target: str = "grpc://stock", **more: Any) -> Branch:
    return Branch(number, Kind.TCC, BranchState.OPEN, target, action=Action("Reserve", **more))


def step(number: str, *after: str, target: str = "grpc://ship", **more: Any) -> Branch:
    return Branch(
        number,
        Kind.SAGA,
        BranchState.OPEN,
        target,
        action=Action(number, run_first=True, after=after, **more),
    )


async def tried(node: Node, tx: Tx, *branches: Branch) -> Tx:
    """Enlist, try (as a caller does, here by nobody), commit."""
    await node.enlist(tx, *branches)
    return await node.commit(tx, *(replace(b, state=BranchState.READY) for b in branches), begun=True)


async def submit(node: Node, tx: Tx, *steps: Branch) -> Tx:
    return await node.coordinator.submit(Submit(replace(tx, branches=steps)))


def test_twenty_that_hang_and_one_that_is_well() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            hung = [f"grpc://hung{n}" for n in range(20)]
            place.participants.hung.update(hung)
            for target in hung:
                for _ in range(50):
                    await tried(node, place.tx(), tcc("1", target))
            for _ in range(30):
                tx = place.tx()
                began = place.clock.monotonic()
                done = await node.ended(await tried(node, tx, tcc("1"), tcc("2")), timeout_s=1)
                assert done.state is TxState.COMMITTED
                assert place.clock.monotonic() - began < 0.1
            place.participants.hung.clear()
            await asyncio.wait_for(node.coordinator.live.drained(), 300)

    run(main())


def test_what_is_due_together_travels_together() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node(call_width=1)
            place.participants.latency_s = 0.1
            waiting = [await tried(node, place.tx(), tcc("1"), tcc("2")) for _ in range(100)]
            await asyncio.gather(*(node.ended(tx) for tx in waiting))
            assert len(place.participants.batches) < 10
            assert sum(size for _, size in place.participants.batches) == 200

    run(main())


def test_a_slow_branch_holds_no_other_back() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.held["9", Op.CONFIRM] = asyncio.Event()
            slow = await tried(node, place.tx(), tcc("9"))
            for _ in range(20):
                assert (
                    await node.ended(await tried(node, place.tx(), tcc("1")), 1)
                ).state is TxState.COMMITTED
            place.participants.held["9", Op.CONFIRM].set()
            assert (await node.ended(slow, 1)).state is TxState.COMMITTED

    run(main())


def test_no_answer_within_five_seconds_and_never_earlier_than_due() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.hung.add("grpc://stock")
            tx = place.tx()
            await tried(node, tx, tcc("1"))
            await asyncio.sleep(120)
            calls = [(at, attempt) for at, _, _, _, attempt in place.participants.calls]
            assert [attempt for _, attempt in calls] == list(range(1, len(calls) + 1))
            assert all(5_000_000 <= b - a <= 5_000_000 + 61_000_000 for (a, _), (b, _) in pairwise(calls))
            stands = await node.coordinator.get(tx.tx_id)
            assert stands is not None
            assert stands.branches[0].reason.startswith("TIMED_OUT")
            place.participants.hung.clear()
            assert (await node.ended(stands, 120)).state is TxState.COMMITTED

    run(main())


def test_a_node_dies_between_decision_and_confirm() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.held["1", Op.CONFIRM] = asyncio.Event()
            tx = place.tx()
            await tried(node, tx, tcc("1"), tcc("2"))
            await place.kill(node)
            del place.participants.held["1", Op.CONFIRM]
            other = await place.node("n2")
            await eventually(lambda: place.storage.row(tx.tx_id).ended)
            assert place.effects(tx) == {"1": [Op.CONFIRM], "2": [Op.CONFIRM]}
            assert other.coordinator.live.get(tx.tx_id) is None

    run(main())


def test_a_node_dies_in_the_middle_of_a_saga_and_another_goes_on() -> None:
    async def main() -> None:
        for lazy_s in (0.001, None):  # Its progress is in the log, or is lost.
            async with a_place() as place:
                node = await place.node(lazy_s=lazy_s)
                place.participants.held["2", Op.ACTION] = asyncio.Event()
                tx = place.tx()
                await submit(node, tx, step("1"), step("2", "1"), step("3", "2"))
                await eventually(lambda: any(c[2] == "2" for c in place.participants.calls))
                await asyncio.sleep(0.1)
                await place.kill(node)
                del place.participants.held["2", Op.ACTION]
                await place.node("n2")
                await eventually(lambda tx_id=tx.tx_id, place=place: place.storage.row(tx_id).ended)
                row = place.storage.row(tx.tx_id)
                assert row.state is TxState.COMMITTED
                assert place.effects(tx) == {n: [Op.ACTION] for n in "123"}

    run(main())


def test_a_step_that_ran_before_the_crash_is_undone_though_the_log_never_heard_of_it() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node(lazy_s=None)
            place.participants.held["3", Op.ACTION] = asyncio.Event()
            tx = place.tx(deadline_s=5.0)
            await submit(node, tx, step("1"), step("2", "1"), step("3", "2"))
            await eventually(lambda: any(c[2] == "3" for c in place.participants.calls))
            await place.kill(node)
            await asyncio.sleep(10)  # Nobody is there at its deadline.
            del place.participants.held["3", Op.ACTION]
            await place.node("n2")
            await eventually(lambda: place.storage.row(tx.tx_id).ended)
            assert place.storage.row(tx.tx_id).state is TxState.ABORTED
            assert place.effects(tx) == {"1": [Op.ACTION, Op.COMPENSATE], "2": [Op.ACTION, Op.COMPENSATE]}

    run(main())


def test_an_abort_waits_for_the_action_that_is_on_its_way() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            gate = place.participants.held["1", Op.ACTION] = asyncio.Event()
            tx = place.tx()
            await submit(node, tx, step("1"), step("2", "1"))
            await eventually(lambda: bool(place.participants.calls))
            aborted = await node.rollback(tx, begun=True)
            assert aborted.state is TxState.ABORTING
            assert place.storage.row(tx.tx_id).state is TxState.ABORTING
            await asyncio.sleep(1)
            assert [c[3] for c in place.participants.calls] == [Op.ACTION]
            gate.set()
            assert (await node.ended(aborted)).state is TxState.ABORTED
            assert place.effects(tx) == {"1": [Op.ACTION, Op.COMPENSATE]}

    run(main())


def test_no_step_begins_while_an_abort_is_being_written() -> None:
    """Step 1 ends, and would start step 2, which the abort that is on its way to the log calls never started."""

    async def main() -> None:
        async with a_place() as place:
            node = await place.node(latency_s=0.5)
            gate = place.participants.held["1", Op.ACTION] = asyncio.Event()
            tx = place.tx()
            await submit(node, tx, step("1"), step("2", "1"))
            await eventually(lambda: bool(place.participants.calls))
            abort = asyncio.ensure_future(node.rollback(tx, begun=True))
            await asyncio.sleep(0.1)
            gate.set()
            assert (await node.ended(await abort)).state is TxState.ABORTED
            assert place.effects(tx) == {"1": [Op.ACTION, Op.COMPENSATE]}
            assert not [c for c in place.participants.calls if c[2] == "2" and c[3] is Op.ACTION]

    run(main())


def test_the_log_is_away_when_the_steps_have_decided() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            gate = place.participants.held["1", Op.ACTION] = asyncio.Event()
            tx = place.tx()
            done = await submit(node, tx, step("1"))
            place.storage.down = True
            gate.set()
            await asyncio.sleep(3)
            place.storage.down = False
            assert (await node.ended(done)).state is TxState.COMMITTED

    run(main())


def test_another_node_aborts_a_plan() -> None:
    async def main() -> None:
        async with a_place() as place:
            node, other = await place.node(), await place.node("n2")
            gate = place.participants.held["1", Op.ACTION] = asyncio.Event()
            tx = place.tx()
            await submit(node, tx, step("1"), step("2", "1"))
            await eventually(lambda: bool(place.participants.calls))
            done = await other.rollback(tx, begun=True)
            # For all that this one knows it may have been committed. Its steps say.
            assert (done.state, done.in_doubt) == (TxState.RUNNING, True)
            await asyncio.sleep(0.1)
            gate.set()
            ended = await other.ended(done)
            # The node that had it may have done the last step before it heard of that.
            assert ended.decision is not None
            wanted = Op.ACTION if ended.decision is Decision.COMMIT else Op.COMPENSATE
            await eventually(lambda: node.coordinator.live.get(tx.tx_id) is None)
            assert {ops[-1] for ops in place.effects(tx).values()} <= {wanted}

    run(main())


def test_forced_writes() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            for count in (1, 2, 10):
                before = node.log.forced_flushes
                await node.ended(await tried(node, place.tx(), *(tcc(str(n)) for n in range(1, count + 1))))
                assert node.log.forced_flushes - before == 2  # Enlisted together, and the decision.
                before = node.log.forced_flushes
                steps = [step(str(n), *([str(n - 1)] if n > 1 else [])) for n in range(1, count + 1)]
                await node.ended(await submit(node, place.tx(), *steps))
                assert node.log.forced_flushes - before == 1  # Submitted.

    run(main())


async def run_steps(node: Node, tx: Tx, *steps: Branch, begun: bool = False) -> Tx:
    done = await node.coordinator.enlist(Enlist(tx, steps, run=True), begun=begun)
    return await node.coordinator.steps(done, {b.id for b in steps}, 30)


def test_steps_inside_a_transaction_that_its_client_decides() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            tx = place.tx()
            done = await run_steps(node, tx, step("1"), step("2", "1"))
            assert [b.state for b in done.branches] == [BranchState.READY] * 2
            assert done.state is TxState.ACTIVE
            votes = [Branch(n, Kind.SAGA, BranchState.READY) for n in "12"]
            assert (await node.ended(await node.commit(tx, *votes, begun=True))).state is TxState.COMMITTED
            assert place.effects(tx) == {n: [Op.ACTION] for n in "12"}
            assert not len(node.coordinator.live)

    run(main())


def test_a_step_inside_a_transaction_says_no() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.script["2", Op.ACTION] = [Answer(AnswerKind.REFUSED, reason="NO")]
            tx = place.tx()
            done = await run_steps(node, tx, step("1"), step("2", "1"))
            assert (done.state, done.reason) == (TxState.ABORTING, "NO")
            assert (await node.ended(done)).state is TxState.ABORTED
            assert place.effects(tx) == {"1": [Op.ACTION, Op.COMPENSATE]}

    run(main())


def test_a_node_dies_with_steps_inside_and_its_client_asks_another() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.held["2", Op.ACTION] = asyncio.Event()
            tx = place.tx()
            asked = asyncio.ensure_future(run_steps(node, tx, step("1"), step("2", "1")))
            await eventually(lambda: any(c[2] == "2" for c in place.participants.calls))
            await place.kill(node)
            asked.cancel()
            del place.participants.held["2", Op.ACTION]
            other = await place.node("n2")
            done = await run_steps(other, tx, step("1"), step("2", "1"), begun=True)
            assert [b.state for b in done.branches] == [BranchState.READY] * 2
            assert place.effects(tx) == {n: [Op.ACTION] for n in "12"}
            await other.rollback(tx, begun=True)
            await eventually(lambda: place.storage.row(tx.tx_id).ended)
            assert place.effects(tx) == {n: [Op.ACTION, Op.COMPENSATE] for n in "12"}

    run(main())


def test_another_node_decides_what_has_steps_here() -> None:
    async def main() -> None:
        async with a_place() as place:
            node, other = await place.node(), await place.node("n2")
            tx = place.tx(deadline_s=5.0)
            await run_steps(node, tx, step("1"))
            votes = [Branch("1", Kind.SAGA, BranchState.READY)]
            assert (await other.commit(tx, *votes, begun=True)).state is TxState.COMMITTED
            assert (await node.ended(tx, 2)).state is TxState.COMMITTED
            await eventually(lambda: not len(node.coordinator.live))
            assert place.effects(tx) == {"1": [Op.ACTION]}

    run(main())


def test_no_step_begins_while_nobody_knows_whether_an_abort_was_written() -> None:
    """It was, but the log did not say so: the row calls step 2 never started, so that nothing would undo it."""

    async def main() -> None:
        for way in ("the reply is lost", "its client has left"):
            async with a_place() as place:
                node = await place.node(latency_s=0.2)
                gate = place.participants.held["1", Op.ACTION] = asyncio.Event()
                tx = place.tx()
                await submit(node, tx, step("1"), step("2", "1"))
                await eventually(lambda place=place: bool(place.participants.calls))
                abort = asyncio.ensure_future(node.rollback(tx, begun=True))
                if way == "the reply is lost":
                    node.log.lose_replies = 1
                    await asyncio.wait({abort})
                    assert isinstance(abort.exception(), LogUnavailable)
                    place.storage.down = True
                else:
                    await asyncio.sleep(0.3)  # Its row was read; the decision is on its way.
                    abort.cancel()
                    await asyncio.wait({abort})
                gate.set()
                await asyncio.sleep(1)
                place.storage.down = False
                await eventually(lambda place=place, tx_id=tx.tx_id: place.storage.row(tx_id).ended)
                assert place.storage.row(tx.tx_id).state is TxState.ABORTED
                assert place.effects(tx) == {"1": [Op.ACTION, Op.COMPENSATE]}, way

    run(main())


def test_a_step_says_no_while_a_branch_is_enlisted_beside_it() -> None:
    """Both write the row. Whoever comes second reads it again: the no is in no row."""

    async def main() -> None:
        for here in (True, False):
            async with a_place() as place:
                node = await place.node(latency_s=0.1)
                other = await place.node("n2", latency_s=0.05)
                gate = place.participants.held["1", Op.ACTION] = asyncio.Event()
                place.participants.script["1", Op.ACTION] = [Answer(AnswerKind.REFUSED, reason="NO")]
                tx = place.tx()
                asked = asyncio.ensure_future(run_steps(node, tx, step("1"), step("2", "1")))
                await eventually(lambda place=place: bool(place.participants.calls))
                beside = (node if here else other).enlist(tx, tcc("9"), begun=True)
                enlisted = asyncio.ensure_future(beside)
                await asyncio.sleep(0.01)
                gate.set()
                await asyncio.wait({enlisted})
                began = place.clock.monotonic()
                assert ((await asked).state, (await asked).reason) == (TxState.ABORTING, "NO")
                assert place.clock.monotonic() - began < 2
                await eventually(lambda place=place, tx_id=tx.tx_id: place.storage.row(tx_id).ended)
                assert not place.effects(tx)

    run(main())


def test_one_call_at_a_time_though_it_is_called_again_at_once() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.latency_s = 0.1
            place.participants.script["1", Op.ACTION] = [Answer(AnswerKind.FAILED, reason="BUSY")]
            tx = place.tx()
            await submit(node, tx, step("1", retry=Retry(schedule_us=(0, 0, 0))))
            await eventually(lambda: len(place.participants.calls) == 2)
            gate = place.participants.held["1", Op.ACTION] = asyncio.Event()
            aborted = await node.rollback(tx, begun=True)
            await asyncio.sleep(1)
            # Its compensation waits for the call that is on its way.
            assert {c[3] for c in place.participants.calls} == {Op.ACTION}
            gate.set()
            assert (await node.ended(aborted)).state is TxState.ABORTED

    run(main())


def test_a_rollback_that_names_a_try_finds_its_row() -> None:
    """A service that was called has enlisted it, at another node: its initiator knows of no row."""

    async def main() -> None:
        async with a_place() as place:
            node, other = await place.node(), await place.node("n2")
            tx = place.tx()
            await node.enlist(tx, tcc("1.1"))
            said = c.Branch(id="1.1", kind=c.KIND_TCC, vote=c.VOTE_PREPARED)
            request = pb.RollbackRequest(
                tx_id=tx.tx_id, deadline_us=tx.deadline_us, branches=[said], initiator=True, sealed=True
            )
            operations = Operations(other.coordinator, Limits(), list)
            answer = await operations.rollback(request, "shop", 5.0)
            assert answer.outcome.state == c.STATE_ABORTED
            assert place.storage.row(tx.tx_id).decision is Decision.ABORT
            assert [(call[2], call[3]) for call in place.participants.calls] == [("1.1", Op.CANCEL)]

    run(main())


def test_an_old_attempt_that_fails_is_not_the_last() -> None:
    """A row was claimed back from a node that had tried it more often, while the old call was on its way."""

    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.script["1", Op.ACTION] = [Answer(AnswerKind.FAILED, reason="BUSY")]
            gate = place.participants.held["1", Op.ACTION] = asyncio.Event()
            done = await submit(node, place.tx(), step("1"))
            await eventually(lambda: bool(place.participants.calls))
            claimed = replace(done, epoch=1, branches=(replace(done.branches[0], attempts=5),))
            node.storage.rows[done.tx_id] = claimed
            node.coordinator.adopt(claimed)
            gate.set()
            assert (await node.ended(claimed)).state is TxState.COMMITTED
            assert [call[4] for call in place.participants.calls] == [1, 6]

    run(main())
