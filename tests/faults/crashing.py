"""A coordinator in this process that can die at any point, on a real log and real databases.

Dying is what SIGKILL does: nothing is flushed, nothing is said, every task and connection is gone. What a next one
finds is what was durable.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import asyncpg
import grpc

from tests.faults.points import AFTER, ENGINE, Points
from tests.faults.services import Asker
from txcoord.adapters.embedded import EmbeddedQueue, InProcessLeases, SystemClock, Tasks, end
from txcoord.adapters.sql.log import SqlLog
from txcoord.adapters.sql.store import ReplyLost
from txcoord.adapters.xa.mariadb import MariaFinisher
from txcoord.adapters.xa.mariadb_session import Session, StatementError
from txcoord.adapters.xa.postgresql import PostgresFinisher
from txcoord.api.grpc.mapping import Limits
from txcoord.api.grpc.operations import Operations
from txcoord.api.grpc.servicer import CoordinatorServicer
from txcoord.core.backoff import Backoff
from txcoord.core.errors import Refusal, Refused
from txcoord.core.model import Windows
from txcoord.engine.carrier import RETRY
from txcoord.engine.coordinator import Coordinator, EngineSettings
from txcoord.engine.due import Carrying
from txcoord.engine.recovery import Recovery, RecoverySettings
from txcoord.ports import LogUnavailable, ResourceStatus, ResourceTrouble
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client.protocol import marker

T = TypeVar("T")
RARELY_S = 3600.0
"""Recovery's loops take one turn at the start; further ones are the scenario's."""
_TICK_S = 0.3
_SWEEP_S = 0.1
HOLD_S = 0.25
"""How long the session that has prepared a branch has for finishing it."""
_LOST = "the reply was lost"


class Died(Exception):
    """The coordinator died under this call: whether it was done is not known."""


class Process:
    """One life of a coordinator."""

    def __init__(
        self,
        log_url: str,
        databases: Mapping[str, str],
        identities: Mapping[str, str],
        windows: Windows,
        points: Points,
        *,
        node: str = "n1",
        lease_us: int = 10_000_000,
        scale: float = 1.0,
        caller: Any = None,
    ) -> None:
        self.points = points
        self.dead = asyncio.Event()
        self.buried = False
        self.log = SqlLog(log_url, windows=windows, tick_s=RARELY_S)
        self._point_log(self.log.store)
        self.clock = SystemClock()
        self.finishers = {key: self._finisher(key, url, windows) for key, url in databases.items()}
        self.servicer: CoordinatorServicer | None = None
        self._identities = identities
        self._tasks = Tasks()
        failpoints = _Failpoints(points, self)
        self.queue = EmbeddedQueue(self.clock, self._tasks.spawn)
        self.coordinator = Coordinator(
            self.log,
            self.finishers,
            settings=EngineSettings(
                node,
                windows=windows,
                lease_us=lease_us,
                backoff=Backoff(first_us=20_000, cap_us=50_000),
                hold_us=round(HOLD_S * 1e6 * scale),
                retry=replace(RETRY, first_us=20_000, cap_us=50_000),
                # Whatever waits is handed off.
                hand_off_us=5_000,
                overdue_us=20_000,
            ),
            clock=self.clock,
            randomness=random.Random(1),
            spawn=self._tasks.spawn,
            failpoints=failpoints,
            caller=caller,
            answerer=Asker(caller) if caller is not None else None,
            queue=self.queue,
        )
        self._carrying = Carrying(self.coordinator, failpoints=failpoints)
        if caller is not None:
            caller.process = self
        self.recovery = Recovery(
            self.coordinator,
            leases=InProcessLeases(self.clock.now_us),
            settings=RecoverySettings(RARELY_S, RARELY_S, RARELY_S, RARELY_S),
            spawn=self._tasks.spawn,
            failpoints=failpoints,
        )

    # ---- its points ----

    def _point_log(self, store: Any) -> None:
        """Every durable step of the log."""

        def around(real: Callable[..., Any], step: str, lost: Callable[[], Exception]) -> Callable[..., Any]:
            async def pointed(*arguments: Any, **options: Any) -> Any:
                if step == "log.flush" and not arguments[0]:
                    return await real(*arguments, **options)  # Only asks.
                return await self.points.around(step, self, lambda: real(*arguments, **options), lost)

            return pointed

        store.write = around(store.write, "log.flush", lambda: ReplyLost(_LOST))
        store.changing = around(store.changing, "log.change", lambda: LogUnavailable(_LOST))

    def _finisher(self, name: str, url: str, windows: Windows) -> PostgresFinisher | MariaFinisher:
        """Every statement of it that changes something."""
        if url.startswith("postgresql"):
            return self._point_postgresql(PostgresFinisher(name, url, windows=windows))
        return self._point_mariadb(MariaFinisher(name, url, windows=windows))

    def _point_postgresql(self, finisher: Any) -> PostgresFinisher:
        real = finisher._execute

        async def execute(conn: asyncpg.Connection, statement: str) -> str:
            await self.points.alive(self)
            step = _step_of(statement)
            if not step:
                return str(await real(conn, statement))

            def lost() -> Exception:
                conn.terminate()
                return asyncpg.ConnectionDoesNotExistError(_LOST)

            return str(await self.points.around(step, self, lambda: real(conn, statement), lost))

        finisher._execute = execute
        found: PostgresFinisher = finisher
        return found

    def _point_mariadb(self, finisher: Any) -> MariaFinisher:
        real = finisher._take

        async def take() -> tuple[Session, str | None]:
            await self.points.alive(self)
            s, found = await real()
            if "_send" not in vars(s):
                self._point_session(s)
            return s, found

        finisher._take = take
        out: MariaFinisher = finisher
        return out

    def _point_session(self, session: Any) -> None:
        real = session._send

        async def send(statement: str) -> Any:
            await self.points.alive(self)
            step = _step_of(statement)
            if not step:
                return await real(statement)

            def lost() -> Exception:
                session.close()
                return StatementError(None, _LOST)

            return await self.points.around(step, self, lambda: real(statement), lost)

        session._send = send

    # ---- its life ----

    async def start(self) -> None:
        """As a process starts. Raises Died."""

        async def start() -> None:
            self.coordinator.identity = await self.log.open()
            self.clock.observe(await self.log.now_us())
            limits = Limits(deadline_max_us=600_000_000)
            operations = Operations(self.coordinator, limits, self._statuses)
            self.servicer = CoordinatorServicer(operations, max_operations=1_000, now_us=self.clock.now_us)
            await self.recovery.start()
            await self.queue.start(self._carrying.carry)
            if await self.log.backlog():
                self._tasks.spawn(self._sweep(), "sweep")

        try:
            await self.call(start())
        except LogUnavailable as error:
            # Without its log it does not start; whoever looks after it tries again.
            self.die()
            raise Died from error

    async def _sweep(self) -> None:
        """What an earlier life has handed off is taken over when it is overdue."""
        while await self.log.backlog():
            await asyncio.sleep(_SWEEP_S)
            with suppress(LogUnavailable):
                await self.recovery.take_over()

    def _statuses(self) -> list[ResourceStatus]:
        return [ResourceStatus(f.name, f.engine, self._identities[f.name]) for f in self.finishers.values()]

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """A caller's request. Raises Died."""
        task = asyncio.ensure_future(work)
        dead = asyncio.ensure_future(self.dead.wait())
        try:
            await asyncio.wait({task, dead}, return_when=asyncio.FIRST_COMPLETED)
            if self.dead.is_set():
                raise Died
            return task.result()
        finally:
            await end((task, dead))

    async def answer(self, operation: bytes, left_s: float) -> bytes:
        """An operation of an SDK, and its result, as they travel. Raises Died, TimeoutError."""
        assert self.servicer is not None
        request = pb.BatchRequest(namespace="shop", operations=[pb.Operation.FromString(operation)])
        response = await self.call(self._ticking(self.servicer.Batch(request, _Context(left_s))))
        result: pb.OperationResult = response.results[0]
        return result.SerializeToString()

    async def _ticking(self, work: Coroutine[Any, Any, T]) -> T:
        """What waits for a lazy write waits for the log's tick, as in production."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_TICK_S)
                if not task.done():
                    await self.log.settle()
            return task.result()
        finally:
            task.cancel()

    async def hello(self) -> pb.HelloResponse:
        """Who is there. Raises Died."""
        assert self.servicer is not None
        request = pb.HelloRequest(namespace="shop")
        response: pb.HelloResponse = await self.call(self.servicer.Hello(request, _Context(10.0)))
        return response

    def die(self) -> None:
        """From now on nothing of it reaches log or databases."""
        self.log.abandon()
        for finisher in self.finishers.values():
            finisher._forget_idle()
        self.dead.set()

    async def bury(self) -> None:
        """End what is left of it in this process."""
        if not self.dead.is_set():
            self.die()
        self.buried = True
        await self._tasks.stop()
        for finisher in self.finishers.values():
            await finisher.close()


class _Context:
    """A servicer's context."""

    def __init__(self, left_s: float) -> None:
        self._left_s = left_s

    def time_remaining(self) -> float:
        return self._left_s

    async def abort(self, code: grpc.StatusCode, text: str = "", trailing: Any = ()) -> Any:
        raise AssertionError(f"{code}: {text}")


