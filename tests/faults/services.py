"""Services that take part by TCC and saga, in processes that can die: the real SDK on real databases.

Only gRPC is not there: messages go straight to the servicer of the process that lives now, as bytes, and its answers
come back. A dead one's connections are cut; whoever calls finds the next one.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from tests.faults.points import Mortal, Points
from txcoord.adapters.calling import query_back
from txcoord.adapters.calling.credentials import Credentials
from txcoord.adapters.calling.dialling import Dialling
from txcoord.adapters.calling.grpc_ import GrpcCaller
from txcoord.adapters.embedded import end
from txcoord.core.model import Tx
from txcoord.core.targets import ANYBODY, Target
from txcoord.ports import Probed
from txcoord_client import Participant, Pending, Refused, saga
from txcoord_client._db.sources import Source
from txcoord_client._pb import participant_pb2 as pb
from txcoord_client._serving import Runner, answers
from txcoord_client.protocol.barrier import FIRST

if TYPE_CHECKING:
    from tests.faults.place import Run

T = TypeVar("T")
_LOST = "the reply was lost"
PLACES = ("a", "b")
"""A service for each database."""
ADDRESSES = {name: f"grpc://{name}:1" for name in PLACES}
TABLE = "CREATE TABLE done (gid varchar(64) NOT NULL, branch varchar(24) NOT NULL, op varchar(10) NOT NULL)"


class ServiceDied(Exception):
    """The service died under this call."""


class _Lost(Exception):
    """Its database does not answer any more."""


class Service(Source):
    """One life of such a process, and where its transactions come from."""

    def __init__(self, run: Run, name: str) -> None:
        self.run = run
        self.name = name
        self.points: Points = run.points
        self.dead = asyncio.Event()
        self.buried = False
        self._raw: list[Any] = []
        self._work: set[asyncio.Future[Any]] = set()
        self._engine: AsyncEngine = run.place.connections.engine(run.place.databases[name])
        participant = Participant(name, db=self)
        Declared(participant, run)
        self.runner = Runner([participant])

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """As an engine does; the COMMIT is a step."""
        await self.points.alive(self)
        async with self._engine.connect() as conn:
            raw: Any = (await conn.get_raw_connection()).driver_connection
            self._raw.append(raw)
            did: list[tuple[str, str, str]] = []
            conn.info["did"] = did
            try:
                # It may have died meanwhile: not cut with the others, it would hold its locks while it stands still.
                await self.points.alive(self)
                yield conn

                async def commit() -> None:
                    await conn.commit()
                    # On the same log there may be what an earlier run has left, if that has failed.
                    self.run.done += [(step, op) for gid, step, op in did if gid == self.run.gid]

                await self.points.around("participant.commit", self, commit, partial(_lost, raw))
            finally:
                self._raw.remove(raw)

    async def execute(self, data: bytes) -> list[bytes]:
        """A message, and the answers. Raises ServiceDied."""
        return await self._living(self._execute(data))

    async def query_back(self, data: bytes) -> bytes:
        """A question, and the answer. Raises ServiceDied."""
        request = pb.QueryBackRequest.FromString(data)
        response = await self._living(self.runner.query_back(request, ""))
        return response.SerializeToString()

    async def _living(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        dead = asyncio.ensure_future(self.dead.wait())
        try:
            await asyncio.wait({task, dead}, return_when=asyncio.FIRST_COMPLETED)
            if self.dead.is_set():
                raise ServiceDied
            return task.result()
        finally:
            dead.cancel()

    async def _execute(self, data: bytes) -> list[bytes]:
        request = pb.ExecuteRequest.FromString(data)
        found = answers(self.runner.begin, request, "")
        return [r.SerializeToString() async for r, _ in found]

    def die(self) -> None:
        """From now on nothing of it reaches anybody."""
        self.dead.set()
        for raw in self._raw:
            _cut(raw)

    async def bury(self) -> None:
        """End what is left of it in this process."""
        if not self.dead.is_set():
            self.die()
        self.buried = True
        await end(self._work)


def _cut(raw: Any) -> None:
    (raw.terminate if hasattr(raw, "terminate") else raw.close)()


def _lost(raw: Any) -> Exception:
    _cut(raw)
    return _Lost(_LOST)


class Declared:
    """What a service can do. What is done is a row; ``how`` has, by step, what goes otherwise: ``no``, ``later``,
    ``confirm later``."""

    def __init__(self, participant: Participant, run: Run) -> None:
        @participant.tcc
        class Hold:
            async def attempt(self, db: Any, *, gid: str, step: str, how: dict[str, str]) -> dict[str, str]:
                return await first(run, db, gid, step, "try", how)

            async def confirm(self, db: Any, held: dict[str, str]) -> None:
                again = f"confirm {held['step']}"
                if held.get("then") == "later" and not run.asked[again]:
                    run.asked[again] += 1
                    # Longer than the log's tick: it is handed off before that.
                    raise Pending(retry_after=0.8 * run.scale)
                await then(db, held, "confirm")

            async def cancel(self, db: Any, held: dict[str, str]) -> None:
                await then(db, held, "cancel")

        @participant.action
        async def act(db: Any, *, gid: str, how: dict[str, str]) -> dict[str, str]:
            return await first(run, db, gid, f"{participant.name}1", "action", how)

        @act.compensate
        async def undo(db: Any, held: dict[str, str]) -> None:
            await then(db, held, "compensate")

        @participant.action
        async def act_again(db: Any, *, gid: str, how: dict[str, str]) -> dict[str, str]:
            return await first(run, db, gid, f"{participant.name}2", "action", how)

        @act_again.compensate
        async def undo_again(db: Any, held: dict[str, str]) -> None:
            await then(db, held, "compensate")

        @participant.action
        async def last(db: Any, *, gid: str, how: dict[str, str]) -> dict[str, str]:
            return await first(run, db, gid, f"{participant.name}3", "action", how)

        @participant.message
        async def told(db: Any, *, gid: str, step: str) -> None:
            await _write(db, gid, step, "message")

        self.hold: Any = Hold
        self.told = told
        self.act, self.act_again, self.last = act, act_again, last


async def first(
    run: Run, db: AsyncConnection, gid: str, step: str, op: str, how: dict[str, str]
) -> dict[str, str]:
    """A try or an action."""
    run.asked[step] += 1
    if how.get(step) == "later" or (how.get(step) == "once later" and run.asked[step] == 1):
        raise Pending(retry_after=0.02)
    await _write(db, gid, step, op)
    if how.get(step) == "no":
        raise Refused("SOLD_OUT")
    held = {"gid": gid, "step": step}
    return {**held, "then": "later"} if how.get(step) == "confirm later" else held


async def then(db: AsyncConnection, held: dict[str, str], op: str) -> None:
    """What comes after it: it is given what that returned."""
    await _write(db, held["gid"], held["step"], op)


async def _write(db: AsyncConnection, gid: str, step: str, op: str) -> None:
    await db.execute(text(f"INSERT INTO done VALUES ('{gid}', '{step}', '{op}')"))
    db.info["did"].append((gid, step, op))


# ---- calling them ----


class Channel:
    """What stands for a gRPC channel to one of them."""

    def __init__(self, run: Run, caller: Mortal, name: str, step: str = "") -> None:
        self._run, self._caller, self._name, self._step = run, caller, name, step

    def unary_stream(self, method: str, **_: Any) -> Callable[..., _Call]:
        """Of ``Execute``."""

        def execute(request: Any, timeout: float | None = None, metadata: Any = None) -> _Call:
            return _Call(partial(self._ask, request.SerializeToString(), timeout))

        return execute

    def unary_unary(self, method: str, **_: Any) -> Callable[..., Awaitable[pb.QueryBackResponse]]:
        """Of ``QueryBack``: nothing else of that kind is called."""

        async def query_back(
            request: Any, timeout: float | None = None, metadata: Any = None
        ) -> pb.QueryBackResponse:
            question = request.SerializeToString()
            run = self._run
            await run.points.alive(self._caller)

            async def do() -> bytes:
                try:
                    async with asyncio.timeout(timeout):
                        return await run.service(self._name).query_back(question)
                except ServiceDied as error:
                    raise _unavailable("the service died") from error

            out = await run.points.around(
                "coordinator.ask_back", self._caller, do, lambda: _unavailable(_LOST)
            )
            await run.points.alive(self._caller)
            return pb.QueryBackResponse.FromString(out)

        return query_back

    async def close(self, grace: float | None = None) -> None:
        """Nothing is open."""

    async def _ask(self, data: bytes, timeout: float | None) -> list[bytes]:
        run = self._run
        await run.points.alive(self._caller)

        async def do() -> list[bytes]:
            try:
                async with asyncio.timeout(timeout):
                    out = await run.service(self._name).execute(data)
            except ServiceDied as error:
                raise _unavailable("the service died") from error
            await run.points.alive(self._caller)
            return out

        if not self._step:
            return await do()
        return await run.points.around(self._step, self._caller, do, lambda: _unavailable(_LOST))


class _Call:
    """One call; its answers are iterated over."""

    def __init__(self, ask: Callable[[], Awaitable[list[bytes]]]) -> None:
        self._ask = ask
        self._answers: deque[bytes] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> pb.ExecuteResponse:
        if self._answers is None:
            self._answers = deque(await self._ask())
        if not self._answers:
            raise StopAsyncIteration
        return pb.ExecuteResponse.FromString(self._answers.popleft())

    def cancel(self) -> None:
        """Whoever iterates is cancelled himself."""


def _unavailable(message: str) -> Exception:
    return grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), message
    )


class Caller(GrpcCaller):
    """The coordinator's caller, on such channels."""

    def __init__(self, run: Run, node: str) -> None:
        super().__init__(node=node, credentials=Credentials(ANYBODY), dialling=Dialling(ANYBODY))
        self._run = run
        self.process: Any = None

    async def _channel(self, target: Target) -> Any:
        return Channel(self._run, self.process, target.host)


