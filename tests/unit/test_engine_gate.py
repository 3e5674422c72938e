"""What a node does about a target that is dead, paused or limited, on virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from tests.support.node import Node
from tests.support.virtual import EPOCH_US, eventually, run
from tests.unit.test_engine_calls import Place, a_place, step, submit, tcc, tried
from txcoord.adapters.embedded import InProcessGate
from txcoord.core.action import Answer, AnswerKind, Op, Retry
from txcoord.core.model import BranchState, TargetRule, TxState
from txcoord.engine.gate import GateSettings

DEAD = "grpc://dead"
SECOND = 1_000_000


def per_second(place: Place, target: str, since_us: int) -> Counter[int]:
    """Calls, by the second in which they were made."""
    return Counter(
        (at - since_us) // SECOND
        for at, to, *_ in place.participants.calls
        if to == target and at >= since_us
    )


async def all_ended(place: Place, within_s: float) -> None:
    await eventually(
        lambda: all(place.storage.row(tx_id).ended for tx_id in place.storage.rows),
        within_s=within_s,
        step_s=0.25,
    )


def effects(place: Place) -> Counter[int]:
    return Counter(len(ops) for ops in place.participants.effects.values() if ops)


async def opened(place: Place, node: Node) -> None:
    """Kill the target, and let the node find out."""
    place.participants.down.add(DEAD)
    for _ in range(6):
        await tried(node, place.tx(), tcc("1", DEAD))
    await eventually(lambda: not node.coordinator.gate.free(DEAD))


@pytest.mark.timeout(400)
def test_a_dead_target_with_ten_thousand_gets_one_probe_a_second_and_then_each_its_call() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node(gate=GateSettings(drain_per_s=500))
            await opened(place, node)
            for _ in range(400):
                await tried(node, place.tx(), *(tcc(str(n), DEAD) for n in range(25)))
            since_us = place.clock.now_us()
            await asyncio.sleep(20)
            probes = per_second(place, DEAD, since_us)
            assert max(probes.values()) <= 1
            assert sum(probes.values()) >= 15
            # Somebody else's are as quick as ever.
            began = place.clock.monotonic()
            done = await node.ended(await tried(node, place.tx(), tcc("1")), timeout_s=1)
            assert done.state is TxState.COMMITTED
            assert place.clock.monotonic() - began < 0.1
            place.participants.down.clear()
            back_us = place.clock.now_us()
            await all_ended(place, 60)
            drained = per_second(place, DEAD, back_us)
            assert max(drained.values()) <= 2 * 500
            # 10,000 at 500 a second, once a probe has found out; nobody waits out his own time.
            assert max(drained) <= 10_000 // 500 + 3
            assert effects(place) == {1: 10_007}

    run(main())


def test_one_that_fails_beside_others_that_do_well_opens_nothing() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.script["9", Op.CONFIRM] = [Answer(AnswerKind.FAILED, reason="BROKEN")] * 30
            bad = await tried(node, place.tx(), tcc("9"))
            for _ in range(300):
                await node.ended(await tried(node, place.tx(), tcc("1")), timeout_s=1)
                assert node.coordinator.gate.free("grpc://stock")
                await asyncio.sleep(5)
            assert len(place.participants.script["9", Op.CONFIRM]) < 20
            await node.ended(bad, timeout_s=3600)

    run(main())


def test_many_that_fail_for_a_reason_of_their_own_delay_nobody_else() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            poison = Answer(AnswerKind.FAILED, reason="HTTP_500: a bug for orders of this kind")
            place.participants.script["9", Op.CONFIRM] = [poison] * 100_000
            for _ in range(50):
                await tried(node, place.tx(), tcc("9"))
            for _ in range(10):
                await asyncio.sleep(20)
                began = place.clock.monotonic()
                await node.ended(await tried(node, place.tx(), tcc("1")), timeout_s=1)
                assert place.clock.monotonic() - began < 0.1
            (seen,) = node.coordinator.gate.seen().values()
            assert seen.last_error == poison.reason

    run(main())


def test_what_is_held_back_burns_neither_attempts_nor_its_budget() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            await opened(place, node)
            tx = await tried(
                node, place.tx(), tcc("7", DEAD, retry=Retry(max_attempts=100, give_up_us=90 * SECOND))
            )
            await asyncio.sleep(40)
            (branch,) = place.storage.row(tx.tx_id).branches
            # Once at first, and then one of seven is the probe, in turn.
            assert branch.attempts <= 1 + 40 / 7 + 1
            place.participants.down.clear()
            assert (await node.ended(tx, timeout_s=20)).state is TxState.COMMITTED
            assert not node.coordinator.alarms

    run(main())


class Redis:
    """What nodes share, and lose."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.restart()

    def restart(self) -> None:
        """Empty."""
        self._inner = InProcessGate(self._place.clock.now_us)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_what_is_shared_is_lost_and_nobody_takes_that_for_an_answer() -> None:
    async def main() -> None:
        async with a_place() as place:
            redis = Redis(place)
            one, other = [await place.node(name, shared_gate=redis) for name in ("n1", "n2")]
            for node in (one, other):
                node.coordinator.gate.start()
            await opened(place, one)
            await eventually(lambda: not other.coordinator.gate.free(DEAD))
            # Its steps wait with the node that begins it, and it has only heard of it.
            plan = place.tx(deadline_s=100_000)
            await submit(other, plan, step("1", target=DEAD), step("2", target=DEAD))
            for _ in range(200):
                await tried(one, place.tx(), tcc("1", DEAD))
            await asyncio.sleep(30)
            since_us = place.clock.now_us()
            redis.restart()
            await asyncio.sleep(10)
            # The other one has made a call or two to see for itself.
            assert sum(per_second(place, DEAD, since_us).values()) <= 10 + 4
            assert one.coordinator.gate.holds(DEAD)
            place.participants.down.clear()
            await all_ended(place, 20)
            await eventually(
                lambda: all(node.coordinator.gate.free(DEAD) for node in (one, other)), within_s=3
            )

    run(main())


