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
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from . import _aio, _values
from ._answers import Answer, Call
from .errors import Pending, Refused, Rejected
from .protocol import identifiers, reasons

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


_MOST_RESULT = 256 * 1024
OPERATION = "__txcoord_operation__"
"""Attribute of a class or function that is an operation."""


def operation_of(target: Any) -> Operation:
    """The operation that a class or function is. Raises Rejected."""
    found = getattr(target, OPERATION, None)
    if not isinstance(found, Operation):
        name = getattr(target, "__name__", repr(target))
        raise Rejected(
            f"{name} is no operation of a participant: decorate it with @participant.tcc or @participant.action"
        )
    return found


class Participant:
    """A service that takes part in transactions.

    ``db`` is the SQLAlchemy engine, or a sessionmaker, of its own database, which has the marker table (`txcoord
    resource check --fix` makes it). A service that only calls the operations of another one needs none:
    ``Participant("stock")`` with the same classes is enough. ``concurrency``: how many of its operations run at a time.
    """

    def __init__(self, name: str, *, db: Any = None, concurrency: int = 20) -> None:
        if not identifiers.is_name(name):
            raise Rejected(f"participant {name!r}: 1 to 63 characters of [A-Za-z0-9_.-]")
        if concurrency < 1:
            raise Rejected("concurrency: at least 1")
        self.name = name
        self.concurrency = concurrency
        self._db = db
        self._operations: dict[str, Operation] = {}

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
    async def guard(self, db: Any, call: Call) -> AsyncIterator[bool]:
        """The barrier inside a transaction that you own and commit: ``async with stock.guard(session, call) as
        first``. Where ``first`` is False there is nothing to be done: commit, and answer done. Raises Refused for a try
        that comes after its cancel."""
        from . import _barrier

        entered = await _barrier.enter(db, call.tx_id, call.branch, call.op, call.not_after_us)
        yield entered.first

    async def execute(self, call: Call) -> Answer:
        """Do what is asked, once. Never raises."""
        try:
            return await self._execute(call)
        except Refused as refused:
            return Answer.refused(refused)
        except Pending as pending:
            return Answer.pending(pending)
        except Exception as error:
            log.exception("%s of %s, branch %s, failed", call.op, call.tx_id, call.branch)
            return Answer.failed(error)

    async def _execute(self, call: Call) -> Answer:
        operation = self._operations.get(call.operation)
        method = None
        if operation is not None:
            method = operation.attempt if call.op == operation.first else operation.after.get(call.op)
        if operation is None or method is None:
            raise Rejected(
                f"{self.name} has no {call.op} of {call.operation!r}", reason=reasons.UNKNOWN_OPERATION
            )
        # Here, since the SDK works without SQLAlchemy where nobody uses it.
        from . import _barrier

        async with self._transaction() as db:
            entered = await _barrier.enter(db, call.tx_id, call.branch, call.op, call.not_after_us)
            if not entered.first:
                return Answer.done(entered.result or b"", repeated=True)
            if call.op == operation.first:
                given = _values.arguments(method, 1, call.payload, call.results)
                result = await method(db, **given)
                data = _values.encode(result) if result is not None else b""
                if len(data) > _MOST_RESULT:
                    # Before anything is committed: later nobody could tell what it had returned.
                    text = f"the result has {len(data)} bytes; at most {_MOST_RESULT}"
                    raise Rejected(text, reason=reasons.TOO_LARGE)
                if data:
                    await _barrier.keep(db, call.tx_id, call.branch, call.op, data)
                return Answer.done(data)
            held = _values.decode(entered.result, operation.returns)
            await method(*([db, held] if _takes(method) > 1 else [db]))
            return Answer.done()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        db = self._db
        if db is None:
            raise Rejected(f"Participant({self.name!r}) was made without db=", reason=reasons.NOT_SUPPORTED)
        async with db.begin() as conn:
            yield conn


def _takes(method: Callable[..., Any]) -> int:
    return len([p for p in inspect.signature(method).parameters.values() if p.kind in _POSITIONAL])


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
