"""Messages and notifications from the SDK: sent with the commit, taken behind the barrier, each acting once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

import txcoord_client.sync as sync
from txcoord.testing import Txcoord
from txcoord_client import Aborted, Coordinator, NoTransaction, Participant, Refused, Rejected, Transaction

ADDRESS = "dns:///txcoord:7070"


@dataclass
class Order:
    number: int
    lines: list[str]


class Warehouse:
    """A service with a database, that takes messages."""

    def __init__(self, folder: Path) -> None:
        self.url = f"{folder}/warehouse.db"
        self.engine = create_async_engine(f"sqlite+aiosqlite:///{self.url}")
        self.participant = Participant("warehouse", db=self.engine)

        @self.participant.message
        async def pack(db: Any, *, number: int, lines: list[str]) -> None:
            if number < 0:
                raise Refused("NO_SUCH_ORDER")
            await db.execute(text("INSERT INTO packed VALUES (:n)"), {"n": number})

        self.pack = pack

        @self.participant.tcc
        class Reserve:
            async def attempt(self, db: Any) -> None: ...
            async def confirm(self, db: Any) -> None: ...
            async def cancel(self, db: Any) -> None: ...

        self.Reserve = Reserve

    async def packed(self) -> list[int]:
        async with self.engine.connect() as db:
            return sorted((await db.execute(text("SELECT number FROM packed"))).scalars())


@pytest.fixture
async def warehouse(tmp_path: Path, txcoord: Txcoord) -> AsyncIterator[Warehouse]:
    made = Warehouse(tmp_path)
    await made.participant.make_table()
    async with made.engine.begin() as db:
        await db.execute(text("CREATE TABLE packed (number int)"))
    txcoord.serve(made.participant)
    yield made
    await made.engine.dispose()


async def test_it_acts_once_though_answers_are_lost_and_the_coordinator_dies(
    txcoord: Txcoord, warehouse: Warehouse
) -> None:
    txcoord.fail("warehouse.message", times=2, lost=True)
    txcoord.fail("warehouse.notify", times=2)
    txcoord.crash_after("decision")
    async with Coordinator(ADDRESS).begin("order", gid="o-1") as g:
        await g.tcc(warehouse.Reserve)
        message_id = g.message(warehouse.pack, Order(1, ["a"]))
        g.notify(warehouse.pack, {"number": 2, "lines": []})
        assert message_id == f"{g.tx_id}.2"
    await txcoord.settle()
    txcoord.assert_committed()
    txcoord.assert_effects_once()
    assert await warehouse.packed() == [1, 2]
    assert len(txcoord.calls("warehouse.message")) == 3


async def test_nothing_leaves_when_it_aborts(txcoord: Txcoord, warehouse: Warehouse) -> None:
    coord = Coordinator(ADDRESS)

    async def order(gid: str, number: int) -> Transaction:
        async with coord.begin("order", gid=gid) as g:
            g.message(warehouse.pack, {"number": number, "lines": []})
            if not number:
                raise ZeroDivisionError
            g.set_rollback_only()
        return g

    with pytest.raises(ZeroDivisionError):
        await order("o-2", 0)
    with pytest.raises(Aborted):
        await order("", 2)
    await txcoord.settle(advance="1h")
    assert not await warehouse.packed()
    assert not txcoord.calls("warehouse.message")
    async with coord.begin("order") as g:
        pass
    with pytest.raises(NoTransaction):
        g.message(warehouse.pack, {"number": 3, "lines": []})


async def test_a_no_is_parked_and_the_transaction_stays_committed(
    txcoord: Txcoord, warehouse: Warehouse
) -> None:
    coord = Coordinator(ADDRESS)
    async with coord.begin("order", gid="o-3", wait="delivered") as g:
        g.message(warehouse.pack, {"number": -1, "lines": []})
        g.message(warehouse.pack, {"number": 4, "lines": []})
    assert g.outcome is not None
    assert (g.outcome.state, g.outcome.delivered, g.outcome.parked_deliveries) == ("COMMITTED", False, 1)
    assert await warehouse.packed() == [4]
    async with coord.begin("order", wait="delivered") as g:
        g.message(warehouse.pack, {"number": 5, "lines": []})
    assert g.outcome is not None
    assert g.outcome.delivered


async def test_not_before_its_time(txcoord: Txcoord, warehouse: Warehouse) -> None:
    async with Coordinator(ADDRESS).begin("order") as g:
        g.message(warehouse.pack, {"number": 1, "lines": []}, delay=timedelta(hours=2))
        g.message(warehouse.pack, {"number": 2, "lines": []}, delay=60)
        long_ago = datetime(2020, 1, 1, tzinfo=UTC)
        g.message(warehouse.pack, {"number": 3, "lines": []}, deliver_at=long_ago)
    await txcoord.advance(1)
    assert await warehouse.packed() == [3]
    await txcoord.advance("1h")
    assert await warehouse.packed() == [2, 3]
    await txcoord.settle()
    assert await warehouse.packed() == [1, 2, 3]


async def test_what_does_not_fit_is_refused_at_once(txcoord: Txcoord, warehouse: Warehouse) -> None:
    async with Coordinator(ADDRESS).begin("order") as g:
        for target, body, more in (
            (warehouse.pack, {"number": 1}, {}),
            (warehouse.pack, {"number": 1, "lines": [], "color": 2}, {}),
            (warehouse.pack, [1], {}),
            (warehouse.pack, b"{}", {}),
            (warehouse.Reserve, {}, {}),
            (7, {}, {}),
            ("grpc://shop:9000", {}, {}),
            ("https://shop.example/orders", b"x" * 300_000, {}),
            ("https://shop.example/orders", {}, {"delay": 1, "deliver_at": datetime.now(UTC)}),
            ("https://shop.example/orders", {}, {"deliver_at": datetime(2030, 1, 1)}),  # noqa: DTZ001
            ("https://shop.example/orders", {}, {"delay": -1}),
        ):
            with pytest.raises(Rejected):
                g.message(target, body, **more)
    assert not txcoord.calls()


def test_from_threads(txcoord: Txcoord, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db")
    shop = sync.Participant("shop", db=engine)

    @shop.message
    def paid(db: Any, *, order: int) -> None:
        db.execute(text("INSERT INTO paid VALUES (:n)"), {"n": order})

    shop.make_table()
    with engine.begin() as db:
        db.execute(text("CREATE TABLE paid (number int)"))
    txcoord.serve(shop)
    with sync.Coordinator(ADDRESS).begin("pay", wait="delivered") as g:
        g.message(paid, {"order": 7})
        g.notify(paid, {"order": 8})
    with engine.connect() as db:
        assert sorted(db.execute(text("SELECT number FROM paid")).scalars()) == [7, 8]
    txcoord.assert_effects_once()
    engine.dispose()
