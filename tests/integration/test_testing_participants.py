"""The pytest plugin with participants that have a database: asynchronous and not, behind FastAPI; and XA branches."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

import txcoord_client.sync as sync
from tests.support.databases import Databases, database_of
from txcoord.testing import Txcoord
from txcoord.testing.postgres import PostgresServer
from txcoord_client import Aborted, Coordinator, Participant, Refused, Rejected, Unavailable
from txcoord_client.protocol import postgresql

TABLES = ("CREATE TABLE item (free int, held int, sold int)", "INSERT INTO item VALUES (5, 0, 0)")
HOLD = "UPDATE item SET free = free - :n, held = held + :n WHERE free >= :n"
TAKE = "UPDATE item SET held = held - :n, sold = sold + :n"
FREE = "UPDATE item SET free = free + :n, held = held - :n"


class Stock:
    """A service with a database."""

    def __init__(self, folder: Path) -> None:
        self.engine = create_async_engine(f"sqlite+aiosqlite:///{folder}/stock.db")
        self.participant = Participant("stock", db=self.engine)

        @self.participant.tcc
        class Reserve:
            async def attempt(self, db: Any, *, n: int) -> int:
                if not (await db.execute(text(HOLD), {"n": n})).rowcount:
                    raise Refused("OUT_OF_STOCK")
                return n

            async def confirm(self, db: Any, n: int) -> None:
                await db.execute(text(TAKE), {"n": n})

            async def cancel(self, db: Any, n: int) -> None:
                await db.execute(text(FREE), {"n": n})

        self.Reserve = Reserve

    async def start(self) -> None:
        await self.participant.make_table()
        async with self.engine.begin() as db:
            for statement in TABLES:
                await db.execute(text(statement))

    async def items(self) -> tuple[int, ...]:
        async with self.engine.connect() as db:
            return tuple((await db.execute(text("SELECT free, held, sold FROM item"))).one())


@pytest.fixture
async def stock(tmp_path: Path, txcoord: Txcoord) -> AsyncIterator[Stock]:
    made = Stock(tmp_path)
    await made.start()
    txcoord.serve(made.participant)
    yield made
    await made.engine.dispose()


async def order(stock: Stock, gid: str, n: int = 2, **more: Any) -> None:
    async with Coordinator("dns:///txcoord:7070").begin("order", gid=gid, **more) as g:
        await g.tcc(stock.Reserve, n=n)


async def test_answers_are_lost_and_the_coordinator_dies(txcoord: Txcoord, stock: Stock) -> None:
    for op in ("try", "confirm"):
        txcoord.fail(f"stock.{op}", times=2, lost=True)
    txcoord.crash_after("enlist")
    txcoord.crash_after("decision")
    txcoord.crash_after("call")
    await order(stock, "order-1")
    await txcoord.settle()
    txcoord.assert_committed()
    txcoord.assert_effects_once()
    assert await stock.items() == (3, 0, 2)
    assert len(txcoord.calls("stock.try")) == 3


async def test_a_refusal_by_the_service(txcoord: Txcoord, stock: Stock) -> None:
    with pytest.raises(Refused):
        await order(stock, "order-2", 9)
    await txcoord.settle()
    txcoord.assert_aborted(reason="OUT_OF_STOCK")
    assert await stock.items() == (5, 0, 0)


async def test_a_call_that_does_not_fit_is_a_bug_and_not_made_again(txcoord: Txcoord, stock: Stock) -> None:
    caller = Participant("stock")

    @caller.tcc
    class Reserv:
        async def attempt(self, db: Any) -> None: ...
        async def confirm(self, db: Any) -> None: ...
        async def cancel(self, db: Any) -> None: ...

    for gid, operation, arguments, reason in (
        ("misspelt", Reserv, {}, "UNKNOWN_OPERATION"),
        ("unfit", stock.Reserve, {"number": 2}, "BAD_REQUEST"),
    ):
        with pytest.raises(Rejected) as wrong:
            async with Coordinator().begin("order", gid=gid) as g:
                await g.tcc(operation, **arguments)
        assert (wrong.value.reason, wrong.value.definite) == (reason, True)
        assert str(wrong.value).count(reason) == 1
    # The one with an operation that is not there cannot be cancelled either, so far.
    assert txcoord.state("misspelt") == "ABORTING"
    await txcoord.settle("1m")
    txcoord.assert_aborted("unfit", reason="BAD_REQUEST")
    assert len(txcoord.calls("stock.try")) == 2
    assert await stock.items() == (5, 0, 0)


async def test_a_cancel_that_comes_again_and_one_without_a_try(txcoord: Txcoord, stock: Stock) -> None:
    txcoord.fail("stock.cancel", lost=True)

    async def late() -> None:
        async with Coordinator().begin(gid="order-3") as g:
            await g.tcc(stock.Reserve, n=1)
            await txcoord.advance("40s")

    with pytest.raises(Aborted):
        await late()
    await txcoord.settle()
    txcoord.hang("stock.try", times=None)
    with pytest.raises(Unavailable):
        await order(stock, "order-4")
    await txcoord.settle()
    txcoord.assert_aborted()
    txcoord.assert_effects_once()
    assert [(c.gid, c.repeated) for c in txcoord.calls("stock.cancel")] == [
        ("order-3", False),
        ("order-3", True),
        ("order-4", True),
    ]
    assert await stock.items() == (5, 0, 0)


async def test_a_deadline_passes_for_client_coordinator_and_database_alike(
    txcoord: Txcoord, stock: Stock
) -> None:
    """The database has the machine's clock: the barrier is told a deadline that is as far away there."""

    async def late() -> None:
        async with Coordinator().begin(gid="order-5", timeout=3600) as g:
            await g.tcc(stock.Reserve, n=1)
            await txcoord.advance("3599s")
            await g.tcc(stock.Reserve, n=1)
            await txcoord.advance("2s")
            await g.tcc(stock.Reserve, n=1)

    with pytest.raises(Rejected, match="the deadline has passed"):
        await late()
    await txcoord.settle()
    txcoord.assert_aborted("order-5", reason="DEADLINE")
    txcoord.assert_effects_once()
    assert await stock.items() == (5, 0, 0)


