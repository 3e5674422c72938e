"""The barrier of a participant: what it refuses before it writes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import create_engine, event

from txcoord_client import Participant, Rejected
from txcoord_client import sync as sync_sdk
from txcoord_client._answers import Call
from txcoord_client._serving_grpc import Servicer
from txcoord_client.protocol import barrier
from txcoord_client.sync._db.hands import SqlAlchemyHand


def _looked_at(engine: Any) -> None:
    with engine.connect() as connection:
        SqlAlchemyHand(connection).refuse_autocommit()


def test_an_engine_without_transactions_is_refused() -> None:
    _looked_at(create_engine("sqlite://"))
    for engine in (
        create_engine("sqlite://", isolation_level="AUTOCOMMIT"),
        create_engine("sqlite://").execution_options(isolation_level="AUTOCOMMIT"),
    ):
        with pytest.raises(Rejected):
            _looked_at(engine)
    engine = create_engine("sqlite://", isolation_level="AUTOCOMMIT")
    _looked_at(engine.execution_options(isolation_level="SERIALIZABLE"))


def test_autocommit_behind_the_back_of_sqlalchemy_is_refused() -> None:
    engine = create_engine("sqlite://")

    @event.listens_for(engine, "connect")
    def by_itself(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    with pytest.raises(Rejected):
        _looked_at(engine)

    # Where the application begins by itself it is none.
    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    _looked_at(engine)


@pytest.mark.parametrize("db", [object(), "default", 5, dict, create_engine("sqlite://")])
async def test_what_is_no_database_is_refused(db: Any) -> None:
    with pytest.raises(Rejected, match="is needed here"):
        Participant("stock", db=db)
    with pytest.raises(Rejected, match="is needed here"):
        async with Participant("stock").guard(db, Call("0" * 32, "1", "action", "stock.pack")):
            pass


def test_markers_are_kept_longer_than_a_deadline_can_be_away() -> None:
    for days in (1, -1):
        with pytest.raises(Rejected, match="keep_days"):
            Participant("stock", keep_days=days)
    assert Participant("stock", keep_days=0).keep_days == 0
    tx_id = f"{1_700_000_000_000:012x}{'0' * 20}"
    assert barrier.known_until_us(tx_id, 3) == 1_700_000_000_000_000 + 2 * barrier.DAY_US


async def test_a_try_that_hangs_does_not_keep_its_cancel_waiting_for_a_place() -> None:
    participant = Participant("stock", concurrency=1)
    begun, go = asyncio.Event(), asyncio.Event()

    @participant.tcc
    class Reserve:
        async def attempt(self, db: Any) -> None: ...
        async def confirm(self, db: Any) -> None: ...
        async def cancel(self, db: Any) -> None: ...

    servicer = Servicer([participant])

    async def hangs(call: Call) -> Any:
        begun.set()
        await go.wait()
        raise RuntimeError

    participant._execute = hangs  # type: ignore[method-assign]
    trying = asyncio.create_task(servicer._runner._one(Call("0" * 32, "1", "try", "stock.Reserve"), ""))
    await begun.wait()
    answer = await servicer._runner._one(Call("0" * 32, "1", "cancel", "stock.Reserve"), "")
    assert (answer.reason, answer.retry_after_us >= 500_000) == ("PENDING", True)
    go.set()
    assert (await trying).reason == "RuntimeError"


def test_what_ends_a_call_that_runs_here_takes_no_place_beside_it() -> None:
    participant = sync_sdk.Participant("stock", concurrency=1)
    tx_id = "0" * 32
    asked: list[Any] = []

    @participant.tcc
    class Reserve:
        def attempt(self, db: Any) -> None: ...
        def confirm(self, db: Any) -> None: ...
        def cancel(self, db: Any) -> None: ...

    def running(call: Call) -> Any:
        for op, branch in (("cancel", "1"), ("confirm", "1"), ("try", "1"), ("cancel", "2")):
            asked.append(participant.under_way(Call(tx_id, branch, op, "stock.Reserve")))
        raise RuntimeError

    participant._execute = running  # type: ignore[method-assign]
    participant.execute(Call(tx_id, "1", "try", "stock.Reserve"))
    assert [answer.reason if answer else "" for answer in asked] == ["PENDING", "PENDING", "", ""]
    assert participant.under_way(Call(tx_id, "1", "cancel", "stock.Reserve")) is None
