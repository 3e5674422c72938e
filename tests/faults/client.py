"""A process that uses the SDK, the real one on real connections, and that can die at any of its points.

Only the stream to the coordinator is not there: an operation goes straight to the servicer of the coordinator that
lives now, and its result comes back, both as bytes. Whoever retries, and what is made of an answer, is the SDK.

Its death cuts its connections: PostgreSQL rolls back what is not prepared, MariaDB lets go of what is. Nothing more of
it is heard.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import asyncmy
import asyncpg
import httpx
from asyncmy import errors as asyncmy_errors

from tests.faults.crashing import Died
from tests.faults.points import MARIADB
from tests.faults.services import ADDRESSES, Channel
from txcoord.adapters.embedded import end
from txcoord.adapters.xa.mariadb_session import Address
from txcoord.core.model import Decision, Tx
from txcoord_client import (
    Aborted,
    AlreadyAborted,
    AlreadyCommitted,
    Coordinator,
    OutcomeUnknown,
    Participant,
    Unavailable,
)
from txcoord_client._db.sources import Source
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client._pb import participant_pb2_grpc
from txcoord_client._together import Together
from txcoord_client.protocol import marker

if TYPE_CHECKING:
    from tests.faults.place import Run

T = TypeVar("T")
_OPERATIONS = (
    "begin", "commit", "rollback", "report", "enlist", "submit", "prepare_message", "submit_message"
)  # fmt: skip
_LOST = "the reply was lost"
_CALL_S = 20.0


class ClientDied(Exception):
    """The client died: nobody was told anything."""


class Client:
    """One life of a process of a service."""

    def __init__(self, run: Run) -> None:
        # Not at the top: a run has clients.
        from tests.faults.place import kind_of

        self.run = run
        self.points = run.points
        self.dead = asyncio.Event()
        self.buried = False
        self._mariadb = {name: kind_of(url) == MARIADB for name, url in run.place.databases.items()}
        self._connections: list[Any] = []
        self._work: list[asyncio.Future[Any]] = []
        self.pools: dict[str, Any] = {}
        self.coordinator: Coordinator
        self.also: Callable[[], Awaitable[None]] | None = None
        """What it does beside when it is called."""
        run.clients.append(self)

    async def start(self) -> Client:
        """As a process starts."""
        for name, url in self.run.place.databases.items():
            self.pools[name] = await self._pool(name, url)
        self.coordinator = Coordinator(
            "127.0.0.1:1",
            namespace="shop",
            resources=self.pools,
            timeout=30.0 * self.run.scale,
            call_timeout=_CALL_S * self.run.scale,
            participants=ADDRESSES,
        )
        self._runtime: Any = self.coordinator._runtime()
        self._runtime.wire._send = self._send
        self._runtime.wire._ask_hello = self._hello
        participants = self._runtime.participants
        for name in ADDRESSES:
            stub = participant_pb2_grpc.ParticipantServiceStub(Channel(self.run, self, name, "client.try"))  # type: ignore[arg-type]
            participants._together[participants.place(name)] = Together(stub)
        real = self._runtime.source
        self._runtime.source = lambda target, resource: self._pointed(real(target, resource))
        return self

    async def _pool(self, name: str, url: str) -> Any:
        if not self._mariadb[name]:
            return await asyncpg.create_pool(
                url.replace("+asyncpg", ""), min_size=0, max_size=4, statement_cache_size=0
            )
        at = Address.of(url)
        return await asyncmy.create_pool(
            minsize=0, maxsize=4, host=at.host, port=at.port, user=at.user, database=at.database
        )

    # ---- what it asks a coordinator ----

    async def _hello(self, *_: object) -> pb.HelloResponse:
        while True:
            await self.points.alive(self)
            process = await self.run.up()
            with contextlib.suppress(Died):
                return await process.hello()

    async def _send(self, name: str, request: Any, left: float) -> pb.OperationResult:
        await self.points.alive(self)
        if name in ("begin", "commit", "report", "enlist", "submit", "prepare_message"):
            self._noted(request)
        operation = pb.Operation(op_id=1)
        getattr(operation, name).CopyFrom(request)

        async def do() -> pb.OperationResult:
            process = await self.run.up()
            try:
                async with asyncio.timeout(left):
                    answer = await process.answer(operation.SerializeToString(), left)
            except (Died, TimeoutError) as error:
                raise Unavailable("the connection broke", definite=False) from error
            await self.points.alive(self)
            return pb.OperationResult.FromString(answer)

        if name not in _OPERATIONS:
            return await do()
        return await self.points.around(
            f"client.{name}", self, do, lambda: Unavailable(_LOST, definite=False)
        )

    def _noted(self, request: Any) -> None:
        """What a careful service writes down before it begins, to ask for the outcome in its next life."""
        gid = request.gid or (self.run.last.gid if self.run.last is not None else "")
        self.run.last = Tx(request.tx_id, "shop", request.deadline_us, gid)

    # ---- what it does in its databases ----

    def _pointed(self, source: Any) -> Any:
        return replace(source, make=lambda: self._point(source.make(), source.resource))

    def _point(self, held: Any, resource: str) -> Any:
        """Every statement of a branch that changes something."""
        for name in ("open", "start", "fetch_row", "fetch_alone"):
            setattr(held, name, self._guarded(held, getattr(held, name)))
        real = held.execute
        prepared = False

        async def execute(sql: str) -> str:
            nonlocal prepared
            await self.points.alive(self)
            step = _step_of(sql, prepared)
            if not step:
                return str(await real(sql))

            def lost() -> Exception:
                held.abort()
                if self._mariadb[resource]:
                    error: Exception = asyncmy_errors.OperationalError(2013, _LOST)
                    return error
                return asyncpg.ConnectionDoesNotExistError(_LOST)

            async def do() -> str:
                nonlocal prepared
                out = str(await real(sql))
                prepared = prepared or step == "client.prepare"
                return out

            return await self.points.around(step, self, do, lost)

        held.execute = execute
        return held

    def _guarded(self, held: Any, real: Any) -> Any:
        async def guarded(*arguments: Any) -> Any:
            await self.points.alive(self)
            out = await real(*arguments)
            if held.value is not None and held.value not in self._connections:
                self._connections.append(held.value)
            return out

        return guarded

    # ---- its transactions ----

    async def transaction(self, body: Any, **options: Any) -> Decision | None:
        """One transaction, whose work is ``await body(self, g)``; what its caller is told. None: nothing."""
        try:
            async with self.coordinator.begin("crash", **options) as g:
                gid = options.get("gid", "")
                self.run.last = Tx(g.tx_id, "shop", g.deadline_us, gid)
                await body(self, g)
        except (Aborted, AlreadyAborted, Business, httpx.HTTPError):
            return Decision.ABORT
        except AlreadyCommitted:
            return Decision.COMMIT
        except OutcomeUnknown:
            return None
        return Decision.COMMIT

    async def insert(self, g: Any, resource: str, *, wrongly: bool = False) -> None:
        """Work in one database; ``wrongly``: it cannot be prepared."""
        self.run.involved.add(resource)
        table = "work_checked_late" if wrongly else "work"
        async with g.xa(self.pools[resource]) as db:
            sql = f"INSERT INTO {table} VALUES ('{self.run.gid}')"
            if not self._mariadb[resource]:
                await db.execute(sql)
                return
            async with db.cursor() as cursor:
                await cursor.execute(sql)

    async def answered(self, resource: str, body: Any, *, silent: bool = False) -> Decision | None:
        """A local transaction in a database that its own service answers for, as :meth:`transaction`. ``silent``: it
        tells nobody how it has ended."""
        if silent:
            self._runtime.wire.tell = lambda *_, **__: None
        self.run.involved.add(resource)
        shop = Participant(resource, db=(home := Home(self, resource)))
        await shop._home()  # Once: it looks, and gives the database its identity.
        home.writes = True
        timeout = 1.5 * self.run.scale
        try:
            async with self.coordinator.local(shop.db, answered_by=shop, timeout=timeout) as tx:
                self.run.last = Tx(tx.transaction.tx_id, "shop", tx.transaction.deadline_us)
                sql = f"INSERT INTO work VALUES ('{self.run.gid}')"
                if self._mariadb[resource]:
                    async with tx.db.cursor() as cursor:
                        await cursor.execute(sql)
                else:
                    await tx.db.execute(sql)
                await body(self, tx)
        except (Aborted, Business):
            return Decision.ABORT
        except OutcomeUnknown:
            return None
        return Decision.COMMIT

    async def settle(self, tx: Tx) -> Decision:
        """Ask what became of a transaction of an earlier life, until there is an answer."""
        unknown = OutcomeUnknown(
            "?", tx_id=tx.tx_id, gid=tx.gid, deadline_us=tx.deadline_us, resources=tuple(self.pools)
        )
        while True:
            try:
                outcome = await self.coordinator.settle(unknown)
            except Unavailable:
                continue
            return Decision.COMMIT if outcome.committed else Decision.ABORT

    # ---- calls between services ----

    async def call_service(self, service: Client, path: str = "/") -> None:
        """Call another service, which takes part; what it does there is ``service.serve``."""
        inner = _Line(self, service)
        transport = self.coordinator.httpx_transport(inner, propagate_to=["service"])
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
            (await http.post(path)).raise_for_status()

    async def serve(self, request: httpx.Request) -> httpx.Response:
        """As the service that was called: work in the caller's transaction, in database ``b``."""

        async def application(scope: Any, receive: Any, send: Any) -> None:
            await self.insert(self.coordinator.current, "b")
            if self.also is not None:
                await self.also()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        response = await httpx.ASGITransport(self.coordinator.asgi(application)).handle_async_request(request)
        await response.aread()
        return response

    # ---- its life ----

    async def live(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in this process. Raises ClientDied; what it was doing then stands still."""
        task = asyncio.ensure_future(work)
        self._work.append(task)
        dead = asyncio.ensure_future(self.dead.wait())
        try:
            await asyncio.wait({task, dead}, return_when=asyncio.FIRST_COMPLETED)
            if self.dead.is_set():
                raise ClientDied
            return task.result()
        finally:
            dead.cancel()

    def die(self) -> None:
        """From now on nothing of it reaches anybody."""
        self.dead.set()
        for name, pool in self.pools.items():
            if not self._mariadb[name]:
                pool.terminate()
        for connection in self._connections:
            if isinstance(connection, asyncmy.Connection):
                connection.close()

    async def bury(self) -> None:
        """End what is left of it in this process."""
        if not self.dead.is_set():
            self.die()
        self.buried = True
        runtime = self._runtime
        left = {*self._work, *runtime.tasks._tasks, *runtime.tasks._keepers, *runtime.wire.tasks._tasks}
        while left:
            await end(left)
            # What was cancelled may have left something behind.
            left = {*runtime.tasks._tasks, *runtime.tasks._keepers, *runtime.wire.tasks._tasks}
        await runtime.wire.close()


class Home(Source):
    """Where the local transactions come from that a service answers for; the COMMIT is a step."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name
        self.writes = False

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        """On a connection of the client's own."""
        client, points = self._client, self._client.points
        await points.alive(client)
        async with client.pools[self._name].acquire() as connection:
            client._connections.append(connection)
            on_mariadb = client._mariadb[self._name]
            own = None if on_mariadb else connection.transaction()
            await (connection.begin() if own is None else own.start())
            try:
                await points.alive(client)
                yield connection
            except BaseException:
                await (connection.rollback() if own is None else own.rollback())
                raise

            async def commit() -> None:
                await (connection.commit() if own is None else own.commit())

            def lost() -> Exception:
                if on_mariadb:
                    connection.close()
                    error: Exception = asyncmy_errors.OperationalError(2013, _LOST)
                    return error
                connection.terminate()
                return asyncpg.ConnectionDoesNotExistError(_LOST)

            if self.writes:
                await points.around("client.commit_local", client, commit, lost)
            else:
                await commit()


class _Line(httpx.AsyncBaseTransport):
    """From one service to another."""

    def __init__(self, caller: Client, service: Client) -> None:
        self._caller = caller
        self._service = service

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        async def do() -> httpx.Response:
            try:
                return await self._service.live(self._service.serve(request))
            except ClientDied as error:
                raise httpx.ReadError("the connection broke") from error

        return await self._caller.points.around(
            "client.call", self._caller, do, lambda: httpx.ReadError(_LOST)
        )


class Business(Exception):
    """The application changes its mind."""


def _step_of(sql: str, prepared: bool) -> str:
    """The step that a statement of a branch is; empty: it makes nothing durable."""
    if sql.startswith("XA PREPARE") or "PREPARE TRANSACTION" in sql:
        return "client.prepare"
    if sql.startswith("XA COMMIT"):
        return "client.commit_one_phase" if sql.endswith("ONE PHASE") else "client.finish_commit"
    if sql.startswith("XA ROLLBACK"):
        return "client.finish_rollback" if prepared else ""
    if marker.TABLE in sql and sql.endswith("COMMIT"):
        return "client.commit_one_phase"
    return ""


__all__ = ["Business", "Client", "ClientDied"]
