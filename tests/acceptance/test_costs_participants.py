"""What TCC and sagas cost, counted: forced writes of a real log, over gRPC, whatever the number of branches.

A forced write is a flush that is synced for somebody's sake. What needs no sync of its own goes with the next flush.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.acceptance import new_gid
from tests.support.databases import Databases
from txcoord.adapters.sql.migrate import migrate
from txcoord.config import Settings
from txcoord.testing.postgres import PostgresServer
from txcoord.wiring import Node
from txcoord_client import Aborted, Coordinator, Participant, Refused, saga
from txcoord_client._answers import Answer, Call

COUNTS = (2, 5, 20)


class Stock(Participant):
    """It only answers."""

    def __init__(self) -> None:
        super().__init__("stock")
        self.refuses = ""
        self.seen: list[str] = []

    async def execute(self, call: Call) -> Answer:
        self.seen.append(f"{call.op} {call.operation}")
        if call.operation == f"stock.{self.refuses}" and call.op == "action":
            return Answer.refused(Refused("OUT_OF_STOCK"))
        return Answer.done()


@dataclass
class Place:
    node: Node
    coord: Coordinator
    stock: Stock
    reserve: Any
    steps: list[Any]

    async def forced(self, work: Callable[[], Any]) -> int:
        """How many forced writes came of it, until nothing is left to write."""
        await self.node.log.settle()
        before = self.node.log.forced_flushes
        await work()
        await self.node.log.settle()
        return self.node.log.forced_flushes - before


@pytest.fixture(params=["sqlite", "postgresql"])
async def place(
    request: pytest.FixtureRequest, pg18: PostgresServer, pg_database: Databases, tmp_path: Path
) -> AsyncIterator[Place]:
    url = f"sqlite+aiosqlite:///{tmp_path}/log.db"
    if request.param == "postgresql":
        url = pg_database(pg18)
    stock = Stock()

    class Reserve:
        async def attempt(self, db: Any, *, n: int) -> None: ...
        async def confirm(self, db: Any) -> None: ...
        async def cancel(self, db: Any) -> None: ...

    stock.tcc(Reserve)
    steps = [_step(stock, f"step{n}") for n in range(1, max(COUNTS) + 1)]
    server = grpc.aio.server()
    stock.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await migrate(url)
    settings = Settings(listen="127.0.0.1:0", log={"url": url})  # type: ignore[arg-type]
    targets = {"stock": f"grpc://127.0.0.1:{port}"}
    try:
        async with Node(settings) as node, Coordinator(node.address, participants=targets) as coord:
            yield Place(node, coord, stock, Reserve, steps)
    finally:
        await server.stop(0)


def _step(stock: Stock, name: str) -> Any:
    async def act(db: Any) -> None: ...
    async def undo(db: Any) -> None: ...

    act.__name__ = name
    action = stock.action(act)
    action.compensate(undo)
    return action


def flow(place: Place, count: int, *, side_by_side: bool = False) -> Any:
    made = saga("ship")
    for step in place.steps[:count]:
        made = made.step(step, after=[]) if side_by_side else made.step(step)
    return made


@pytest.mark.parametrize("side_by_side", [False, True])
async def test_a_saga_is_one_forced_write(place: Place, side_by_side: bool) -> None:
    for count in COUNTS:
        plan = flow(place, count, side_by_side=side_by_side)

        async def work(plan: Any = plan) -> None:
            run = await place.coord.submit(plan, gid=new_gid("ship"))
            assert (await run.wait()).state == "COMMITTED"

        assert await place.forced(work) <= 1
    assert len(place.stock.seen) == sum(COUNTS)


async def test_a_saga_that_is_undone_is_two(place: Place) -> None:
    """Its abort is on disk before anything is undone."""
    for count in COUNTS:
        place.stock.refuses = f"step{count}"
        plan = flow(place, count)

        async def work(plan: Any = plan) -> None:
            run = await place.coord.submit(plan, gid=new_gid("ship"))
            with pytest.raises(Aborted):
                await run.wait()

        assert await place.forced(work) <= 2


async def test_tcc_with_its_tries_together_is_two(place: Place) -> None:
    for count in COUNTS:

        async def work(count: int = count) -> None:
            async with place.coord.begin("buy") as g:
                await asyncio.gather(*(g.tcc(place.reserve, n=n) for n in range(count)))
            assert g.outcome is not None
            assert g.outcome.state == "COMMITTED"

        assert await place.forced(work) <= 2
    assert place.stock.seen.count("confirm stock.Reserve") == sum(COUNTS)


async def test_tries_in_a_plan_are_two(place: Place) -> None:
    for count in COUNTS:
        plan = saga("buy")
        for n in range(count):
            plan = plan.tcc(place.reserve, name=f"reserve{n}")

        plan = plan.step(place.steps[0])

        async def work(plan: Any = plan) -> None:
            run = await place.coord.submit(plan, data={"n": 1})
            assert (await run.wait()).state == "COMMITTED"

        assert await place.forced(work) <= 2
    assert place.stock.seen.count("confirm stock.Reserve") == sum(COUNTS)
