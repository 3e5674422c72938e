"""The bank's service: a process of its own that moves money between two databases with one commit.

`checking` accounts are in one database, `savings` in the other. Every change leaves a journal row beside it, in
the same database and transaction, so that a checker can tell afterwards what happened, and how often.

    python -m examples.smallbank.service PORT COORDINATOR CHECKING_URL SAVINGS_URL [CHECKING_TILL SAVINGS_TILL]

With tills some payments reserve there (TCC), or are sagas, or mix both with a branch of their own.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from txcoord_client import (
    Aborted,
    AlreadyAborted,
    AlreadyCommitted,
    Coordinator,
    InProgress,
    Outcome,
    OutcomeUnknown,
    Participant,
    Refused,
    State,
    TxcoordError,
    saga,
)

from .till import NAMES, Operations

TIMEOUT_S = 6.0
TAKE = text("UPDATE account SET balance = balance - :cents WHERE id = :id AND balance >= :cents")
GIVE = text("UPDATE account SET balance = balance + :cents WHERE id = :id")
JOURNAL = text("INSERT INTO journal (gid, account, delta) VALUES (:gid, :id, :cents)")


TILLS = {name: Operations(Participant(name)) for name in NAMES}
"""As whoever calls them knows them."""
SHIP = (
    saga("ship-payment")
    .step(TILLS["checking"].take)
    .step(TILLS["savings"].stamp)
    .step(TILLS["savings"].give, forward=True)
)
STAMP = saga("stamp").step(TILLS["savings"].stamp)
PATIENCE_S = 8.0


class InsufficientFunds(Exception):
    """A business no: the transaction is aborted, and this comes back unchanged."""


class Bank:
    """The operations of the bank. Each is one global transaction with the caller's gid."""

    def __init__(self, coord: Coordinator, checking: AsyncEngine, savings: AsyncEngine) -> None:
        self._coord = coord
        self._checking = checking
        self._savings = savings

    async def send_payment(self, gid: str, source: int, target: int, cents: int) -> Outcome | None:
        """From a checking account to somebody's savings account: two databases."""
        async with self._coord.begin("send-payment", gid=gid, timeout=TIMEOUT_S) as g:
            async with g.xa(self._checking) as db:
                await _take(db, gid, source, cents)
            async with g.xa(self._savings) as db:
                await _give(db, gid, target, cents)
        return g.outcome

    async def withdraw_savings(self, gid: str, source: int, target: int, cents: int) -> Outcome | None:
        """The other way round, so that the databases are locked in both orders."""
        async with self._coord.begin("withdraw-savings", gid=gid, timeout=TIMEOUT_S) as g:
            async with g.xa(self._savings) as db:
                await _take(db, gid, source, cents)
            async with g.xa(self._checking) as db:
                await _give(db, gid, target, cents)
        return g.outcome

    async def move_checking(self, gid: str, source: int, target: int, cents: int) -> Outcome | None:
        """Within one database: committed in one phase."""
        async with (
            self._coord.begin("move-checking", gid=gid, timeout=TIMEOUT_S, resources=["checking"]) as g,
            g.xa(self._checking) as db,
        ):
            await _take(db, gid, source, cents)
            await _give(db, gid, target, cents)
        return g.outcome

    async def move_savings(self, gid: str, source: int, target: int, cents: int) -> Outcome | None:
        """The same within the other database."""
        async with (
            self._coord.begin("move-savings", gid=gid, timeout=TIMEOUT_S, resources=["savings"]) as g,
            g.xa(self._savings) as db,
        ):
            await _take(db, gid, source, cents)
            await _give(db, gid, target, cents)
        return g.outcome

    async def reserve_payment(self, gid: str, source: int, target: int, cents: int) -> Outcome | None:
        """As ``send_payment``, reserved at the tills: TCC."""
        async with self._coord.begin("reserve-payment", gid=gid, timeout=TIMEOUT_S) as g:
            await asyncio.gather(
                g.tcc(TILLS["checking"].hold, gid=gid, account=source, cents=-cents),
                g.tcc(TILLS["savings"].hold, gid=gid, account=target, cents=cents),
            )
        return g.outcome

    async def ship_payment(self, gid: str, source: int, target: int, cents: int) -> Outcome | None:
        """The same as a saga that the coordinator runs: taken, stamped, and then given, come what may."""
        data = {"gid": gid, "source": source, "target": target, "cents": cents}
        run = await self._coord.submit(SHIP, gid=gid, data=data, timeout=TIMEOUT_S)
        return shipped(await run.wait(PATIENCE_S), gid)

    async def mixed_payment(self, gid: str, source: int, target: int, cents: int) -> Outcome | None:
        """All in one: a branch in one database, a reservation in the other, and a stamp."""
        async with self._coord.begin("mixed-payment", gid=gid, timeout=TIMEOUT_S) as g:
            async with g.xa(self._checking) as db:
                await _take(db, gid, source, cents)
            await g.tcc(TILLS["savings"].hold, gid=gid, account=target, cents=cents)
            await g.saga(STAMP, cents=cents)
        return g.outcome


