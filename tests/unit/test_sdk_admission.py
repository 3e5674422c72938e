"""Admission to pools: fair, and never a deadlock between pools."""

from __future__ import annotations

import asyncio

import pytest

from txcoord_client._admission import Admission
from txcoord_client.errors import ResourceBusy


def soon(seconds: float = 20.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def waiting(*tasks: asyncio.Task[None]) -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


@pytest.mark.parametrize("size", [1, 2, 5, 15])
@pytest.mark.parametrize("pools", [2, 3])
async def test_many_callers_in_opposite_orders_all_get_through(size: int, pools: int) -> None:
    admission = Admission()
    used = dict.fromkeys(range(pools), 0)

    async def caller(number: int) -> None:
        holder = object()
        order = [(number + i) % pools for i in range(pools)]
        if number % 2:
            order.reverse()
        for pool in order:
            await admission.enter(holder, pool, f"pool {pool}", size, soon())
            used[pool] += 1
            assert used[pool] <= size
            await asyncio.sleep(0)
        for pool in order:
            used[pool] -= 1
            admission.leave(holder, pool)

    await asyncio.gather(*(caller(n) for n in range(256)))
    assert not any(used.values())


async def test_first_come_first_served() -> None:
    admission = Admission()
    holders = [object() for _ in range(3)]
    await admission.enter(holders[0], "p", "p", 1, soon())
    order: list[int] = []

    async def caller(number: int) -> None:
        await admission.enter(holders[number], "p", "p", 1, soon())
        order.append(number)
        admission.leave(holders[number], "p")

    tasks = [asyncio.ensure_future(caller(n)) for n in (1, 2)]
    await waiting(*tasks)
    admission.leave(holders[0], "p")
    await asyncio.gather(*tasks)
    assert order == [1, 2]


async def test_whoever_holds_something_goes_before_whoever_holds_nothing() -> None:
    admission = Admission()
    first, new, second, reserve = object(), object(), object(), object()
    await admission.enter(reserve, "a", "a", 2, soon())
    await admission.enter(first, "a", "a", 2, soon())  # the reserve of all pools is now first's
    await admission.enter(second, "b", "b", 3, soon())
    order: list[object] = []

    async def caller(holder: object) -> None:
        await admission.enter(holder, "a", "a", 2, soon())
        order.append(holder)

    tasks = [asyncio.ensure_future(caller(new)), asyncio.ensure_future(caller(second))]
    await waiting(*tasks)
    admission.leave(reserve, "a")
    admission.leave(first, "a")
    await asyncio.gather(*tasks)
    assert order == [second, new]


async def test_no_room_until_the_deadline_names_the_pool() -> None:
    admission = Admission()
    one, two, three = object(), object(), object()
    await admission.enter(one, "p", "accounts", 1, soon())
    with pytest.raises(ResourceBusy, match="'accounts'") as caught:
        await admission.enter(two, "p", "accounts", 1, soon(0.01))
    assert caught.value.reason == "RESOURCE_BUSY"
    assert caught.value.facts == {"resource": "accounts", "pool_size": "1"}
    admission.leave(one, "p")
    await admission.enter(three, "p", "accounts", 1, soon())


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    admission = Admission()
    one, two, three = object(), object(), object()
    await admission.enter(one, "p", "p", 1, soon())
    task = asyncio.ensure_future(admission.enter(two, "p", "p", 1, soon()))
    await waiting(task)
    admission.leave(one, "p")  # granted to two ...
    task.cancel()  # ... which is cancelled in the same moment
    with pytest.raises(asyncio.CancelledError):
        await task
    await admission.enter(three, "p", "p", 1, soon())


async def test_a_pool_without_a_limit_admits_all() -> None:
    admission = Admission()
    for _ in range(100):
        await admission.enter(object(), "p", "p", 0, soon())