class _Failpoints:
    """``ports.Failpoints``"""

    def __init__(self, points: Points, process: Process) -> None:
        self._points = points
        self._process = process

    async def reach(self, name: str) -> None:
        step, mode = ENGINE[name]
        await self._points.reach(f"{step}:{mode}", self._process)
        if mode == AFTER and self._points.loses(step):
            raise _told(step)


def _told(step: str) -> Exception:
    """What whoever has taken this step is told when the reply is lost."""
    match step:
        case "coordinator.finish" | "coordinator.call":
            return ConnectionResetError(_LOST)
        case "coordinator.probe":
            return Refused(Refusal("UNAVAILABLE", "RESOURCE_UNREACHABLE", _LOST, False))
        case "scanner.finish_late":
            return ResourceTrouble("?", "RESOURCE_UNREACHABLE", _LOST)
    return LogUnavailable(_LOST)


def _step_of(statement: str) -> str:
    """The step that a finisher's statement is; empty: it changes nothing."""
    sql = statement.lstrip()
    if sql.startswith(("COMMIT PREPARED", "XA COMMIT")):
        return "finisher.commit"
    if sql.startswith(("ROLLBACK PREPARED", "XA ROLLBACK")):
        return "finisher.rollback"
    if sql.startswith("KILL") and "QUERY" not in sql:
        return "finisher.kill"
    if marker.TABLE in sql and "INSERT INTO" in sql:
        return "finisher.tombstone"
    return ""
