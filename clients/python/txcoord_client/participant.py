"""A service as a participant: TCC classes behind the barrier.

stock = Participant("stock", db=engine)

@stock.tcc
class Reserve:
    async def attempt(self, db, *, sku: str, n: int) -> Hold: ...
    async def confirm(self, db, hold: Hold): ...
    async def cancel(self, db, hold: Hold): ...

stock.add_to(grpc_server)  # or app.include_router(stock.fastapi()), …
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from . import _aio, _answering, _barrier, _values
from ._answers import Answer, Call
from ._barrier import Entry
from ._db import kinds
from ._db.redis_ import RedisWork, Repeated
from ._db.sources import Source
from ._pb import participant_pb2 as pb
from .errors import Pending, Refused, Rejected
from .protocol import barrier, identifiers, marker, reasons

log = logging.getLogger("txcoord.client")
T = TypeVar("T", bound=type)
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that a participant does."""

    participant: str
    name: str
    """Within the participant."""
    attempt: Callable[..., Any]
    """The try, or the action."""
    after: dict[str, Callable[..., Any]]
    """By op: ``confirm`` and ``cancel``, or ``compensate``. Bound, as ``attempt`` is."""
    first: str = "try"
    """The op of ``attempt``."""

    @property
    def full_name(self) -> str:
        """As it is called."""
        return f"{self.participant}.{self.name}"

    @property
    def begins(self) -> tuple[str, ...]:
        """The ops that are ``attempt``'s."""
        return ("message", "notify") if self.first == "message" else (self.first,)

    @property
    def returns(self) -> Any:
        """What the try is declared to return."""
        return _values.hints_of(self.attempt).get("return", Any)


class Action:
    """A function decorated with ``@participant.action``."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.__name__ = operation.name
        setattr(self, OPERATION, operation)

    def compensate(self, function: F) -> F:
        """Decorator of the function that undoes it: it gets ``db`` and what the action returned."""
        _aio.refuse_wrong_kind(function)
        self.operation.after["compensate"] = function
        return function

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function itself, for tests."""
        return await self.operation.attempt(*args, **kwargs)


_PRUNED_EVERY = 128
"""Calls, between two looks for markers that can go."""
OPERATION = "__txcoord_operation__"
"""Attribute of a class or function that is an operation."""


def operation_of(target: Any) -> Operation:
    """The operation that a class or function is. Raises Rejected."""
    found = getattr(target, OPERATION, None)
    if not isinstance(found, Operation):
        name = getattr(target, "__name__", repr(target))
        raise Rejected(
            f"{name} is no operation of a participant: decorate it with @participant.tcc, .action or .message"
        )
    return found