def rule(target: str, **more: object) -> TargetRule:
    return TargetRule(target, actor="ann", reason="works", changed_us=EPOCH_US, **more)  # type: ignore[arg-type]


def test_a_paused_target_is_not_called_and_goes_on_when_it_is_resumed() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            node.coordinator.gate.rules_are([rule("grpc://ship", paused=True)])
            plan = await submit(
                node,
                place.tx(deadline_s=3600),
                step("1", target="grpc://ship", retry=Retry(max_attempts=2, give_up_us=10 * SECOND)),
            )
            committing = await tried(node, place.tx(), tcc("1", "grpc://ship"))
            await asyncio.sleep(600)
            assert not place.participants.calls
            for tx in (plan, committing):
                (branch,) = place.storage.row(tx.tx_id).branches
                assert (branch.attempts, branch.failures) == (0, 0)
                assert branch.reason == "TARGET_PAUSED: by ann: works"
                assert place.storage.histories[tx.tx_id] == []
            node.coordinator.gate.rules_are([])
            for tx in (plan, committing):
                assert (await node.ended(tx, timeout_s=2)).state is TxState.COMMITTED

    run(main())


def test_the_deadline_of_a_plan_counts_while_its_target_is_paused() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            node.coordinator.gate.rules_are([rule("grpc://ship", paused=True)])
            plan = await submit(node, place.tx(deadline_s=100), step("1", target="grpc://ship"))
            await asyncio.sleep(150)
            tx = place.storage.row(plan.tx_id)
            assert (tx.state, tx.reason) == (TxState.ABORTING, "DEADLINE")
            node.coordinator.gate.rules_are([])
            done = await node.ended(plan, timeout_s=2)
            assert (done.state, done.branches[0].state) == (TxState.ABORTED, BranchState.UNDONE)
            assert not place.effects(plan)

    run(main())


