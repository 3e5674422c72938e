"""Services that take part by TCC and saga: the real SDK, its barrier and its servicer, on simulated databases.

What they do is one row in a ledger for each thing done: ``fx:TX:PLACE:BRANCH:OP``. Who did it, and for whom, is read
off the barrier's statement, so that a barrier that errs cannot hide it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from txcoord_client import Participant, Pending, Refused, Saga, saga
from txcoord_client._db.sources import Source
from txcoord_client._serving_grpc import Servicer

from .drivers import MyPool, PgPool
from .loop import Process
from .plan import Op

if TYPE_CHECKING:
    from .postgres import Database
    from .world import World

PORT = 7300
_POOL = 6
_ENTERS = re.compile(r"SELECT X?'(\w+)'(?:::uuid)?, '([\d.]+)', v\.op.*?'(\w+)'(?: AS op)?, 1\b")


@dataclass(frozen=True)
class Operations:
    """What a participant can do."""

    hold: Any
    act: Any
    last: Any
    told: Any


class Connection:
    """A connection as the barrier uses it, over a simulated driver."""

    def __init__(self, raw: Any, family: str) -> None:
        self._raw = raw
        self.family = family
        self.entered = ("", "", "")
        """Transaction, branch and op of the call that is carried out."""

    async def refuse_autocommit(self) -> None:
        """It is in a transaction."""

    async def row(self, sql: str) -> tuple[Any, ...] | None:
        """The first row."""
        if hasattr(self._raw, "cursor"):
            async with self._raw.cursor() as cursor:
                await cursor.execute(sql)
                row = await cursor.fetchone()
        else:
            row = await self._raw.fetchrow(sql)
        return None if row is None else tuple(row)

    async def run(self, sql: str) -> int:
        """How many rows it has changed."""
        if match := _ENTERS.search(sql):
            self.entered = (match[1], match[2], match[3])
        if hasattr(self._raw, "cursor"):
            async with self._raw.cursor() as cursor:
                return int(await cursor.execute(sql))
        tag = await self._raw.execute(sql)
        last = tag.rsplit(" ", 1)[-1]
        return int(last) if last.isdigit() else 0


class Engine(Source):
    """Where its transactions come from."""

    def __init__(self, world: World, process: Process, database: Database) -> None:
        make = PgPool if database.kind == "postgresql" else MyPool
        self._pool = make(world, process, database, _POOL)
        self._family = database.kind

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Connection]:
        """A transaction that is committed where nothing is raised."""
        raw = await self._pool.acquire()
        connection = Connection(raw, self._family)
        try:
            await connection.run("BEGIN")
            yield connection
            await connection.run("COMMIT")
        except Exception:
            await _rolled_back(connection)
            raise
        except BaseException:
            # As SQLAlchemy: a connection of which nobody knows what it is doing is not used again.
            (raw.terminate if hasattr(raw, "terminate") else raw.close)()
            raise
        finally:
            await self._pool.release(raw)


async def _rolled_back(connection: Connection) -> None:
    try:
        await connection.run("ROLLBACK")
    except Exception:
        return  # It is broken: its server does that.


class SimParticipant:
    """A place where such a service runs; its processes come and go."""

    def __init__(self, world: World, name: str, database: Database) -> None:
        self.world = world
        self.name = name
        self.database = database
        self.process: Process | None = None
        self.servicer: Servicer | None = None
        self.hung_until = 0.0
        """Until then it accepts calls and does nothing."""
        self.threads = world.rng(name).random() < 0.5
        """Does it do what it has begun though its caller has gone, as threads do?"""
        self.operations = declared(Participant(name), self)
        """As others know them."""
        self._incarnation = 0

    @property
    def up(self) -> bool:
        """Is there a process?"""
        return self.process is not None and self.process.alive

    @property
    def address(self) -> str:
        """Where it is."""
        return f"grpc://{self.name}:{PORT}"

    def start(self) -> None:
        """A new process."""
        if self.up:
            return
        self._incarnation += 1
        self.process = Process(self.world.loop, f"{self.name}#{self._incarnation}")
        self.process.start(self._run(self.process), "participant")

    async def _run(self, process: Process) -> None:
        service = Participant(self.name, db=Engine(self.world, process, self.database), keep_days=0)
        declared(service, self)
        self.servicer = Servicer([service])

    # ---- what it does ----

    async def first(self, db: Connection, how: dict[str, Any], s1: Any) -> Any:
        """A try or an action."""
        tx_id, branch, op = db.entered
        step = f"s{branch.rsplit('.', 1)[-1]}"
        if s1 is not None and s1["tx"] != tx_id:
            self.world.checker.wrong(f"step {branch} was given the result of another transaction")
        nth = self.world.asked(tx_id, branch, op)
        if how["no"] in (op, step) and (nth == 1 or not how["fickle"]):
            await self._write(db)
            raise Refused("SOLD_OUT", f"{self.name} says no")
        if nth <= how["later"]:
            raise Pending(retry_after=how["rest"])
        await self._write(db)
        if nth <= how["later"] + how["fails"]:
            raise RuntimeError("it fails")
        return {"tx": tx_id, "branch": branch, "hard": how["hard"]}

    async def then(self, db: Connection, held: Any) -> None:
        """What comes after it."""
        tx_id, branch, op = db.entered
        await self._write(db)
        if held is None or (held["tx"], held["branch"]) != (tx_id, branch):
            self.world.checker.wrong(f"{op} of branch {branch} was given another one's result: {held}")
            return
        nth = self.world.asked(tx_id, branch, op)
        if nth <= held["hard"]:
            if nth % 2:
                raise RuntimeError("it fails")
            raise Pending(retry_after=0.3)

    async def _write(self, db: Connection) -> None:
        tx_id, branch, op = db.entered
        await db.run(f"INSERT INTO ledger VALUES ('fx:{tx_id}:{self.name}:{branch}:{op}')")


def declared(participant: Participant, place: SimParticipant) -> Operations:
    """Its operations, as a user declares them."""

    @participant.tcc
    class Hold:
        async def attempt(self, db: Any, *, op: str, how: dict[str, Any]) -> Any:
            return await place.first(db, how, None)

        async def confirm(self, db: Any, held: Any) -> None:
            await place.then(db, held)

        async def cancel(self, db: Any, held: Any) -> None:
            await place.then(db, held)

    @participant.action
    async def act(db: Any, *, op: str, how: dict[str, Any], s1: Any = None) -> Any:
        return await place.first(db, how, s1)

    @act.compensate
    async def undo(db: Any, held: Any) -> None:
        await place.then(db, held)

    @participant.action
    async def last(db: Any, *, op: str, how: dict[str, Any], s1: Any = None) -> Any:
        # Never undone, so it is asked until it says yes: its no is one that passes.
        return await place.first(db, {**how, "fickle": True}, s1)

    @participant.message
    async def told(db: Any, *, op: str) -> None:
        await place._write(db)

    return Operations(Hold, act, last, told)


def flow_of(op: Op, places: dict[str, SimParticipant]) -> Saga:
    """The saga of an operation."""
    flow = saga(op.gid or op.name)
    for n, place in enumerate(op.steps, 1):
        operations = places[place].operations
        if op.forward and n == len(op.steps):
            before = tuple(s.name for s in flow.steps)
            flow = flow.step(operations.last, name=f"s{n}", after=before, forward=True)
        else:
            flow = flow.step(operations.act, name=f"s{n}", after=_after(op, n), retries=op.retries)
    return flow


def _after(op: Op, n: int) -> tuple[str, ...] | None:
    if op.shape == "parallel":
        return ()
    if op.shape == "graph":
        # The first, then all others but the last side by side, then the last.
        middle = tuple(f"s{i}" for i in range(2, n)) or ("s1",)
        return () if n == 1 else middle if n == len(op.steps) else ("s1",)
    return None


def arguments_of(op: Op) -> dict[str, Any]:
    """What its participants are given."""
    how = {"no": op.no, "fickle": op.fickle, "later": op.later, "rest": op.rest_s, "fails": op.fails}
    return {"op": op.gid or op.name, "how": {**how, "hard": op.hard}}
