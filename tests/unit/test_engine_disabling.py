"""A target at which no notification arrives is disabled, on virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.support.node import Node
from tests.support.virtual import eventually, run
from txcoord.core.action import Answer, AnswerKind, Op, Retry
from txcoord.core.model import BranchState, Kind, TargetAudit, TargetRule, Tx, TxState
from txcoord.engine.live import WaitLevel
from txcoord.engine.recovery import RecoverySettings
from txcoord.testing.memory_targets import MemoryTargets

from .test_engine_calls import Place, a_place, tcc
from .test_engine_deliveries import committed, delivered, message, sent

HOOK = "https://partner"
DAY_S = 600
"""Short, so that the loops of a node have less to do in five of them."""
HOUR_S = DAY_S / 24
SELDOM = RecoverySettings(deadline_sweep_s=DAY_S, takeover_s=5.0, prune_s=DAY_S, targets_s=2.0)
US = 1_000_000
NO = Answer(AnswerKind.FAILED, reason="HTTP_500: no")
GONE = Answer(AnswerKind.REFUSED, reason="GONE: no more of them")
SOON = Retry(schedule_us=(2 * US,) * 3)


def rule_of(place: Place) -> TargetRule:
    return place.storage.targets.get(HOOK, TargetRule(HOOK))


async def a_node(place: Place, name: str = "n1", days: int = 5) -> Node:
    rules = MemoryTargets(place.storage)
    return await place.node(name, targets=rules, recovery=SELDOM, disable_after_us=days * DAY_S * US)


def note(number: str = "1", **more: Any) -> Any:
    return message(number, HOOK, Kind.NOTIFY, retry=SOON, **more)


async def told(node: Node, place: Place, *, days: float, answer: Answer | None = NO) -> Tx:
    """One each four hours, for so long; all are answered so. The last of them."""
    tx = None
    for _ in range(round(days * 6)):
        if answer is not None:
            place.participants.script["1", Op.NOTIFY].append(answer)
        tx = await committed(node, place.tx(), note())
        await asyncio.sleep(4 * HOUR_S)
    assert tx is not None
    return await delivered(node, tx)


def reason(tx: Tx) -> str:
    return tx.branches[0].reason


def test_five_days_of_nothing_but_failures_and_it_is_disabled_until_it_is_resumed() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await a_node(place)
            place.participants.script["1", Op.NOTIFY] = [NO] * 10_000
            last = await told(node, place, days=5, answer=None)
            assert not rule_of(place).disabled_us
            assert reason(last).startswith("RETRIES_SPENT")
            await told(node, place, days=0.5, answer=None)
            rule = rule_of(place)
            assert (rule.actor, rule.disabled_us > 0) == ("txcoord", True)
            assert "HTTP_500" in rule.reason
            [audit] = place.storage.target_audits
            assert (audit.action, audit.actor) == ("target.disable", "txcoord")
            before = len(sent(place))
            tx = await delivered(
                node, await committed(node, place.tx(), note(), tcc("2"), message("3", HOOK))
            )
            assert tx.state is TxState.COMMITTED
            # A message is no notification: it is sent to it as ever.
            found = {b.id: b for b in tx.branches}
            assert [found[n].state for n in "123"] == [BranchState.PARKED, BranchState.DONE, BranchState.DONE]
            assert found["1"].reason.startswith("TARGET_DISABLED: nothing has arrived for ")
            assert found["1"].attempts == 0
            assert sent(place)[before:] == ["3"]
            resume = TargetAudit(HOOK, "target.resume", "ann", "mended", 0)
            await MemoryTargets(place.storage).change(
                resume, lambda r: replace(r, disabled_us=0, failing_since_us=0)
            )
            await asyncio.sleep(5)
            place.participants.script.clear()
            tx = await delivered(node, await committed(node, place.tx(), note()))
            assert tx.branches[0].state is BranchState.DONE

    run(main())


def test_one_that_arrives_at_any_node_begins_the_time_anew() -> None:
    async def main() -> None:
        async with a_place() as place:
            one, two = await a_node(place, "n1"), await a_node(place, "n2")
            place.participants.script["1", Op.NOTIFY] = [NO] * 10_000
            await told(one, place, days=4, answer=None)
            assert rule_of(place).failing_since_us
            place.participants.script.clear()
            place.participants.script["1", Op.NOTIFY] = [NO] * 4
            assert (await told(two, place, days=1 / 6, answer=None)).branches[0].state is BranchState.PARKED
            done = await delivered(two, await committed(two, place.tx(), note("2")))
            assert done.branches[0].state is BranchState.DONE
            await eventually(lambda: not rule_of(place).failing_since_us, within_s=10)
            place.participants.script["1", Op.NOTIFY] = [NO] * 10_000
            await told(one, place, days=4, answer=None)
            assert rule_of(place).failing_since_us
            assert not rule_of(place).disabled_us

    run(main())


def test_it_is_known_after_a_restart_and_few_attempts_say_nothing() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await a_node(place)
            place.participants.script["1", Op.NOTIFY] = [GONE] * 4
            await told(node, place, days=4 / 6)
            await asyncio.sleep(6 * DAY_S)
            assert rule_of(place).failing_since_us
            assert not rule_of(place).disabled_us
            await place.kill(node)
            node = await a_node(place, "n2")
            await told(node, place, days=2 / 6)
            await eventually(lambda: rule_of(place).disabled_us > 0, within_s=10)

    run(main())


@pytest.mark.parametrize("target", ["sql:orders", HOOK])
def test_never_where_it_is_off_and_never_a_database(target: str) -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await a_node(place, days=5 if target != HOOK else 0)
            place.participants.script["1", Op.NOTIFY] = [NO] * 10_000
            tx = None
            for _ in range(7):
                tx = await committed(node, place.tx(), replace(note(), resource=target))
                await asyncio.sleep(DAY_S)
            assert tx is not None
            found = await node.coordinator.wait(tx, WaitLevel.DELIVERED, 10)
            assert reason(found).startswith("RETRIES_SPENT")
            assert not place.storage.targets

    run(main())
