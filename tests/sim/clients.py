"""Processes that use the SDK: the real one, on simulated pools and a simulated channel."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc

from txcoord_client import (
    Aborted,
    AlreadyAborted,
    AlreadyCommitted,
    Coordinator,
    OutcomeUnknown,
    TxcoordError,
)
from txcoord_client._calls import begin_call
from txcoord_client._carrying import VOTE_KEY, vote_in_metadata
from txcoord_client.interceptors import ServerInterceptor

from .checker import Attempt
from .drivers import MyPool, PgPool
from .loop import Process
from .participants import arguments_of, flow_of
from .plan import Op

if TYPE_CHECKING:
    from .world import World

_POOL = 4


class Business(Exception):
    """The application changes its mind."""


class SimClient:
    """A place where a service runs; its processes come and go."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.process: Process | None = None
        self.coordinator: Coordinator
        self.pools: dict[str, Any] = {}
        self._todo = [op for op in world.plan.ops if op.client == name]
        self._incarnation = 0

    @property
    def up(self) -> bool:
        """Is there a process?"""
        return self.process is not None and self.process.alive

    def start(self) -> None:
        """A new process."""
        if self.up:
            return
        self._incarnation += 1
        self.process = Process(self.world.loop, f"{self.name}#{self._incarnation}")
        self.process.start(self._run(self.process), "client")

    async def _run(self, process: Process) -> None:
        world = self.world
        self.pools = {}
        for database in world.databases.values():
            make = PgPool if database.kind == "postgresql" else MyPool
            self.pools[database.name] = make(world, process, database, _POOL)
        self.coordinator = Coordinator(
            world.address,
            resources=self.pools,
            call_timeout=3.0,
            participants={place.name: place.address for place in world.places.values()},
        )
        for op in self._todo:
            process.start(self._op(op), op.name)

    async def _op(self, op: Op) -> None:
        world = self.world
        await asyncio.sleep(max(0.0, op.at_s - world.loop.now))
        if not op.gid:
            self._todo.remove(op)  # Who crashes in the middle of it does not know how far he came.
        world.checker.running += 1
        world.running[self.process] = world.running.get(self.process, 0) + 1
        try:
            await self._one(op)
        except TxcoordError as error:
            world.note("op ended", op=op.name, error=type(error).__name__, why=str(error))
        finally:
            world.checker.running -= 1
            world.running[self.process] -= 1
        if op in self._todo:
            self._todo.remove(op)

    async def _one(self, op: Op) -> None:
        if op.cancel_s:
            # Its caller goes away in the middle; the end of the transaction goes on.
            task = asyncio.ensure_future(self._transaction(op))
            await asyncio.wait({task}, timeout=op.cancel_s)
            if task.done():
                await task
            else:
                self.world.note("cancelled", op=op.name)
                task.cancel()
                await asyncio.wait({task})
        elif op.submit:
            await self._submit(op)
        elif op.how == "run":
            await self._again_and_again(op)
        else:
            await self._transaction(op)

    async def _submit(self, op: Op) -> None:
        """A saga that the coordinator runs."""
        world = self.world
        try:
            run = await self.coordinator.submit(
                flow_of(op, world.places), gid=op.gid, data=arguments_of(op), timeout=op.timeout_s or None
            )
            world.note("submitted", op=op.name, tx=run.tx_id)
            if op.how == "raise":
                await asyncio.sleep(op.pause_s)
                world.checker.told(run.tx_id, op.name, str((await run.abort()).state))
            outcome = await run.wait(timeout=6.0)
            world.checker.told(run.tx_id, op.name, str(outcome.state))
        except AlreadyCommitted as error:
            world.checker.told(error.tx_id, op.name, "COMMITTING")
        except AlreadyAborted as error:
            world.checker.told(error.tx_id, op.name, "ABORTING")
        except Aborted as error:
            world.checker.told(error.tx_id, op.name, "ABORTED")

    async def _again_and_again(self, op: Op) -> None:
        """``coord.run``: the same work tried again under its gid."""

        async def work(g: Any) -> str:
            attempt = self._begun(op, g)
            await self._work(op, g, attempt)
            return op.name

        name = op.gid or op.name
        try:
            await self.coordinator.run(work, gid=op.gid, attempts=3, name=name, timeout=op.timeout_s)
        except OutcomeUnknown as unknown:
            await self._settle(unknown, op.name)
        except Exception as error:
            self.world.note("run ended", op=op.name, error=f"{type(error).__name__}: {error}")

    def _begun(self, op: Op, g: Any) -> Attempt:
        attempt = Attempt(op.name, g.tx_id, g.deadline_us, op.gid, (*op.databases, *op.remote))
        self.world.checker.attempts[g.tx_id] = attempt
        self.world.note("begun", op=op.name, tx=g.tx_id)
        return attempt

    async def _transaction(self, op: Op) -> None:
        world, coord = self.world, self.coordinator
        attempt: Attempt | None = None
        g: Any = None
        resources = op.databases[:1] if op.gid and not op.remote else ()
        name = op.gid or op.name
        try:
            async with coord.begin(name, gid=op.gid, timeout=op.timeout_s, resources=resources) as g:
                attempt = self._begun(op, g)
                await self._work(op, g, attempt)
                if op.how == "raise":
                    raise Business
        except Business:
            self._told(attempt, g)
        except AlreadyCommitted as error:
            world.checker.told(error.tx_id, op.name, "COMMITTING")
        except AlreadyAborted as error:
            world.checker.told(error.tx_id, op.name, "ABORTED")
        except Aborted:
            self._told(attempt, g)
        except OutcomeUnknown as unknown:
            await self._settle(unknown, op.name)
        except TxcoordError as error:
            self._told(attempt, g)
            world.note("refused", op=op.name, error=f"{type(error).__name__}: {error}")
        except Exception as error:
            # The application's own, of a driver: it leaves the block, and rolls back.
            world.note("raised", op=op.name, error=f"{type(error).__name__}: {error}")
            self._told(attempt, g)
        else:
            self._told(attempt, g)

    def _told(self, attempt: Attempt | None, g: Any) -> None:
        if attempt is not None and g.outcome is not None:
            self.world.checker.told(attempt.tx_id, attempt.op, str(g.outcome.state))

    async def _work(self, op: Op, g: Any, attempt: Attempt) -> None:
        world = self.world
        if op.early:
            await self._take_part(op, g)
        for n, name in enumerate(op.databases):
            reads = op.how == "read" and n == 0
            async with g.xa(self.pools[name], read_only=reads and op.pause_s > 0) as db:
                if reads:
                    await self._read(name, db)
                    continue
                await self._write(name, db, f"{g.tx_id}.{name}.{op.name}", attempt)
                if op.how == "swallow" and n == 0:
                    await self._fail_unseen(name, db, attempt)
            if op.pause_s:
                await asyncio.sleep(op.pause_s)
        if not op.early:
            await self._take_part(op, g)
        if op.remote:
            with begin_call(self.coordinator, "s1") as call:  # type: ignore[union-attr]
                ok, trailing = await world.call(self.process, call.context, op.remote, call.remaining)
                call.answered(200 if ok else 500, vote_in_metadata(trailing))

    async def _take_part(self, op: Op, g: Any) -> None:
        """Its tries, its saga, and its messages."""
        places = self.world.places
        for name in op.messages:
            body = {"op": op.gid or op.name}
            g.message(places[name].operations.told, body, order_key=self.world.order_key)

        async def reserve(name: str) -> None:
            await g.tcc(places[name].operations.hold, call_timeout=2.5, **arguments_of(op))

        if op.together:
            await asyncio.gather(*map(reserve, op.tries))
        else:
            for name in op.tries:
                await reserve(name)
        if op.steps:
            await g.saga(flow_of(op, places), **arguments_of(op))

    @staticmethod
    async def _read(name: str, db: Any) -> None:
        sql = "SELECT identity FROM txcoord_identity"
        if hasattr(db, "cursor"):
            async with db.cursor() as cursor:
                await cursor.execute(sql)
        else:
            await db.fetchrow(sql)

    async def _write(self, name: str, db: Any, row: str, attempt: Attempt | None) -> None:
        if attempt is not None:
            attempt.rows.append(row)
        await _execute(db, f"INSERT INTO ledger VALUES ('{row}')")

    async def _fail_unseen(self, name: str, db: Any, attempt: Attempt) -> None:
        attempt.doomed = True
        try:
            await _execute(db, "INSERT INTO ledger VALUES ('broken deadlock')")
        except Exception as error:
            self.world.note("swallowed", error=type(error).__name__)

    async def _settle(self, unknown: OutcomeUnknown, who: str) -> None:
        for _ in range(12):
            try:
                outcome = await self.coordinator.settle(unknown, timeout=2.0)
            except OutcomeUnknown:
                return  # Too long ago.
            except TxcoordError as error:
                self.world.note("not settled", who=who, error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(1.0)
                continue
            self.world.checker.told(unknown.tx_id, who, str(outcome.state))
            return

    # ---- as a called service ----

    async def serve(self, sent: bytes, databases: tuple[str, ...]) -> tuple[bool, Any]:
        """Work inside the caller's transaction, and vote: by the real interceptor."""
        context = _ServerContext()

        async def handler(request: Any, _: Any) -> Any:
            g = self.coordinator.current
            attempt = self.world.checker.attempts.get(g.tx_id)
            for name in databases:
                async with g.xa(self.pools[name]) as db:
                    await self._write(name, db, f"{g.tx_id}.{name}.s1", attempt)
            return request

        run = ServerInterceptor(self.coordinator)._wrapped(handler, sent)
        try:
            await run(b"", context)
        except _Ended:
            return False, context.metadata
        except Exception as error:
            self.world.note("the handler raised", error=f"{type(error).__name__}: {error}")
            return False, context.metadata
        return True, context.metadata

    async def leave(self) -> None:
        """Close, as at the end of a service, and go."""
        await self.coordinator.close()
        self.world.note("closed", who=self.name)
        assert self.process is not None
        self.world.crash(self.process)

    async def look(self) -> None:
        """Ask how every transaction stands: whoever looks must never see an outcome change."""
        for attempt in list(self.world.checker.attempts.values()):
            try:
                outcome = await self.coordinator.get(tx_id=attempt.tx_id)
            except TxcoordError:
                continue
            if outcome is not None:
                self.world.checker.told(attempt.tx_id, "auditor", str(outcome.state))

    async def audit(self, done: asyncio.Future[None]) -> None:
        """Ask how every transaction has ended; those that are not known any more are settled, as by a person."""
        await self.look()
        for attempt in list(self.world.checker.attempts.values()):
            if any(state in ("COMMITTED", "ABORTED") for _, state in attempt.told):
                continue
            if attempt.tx_id in self.world.checker.effects.plans:
                continue  # It was asked for: nobody but its gid, or its row, says more.
            unknown = OutcomeUnknown(
                "?",
                tx_id=attempt.tx_id,
                gid=attempt.gid,
                deadline_us=attempt.deadline_us,
                resources=attempt.resources,
            )
            await self._settle(unknown, "auditor")
        done.set_result(None)


async def _execute(db: Any, sql: str) -> None:
    if hasattr(db, "cursor"):
        async with db.cursor() as cursor:
            await cursor.execute(sql)
    else:
        await db.execute(sql)


class _Ended(Exception):
    pass


class _ServerContext:
    def __init__(self) -> None:
        self.metadata: Any = ()

    def code(self) -> Any:
        return None

    def details(self) -> str:
        return ""

    def trailing_metadata(self) -> Any:
        return self.metadata

    def set_trailing_metadata(self, metadata: Any) -> None:
        self.metadata = tuple(metadata)

    async def abort(self, code: grpc.StatusCode, text: str = "", trailing: Any = ()) -> Any:
        self.metadata = tuple(trailing or self.metadata)
        raise _Ended(text)


__all__ = ["VOTE_KEY", "SimClient"]
