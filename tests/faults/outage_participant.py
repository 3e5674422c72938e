"""The participants of the outage: what they do, and the process that serves one of them.

``python -m tests.faults.outage_participant NAME PORT DATABASE CALLS``: each call that it gets is a line in the file
CALLS as soon as it is there, and another one when it is answered. What is done is a row of the table ``done``, which
has no key: what is done twice is there twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from txcoord_client import Participant, Pending, Refused
from txcoord_client._answers import Answer, Call

NAMES: Final = ("stock", "payment")
TABLE: Final = "CREATE TABLE done (gid text NOT NULL, branch text NOT NULL, op text NOT NULL)"
INSERT: Final = "INSERT INTO done VALUES (:gid, :branch, :op)"

How = dict[str, list[str]]
"""By ``<branch> <op>`` what becomes of its first calls: ``fail``, ``no``, ``pend 1.5``."""


@dataclass
class Held:
    """What a try or an action gives back."""

    gid: str
    branch: str
    how: How = field(default_factory=dict)


class Recording(Participant):
    """One that writes down what it is asked."""

    calls: int = -1
    """A file to append to."""

    async def execute(self, call: Call) -> Answer:
        what = {"tx": call.tx_id, "branch": call.branch, "op": call.op, "attempt": call.attempt}
        self._note({**what, "at": time.time_ns() // 1000})
        answer = await super().execute(call)
        self._note(
            {**what, "answered": time.time_ns() // 1000, "kind": answer.kind, "repeated": answer.repeated}
        )
        return answer

    def _note(self, line: dict[str, Any]) -> None:
        # One write: it is whole, or not there, when the process is killed.
        os.write(self.calls, json.dumps(line).encode() + b"\n")


@dataclass(frozen=True)
class Declared:
    """What one of them can do."""

    participant: Participant
    hold: Any
    """A reservation."""
    act: Any
    """Steps that can be undone, by their number."""
    told: Any
    """Takes messages and notifications."""


def declared(name: str, kind: type[Participant] = Participant, **options: Any) -> Declared:
    """One of them; without a database it is for those who call it."""
    participant = kind(name, concurrency=64, **options)
    asked: Counter[tuple[str, str, str]] = Counter()

    async def do(db: Any, held: Held, op: str) -> None:
        key = held.gid, held.branch, op
        turn = asked[key]
        asked[key] += 1
        await db.execute(text(INSERT), {"gid": held.gid, "branch": held.branch, "op": op})
        what, _, seconds = (held.how.get(f"{held.branch} {op}", [])[turn:] or [""])[0].partition(" ")
        if what == "fail":
            raise RuntimeError("as it was told to")
        if what == "pend":
            raise Pending(retry_after=float(seconds))
        if what == "no":
            raise Refused("SOLD_OUT")

    @participant.tcc
    class Hold:
        async def attempt(self, db: Any, *, gid: str, branch: str, how: How) -> Held:
            held = Held(gid, branch, how)
            await do(db, held, "try")
            return held

        async def confirm(self, db: Any, held: Held) -> None:
            await do(db, held, "confirm")

        async def cancel(self, db: Any, held: Held) -> None:
            await do(db, held, "cancel")

    def step(number: str) -> Any:
        async def act(db: Any, *, gid: str, how: How) -> Held:
            held = Held(gid, number, how)
            await do(db, held, "action")
            return held

        act.__name__ = f"act{number}"
        action = participant.action(act)

        @action.compensate
        async def undo(db: Any, held: Held) -> None:
            await do(db, held, "compensate")

        return action

    @participant.message
    async def told(db: Any, *, gid: str, branch: str, how: How, op: str) -> None:
        await do(db, Held(gid, branch, how), op)

    return Declared(participant, Hold, {number: step(number) for number in "123"}, told)


async def serve(name: str, port: str, database: str, calls: str) -> None:
    """Serve it until SIGTERM."""
    engine = create_async_engine(database, pool_size=16, max_overflow=0)
    participant = declared(name, Recording, db=engine).participant
    assert isinstance(participant, Recording)
    participant.calls = os.open(calls, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    participant.add_to(server)
    servicer = health.aio.HealthServicer()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await server.start()
    await stopped.wait()
    await server.stop(1)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