def shipped(outcome: Outcome, gid: str) -> Outcome:
    """How a saga has ended. Raises OutcomeUnknown where it has not."""
    if outcome.state is not State.COMMITTED:
        raise OutcomeUnknown("it is on its way", gid=gid)
    return outcome


async def _take(db: AsyncConnection, gid: str, account: int, cents: int) -> None:
    done = await db.execute(TAKE, {"id": account, "cents": cents})
    if done.rowcount != 1:
        raise InsufficientFunds
    await db.execute(JOURNAL, {"gid": gid, "id": account, "cents": -cents})


async def _give(db: AsyncConnection, gid: str, account: int, cents: int) -> None:
    await db.execute(GIVE, {"id": account, "cents": cents})
    await db.execute(JOURNAL, {"gid": gid, "id": account, "cents": cents})


async def answer(bank: Bank, request: dict[str, Any]) -> dict[str, str]:
    """What the client is told: committed, committing, aborted, refused (a business no), or unknown. Never a guess."""
    operation = getattr(bank, request["op"])
    try:
        return committed(await operation(**arguments_of(request)))
    except Exception as error:
        return told(error)


def arguments_of(request: dict[str, Any]) -> dict[str, Any]:
    """What the operation is called with."""
    return {key: request[key] for key in ("gid", "source", "target", "cents")}


def committed(outcome: Outcome | None) -> dict[str, str]:
    """It is certain that it will be, and perhaps it is not visible in both databases yet."""
    return {"told": "committed" if outcome is not None and outcome.state is State.COMMITTED else "committing"}


def told(error: Exception) -> dict[str, str]:
    """What the client is told where the operation raised this. Raises what nobody expected."""
    match error:
        case InsufficientFunds() | Refused():
            return {"told": "refused"}
        case AlreadyCommitted():
            return committed(error.outcome)
        case Aborted() | AlreadyAborted():
            return {"told": "aborted", "why": error.reason}
        case InProgress() | OutcomeUnknown():
            return {"told": "unknown", "why": error.reason}
        case TxcoordError():
            return {"told": "failed" if error.definite else "unknown", "why": error.reason}
        case DBAPIError() | OSError():
            # The database died under the work, before any commit was asked for.
            return {"told": "failed", "why": type(error).__name__}
    raise error


def options_for(url: str) -> dict[str, Any]:
    """The options of an engine for this URL."""
    options: dict[str, Any] = {"pool_size": 20, "max_overflow": 0, "pool_pre_ping": True}
    if url.startswith("mysql"):
        # Who waits longer for a row waits for somebody who waits in the other database.
        options["connect_args"] = {"init_command": "SET SESSION innodb_lock_wait_timeout = 3"}
    return options


async def main(port: str, address: str, checking_url: str, savings_url: str, *tills: str) -> None:
    """Serve until SIGTERM."""
    checking = create_async_engine(checking_url, **options_for(checking_url))
    savings = create_async_engine(savings_url, **options_for(savings_url))
    coord = Coordinator(
        address,
        resources={"checking": checking, "savings": savings},
        participants=dict(zip(NAMES, tills, strict=False)),
    )
    bank = Bank(coord, checking, savings)

    async def pay(request: bytes, context: Any) -> bytes:
        return json.dumps(await answer(bank, json.loads(request))).encode()

    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("Bank", {"Pay": grpc.unary_unary_rpc_method_handler(pay)}),)
    )
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await status.set("", health_pb2.HealthCheckResponse.SERVING)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await server.stop(5)
    await coord.close()
    await checking.dispose()
    await savings.dispose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
