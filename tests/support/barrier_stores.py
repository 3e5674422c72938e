"""What services keep their data in, each through one driver, for the tests that every one of them passes.

A service has one TCC operation, ``Reserve``, and one action, ``pack``. What each call does is one note,
``<op> <tx id>``, in its own database.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from txcoord_client import Participant, Refused
from txcoord_client import sync as sync_sdk
from txcoord_client._answers import Answer, Call
from txcoord_client.protocol import identifiers

NOTE = "INSERT INTO note (body) VALUES ('{body}')"
MAKE_NOTE = "CREATE TABLE note (body varchar(60) NOT NULL)"
PUSH = "redis.call('RPUSH', KEYS[1], ARGV[1])"

Opener = Callable[[], Any]
"""Gives a context manager, an asynchronous one for an asynchronous store."""


def now_us() -> int:
    return time.time_ns() // 1000


def tx_id_at(at_us: int) -> str:
    return identifiers.new_tx_id(at_us, secrets.randbits)


def new_call(
    op: str, tx_id: str = "", *, operation: str = "stock.Reserve", deadline_s: float = 30.0, **more: Any
) -> Call:
    """A call of a transaction that began now."""
    deadline_us = now_us() + round(deadline_s * 1e6) if deadline_s else 0
    return Call(tx_id or tx_id_at(now_us()), "1", op, operation, b"{}", deadline_us, **more)


@dataclass
class Script:
    """What the service's code does beside its note."""

    refuses: bool = False
    breaks: bool = False
    swallows: str = ""
    """A statement that it sends after the note; its error is caught, and forgotten."""
    hangs: bool = False
    reached: threading.Event = field(default_factory=threading.Event)
    """A call has begun, and hangs."""
    go: threading.Event = field(default_factory=threading.Event)

    def play(self) -> None:
        """To be called in a thread."""
        if self.hangs:
            self.hangs = False
            self.reached.set()
            assert self.go.wait(30)
        if self.breaks:
            raise RuntimeError("this service has a bug")
        if self.refuses:
            raise Refused("OUT_OF_STOCK")


