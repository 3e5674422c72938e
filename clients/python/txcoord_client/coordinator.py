"""The SDK's entrance: a Coordinator begins transactions and asks about them."""

from __future__ import annotations

import contextvars
import functools
import inspect
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, ParamSpec, Self, TypeVar

from . import _aio, _forks
from . import outcome as outcomes
from ._block import Scope
from ._carrying import Targets
from ._delivered import Listing
from ._nodes import joined
from ._pb import coordinator_pb2 as pb
from ._places import ParticipantAt, places_of
from ._registering import new_instance
from ._runs import Run, submitted
from ._runtime import Runtime
from ._scope import outside_on_purpose
from ._sending import Sending
from ._services import Services
from ._sources import Resources
from ._version import __version__
from ._wire import wait_level
from ._xa.branch import worth_another_try
from .access import TLS, Token, access_of
from .errors import (
    AlreadyAborted,
    AlreadyCommitted,
    NoTransaction,
    OutcomeUnknown,
    Rejected,
)
from .outcome import Outcome
from .participant import Participant
from .protocol import identifiers, reasons
from .retries import Retry
from .sagas import Saga
from .transaction import Transaction, XaBlock

P = ParamSpec("P")
R = TypeVar("R")
Seconds = float | timedelta


class Coordinator(Services, Listing, Sending):
    """A txcoord coordinator, as a service uses it.

    ``address`` is a gRPC target such as ``127.0.0.1:7070``, or several of them that share a log, in a list or in one
    text with commas; ``dns:///txcoord:7070`` is all addresses of a name. One is used as long as it is well, then
    another. ``resources`` names the engines and pools whose databases take part. ``timeout`` is how many seconds a
    transaction may last unless its ``begin`` says otherwise; ``call_timeout`` how long one call to the coordinator is
    tried. ``propagate_to`` names the hosts and gRPC targets to which transactions go along with calls.
    ``participants`` says by name where the services are whose operations ``g.tcc`` calls, as this process and the
    coordinator reach them: ``grpc://host:port`` or ``http://host:port``, or a :class:`ParticipantAt` that has more to
    say. Steps of sagas need no address here where the coordinator's settings have one.
    ``tls`` and ``auth`` are for a coordinator that has TLS and tokens (default: what ``TXCOORD_CA_FILE``,
    ``TXCOORD_CERT_FILE``, ``TXCOORD_KEY_FILE`` and ``TXCOORD_TOKEN_FILE`` say, in the end neither).

    It opens nothing before its first use, and then a channel for each event loop. Use it as an async context
    manager, or ``await coord.close()`` in the end.
    """

    def __init__(
        self,
        address: str | Sequence[str] = "127.0.0.1:7070",
        *,
        namespace: str = "default",
        resources: Mapping[str, Any] | None = None,
        timeout: Seconds = 30.0,
        call_timeout: Seconds = 5.0,
        propagate_to: str | Iterable[str] = (),
        participants: Mapping[str, str | ParticipantAt] | None = None,
        tls: TLS | None = None,
        auth: Token | None = None,
    ) -> None:
        if not identifiers.is_name(namespace):
            raise Rejected(
                f"namespace {namespace!r}: 1 to 63 characters of [A-Za-z0-9_.-]", reason=reasons.BAD_NAMESPACE
            )
        self.address = joined(address)
        self._access = access_of(tls, auth)
        self._access.check(self.address)
        self.namespace = namespace
        self._resources = Resources(resources or {})
        self._targets = Targets(propagate_to)
        self._participants = places_of(participants or {})
        self._timeout = _seconds(timeout, "timeout")
        self._call_timeout = _seconds(call_timeout, "call_timeout")
        self._runtimes: _aio.PerLoop[Runtime] = _aio.PerLoop()
        self._current: contextvars.ContextVar[Transaction | None] = contextvars.ContextVar(
            "txcoord_transaction", default=None
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let the ends of transactions that are under way finish (at most 5 s), then disconnect."""
        runtime = self._runtimes.pop()
        if runtime is not None and not _forks.inherited():
            await runtime.close()

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """For frameworks: ``FastAPI(lifespan=coord.lifespan)``."""
        try:
            yield
        finally:
            await self.close()

    @asynccontextmanager
    async def register(
        self, participant: Participant | str, *, address: str, version: str = ""
    ) -> AsyncIterator[None]:
        """``async with coord.register(stock, address="grpc://stock-1:8000"): …`` tells the coordinators that a
        participant, or its name, is served there by this process, and that it still is; in the end, that it leaves.
        They then call it by its name, and another instance of it where one does not answer.

        ``address``: as the coordinators reach this process, not a load balancer. ``version``: of the service, for
        people. It waits for the first coordinator; where none answers within ``call_timeout`` it goes on trying, and
        logs that. In each process that serves: after a fork, not before.

        Raises Rejected when the coordinator does not call such an address (``targets.allow`` in its settings).
        """
        name = participant if isinstance(participant, str) else participant.name
        request = pb.RegisterParticipantRequest(
            namespace=self.namespace,
            participant=name,
            instance=new_instance(),
            address=address,
            version=version,
        )
        wire = self._runtime().wire
        number = await wire.register(request, _aio.now() + self._call_timeout)
        try:
            yield
        finally:
            await wire.deregister(number)

    # ---- transactions ----

    def begin(
        self,
        name: str = "transaction",
        *,
        gid: str = "",
        timeout: Seconds | None = None,
        labels: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        resources: Sequence[str] = (),
        wait: str = "committed",
        new: bool = False,
        retry_of: str = "",
        again: bool = False,
    ) -> Scope:
        """``async with coord.begin("checkout", gid=order_id) as g: …`` commits when the block ends; an exception
        aborts, and comes out unchanged.

        ``gid`` is the user's own name of the work and its idempotency key (at most 48 of ``[A-Za-z0-9_-]``): the
        same gid is done at most once. ``timeout``: seconds until the deadline, at which everything undecided is
        aborted. ``resources``: the databases that it will touch, if known; the first may be committed in one
        phase when it stays the only one. ``wait``: how far the end waits: ``accepted``, ``decided``,
        ``committed`` or ``delivered``. ``new``: begin another transaction even inside one (REQUIRES_NEW).
        ``retry_of``: the tx id of an aborted attempt whose gid this one takes over; ``again`` allows that for a
        business abort too.

        Inside a transaction it joins that one. Entering raises AlreadyCommitted, AlreadyAborted or InProgress for
        a known gid, Unavailable when the coordinator does not answer. Leaving raises Aborted, OutcomeUnknown,
        Heuristic, or Rejected when the coordinator refused the commit for sure: then nothing of it happened.
        """
        if gid and not identifiers.is_gid(gid):
            raise Rejected(
                f"gid {gid[:80]!r}: 1 to {identifiers.MAX_GID} characters of [A-Za-z0-9_-]",
                reason=reasons.BAD_GID,
            )
        return Scope(
            self,
            name=name,
            gid=gid,
            timeout=self._timeout if timeout is None else _seconds(timeout, "timeout"),
            labels=labels,
            headers=headers,
            resources=resources,
            wait=wait_level(wait),
            new=new,
            retry_of=retry_of,
            again=again,
        )

    def transaction(
        self, name: str = "", *, timeout: Seconds | None = None, new: bool = False
    ) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
        """Decorator: the async function runs in a transaction, the caller's if there is one."""

        def decorate(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
            _aio.refuse_wrong_kind(function)
            title = name or function.__name__

            @functools.wraps(function)
            async def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
                async with self.begin(title, timeout=timeout, new=new):
                    return await function(*args, **kwargs)

            return wrapped

        return decorate

    async def run(
        self,
        function: Callable[..., Awaitable[R]],
        *,
        gid: str = "",
        attempts: int = 3,
        name: str = "",
        timeout: Seconds | None = None,
        again: bool = False,
    ) -> R:
        """Run ``function`` in a transaction, again when that may help, and with a ``gid`` at most once for ever.

        ``function`` is given the transaction if it takes an argument. What it returns (JSON) is stored with the
        commit; a later ``run`` with the same gid returns that and runs nothing. An abort by deadlock,
        serialization failure, a busy pool or the deadline is tried again, ``attempts`` times in all, under a new
        tx id; a business abort is final unless ``again``. Inside a transaction it only calls the function there.

        Raises what the function raises, what entering and leaving :meth:`begin` raise, and AlreadyCommitted for a
        gid that was committed with a result that is no JSON.
        """
        if attempts < 1:
            raise Rejected("attempts: at least 1")
        outer = self.current_or_none()
        if outer is not None:
            return await _call(function, outer)
        title = name or getattr(function, "__name__", "run")
        retry_of = ""
        for left in range(attempts - 1, -1, -1):
            tx_id = ""
            try:
                async with self.begin(title, gid=gid, timeout=timeout, retry_of=retry_of, again=again) as g:
                    tx_id = g.tx_id
                    value = await _call(function, g)
                    g.result = json.dumps(value).encode()
                return value
            except AlreadyCommitted as error:
                try:
                    known: R = json.loads(error.result) if error.result else None  # type: ignore[assignment]
                except ValueError:
                    raise error from None  # Committed by other means than run().
                return known
            except AlreadyAborted as error:
                if not left or not (error.retriable or again):
                    raise
                tx_id = error.tx_id
            except Exception as error:
                if not left or not worth_another_try(error):
                    raise
            retry_of = tx_id if gid else ""
            await _aio.sleep(random.uniform(0.0, 0.05 * 2 ** (attempts - left)))
        raise AssertionError("the last attempt returns or raises")

    async def submit(
        self,
        flow: Saga,
        *,
        gid: str = "",
        data: Mapping[str, Any] | None = None,
        timeout: Seconds | None = None,
        labels: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        retry: Retry | None = None,
        on_end: Any = (),
    ) -> Run:
        """Hand a saga over to the coordinator, which runs it to its end, whatever becomes of this process. Returns when
        it is durable.

        ``data``: by name what its steps are given; each gets what it has a parameter for. ``timeout``: seconds until it
        is aborted if not done (default: none). ``gid``: as in :meth:`begin`. ``retry``: of those of its steps that
        say nothing themselves. ``on_end``: a function decorated with ``@participant.callback``, or several: they are
        told when it has ended, whichever way, at least once.

        Raises Rejected for data that do not fit or a participant without an address, AlreadyCommitted, AlreadyAborted
        or InProgress for a known gid, Unavailable.
        """
        if gid and not identifiers.is_gid(gid):
            raise Rejected(
                f"gid {gid[:80]!r}: 1 to {identifiers.MAX_GID} characters of [A-Za-z0-9_-]",
                reason=reasons.BAD_GID,
            )
        return await submitted(
            self._runtime(),
            flow,
            gid=gid,
            data=data or {},
            timeout=None if timeout is None else _seconds(timeout, "timeout"),
            labels=labels or {},
            headers=headers or {},
            retry=retry,
            on_end=on_end if isinstance(on_end, Sequence) else [on_end],
            call_timeout=self._call_timeout,
        )

    # ---- context ----

    @property
    def current(self) -> Transaction:
        """The transaction that this code runs in. Raises NoTransaction."""
        found = self.current_or_none()
        if found is None:
            raise NoTransaction("there is no current transaction here: use `async with coord.begin(...)`")
        return found

    def current_or_none(self) -> Transaction | None:
        """The transaction that this code runs in, if any."""
        found = self._current.get()
        return found if found is not None and found.active else None

    def xa(self, target: Any, *, resource: str = "") -> XaBlock:
        """As ``g.xa``, for the current transaction. Raises NoTransaction where there is none."""
        return self.current.xa(target, resource=resource)

    @contextmanager
    def outside(self) -> Iterator[None]:
        """What runs inside is outside of the current transaction (NOT_SUPPORTED): audit rows that must stay. Writes on
        instrumented engines are allowed there."""
        token = self._current.set(None)
        try:
            with outside_on_purpose():
                yield
        finally:
            self._current.reset(token)

    def instrument(
        self, target: Any, *, resource: str, outside: Literal["refuse", "local"] = "refuse"
    ) -> Any:
        """Code that uses ``target`` as it always did joins the current transaction by itself: what it begins, commits
        and rolls back inside is a unit of work of the whole, a savepoint. Once, at start-up. Answers the target.

        ``target``: a SQLAlchemy engine, a pool of asyncpg or psycopg, psycopg itself or a function that connects as
        ``psycopg.connect`` does, the alias of a Django database; of the kind, for loops or threads, that this is.
        ``resource``: its database's name. ``outside``: what happens to writes where there is no transaction.
        ``"refuse"``: the database refuses them, and NoTransaction is raised, but inside :meth:`outside`; ``"local"``:
        nothing is changed there.

        Raises Rejected for a target that cannot be instrumented.
        """
        from ._instrument import instrument

        return instrument(self, target, resource=resource, outside=outside)

    # ---- questions ----

    async def get(self, gid: str = "", *, tx_id: str = "") -> Outcome | None:
        """How a transaction stands; None when the log knows none of that name, which is no outcome."""
        runtime = self._runtime()
        until = _aio.now() + self._call_timeout
        await runtime.connect(until)
        request = pb.GetRequest(gid=gid, tx_id=tx_id)
        try:
            response = await runtime.wire.call("get", request, until, tx_id=tx_id, gid=gid)
        except Rejected as error:
            if error.reason == reasons.NOT_FOUND:
                return None
            raise
        return outcomes.from_pb(response.transaction.outcome, tx_id=tx_id, gid=gid)

    async def settle(self, unknown: OutcomeUnknown, *, timeout: Seconds | None = None) -> Outcome:
        """Find out what became of a transaction, by asking for its abort: what was committed stays committed, and
        is told; everything else is aborted now. Raises OutcomeUnknown when that is too long ago, Unavailable when
        nobody can tell yet: ask again."""
        runtime = self._runtime()
        until = _aio.now() + (self._call_timeout if timeout is None else _seconds(timeout, "timeout"))
        await runtime.connect(until)
        out = await runtime.settle(
            unknown.tx_id,
            unknown.gid,
            unknown.deadline_us,
            unknown.resources,
            begun=bool(unknown.gid),
            until=until,
        )
        return outcomes.from_pb(out, tx_id=unknown.tx_id, gid=unknown.gid)

    # ---- inside ----

    def _runtime(self) -> Runtime:
        _forks.use()
        runtime = self._runtimes.get()
        if runtime is None:
            runtime = self._runtimes.put(
                Runtime(
                    self.address,
                    self.namespace,
                    self._resources,
                    version=__version__,
                    call_timeout=self._call_timeout,
                    participants=self._participants,
                    access=self._access,
                )
            )
        return runtime


async def _call(function: Callable[..., Awaitable[R]], g: Transaction) -> R:
    takes = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)
    ]
    return await (function(g) if takes else function())


def _seconds(value: Seconds, what: str) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not seconds > 0:
        raise Rejected(f"{what}={value!r}: more than 0 seconds are needed")
    return seconds