def test_a_pause_that_ends_by_itself() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            end_us = place.clock.now_us() + 30 * SECOND
            node.coordinator.gate.rules_are([rule("grpc://stock", paused=True, paused_until_us=end_us)])
            tx = await tried(node, place.tx(), tcc("1"))
            done = await node.ended(tx, timeout_s=60)
            assert done.state is TxState.COMMITTED
            ((at_us, *_),) = place.participants.calls
            assert end_us <= at_us < end_us + 2 * SECOND

    run(main())


def test_so_many_a_second_and_in_the_order_in_which_they_came() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            node.coordinator.gate.rules_are([rule("grpc://stock", rate_per_s=10)])
            began_us = place.clock.now_us()
            txs = [await tried(node, place.tx(deadline_s=60), tcc("1")) for _ in range(1_000)]
            await all_ended(place, 300)
            took_s = (place.clock.now_us() - began_us) / SECOND
            assert 95 <= took_s <= 130
            assert max(per_second(place, "grpc://stock", began_us).values()) <= 11
            assert len(place.participants.calls) == len(txs)

    run(main())


def test_so_many_at_one_time() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.latency_s = 0.1
            node.coordinator.gate.rules_are([rule("grpc://stock", at_once=4)])
            most = 0

            async def watch() -> None:
                nonlocal most
                while True:
                    most = max(most, node.coordinator.gate.seen()["grpc://stock"].in_flight)
                    await asyncio.sleep(0.01)

            watcher = asyncio.create_task(watch())
            for _ in range(10):
                await asyncio.gather(*(tried(node, place.tx(), tcc("1")) for _ in range(40)))
            began = place.clock.monotonic()
            await all_ended(place, 300)
            # Forty a second are what four places make.
            assert place.clock.monotonic() - began < 400 / 40 * 1.5
            assert most == 4
            watcher.cancel()

    run(main())


def test_a_limit_that_is_raised_lets_what_waits_go_on() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            node.coordinator.gate.rules_are([rule("grpc://stock", rate_per_s=0.1)])
            txs = [await tried(node, place.tx(deadline_s=60), tcc("1")) for _ in range(100)]
            await asyncio.sleep(20)
            assert len(place.participants.calls) <= 4
            node.coordinator.gate.rules_are([rule("grpc://stock", rate_per_s=100)])
            for tx in txs:
                await node.ended(tx, timeout_s=5)

    run(main())


def test_what_waits_for_one_that_has_moved_goes_to_its_new_address() -> None:
    async def main() -> None:
        async with a_place() as place:
            node, other = await place.node(), await place.node("n2")
            await opened(place, node)
            await opened(place, other)
            waiting = [await tried(node, place.tx(), tcc("1", DEAD)) for _ in range(20)]
            await asyncio.sleep(20)
            since_us = place.clock.now_us()
            moved = TargetRule(DEAD, alias_of="grpc://moved")
            for one in (node, other):
                one.coordinator.gate.rules_are([moved])
            fresh = await tried(other, place.tx(), tcc("1", DEAD))
            for tx in (*waiting, fresh):
                assert (await node.ended(tx, timeout_s=10)).state is TxState.COMMITTED
            assert {to for at, to, *_ in place.participants.calls if at > since_us} == {"grpc://moved"}
            # Then that one dies, and is back: what waits for it by its old name goes on too.
            place.participants.down.add("grpc://moved")
            for _ in range(6):
                await tried(node, place.tx(), tcc("1", DEAD))
            await eventually(lambda: not node.coordinator.gate.free("grpc://moved"))
            await asyncio.sleep(120)
            place.participants.down = {DEAD}
            await all_ended(place, 20)
            # And to itself again.
            place.participants.down.clear()
            for one in (node, other):
                one.coordinator.gate.rules_are([])
            await node.ended(await tried(node, place.tx(), tcc("1", DEAD)), timeout_s=5)
            assert place.participants.calls[-1][1] == DEAD

    run(main())
