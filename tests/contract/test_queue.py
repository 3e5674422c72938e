"""Contract of the queue: never early, nobody waits for another's target, bounded, and harmless when it repeats itself.

It carries no promise: that nothing is lost is the log's to see to (see ``tests/unit/test_engine_handing.py``).
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pytest

from tests.support.kafka_queue import KafkaPlace
from txcoord.adapters.embedded import EmbeddedQueue, SystemClock, Tasks
from txcoord.ports import Clock, Due, Queue

Carry = Callable[[Sequence[Due]], Awaitable[None]]
WITHIN_S = 30.0


class Place(Protocol):
    """Where a kind of queue is tested."""

    clock: Clock
    soon_s: float
    """What is put is due no sooner than this, so that the kind of queue can tell its times apart."""
    most: int
    """So many of one target are carried out at a time, at most."""
    keeps: bool
    """What was not consumed when it was stopped comes again with the next queue of this place."""

    async def queue(self) -> Queue:
        """One more queue, not started."""
        ...

    async def close(self) -> None: ...


class EmbeddedPlace:
    soon_s = 0.05
    most = 20
    keeps = False

    def __init__(self) -> None:
        self.clock: Clock = SystemClock()
        self._tasks = Tasks()

    async def queue(self) -> Queue:
        return EmbeddedQueue(self.clock, self._tasks.spawn, batch=7, width=self.most, keep=500)

    async def close(self) -> None:
        await self._tasks.stop()
        assert self._tasks.crashes == 0


@dataclass
class Carried:
    """Who carries out, and what came when."""

    clock: Clock
    hung: str = ""
    """The target whose attempts never end."""
    came: list[tuple[Due, int]] = field(default_factory=list)
    broken: bool = False

    async def __call__(self, due: Sequence[Due]) -> None:
        now_us = self.clock.now_us()
        self.came += [(one, now_us) for one in due]
        if self.hung and any(one.target == self.hung for one in due):
            await asyncio.get_running_loop().create_future()
        if self.broken:
            raise RuntimeError("it is broken")

    def ids(self) -> Counter[str]:
        return Counter(due.tx_id for due, _ in self.came)

    def early(self) -> list[Due]:
        return [due for due, at_us in self.came if at_us < due.due_us]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():  # noqa: ASYNC110 - whatever happens next is in another process, perhaps
            await asyncio.sleep(0.005)


class TestQueue:
    @pytest.fixture(params=["embedded", "kafka"])
    async def place(self, request: pytest.FixtureRequest) -> AsyncIterator[Place]:
        place: EmbeddedPlace | KafkaPlace = EmbeddedPlace()
        if request.param == "kafka":
            place = KafkaPlace(request.getfixturevalue("kafka"))
        yield place
        await place.close()

    @pytest.fixture
    def carried(self, place: Place) -> Carried:
        return Carried(place.clock)

    @pytest.fixture
    async def queue(self, place: Place, carried: Carried) -> AsyncIterator[Queue]:
        queue = await place.queue()
        await queue.start(carried)
        yield queue
        await queue.stop()

    def due(self, place: Place, number: int, in_s: float = 0.0, target: str = "stock") -> Due:
        due_us = place.clock.now_us() + round((place.soon_s + in_s) * 1_000_000)
        return Due(f"{number:032x}", 3, due_us, "shop", target, "1", 2)

    async def test_never_early_whatever_the_order(self, place: Place, queue: Queue, carried: Carried) -> None:
        numbers = list(range(100))
        random.Random(3).shuffle(numbers)
        put = [self.due(place, n, n * 0.005) for n in numbers]
        for due in put:
            queue.put(due)
        await until(lambda: len(carried.ids()) == 100)
        assert {due for due, _ in carried.came} == set(put)
        assert not carried.early()

    async def test_what_is_due_later_holds_nothing_up(
        self, place: Place, queue: Queue, carried: Carried
    ) -> None:
        queue.put(self.due(place, 1, 3600.0))
        for number in range(2, 6):
            queue.put(self.due(place, number))
            await until(lambda number=number: carried.ids()[f"{number:032x}"])
        assert not carried.early()
        assert f"{1:032x}" not in carried.ids()

    async def test_again_and_again(self, place: Place, queue: Queue, carried: Carried) -> None:
        """Duplicates come, all or some of them, and stop nothing."""
        due = [self.due(place, n) for n in range(10)]
        for one in [*due, *due, *due]:
            queue.put(one)
        await until(lambda: len(carried.ids()) == 10)
        queue.put(due[0])  # Long past.
        queue.put(self.due(place, 11))
        await until(lambda: len(carried.ids()) == 11)

    async def test_a_target_that_hangs_holds_up_no_other_and_is_bounded(
        self, place: Place, queue: Queue, carried: Carried
    ) -> None:
        carried.hung = "hangs"
        for number in range(place.most + 30):
            queue.put(self.due(place, number, target="hangs"))
        for number in range(1000, 1010):
            queue.put(self.due(place, number, 0.1))
        came = lambda target: sum(due.target == target for due, _ in carried.came)  # noqa: E731
        await until(lambda: came("stock") >= 10 and came("hangs"))
        assert came("hangs") <= place.most
        assert sum(queue.depth().values()) >= 30

    async def test_attempts_that_break_stop_nothing(
        self, place: Place, queue: Queue, carried: Carried
    ) -> None:
        carried.broken = True
        queue.put(self.due(place, 1))
        await until(lambda: carried.came)
        carried.broken = False
        queue.put(self.due(place, 2))
        await until(lambda: f"{2:032x}" in carried.ids())

    async def test_how_much_waits(self, place: Place, queue: Queue, carried: Carried) -> None:
        for number in range(5):
            queue.put(self.due(place, number, 0.5))
        assert sum(queue.depth().values()) == 5
        await until(lambda: len(carried.ids()) == 5)
        await until(lambda: sum(queue.depth().values()) == 0)

    async def test_stopped_it_gives_nothing_out_and_keeps_the_rest(self, place: Place) -> None:
        first, ended = Carried(place.clock, hung="hangs"), asyncio.Event()

        async def carry(due: Sequence[Due]) -> None:
            try:
                await first(due)
            finally:
                ended.set()

        queue = await place.queue()
        await queue.start(carry)
        queue.put(self.due(place, 1, target="hangs"))
        queue.put(self.due(place, 2, 1.0))
        await until(lambda: first.came)
        await queue.stop()
        assert ended.is_set()  # It was not consumed.
        queue.put(self.due(place, 3))
        await queue.stop()
        again = await place.queue()
        second = Carried(place.clock)
        await again.start(second)
        again.put(self.due(place, 4, 1.0))
        wanted = {1, 2, 4} if place.keeps else {4}
        await until(lambda: second.ids().keys() >= {f"{n:032x}" for n in wanted})
        assert not second.early()
        assert len(first.came) == 1
        await again.stop()


async def test_embedded_what_is_too_much_is_left_to_the_log() -> None:
    place = EmbeddedPlace()
    queue = await place.queue()
    for number in range(600):
        queue.put(Due(f"{number:032x}", 1, place.clock.now_us() + 3_600_000_000))
    assert queue.depth() == {"waiting": 500, "due": 0}
    await queue.stop()
