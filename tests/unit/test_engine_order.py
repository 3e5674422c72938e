"""Messages with an order key, on virtual time: several nodes that die and come, a receiver that fails and refuses, a
log that is away. Whatever happens, each key comes in the order of its commits; bugs that are planted are found."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from tests.support.node import Node
from tests.support.virtual import run
from txcoord.core import ordering
from txcoord.core.action import Action, Answer, AnswerKind, Delivery
from txcoord.core.events import Operate
from txcoord.core.model import SETTLED_BRANCH, Audit, Branch, BranchState, Kind
from txcoord.engine.ordering import Ordering
from txcoord.ports import CallRequest, LogUnavailable

from .test_engine_calls import Place, a_place

TARGET = "grpc://mail"
SEEDS = 12
LEASE_US = 2_000_000


class Receiver:
    """``ports.Caller``: fails and refuses as it likes, and drops repeats."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.calm = False
        self.came: dict[str, list[str]] = {}
        self.inside: dict[str, list[str]] = {}
        self.wrong: list[str] = []

    async def call(
        self, _target: str, requests: Sequence[CallRequest], _timeout_s: float
    ) -> AsyncIterator[tuple[CallRequest, Answer]]:
        for r in requests:
            yield r, await self._take(r)

    async def _take(self, r: CallRequest) -> Answer:
        key = r.branch.action.delivery.order_key if r.branch.action is not None else ""
        came, name = self.came.setdefault(key, []), f"{r.tx.tx_id}.{r.branch.id}"
        if name not in came:
            # A repeat may come at any time: from a node that has lost its lease, for one.
            inside = self.inside.setdefault(key, [])
            if {*inside} - {*came, name}:
                self.wrong.append(f"{name} while {inside} of {key} are on their way")
            inside.append(name)
            try:
                await asyncio.sleep(self.chance.choice([0.001, 0.05, 0.4]))
            finally:
                inside.remove(name)
        dice = 1.0 if self.calm else self.chance.random()
        if dice < 0.2:
            return Answer(AnswerKind.FAILED, reason="HTTP_500: no")
        if dice < 0.28:
            return Answer(AnswerKind.REFUSED, reason="NO")
        if name not in came:
            came.append(name)
        # It may have been taken, and its answer lost.
        return Answer(AnswerKind.FAILED, reason="TIMED_OUT") if dice < 0.4 else Answer(AnswerKind.DONE)

    async def close(self) -> None: ...


def message(number: int, key: str) -> Branch:
    action = Action("Told", delivery=Delivery(order_key=key))
    return Branch(str(number), Kind.MESSAGE, resource=TARGET, action=action)


async def explore(seed: int) -> list[str]:
    """What was wrong."""
    chance = random.Random(seed)
    wanted: dict[str, list[str]] = {"a": [], "b": []}
    async with a_place() as place:
        receiver = Receiver(chance)
        place.participants = receiver
        for n in range(3):
            await place.node(f"n{n}", lease_us=LEASE_US)
        for n in range(25):
            await _trouble(place, chance, n)
            tx = place.tx()
            keys = chance.choice(["a", "b", "ab", "aa"])
            branches = [message(at, key) for at, key in enumerate(keys, 1)]
            while True:
                try:
                    await chance.choice(place.nodes).commit(tx, *branches)
                    break
                except LogUnavailable:
                    place.storage.down = False
            for branch, key in zip(branches, keys, strict=True):
                wanted[key].append(f"{tx.tx_id}.{branch.id}")
            await asyncio.sleep(chance.choice([0, 0.01, 0.5]))
        receiver.calm, place.storage.down = True, False
        if not await _all_end(place):
            return ["not all have ended"]
    for key, names in wanted.items():
        if receiver.came.get(key, []) != names:
            receiver.wrong.append(f"{key}: {receiver.came.get(key)} instead of {names}")
    return receiver.wrong


async def _trouble(place: Place, chance: random.Random, number: int) -> None:
    dice = chance.random()
    if dice < 0.15:
        await place.kill(chance.choice(place.nodes))
        await place.node(f"m{number}", lease_us=LEASE_US)
    elif dice < 0.25:
        place.storage.down = not place.storage.down
    elif dice < 0.5:
        await _retry(place, chance.choice(place.nodes), 1)


async def _retry(place: Place, node: Node, most: int) -> None:
    """An operator sends again what is parked."""
    parked = [
        (tx.tx_id, b.id)
        for tx in place.storage.rows.values()
        for b in tx.branches
        if b.state is BranchState.PARKED
    ]
    for tx_id, branch in parked[:most]:
        order = Operate("retry", branch, Audit("ann", "again", "retry", place.clock.now_us(), branch))
        try:
            await node.coordinator.operate(tx_id, order)
        except LogUnavailable:
            return


async def _all_end(place: Place) -> bool:
    for _ in range(400):
        await _retry(place, place.nodes[0], 100)
        await asyncio.sleep(1)
        if all(b.state in SETTLED_BRANCH for tx in place.storage.rows.values() for b in tx.branches):
            return True
    return False


@pytest.mark.parametrize("seed", range(SEEDS))
def test_each_key_comes_in_the_order_of_its_commits(seed: int) -> None:
    assert not run(explore(seed))


def test_if_nobody_gives_the_turn_on_each_asks_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ordering, "ended", lambda *_: None)
    assert not run(explore(1))


def test_a_turn_that_a_node_died_with_is_not_waited_for() -> None:
    """It was put off for long, then pulled, and the node that pulled it died: the next node sends it at once."""

    async def main() -> None:
        async with a_place() as place:
            receiver = Receiver(random.Random(1))
            receiver.calm = True
            place.participants = receiver
            node = await place.node("n1", lease_us=LEASE_US)
            txs = [place.tx() for _ in range(60)]
            for tx in txs:
                await node.commit(tx, message(1, "a"))
            while len(receiver.came.get("a", [])) < 45:  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(0.05)
            await place.kill(node)
            begun = place.clock.monotonic()
            await place.node("n2", lease_us=LEASE_US)
            while len(receiver.came["a"]) < 60:  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(0.05)
            # Its lease, a look or two, and 15 that take 0.4 s at most.
            assert place.clock.monotonic() - begun < 15
            assert receiver.came["a"] == [f"{tx.tx_id}.1" for tx in txs]

    run(main())


def _goes_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ordering, "ask", lambda _self, _key, waiting: waiting.go())


def _parked_lets_others_go(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ordering, "SETTLED_BRANCH", SETTLED_BRANCH | {BranchState.PARKED})


def _goes_when_the_log_is_away(patch: pytest.MonkeyPatch) -> None:
    some = Ordering._some

    async def hasty(self: Any) -> None:
        try:
            await some(self)
        except LogUnavailable:
            for waiting in list(self._asking.values()):
                waiting.go()
            self._asking.clear()

    patch.setattr(Ordering, "_some", hasty)


def _takes_no_place(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("txcoord.testing.memory_log.places_of", lambda _change: ())


@pytest.mark.parametrize(
    "plant", [_goes_at_once, _parked_lets_others_go, _goes_when_the_log_is_away, _takes_no_place]
)
def test_a_bug_that_is_planted_is_found(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert any(run(explore(seed)) for seed in range(SEEDS))