class Participant:
    """A service that takes part in transactions.

    ``db`` is where its own data is: a SQLAlchemy engine or sessionmaker, a pool of a driver, a function that opens a
    connection, the alias of a Django database, a client of Redis. The database has the marker table (`txcoord resource
    check --fix`, or :meth:`make_table`). A service that only calls the operations of another one needs none:
    ``Participant("stock")`` with the same classes is enough. ``concurrency``: how many of its operations run at a time.
    ``keep_days``: for how many days markers are kept, at least; 0: for ever. A call of a transaction that began longer
    ago fails, where nobody can tell any more whether it was made before. In one database it is the same for all.
    ``token``: only calls that bring it, or one of them, as a bearer token are served: those of the coordinator whose
    settings have it, and of callers that have it in their ``ParticipantAt``.
    Raises Rejected for what is none of these.

    A Redis keeps the markers as well, and as badly, as it keeps the data: what it loses in a crash or a fail-over was
    answered *done* all the same.
    """

    def __init__(
        self,
        name: str,
        *,
        db: Any = None,
        concurrency: int = 20,
        keep_days: int = 90,
        token: str | Iterable[str] = (),
    ) -> None:
        if not identifiers.is_name(name):
            raise Rejected(f"participant {name!r}: 1 to 63 characters of [A-Za-z0-9_.-]")
        if concurrency < 1:
            raise Rejected("concurrency: at least 1")
        if keep_days and keep_days < barrier.LEAST_DAYS:
            raise Rejected(f"keep_days: at least {barrier.LEAST_DAYS}, or 0 for ever")
        self.name = name
        self.concurrency = concurrency
        self.keep_days = keep_days
        self.db = db
        self._calls = 0
        self._tokens = (token,) if isinstance(token, str) else tuple(token)
        if not all(self._tokens):
            raise Rejected("token: an empty one protects nothing")
        self._running: dict[tuple[str, str], tuple[int, float]] = {}
        """Of each branch, how many calls are running, and since when."""
        self._counting = threading.Lock()
        self._operations: dict[str, Operation] = {}

    @property
    def db(self) -> Any:
        """Where its own data is. A test may give it another database. Raises Rejected for what is none."""
        return self._db

    @db.setter
    def db(self, db: Any) -> None:
        self._source: Source | None = None if db is None else kinds.source_of(db)
        self._db = db
        self._schema: str | None = None

    # ---- declarations ----

    def tcc(self, cls: T) -> T:
        """Decorator of a class with ``attempt``, ``confirm`` and ``cancel``: each gets the barrier's own transaction
        as ``db``, which the SDK commits. ``attempt`` gets the arguments of the call by name; what it returns is stored
        with the barrier's row and handed to the other two. Raises Rejected for a class that lacks one."""
        instance = cls()
        made = {}
        for name in ("attempt", "confirm", "cancel"):
            method = getattr(instance, name, None)
            if method is None:
                raise Rejected(
                    f"{cls.__name__}: a TCC class has attempt, confirm and cancel; {name} is missing"
                )
            _aio.refuse_wrong_kind(method)
            made[name] = method
        operation = Operation(
            self.name, cls.__name__, made["attempt"], {name: made[name] for name in ("confirm", "cancel")}
        )
        self._add(operation)
        setattr(cls, OPERATION, operation)
        return cls

    def action(self, function: Callable[..., Any]) -> Action:
        """Decorator of a step of sagas: ``@stock.action async def pack(db, *, order): …``, and
        ``@pack.compensate async def unpack(db, parcel): …`` for what undoes it. ``db`` is the barrier's own
        transaction, which the SDK commits. Its other parameters are given by name: what was submitted with the saga,
        and the result of the earlier step that a parameter is called after. What it returns is kept, and handed to its
        compensation."""
        _aio.refuse_wrong_kind(function)
        operation = Operation(self.name, function.__name__, function, {}, "action")
        self._add(operation)
        return Action(operation)

    def message(self, function: F) -> F:
        """Decorator of a function that takes messages and notifications: ``@shop.message async def paid(db, *, order):
        …``, sent by ``g.message(paid, {"order": 7})``. ``db`` is the barrier's own transaction, which the SDK commits:
        however often one comes, it acts once. Raising Refused parks it at the sender's coordinator, any other exception
        has it sent again."""
        _aio.refuse_wrong_kind(function)
        operation = Operation(self.name, function.__name__, function, {}, "message")
        self._add(operation)
        setattr(function, OPERATION, operation)
        return function

    def callback(self, function: F) -> F:
        """Decorator of a function that is told when a transaction has ended, as ``submit(on_end=…)`` asks for:
        ``@shop.callback async def shipped(ended: Ended): …``. It is told at least once, with the same ``ended.id``, and
        again until it returns without an exception."""
        _aio.refuse_wrong_kind(function)
        operation = Operation(self.name, function.__name__, function, {}, "callback")
        self._add(operation)
        setattr(function, OPERATION, operation)
        return function

    def _add(self, operation: Operation) -> None:
        if operation.full_name in self._operations:
            raise Rejected(f"{operation.full_name} is there twice")
        self._operations[operation.full_name] = operation

    # ---- serving ----

    def add_to(self, server: Any, *others: Participant) -> None:
        """Serve it, and others with it, on a gRPC server: ``stock.add_to(server)``. Once for each server."""
        from ._pb import participant_pb2_grpc
        from ._serving_grpc import Servicer

        participant_pb2_grpc.add_ParticipantServiceServicer_to_server(Servicer([self, *others]), server)

    def asgi(self, app: Any = None, *, others: Iterable[Participant] = ()) -> Any:
        """An ASGI application that serves it, and ``others`` with it: to be mounted, ``app.mount("/stock",
        stock.asgi())``, its address then being ``http://host:port/stock``; or around another application, ``app =
        stock.asgi(app)``, its address then being ``http://host:port``."""
        from . import _serving_http

        return _serving_http.asgi([self, *others], app)

    def fastapi(self, *, others: Iterable[Participant] = ()) -> Any:
        """A router of FastAPI that serves it, and ``others`` with it: ``app.include_router(stock.fastapi())``. What the
        router is given (``prefix``, ``dependencies``) holds for it; its address is ``http://host:port`` and the
        prefix."""
        from . import _serving_http

        return _serving_http.fastapi([self, *others])

    def wsgi(self, app: Any = None, *, others: Iterable[Participant] = ()) -> Any:
        """A WSGI application that serves it, and ``others`` with it, around another one: ``app.wsgi_app =
        stock.wsgi(app.wsgi_app)`` with Flask. Its address is ``http://host:port``. Only for participants of
        ``txcoord_client.sync``. Raises Rejected."""
        from . import _serving_http

        return _serving_http.wsgi([self, *others], app)

    def django_urls(self, *, others: Iterable[Participant] = ()) -> list[Any]:
        """URL patterns of Django that serve it, and ``others`` with it: ``urlpatterns = [*stock.django_urls()]``. Its
        address is ``http://host:port`` and what they are included below."""
        from . import _serving_http

        return _serving_http.django_urls([self, *others])

    @asynccontextmanager
    async def guard(self, db: Any, call: Call) -> AsyncIterator[Entry]:
        """The barrier inside a transaction that you own and commit: ``async with stock.guard(session, call) as
        first``. ``db`` is a connection or session; not of Redis, which has no transaction to be inside of.

        Where ``first`` is false there is nothing to be done: commit, and answer done, with ``first.data``. ``await
        first.keep(hold)`` keeps what a try or action returns, ``first.result(Hold)`` is that, in what comes after it.
        Raises Refused for a try that comes after its cancel or its deadline; Rejected for a connection without a
        transaction, and at the block's end where the transaction was rolled back and nobody has told."""
        entry = await _barrier.enter(db, call, self.keep_days)
        yield entry
        await entry.finish()

    async def make_table(self) -> None:
        """Make the marker table where there is none, and give its database an identity. It needs the right to create
        tables; the service itself needs SELECT, INSERT, UPDATE and DELETE on it."""
        async with self._transaction() as db:
            await _barrier.make_table(db)
        if not isinstance(db, RedisWork):
            await self._home()

    def under_way(self, call: Call) -> Answer | None:
        """To be asked before a call waits for its turn: *later* where another call of its branch is running here.
        What ends a try that hangs would only hang with it, and take one more place each time it is made again."""
        running = self._running.get((call.tx_id, call.branch))
        if running is None or call.op not in barrier.FIRST:
            return None
        # What has hung for long is asked for less often.
        later_s = min(max(_aio.now() - running[1], _LATER_S), _LATEST_S)
        return Answer.pending(Pending("another call of this branch is running", retry_after=later_s))

    async def execute(self, call: Call) -> Answer:
        """Do what is asked, once. Never raises."""
        self._count(call, 1)
        try:
            answer = await self._execute(call)
            await self._prune()
            return answer
        except Refused as refused:
            return Answer.refused(refused)
        except Pending as pending:
            return Answer.pending(pending)
        except Exception as error:
            log.exception("%s of %s, branch %s, failed", call.op, call.tx_id, call.branch)
            return Answer.failed(error)
        finally:
            self._count(call, -1)

    async def query_back(
        self, tx_id: str, branch: str = marker.ONE_BRANCH, identity: str = ""
    ) -> pb.QueryBackAnswer:
        """What became of a local transaction in this participant's database. What has not committed cannot commit any
        more once it is told. ``identity``: of the sender's database; of another one nothing is told. Never raises."""
        answer = pb.QueryBackAnswer(tx_id=tx_id, branch=branch)
        try:
            if branch != marker.ONE_BRANCH:
                raise Rejected(f"branch {branch[:40]!r} has no such marker")
            schema = await self._home()
            async with self._transaction() as db:
                verdict = await _answering.asked(db, tx_id, schema, identity)
            answer.verdict = verdict  # Only now is it on disk.
        except Exception as error:
            answer.verdict = _answering.verdict_of(error)
            answer.message = f"{type(error).__name__}: {error}"[:500]
            log.warning("%s cannot tell what became of %s: %s", self.name, tx_id, answer.message)
        return answer

    async def _home(self) -> str:
        """The schema of its marker table, asked for once: a connection may be led elsewhere later. Its database has an
        identity from then on."""
        if self._schema is None:
            async with self._transaction() as db:
                schema, claimed = await _answering.home_of(db)
            if not claimed:
                async with self._transaction() as db:
                    await _answering.claim(db, schema)
            self._schema = schema
        return self._schema

    def _count(self, call: Call, step: int) -> None:
        key = call.tx_id, call.branch
        with self._counting:
            count, since = self._running.pop(key, (0, _aio.now()))
            if count + step:
                self._running[key] = count + step, since

    async def _execute(self, call: Call) -> Answer:
        operation = self._operations.get(call.operation)
        method = None
        if operation is not None:
            method = operation.attempt if call.op in operation.begins else operation.after.get(call.op)
        if operation is None or method is None:
            raise Rejected(
                f"{self.name} has no {call.op} of {call.operation!r}", reason=reasons.UNKNOWN_OPERATION
            )
        if call.ended is not None:
            await method(call.ended)
            return Answer.done()
        try:
            async with self._transaction() as db:
                entry = await _barrier.enter(db, call, self.keep_days)
                if not entry:
                    return Answer.done(entry.data, repeated=True)
                if call.op in operation.begins:
                    given = _values.arguments(method, 1, call.payload, call.results)
                    returned = await method(db, **given)
                    await entry.finish(returned if operation.first != "message" else None)
                    return Answer.done(entry.data)
                held = entry.result(operation.returns)
                await method(*([db, held] if _takes(method) > 1 else [db]))
                await entry.finish()
                return Answer.done()
        except Repeated as repeated:
            return Answer.done(repeated.result, repeated=True)

    async def _prune(self) -> None:
        """Now and then: a small batch of markers that nothing can need any more."""
        self._calls += 1
        if not self.keep_days or self._calls % _PRUNED_EVERY:
            return
        try:
            async with self._transaction() as db:
                await _barrier.prune(db, self.keep_days)
        except Exception as error:
            # Such as a role without the right to. The call is done, and the next time comes.
            log.warning("%s: markers could not be pruned: %s", self.name, error)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        if self._source is None:
            raise Rejected(f"Participant({self.name!r}) was made without db=", reason=reasons.NOT_SUPPORTED)
        async with self._source.begin() as db:
            yield db


def _takes(method: Callable[..., Any]) -> int:
    return len([p for p in _values.signature(method).parameters.values() if p.kind in _POSITIONAL])


_LATER_S, _LATEST_S = 0.5, 30.0
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
