"""The bank's service once more, with threads and the synchronous SDK: the same operations, without ``await``.

python -m examples.smallbank.service_sync PORT COORDINATOR CHECKING_URL SAVINGS_URL [CHECKING_TILL SAVINGS_TILL]
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sqlalchemy import Connection, Engine, create_engine

from txcoord_client import Outcome
from txcoord_client.sync import Coordinator, Participant, saga

from .service import (
    GIVE,
    JOURNAL,
    PATIENCE_S,
    TAKE,
    TIMEOUT_S,
    InsufficientFunds,
    arguments_of,
    committed,
    options_for,
    shipped,
    told,
)
from .till import NAMES

THREADS = 32


class Till:
    """What a till can do, as whoever calls it knows it: no more than names and arguments."""

    def __init__(self, participant: Participant) -> None:
        @participant.tcc
        class Hold:
            def attempt(self, db: Any, *, gid: str, account: int, cents: int) -> None: ...

            def confirm(self, db: Any) -> None: ...

            def cancel(self, db: Any) -> None: ...

        @participant.action
        def take(db: Any, *, gid: str, source: int, cents: int) -> None: ...

        @take.compensate
        def untake(db: Any) -> None: ...

        @participant.action
        def stamp(db: Any, *, cents: int) -> None: ...

        @stamp.compensate
        def unstamp(db: Any) -> None: ...

        @participant.action
        def give(db: Any, *, gid: str, target: int, cents: int) -> None: ...

        self.hold: Any = Hold
        self.take, self.stamp, self.give = take, stamp, give


TILLS = {name: Till(Participant(name)) for name in NAMES}
SHIP = (
    saga("ship-payment")
    .step(TILLS["checking"].take)
    .step(TILLS["savings"].stamp)
    .step(TILLS["savings"].give, forward=True)
)
STAMP = saga("stamp").step(TILLS["savings"].stamp)


class Bank:
    """The operations of the bank. Each is one global transaction with the caller's gid."""

    def __init__(self, coord: Coordinator, checking: Engine, savings: Engine) -> None:
        self._coord = coord
        self._checking = checking
        self._savings = savings

    def send_payment(self, gid: str, source: int, target: int, cents: int) -> Outcome | None:
        """From a checking account to somebody's savings account: two databases."""
        with self._coord.begin("send-payment", gid=gid, timeout=TIMEOUT_S) as g:
            with g.xa(self._checking) as db:
                _take(db, gid, source, cents)
            with g.xa(self._savings) as db:
                _give(db, gid, target, cents)
        return g.outcome

    def withdraw_savings(self, gid: str, source: int, target: int, cents: int) -> Outcome | None:
        """The other way round, so that the databases are locked in both orders."""
        with self._coord.begin("withdraw-savings", gid=gid, timeout=TIMEOUT_S) as g:
            with g.xa(self._savings) as db:
                _take(db, gid, source, cents)
            with g.xa(self._checking) as db:
                _give(db, gid, target, cents)
        return g.outcome

    def move_checking(self, gid: str, source: int, target: int, cents: int) -> Outcome | None:
        """Within one database: committed in one phase."""
        with (
            self._coord.begin("move-checking", gid=gid, timeout=TIMEOUT_S, resources=["checking"]) as g,
            g.xa(self._checking) as db,
        ):
            _take(db, gid, source, cents)
            _give(db, gid, target, cents)
        return g.outcome

    def move_savings(self, gid: str, source: int, target: int, cents: int) -> Outcome | None:
        """The same within the other database."""
        with (
            self._coord.begin("move-savings", gid=gid, timeout=TIMEOUT_S, resources=["savings"]) as g,
            g.xa(self._savings) as db,
        ):
            _take(db, gid, source, cents)
            _give(db, gid, target, cents)
        return g.outcome

    def reserve_payment(self, gid: str, source: int, target: int, cents: int) -> Outcome | None:
        """As ``send_payment``, reserved at the tills: TCC."""
        with self._coord.begin("reserve-payment", gid=gid, timeout=TIMEOUT_S) as g:
            g.tcc(TILLS["checking"].hold, gid=gid, account=source, cents=-cents)
            g.tcc(TILLS["savings"].hold, gid=gid, account=target, cents=cents)
        return g.outcome

    def ship_payment(self, gid: str, source: int, target: int, cents: int) -> Outcome | None:
        """The same as a saga that the coordinator runs: taken, stamped, and then given, come what may."""
        data = {"gid": gid, "source": source, "target": target, "cents": cents}
        run = self._coord.submit(SHIP, gid=gid, data=data, timeout=TIMEOUT_S)
        return shipped(run.wait(PATIENCE_S), gid)

    def mixed_payment(self, gid: str, source: int, target: int, cents: int) -> Outcome | None:
        """All in one: a branch in one database, a reservation in the other, and a stamp."""
        with self._coord.begin("mixed-payment", gid=gid, timeout=TIMEOUT_S) as g:
            with g.xa(self._checking) as db:
                _take(db, gid, source, cents)
            g.tcc(TILLS["savings"].hold, gid=gid, account=target, cents=cents)
            g.saga(STAMP, cents=cents)
        return g.outcome


def _take(db: Connection, gid: str, account: int, cents: int) -> None:
    if db.execute(TAKE, {"id": account, "cents": cents}).rowcount != 1:
        raise InsufficientFunds
    db.execute(JOURNAL, {"gid": gid, "id": account, "cents": -cents})


def _give(db: Connection, gid: str, account: int, cents: int) -> None:
    db.execute(GIVE, {"id": account, "cents": cents})
    db.execute(JOURNAL, {"gid": gid, "id": account, "cents": cents})


def answer(bank: Bank, request: dict[str, Any]) -> dict[str, str]:
    """What the client is told: committed, committing, aborted, refused (a business no), or unknown. Never a guess."""
    operation = getattr(bank, request["op"])
    try:
        return committed(operation(**arguments_of(request)))
    except Exception as error:
        return told(error)


def main(port: str, address: str, checking_url: str, savings_url: str, *tills: str) -> None:
    """Serve until SIGTERM."""
    checking = create_engine(checking_url, **options_for(checking_url))
    savings = create_engine(savings_url, **options_for(savings_url))
    coord = Coordinator(
        address,
        resources={"checking": checking, "savings": savings},
        participants=dict(zip(NAMES, tills, strict=False)),
    )
    bank = Bank(coord, checking, savings)

    def pay(request: bytes, context: Any) -> bytes:
        return json.dumps(answer(bank, json.loads(request))).encode()

    server = grpc.server(ThreadPoolExecutor(THREADS))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("Bank", {"Pay": grpc.unary_unary_rpc_method_handler(pay)}),)
    )
    status = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    status.set("", health_pb2.HealthCheckResponse.SERVING)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    server.stop(5).wait()
    coord.close()
    checking.dispose()
    savings.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
