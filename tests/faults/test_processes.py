"""Real processes under load: what is killed or stopped at a chosen moment. The bank of the demo, and its checker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from examples.smallbank.check import COMMITTED
from examples.smallbank.clients import Clients
from examples.smallbank.history import History
from examples.smallbank.run import settled, verdict_of
from examples.smallbank.world import DATABASES, World, in_thread
from txcoord_client import Coordinator, OutcomeUnknown, Unavailable

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

_PATIENCE_S = 60.0


class Bank:
    """A world with its clients, from the first payment to the last."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.history = History()
        self.history.add("world", **world.description())
        self.clients = Clients(world.addresses, world.accounts, 1.0, "pay", self.history)

    async def while_it_works(self, act: Callable[[], Awaitable[None]]) -> None:
        """``act`` under load; then everything must be well, and go on."""

        async def acting() -> None:
            await self.committed(10)
            await act()
            await self.committed(10)

        task = asyncio.ensure_future(acting())
        await self.clients.run(8, lambda: not task.done())
        await task
        await settled(self.world, self.history)
        assert (await verdict_of(self.world, self.clients, self.history)).anomalies == []

    async def committed(self, more: int) -> None:
        """Until so many more payments are."""
        wanted = self.clients.told[COMMITTED] + more
        async with asyncio.timeout(_PATIENCE_S):
            while self.clients.told[COMMITTED] < wanted:  # noqa: ASYNC110 - they are counted by others
                await asyncio.sleep(0.01)

    async def kill(self, *victims: str) -> None:
        await asyncio.gather(*(in_thread(self.world.kill, victim) for victim in victims))

    async def back(self, *victims: str) -> None:
        for victim in victims:
            await in_thread(self.world.start, victim)
        for victim in victims:
            await in_thread(self.world.await_ready, victim)

    async def dies_at(self, failpoint: str) -> None:
        """The coordinator is started again, and kills itself where it is told to."""
        coordinator = self.world.coordinator
        await self.kill("coordinator")
        coordinator.env["TXCOORD_FAILPOINTS"] = failpoint
        try:
            await in_thread(self.world.start, "coordinator")
            await asyncio.wait_for(in_thread(coordinator.wait), _PATIENCE_S)
        finally:
            del coordinator.env["TXCOORD_FAILPOINTS"]
        assert coordinator.exit_code == -9


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "postgresql"])
async def bank(request: pytest.FixtureRequest) -> AsyncIterator[Bank]:
    async with World(log=request.param, accounts=100) as world:
        yield Bank(world)


on_postgresql = pytest.mark.parametrize("bank", ["postgresql"], indirect=True)


async def test_sigterm_drains_and_exits_with_0(bank: Bank) -> None:
    async def act() -> None:
        for process in (bank.world.coordinator, bank.world.service):
            assert await in_thread(process.stop) == 0
            await in_thread(process.start)

    await bank.while_it_works(act)


async def test_both_databases_die_at_once(bank: Bank) -> None:
    async def act() -> None:
        await bank.kill(*DATABASES)
        await bank.back(*DATABASES)

    await bank.while_it_works(act)


async def test_dies_twice_in_a_row_while_it_recovers(bank: Bank) -> None:
    async def act() -> None:
        await bank.dies_at("commit.after_write=kill@5")
        await bank.dies_at("takeover.after_claim=kill@1")
        await bank.dies_at("takeover.after_claim=kill@1")
        await bank.back("coordinator")

    await bank.while_it_works(act)


@pytest.mark.parametrize(
    ("bank", "failpoint"),
    [
        ("sqlite", "begin.after_write"),
        ("sqlite", "commit.before_write"),
        ("sqlite", "finish.before"),
        ("postgresql", "finish.after"),
        ("postgresql", "rollback.after_write"),
        ("postgresql", "report.before_write"),
    ],
    indirect=["bank"],
)
async def test_dies_at_a_failpoint_under_load(bank: Bank, failpoint: str) -> None:
    async def act() -> None:
        await bank.dies_at(f"{failpoint}=kill@3")
        await bank.back("coordinator")

    await bank.while_it_works(act)


@on_postgresql
async def test_the_logs_server_dies_in_mid_flight(bank: Bank) -> None:
    async def act() -> None:
        await bank.kill("log")
        await bank.back("log")

    await bank.while_it_works(act)


@on_postgresql
async def test_without_its_log_nobody_is_told_a_false_answer(bank: Bank) -> None:
    world = bank.world
    engines = {name: create_async_engine(world.servers[name].url()) for name in DATABASES}
    for name in DATABASES:
        world.servers[name].sql("CREATE TABLE witness (gid text NOT NULL)")
    async with Coordinator(world.coordinator.address, resources=engines, call_timeout=1.0) as coord:

        async def bear_witness(gid: str) -> None:
            async with coord.begin("witness", gid=gid, timeout=3.0) as g:
                for engine in engines.values():
                    async with g.xa(engine) as db:
                        await db.execute(text("INSERT INTO witness VALUES (:gid)"), {"gid": gid})
                await bank.kill("log")

        with pytest.raises(OutcomeUnknown) as told:
            await bear_witness("witness-1")
        with pytest.raises(Unavailable):
            await bear_witness("witness-2")
        await bank.back("log")
        await in_thread(world.coordinator.wait_ready)
        outcome = await coord.settle(told.value, timeout=_PATIENCE_S)
        await world.settled()
        there = [world.servers[name].sql("SELECT gid FROM witness") for name in DATABASES]
        assert there == (["witness-1"] * 2 if outcome.committed else [""] * 2)
        later = await coord.get("witness-1")
        assert later is not None
        assert later.committed == outcome.committed
    for engine in engines.values():
        await engine.dispose()