class Asker:
    """``ports.Answerer`` on such channels."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def query_back(
        self, target: str, participant: str, tx: Tx, timeout_s: float, identity: str = ""
    ) -> Probed:
        """Ask the service that lives now."""
        found = Target.parse(target)
        assert found is not None
        request = query_back.request_of(
            tx, participant, identity, node="", log_id=self._caller.log_id, now_us=0
        )
        response = await self._caller.query_back(found, request, timeout_s)
        return query_back.answer_of(response, tx, target)


# ---- what must be so in the end ----


def flow(*steps: str, forward: str = "", together: bool = False) -> Any:
    """A saga of steps such as ``a1``, ``b1``, ``a2``: each service has two that can be undone, and ``a3`` cannot."""
    out = saga("crash")
    for step in (*steps, *([forward] if forward else [])):
        # Only its names are used here.
        own = DECLARED[step[0]]
        action = {"1": own.act, "2": own.act_again, "3": own.last}[step[1]]
        before = () if together else None
        out = out.step(action, name=step, after=steps if step == forward else before, forward=step == forward)
    return out


_NOBODY: Any = None
DECLARED = {name: Declared(Participant(name), _NOBODY) for name in PLACES}
"""As whoever calls them knows them."""


async def check(run: Run, committed: bool) -> None:
    """All of it once, or none of it, or all of it undone; in order."""
    found: Counter[tuple[str, str]] = Counter()
    for url in run.place.databases.values():
        rows = await run.place.connections.fetch(url, f"SELECT branch, op FROM done WHERE gid = '{run.gid}'")
        found.update((str(step), str(op)) for step, op in rows)
    assert all(count == 1 for count in found.values()), found
    ops: dict[str, set[str]] = {step: set() for step in run.steps}
    for step, op in found:
        ops.setdefault(step, set()).add(op)
    for step, did in ops.items():
        if committed:
            assert did in ({"try", "confirm"}, {"action"}, {"message"}), (step, did)
        else:
            assert did in (set(), {"try", "cancel"}, {"action", "compensate"}), (step, did)
    assert set(run.done) == set(found), (run.done, found)
    for earlier, later in run.order:
        for op in ("action", "message"):
            _in_order(run.done, (earlier, op), (later, op))
        _in_order(run.done, (later, "compensate"), (earlier, "compensate"))
    for step, op in run.done:
        if op in FIRST:
            _in_order(run.done, (step, FIRST[op]), (step, op))


def _in_order(done: list[tuple[str, str]], one: tuple[str, str], other: tuple[str, str]) -> None:
    if one in done and other in done:
        assert done.index(one) < done.index(other), (one, other, done)


__all__ = ["ADDRESSES", "DECLARED", "Asker", "Caller", "Channel", "Service", "check", "flow"]
