"""The bank's tills: participants of TCC and sagas, one for each database, for whoever pays without a branch there.

    python -m examples.smallbank.till PORT NAME=URL...

A reservation (`Hold`) takes money off an account at once, and gives it back where it is cancelled; what is journalled
is what was confirmed. The steps of a saga journal what they do, and take it back where they are compensated.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from txcoord_client import Participant, Refused

NAMES = ("checking", "savings")
REFUSED_CENTS = 1
"""Payments of so many are not stamped."""
_TAKE = text("UPDATE account SET balance = balance - :cents WHERE id = :account AND balance >= :cents")
_GIVE = text("UPDATE account SET balance = balance + :cents WHERE id = :account")
_JOURNAL = text("INSERT INTO journal (gid, account, delta) VALUES (:gid, :account, :cents)")
_STRIKE = text("DELETE FROM journal WHERE gid = :gid AND account = :account AND delta = :cents")


class Operations:
    """What a till can do."""

    def __init__(self, participant: Participant) -> None:
        @participant.tcc
        class Hold:
            """Money is taken (``cents`` below 0) or will be given."""

            async def attempt(self, db: Any, *, gid: str, account: int, cents: int) -> dict[str, Any]:
                if cents < 0:
                    await _taken(db, account, -cents)
                return {"gid": gid, "account": account, "cents": cents}

            async def confirm(self, db: Any, held: dict[str, Any]) -> None:
                if held["cents"] > 0:
                    await db.execute(_GIVE, held)
                await db.execute(_JOURNAL, held)

            async def cancel(self, db: Any, held: dict[str, Any]) -> None:
                if held["cents"] < 0:
                    await db.execute(_GIVE, {**held, "cents": -held["cents"]})

        @participant.action
        async def take(db: Any, *, gid: str, source: int, cents: int) -> dict[str, Any]:
            await _taken(db, source, cents)
            done = {"gid": gid, "account": source, "cents": -cents}
            await db.execute(_JOURNAL, done)
            return done

        @take.compensate
        async def untake(db: Any, done: dict[str, Any]) -> None:
            await db.execute(_STRIKE, done)
            await db.execute(_GIVE, {**done, "cents": -done["cents"]})

        @participant.action
        async def stamp(db: Any, *, cents: int) -> None:
            if cents == REFUSED_CENTS:
                raise Refused("TOO_LITTLE")

        @stamp.compensate
        async def unstamp(db: Any) -> None:
            """There is nothing to be seen of it."""

        @participant.action
        async def give(db: Any, *, gid: str, target: int, cents: int) -> None:
            done = {"gid": gid, "account": target, "cents": cents}
            await db.execute(_GIVE, done)
            await db.execute(_JOURNAL, done)

        self.hold: Any = Hold
        self.take, self.stamp, self.give = take, stamp, give


async def _taken(db: Any, account: int, cents: int) -> None:
    if (await db.execute(_TAKE, {"account": account, "cents": cents})).rowcount != 1:
        raise Refused("INSUFFICIENT_FUNDS")


async def main(port: str, *databases: str) -> None:
    """Serve until SIGTERM."""
    tills, engines = [], []
    for item in databases:
        name, _, url = item.partition("=")
        options: dict[str, Any] = {"pool_size": 10, "max_overflow": 0, "pool_pre_ping": True}
        if url.startswith("mysql"):
            options["connect_args"] = {"init_command": "SET SESSION innodb_lock_wait_timeout = 3"}
        engines.append(create_async_engine(url, **options))
        till = Participant(name, db=engines[-1])
        Operations(till)
        tills.append(till)
    server = grpc.aio.server()
    tills[0].add_to(server, *tills[1:])
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await status.set("", health_pb2.HealthCheckResponse.SERVING)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await server.stop(5)
    for engine in engines:
        await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
