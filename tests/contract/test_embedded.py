"""What a node takes from its own machine: clock, randomness, tasks, leases within one process."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest
import structlog
from structlog.testing import capture_logs

from txcoord.adapters.embedded import InProcessLeases, SystemClock, SystemRandomness, Tasks
from txcoord.wiring.careful import CarefulLeases

SECOND = 1_000_000


class Machine:
    """A machine whose two clocks a test can turn."""

    def __init__(self) -> None:
        self.wall_us = 1_800_000_000 * SECOND
        self.monotonic_us = 5_000 * SECOND
        self.clock = SystemClock(wall_us=lambda: self.wall_us, monotonic_us=lambda: self.monotonic_us)

    def pass_(self, us: int) -> None:
        self.wall_us += us
        self.monotonic_us += us


# ---- clock ----


def test_it_is_the_machines_clock_until_the_log_has_spoken() -> None:
    m = Machine()
    assert m.clock.now_us() == m.wall_us
    m.pass_(SECOND)
    assert m.clock.now_us() == m.wall_us


def test_it_follows_the_log() -> None:
    m = Machine()
    m.clock.observe(m.wall_us + 7 * SECOND)
    assert m.clock.now_us() == m.wall_us + 7 * SECOND
    assert m.clock.ahead_us == -7 * SECOND


def test_a_jump_of_the_wall_clock_does_not_move_it_but_is_noticed() -> None:
    m = Machine()
    m.clock.observe(m.wall_us)
    assert not m.clock.is_off(2 * SECOND)
    before = m.clock.now_us()
    m.wall_us += 3600 * SECOND
    assert m.clock.now_us() == before
    assert m.clock.is_off(2 * SECOND)
    m.wall_us -= 2 * 3600 * SECOND
    assert m.clock.now_us() == before
    assert m.clock.is_off(2 * SECOND)


def test_a_slow_reply_does_not_set_it_back() -> None:
    m = Machine()
    m.clock.observe(m.wall_us)
    m.pass_(SECOND)
    m.clock.observe(m.wall_us - 300_000)  # Said 300 ms ago.
    assert m.clock.now_us() == m.wall_us


def test_a_log_whose_clock_was_set_back_is_followed_in_the_end() -> None:
    m = Machine()
    m.clock.observe(m.wall_us)
    for _ in range(15):
        m.pass_(SECOND)
        m.clock.observe(m.wall_us - 60 * SECOND)
    assert m.clock.now_us() == m.wall_us - 60 * SECOND


def test_a_log_whose_clock_was_set_forward_is_followed_at_once() -> None:
    m = Machine()
    m.clock.observe(m.wall_us)
    m.pass_(SECOND)
    m.clock.observe(m.wall_us + 60 * SECOND)
    assert m.clock.now_us() == m.wall_us + 60 * SECOND


def test_after_a_long_silence_only_the_new_counts() -> None:
    m = Machine()
    m.clock.observe(m.wall_us)
    m.pass_(600 * SECOND)
    m.clock.observe(m.wall_us - SECOND)
    assert m.clock.now_us() == m.wall_us - SECOND


def test_the_real_one_moves_on() -> None:
    clock = SystemClock()
    assert clock.now_us() <= clock.now_us()
    assert clock.monotonic() <= clock.monotonic()
    assert not clock.is_off(SECOND)


# ---- leases: the same as tests/contract/test_leases.py asks of the SQL ones ----


async def test_a_lease_is_held_by_one_until_it_runs_out() -> None:
    m = Machine()
    leases = InProcessLeases(m.clock.now_us)
    first = await leases.acquire("scan:a", "one", 10 * SECOND)
    assert first is not None
    assert await leases.acquire("scan:a", "two", 10 * SECOND) is None
    assert await leases.acquire("scan:b", "two", 10 * SECOND) is not None
    m.pass_(11 * SECOND)
    second = await leases.acquire("scan:a", "two", 10 * SECOND)
    assert second is not None
    assert second > first


async def test_its_owner_keeps_it_and_gives_it_back() -> None:
    m = Machine()
    leases = InProcessLeases(m.clock.now_us)
    first = await leases.acquire("scan:a", "one", 10 * SECOND)
    m.pass_(9 * SECOND)
    again = await leases.acquire("scan:a", "one", 10 * SECOND)
    assert first is not None
    assert again is not None
    assert again > first
    m.pass_(9 * SECOND)
    assert await leases.acquire("scan:a", "two", 10 * SECOND) is None
    await leases.release("scan:a", "two")
    assert await leases.acquire("scan:a", "two", 10 * SECOND) is None
    await leases.release("scan:a", "one")
    third = await leases.acquire("scan:a", "two", 10 * SECOND)
    assert third is not None
    assert third > again


async def test_a_node_whose_clock_is_off_gets_no_lease() -> None:
    m = Machine()
    leases = CarefulLeases(InProcessLeases(m.clock.now_us), m.clock, 2 * SECOND)
    assert await leases.acquire("scan:a", "one", SECOND) is not None
    m.wall_us += 10 * SECOND
    assert await leases.acquire("scan:a", "one", SECOND) is None
    m.wall_us -= 10 * SECOND
    assert await leases.acquire("scan:a", "one", SECOND) is not None


# ---- randomness ----


def test_draws() -> None:
    randomness = SystemRandomness()
    assert all(0.0 <= randomness.random() < 1.0 for _ in range(100))
    assert all(0 <= randomness.getrandbits(5) < 32 for _ in range(100))
    assert len({randomness.getrandbits(64) for _ in range(100)}) == 100


# ---- tasks ----


@pytest.fixture
def logged() -> Iterator[list[structlog.typing.EventDict]]:
    with capture_logs() as entries:
        yield entries


async def test_a_task_is_not_collected_unfinished() -> None:
    tasks = Tasks()
    gate = asyncio.Event()
    ended = asyncio.Event()

    async def work() -> None:
        await gate.wait()
        ended.set()

    tasks.spawn(work(), "work")
    await asyncio.sleep(0)
    gc.collect()
    gate.set()
    async with asyncio.timeout(10):
        await ended.wait()
    await tasks.stop()
    assert len(tasks) == 0


async def test_a_crash_is_logged_and_harms_no_other(logged: list[structlog.typing.EventDict]) -> None:
    tasks = Tasks()

    async def crash() -> None:
        raise RuntimeError("no")

    async def wait() -> None:
        await asyncio.Event().wait()

    tasks.spawn(wait(), "waiting")
    crashing = tasks.spawn(crash(), "crashing")
    await asyncio.wait({crashing})
    await asyncio.sleep(0)
    assert tasks.crashes == 1
    assert [(e["event"], e["task"]) for e in logged] == [("task.crashed", "crashing")]
    assert len(tasks) == 1
    await tasks.stop()


async def test_stop_ends_all_and_those_they_start_meanwhile() -> None:
    tasks = Tasks()
    ended = []

    async def last() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("last")

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            tasks.spawn(last(), "last")
            await asyncio.sleep(0)
            ended.append("stubborn")

    tasks.spawn(stubborn(), "stubborn")
    await asyncio.sleep(0)
    await tasks.stop()
    assert "stubborn" in ended
    assert len(tasks) == 0


async def test_stop_ends_also_what_forgets_that_it_was_cancelled() -> None:
    """As ``asyncio.wait_for`` of Python 3.11 does where the answer is there in the same moment."""
    tasks = Tasks(again_s=0.01)
    forgot = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            forgot.set()
        await asyncio.Event().wait()

    task = tasks.spawn(work(), "forgets")
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await tasks.stop()
    assert forgot.is_set()
    assert task.cancelled()