class Store:
    """One database, through one driver: the service in it, and what a test looks at."""

    asynchronous = True
    family = "postgresql"
    guards = True
    """A connection of it can be in a transaction of the user's."""

    def __init__(self, source: Any, *, run: Callable[[Any, str], Any], sql: Callable[[str], str]) -> None:
        self.source = source
        self.run = run
        self.sql = sql
        """Run a statement besides; the rows, one a line."""
        self.opened: Opener | None = None
        """A transaction of the user's, committed in the end."""
        self.autocommits: list[Opener] = []
        """Connections that are in none."""
        self.script = Script()
        self.participant = self.new_participant()

    def note(self, db: Any, body: str) -> Any:
        """Write one, in the service's own words."""
        return self.run(db, NOTE.format(body=body))

    async def _write(self, db: Any, body: str) -> None:
        done = self.note(db, body)
        if inspect.isawaitable(done):
            await done
        if self.script.swallows:
            with contextlib.suppress(Exception):
                done = self.run(db, self.script.swallows)
                if inspect.isawaitable(done):
                    await done

    def _write_sync(self, db: Any, body: str) -> None:
        self.note(db, body)
        if self.script.swallows:
            with contextlib.suppress(Exception):
                self.run(db, self.script.swallows)

    def new_participant(self, **options: Any) -> Any:
        """The service."""
        if self.asynchronous:
            participant = Participant("stock", db=self.source, **options)
            self._declare_async(participant)
            return participant
        other = sync_sdk.Participant("stock", db=self.source, **options)
        self._declare_sync(other)
        return other

    def _declare_async(self, participant: Participant) -> None:
        write, script = self._write, self.script

        async def work(db: Any, op: str, tx_id: str) -> None:
            await write(db, f"{op} {tx_id}")
            await asyncio.to_thread(script.play)

        @participant.tcc
        class Reserve:
            async def attempt(self, db: Any, *, tx_id: str) -> dict[str, str]:
                await work(db, "try", tx_id)
                return {"tx_id": tx_id}

            async def confirm(self, db: Any, hold: dict[str, str]) -> None:
                await work(db, "confirm", hold["tx_id"])

            async def cancel(self, db: Any, hold: dict[str, str]) -> None:
                await work(db, "cancel", hold["tx_id"])

        @participant.action
        async def pack(db: Any, *, tx_id: str) -> dict[str, str]:
            await work(db, "action", tx_id)
            return {"tx_id": tx_id}

        @pack.compensate
        async def unpack(db: Any, parcel: dict[str, str]) -> None:
            await work(db, "compensate", parcel["tx_id"])

        @participant.message
        async def told(db: Any, *, tx_id: str) -> None:
            await work(db, "message", tx_id)

    def _declare_sync(self, participant: Any) -> None:
        write, script = self._write_sync, self.script

        def work(db: Any, op: str, tx_id: str) -> None:
            write(db, f"{op} {tx_id}")
            script.play()

        @participant.tcc
        class Reserve:
            def attempt(self, db: Any, *, tx_id: str) -> dict[str, str]:
                work(db, "try", tx_id)
                return {"tx_id": tx_id}

            def confirm(self, db: Any, hold: dict[str, str]) -> None:
                work(db, "confirm", hold["tx_id"])

            def cancel(self, db: Any, hold: dict[str, str]) -> None:
                work(db, "cancel", hold["tx_id"])

        @participant.action
        def pack(db: Any, *, tx_id: str) -> dict[str, str]:
            work(db, "action", tx_id)
            return {"tx_id": tx_id}

        @pack.compensate
        def unpack(db: Any, parcel: dict[str, str]) -> None:
            work(db, "compensate", parcel["tx_id"])

        @participant.message
        def told(db: Any, *, tx_id: str) -> None:
            work(db, "message", tx_id)

    # ---- what is called ----

    async def execute(self, call: Call, participant: Any = None) -> Answer:
        """As the coordinator does."""
        given = _with_arguments(call)
        execute = (participant or self.participant).execute
        if self.asynchronous:
            answer: Answer = await execute(given)
            return answer
        return await asyncio.to_thread(execute, given)

    async def guarded(self, call: Call, opened: Opener | None = None, *, fails: bool = False) -> Any:
        """As a service does in a transaction of its own; what the guard gave. A try keeps its tx id."""
        opened = opened or self.opened
        assert opened is not None
        if self.asynchronous:
            return await self._guarded(call, opened, fails)
        return await asyncio.to_thread(self._guarded_sync, call, opened, fails)

    async def _guarded(self, call: Call, opened: Opener, fails: bool) -> Any:
        async with opened() as db:
            async with self.participant.guard(db, call) as first:
                if first:
                    await self._write(db, f"{call.op} {call.tx_id}")
                    if call.op in ("try", "action"):
                        await first.keep({"tx_id": call.tx_id})
            if fails:
                raise ZeroDivisionError
        return first

    def _guarded_sync(self, call: Call, opened: Opener, fails: bool) -> Any:
        with opened() as db:
            with self.participant.guard(db, call) as first:
                if first:
                    self._write_sync(db, f"{call.op} {call.tx_id}")
                    if call.op in ("try", "action"):
                        first.keep({"tx_id": call.tx_id})
            if fails:
                raise ZeroDivisionError
        return first

    # ---- what is looked at ----

    def notes(self, tx_id: str) -> list[str]:
        """What it has done for a transaction."""
        rows = self.sql(f"SELECT body FROM note WHERE body LIKE '%{tx_id}'").split("\n")
        return sorted(row.split()[0] for row in rows if row)

    def key(self, tx_id: str) -> str:
        """The tx id as the database has it."""
        return {"postgresql": f"'{tx_id}'", "mysql": f"X'{tx_id}'", "sqlite": f"'{tx_id}'"}[self.family]

    def markers(self, tx_id: str) -> list[str]:
        """The ops that have a row."""
        rows = self.sql(f"SELECT op FROM txcoord_marker WHERE tx_id = {self.key(tx_id)} ORDER BY op")
        return rows.split()

    def age(self, tx_id: str, days: int) -> None:
        """As if its rows were older."""
        self.sql(
            f"UPDATE txcoord_marker SET created_us = created_us - {days * 86_400_000_000}"
            f" WHERE tx_id = {self.key(tx_id)}"
        )

    def waiting(self) -> bool:
        """Does somebody wait for a row that another transaction has not committed?"""
        if self.family == "postgresql":
            where = "wait_event_type = 'Lock' AND datname = current_database()"
            return self.sql(f"SELECT count(*) FROM pg_stat_activity WHERE {where}") != "0"
        # Not INNODB_TRX: that is not made anew while somebody looks at it again and again.
        return not self.sql("SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'").endswith("|0")


class RedisStore(Store):
    """A Redis: notes are a list."""

    family = "redis"
    guards = False

    def __init__(self, source: Any, looked_at: Any, *, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self._client = looked_at
        super().__init__(source, run=lambda _, __: None, sql=lambda _: "")

    def note(self, db: Any, body: str) -> None:
        op, tx_id = body.split()
        db.run(PUSH, keys=[f"notes:{tx_id}"], args=[op])

    def notes(self, tx_id: str) -> list[str]:
        return sorted(row.decode() for row in self._client.lrange(f"notes:{tx_id}", 0, -1))

    def markers(self, tx_id: str) -> list[str]:
        from txcoord_client.protocol import redis

        return sorted(field.decode() for field in self._client.hkeys(redis.key(tx_id, "1")))

    def lives_for_s(self, tx_id: str) -> int:
        """How long its markers stay; -1: for ever."""
        from txcoord_client.protocol import redis

        return int(self._client.ttl(redis.key(tx_id, "1")))


class SyncStore(Store):
    """The same with the synchronous SDK, in threads."""

    asynchronous = False


def _with_arguments(call: Call) -> Call:
    """With its tx id as the argument of a try or action."""
    payload = json.dumps({"tx_id": call.tx_id}).encode() if call.op in ("try", "action", "message") else b""
    return dataclasses.replace(call, payload=payload)


@contextmanager
def dbapi(connection: Any) -> Iterator[Any]:
    """A connection of the DB-API; committed in the end."""
    try:
        yield connection
        connection.commit()
    finally:
        connection.close()
