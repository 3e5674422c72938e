"""The gate: what is urgent leaves at once and together, what is lazy rides along or waits for a tick."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest

from txcoord.coalesce import Gate


class World:
    """A gate whose flushes and ticks the test controls."""

    def __init__(self, limit: int = 1000) -> None:
        self.flushed: list[tuple[list[str], bool]] = []
        self.refuse_lazy = False
        self.broken = False
        self.ticks = asyncio.Semaphore(0)
        self.open = asyncio.Event()
        self.open.set()
        self.gate: Gate[str] = Gate(self._flush, tick=self._tick, limit=limit)

    async def _flush(self, items: list[str], urgent: bool) -> list[str]:
        await self.open.wait()
        if self.broken:
            raise RuntimeError("a flush never raises; if it does all the same, nobody may hang")
        self.flushed.append((items, urgent))
        return [i for i in items if i.startswith("lazy")] if self.refuse_lazy else []

    async def _tick(self) -> None:
        await self.ticks.acquire()

    def add(self, *items: str) -> None:
        for item in items:
            self.gate.add(item, urgent=not item.startswith("lazy"))

    def hold(self) -> None:
        self.open.clear()

    async def until(self, count: int) -> None:
        """Until so many flushes have been made."""
        async with asyncio.timeout(5):
            while len(self.flushed) < count:  # noqa: ASYNC110 - the loop itself is what is waited for
                await asyncio.sleep(0)

    async def rest(self) -> None:
        """Let everything happen that can happen by itself."""
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    world.gate.abandon()


async def test_one_alone_leaves_at_once(world: World) -> None:
    world.add("a")
    await world.until(1)
    assert world.flushed == [(["a"], True)]


async def test_what_arrives_during_a_flush_leaves_together(world: World) -> None:
    world.hold()
    world.add("a")
    await world.rest()
    for n in range(64):
        world.add(str(n))
    world.open.set()
    await world.until(2)
    assert world.flushed[1] == ([str(n) for n in range(64)], True)


async def test_a_flush_is_limited() -> None:
    world = World(limit=10)
    world.add(*(str(n) for n in range(25)))
    await world.until(3)
    assert [len(items) for items, _ in world.flushed] == [10, 10, 5]


async def test_lazy_waits_for_a_tick(world: World) -> None:
    world.add("lazy1", "lazy2")
    await world.rest()
    assert world.flushed == []
    world.ticks.release()
    await world.until(1)
    assert world.flushed == [(["lazy1", "lazy2"], False)]


async def test_lazy_rides_along(world: World) -> None:
    world.add("lazy1", "a", "lazy2")
    await world.until(1)
    assert world.flushed == [(["lazy1", "a", "lazy2"], True)]


async def test_one_tick_for_many(world: World) -> None:
    world.add("lazy1")
    world.add("a")
    await world.until(1)
    world.add("lazy2")
    await world.rest()
    assert len(world.flushed) == 1
    world.ticks.release()
    await world.until(2)
    assert world.flushed[1] == (["lazy2"], False)


async def test_settle_writes_what_waits(world: World) -> None:
    assert await world.gate.settle()
    world.add("lazy1")
    assert await world.gate.settle()
    assert world.flushed == [(["lazy1"], False)]
    assert await world.gate.settle()
    assert len(world.flushed) == 1


async def test_settle_waits_for_a_flush_under_way(world: World) -> None:
    world.hold()
    world.add("lazy1", "a")
    await world.rest()
    settling = asyncio.create_task(world.gate.settle())
    await world.rest()
    assert not settling.done()
    world.open.set()
    assert await settling
    assert len(world.flushed) == 1


async def test_settle_does_not_wait_for_what_came_later(world: World) -> None:
    world.add("lazy1")
    world.hold()
    settling = asyncio.create_task(world.gate.settle())
    await world.rest()
    world.add("lazy2")
    world.open.set()
    assert await settling


async def test_what_could_not_be_written_comes_back_in_its_place(world: World) -> None:
    world.refuse_lazy = True
    world.add("lazy1", "lazy2")
    assert not await world.gate.settle()
    world.add("lazy3", "a")
    await world.until(2)
    assert world.flushed[1] == (["lazy1", "lazy2", "lazy3", "a"], True)
    await world.rest()
    assert len(world.flushed) == 2, "what is lazy is not tried again without a tick"
    world.refuse_lazy = False
    world.ticks.release()
    await world.until(3)
    assert world.flushed[2] == (["lazy1", "lazy2", "lazy3"], False)
    assert await world.gate.settle()


async def test_close_flushes_everything(world: World) -> None:
    world.add("lazy1", "a")
    world.hold()
    await world.rest()
    world.add("b", "lazy2")
    closing = asyncio.create_task(world.gate.close())
    await world.rest()
    world.open.set()
    assert await closing == []
    assert sum(len(items) for items, _ in world.flushed) == 4


async def test_close_gives_back_what_cannot_be_written(world: World) -> None:
    world.refuse_lazy = True
    world.add("lazy1")
    assert await world.gate.close() == ["lazy1"]


async def test_abandon_flushes_nothing(world: World) -> None:
    world.hold()
    world.add("a")
    await world.rest()
    world.add("b", "lazy1")
    settling = asyncio.create_task(world.gate.settle())
    await world.rest()
    assert world.gate.abandon() == ["b", "lazy1"]
    assert not await settling
    world.open.set()
    await world.rest()
    assert world.flushed == []
    assert len(world.gate) == 0


async def test_a_flush_that_raises_hangs_nobody(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.broken = True
    world.add("lazy1")
    assert not await world.gate.settle()
    world.broken = False
    world.add("a")
    await world.until(1)
    world.add("lazy2")
    assert await world.gate.settle()
    gc.collect()
    assert "RuntimeError" in caplog.text


async def test_hooks(world: World) -> None:
    seen: list[str] = []

    async def before() -> None:
        seen.append(f"before, {len(world.gate)} wait")

    async def during() -> None:
        seen.append(f"in, {len(world.gate)} wait")

    world.gate.before_flush, world.gate.in_flush = before, during
    world.add("a")
    await world.until(1)
    assert seen == ["before, 1 wait", "in, 0 wait"]