def test_threads(txcoord: Txcoord, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/stock.db")
    stock = sync.Participant("stock", db=engine)

    @stock.tcc
    class Reserve:
        def attempt(self, db: Any, *, n: int) -> int:
            db.execute(text(HOLD), {"n": n})
            return n

        def confirm(self, db: Any, n: int) -> None:
            db.execute(text(TAKE), {"n": n})

        def cancel(self, db: Any, n: int) -> None:
            db.execute(text(FREE), {"n": n})

    stock.make_table()
    with engine.begin() as db:
        for statement in TABLES:
            db.execute(text(statement))
    txcoord.serve(stock)
    txcoord.fail("stock.confirm", times=2, lost=True)
    txcoord.crash_after("decision")
    with sync.Coordinator("txcoord:7070") as coord, coord.begin(gid="order-1") as g:
        g.tcc(Reserve, n=2)
    txcoord.settle_sync()
    txcoord.assert_committed()
    txcoord.assert_effects_once()
    with engine.connect() as db:
        assert tuple(db.execute(text("SELECT free, held, sold FROM item")).one()) == (3, 0, 2)
    engine.dispose()


def test_a_fastapi_application_in_a_test_without_a_loop(txcoord: Txcoord, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It would have another httpx.
        from fastapi.testclient import TestClient

    stock = Stock(tmp_path)
    coord = Coordinator("dns:///txcoord:7070", participants={"stock": "http://stock:8000"})

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await stock.start()
        async with coord:
            yield
        await stock.engine.dispose()

    app = FastAPI(lifespan=lifespan)

    @app.post("/orders/{gid}")
    async def place(gid: str) -> str:
        async with coord.begin(gid=gid) as g:
            await g.tcc(stock.Reserve, n=2)
        assert g.outcome is not None
        return str(g.outcome.state)

    @app.get("/items")
    async def items() -> list[int]:
        return list(await stock.items())

    txcoord.serve(stock.participant)
    txcoord.fail("stock.confirm", times=2)
    with TestClient(app) as client:
        assert client.post("/orders/order-1").json() == "COMMITTED"
        txcoord.assert_committed("order-1")
        txcoord.assert_effects_once()
        assert client.get("/items").json() == [3, 0, 2]


@pytest.mark.parametrize("crash", ["before", "after"])
async def test_xa_on_a_real_database(
    txcoord: Txcoord, stock: Stock, pg18: PostgresServer, pg_database: Databases, crash: str
) -> None:
    url = pg_database(pg18, "postgresql+asyncpg")
    for statement in (*postgresql.ddl(), postgresql.set_identity(uuid.uuid4().hex), "CREATE TABLE t (n int)"):
        pg18.sql(statement, database=database_of(url))
    txcoord.resource("bank", url)
    bank = create_async_engine(url)
    getattr(txcoord, f"crash_{crash}")("decision")
    async with Coordinator(resources={"bank": bank}) as coord, coord.begin("mixed", gid=f"{crash}-1") as g:
        async with g.xa(bank) as db:
            await db.execute(text("INSERT INTO t VALUES (1)"))
        await g.tcc(stock.Reserve, n=2)
    await txcoord.settle()
    txcoord.assert_committed()
    txcoord.assert_effects_once()
    assert await stock.items() == (3, 0, 2)
    assert pg18.sql("SELECT count(*) FROM t", database=database_of(url)) == "1"
    await bank.dispose()
