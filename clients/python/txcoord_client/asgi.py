"""ASGI middleware: a request that carries a transaction is served inside it.

It must be the outermost one. The reply is held back until the application's coroutine has *returned*, which is after
``yield`` dependencies and background tasks; then the work is prepared, and the reply leaves with the vote. Work that
cannot be prepared, or is not to be, is undone, and the caller is told so.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any, Protocol

from . import _carrying, _joining
from ._asgi_types import Application, Message, Receive, Scope, Send
from ._carrying import Problem
from ._pb import common_pb2 as c
from ._xa.branch import reason_of
from .errors import Rejected, TxcoordError
from .protocol import reasons

_CONTEXT = _carrying.CONTEXT_HEADER.lower().encode()
_VOTE = _carrying.VOTE_HEADER.lower().encode()
_EXTENSIONS = frozenset({"tls", "http.response.trailers"})
"""What an application may still use: the others make the server send what was never held back."""
_LOOKS = 8
"""How many messages are looked through for the caller's leaving: what is left of a body may come first."""


class Door(Protocol):
    """How a transaction comes in and leaves; there is one for each kind of Coordinator."""

    namespace: str

    @property
    def current(self) -> ContextVar[Any]: ...

    async def join(self, context: c.CallContext) -> Any: ...

    async def leave(self, tx: Any) -> None: ...


class AsyncDoor:
    """That of the asynchronous Coordinator."""

    def __init__(self, home: _joining.Home) -> None:
        self._home = home
        self.namespace = home.namespace

    @property
    def current(self) -> ContextVar[Any]:
        return self._home._current

    async def join(self, context: c.CallContext) -> Any:
        return await _joining.joined(self._home, context)

    async def leave(self, tx: Any) -> None:
        await _joining.left(tx)


class Middleware:
    """``app = coord.asgi(app)``. Lifespan, websockets and requests without a transaction pass through it."""

    def __init__(self, app: Application, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = [v for k, v in scope["headers"] if k.lower() == _CONTEXT] if scope["type"] == "http" else []
        if not sent:
            await self._app(scope, receive, send)
            return
        try:
            context = _carrying.context_in([v.decode("latin-1") for v in sent], self._door.namespace)
        except Rejected as error:
            await _answer(send, _carrying.no_entry(error), b"")
            return
        try:
            tx = await self._door.join(context)
        except TxcoordError as error:
            await _answer(send, _carrying.no_entry(error), _header(_carrying.no_vote(context, error)))
            return
        await self._serve(tx, _hidden(scope), receive, send)

    async def _serve(self, tx: Any, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(tx, receive)
        try:
            failure = await self._run(tx, scope, exchange)
            _carrying.doom_by_reply(tx, exchange.status, exchange.whole)
            if await exchange.caller_has_gone():
                # The vote would reach nobody: the work would stay prepared, and its rows locked, to the deadline.
                tx.set_rollback_only(reasons.VOTE_MISSING, "the caller hung up before the reply")
        except BaseException as error:
            tx.set_rollback_only(reason_of(error), f"{type(error).__name__}: {error}")
            await self._door.leave(tx)
            raise
        doomed = tx.rollback_only
        await self._door.leave(tx)
        vote = _header(_carrying.vote_of(tx))
        problem = _carrying.problem_instead(
            tx, exchange.status, exchange.whole, doomed=doomed, failed=failure is not None
        )
        if problem is not None:
            await _answer(send, problem, vote)
        else:
            for message in exchange.held:
                if message["type"] == "http.response.start":
                    own = [(k, v) for k, v in message.get("headers", ()) if k.lower() != _VOTE]
                    message["headers"] = [*own, (_VOTE, vote)]
                await send(message)
        if failure is not None:
            raise failure  # For the server's log.

    async def _run(self, tx: Any, scope: Scope, exchange: _Exchange) -> Exception | None:
        token = self._door.current.set(tx)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as error:
            tx.set_rollback_only(reason_of(error), f"{type(error).__name__}: {error}")
            return error
        finally:
            self._door.current.reset(token)
        return None


class _Exchange:
    """One request and the reply to it, which is held back."""

    def __init__(self, tx: Any, receive: Receive) -> None:
        self.held: list[Message] = []
        self.status: int | None = None
        self.whole = False
        """Has the application sent all of its reply?"""
        self._tx = tx
        self._receive = receive
        self._size = 0
        self._trailers = False
        self._gone = False
        self._over = asyncio.Event()
        self._next: asyncio.Future[Message] | None = None

    async def send(self, message: Message) -> None:
        """What the application calls. Raises Rejected for a reply that cannot be held back."""
        kind = message["type"]
        if self.whole or (kind == "http.response.start") is not (self.status is None):
            raise RuntimeError(f"unexpected {kind} in this reply")
        try:
            if kind == "http.response.start":
                for key, value in message.get("headers", ()):
                    if key.lower() == b"content-type":
                        _carrying.refuse_stream(value.decode("latin-1"))
                self.status = int(message["status"])
                self._trailers = bool(message.get("trailers"))
            elif kind == "http.response.body":
                self._size += len(message.get("body", b""))
                _carrying.refuse_size(self._size)
        except Rejected as error:
            self._tx.set_rollback_only(error.reason, error.message)
            self.held.clear()
            raise
        self.held.append(dict(message))
        body_ends = kind == "http.response.body" and not message.get("more_body") and not self._trailers
        if body_ends or (kind == "http.response.trailers" and not message.get("more_trailers")):
            self.whole = True
            self._over.set()

    async def receive(self) -> Message:
        """What the application calls. To it, the reply has left once it has sent it."""
        if not self.whole:
            incoming = self._incoming()
            over = asyncio.ensure_future(self._over.wait())
            either: set[asyncio.Future[Any]] = {incoming, over}
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                over.cancel()
            if incoming.done():
                return self._taken(incoming)
        return {"type": "http.disconnect"}

    async def caller_has_gone(self) -> bool:
        """Is it known that nobody waits for the reply any more? To be asked when the application has returned."""
        try:
            for _ in range(_LOOKS):
                if self._gone:
                    break
                incoming = self._incoming()
                await asyncio.wait({incoming}, timeout=0)
                if not incoming.done():
                    break
                self._taken(incoming)
            return self._gone
        finally:
            if self._next is not None:
                self._next.cancel()

    def _incoming(self) -> asyncio.Future[Message]:
        """The next message of the server, asked for once."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._receive())
        return self._next

    def _taken(self, incoming: asyncio.Future[Message]) -> Message:
        if self._next is incoming:
            self._next = None
        message = incoming.result()
        self._gone = self._gone or message["type"] == "http.disconnect"
        return message


def _hidden(scope: Scope) -> Scope:
    """The request as the application sees it. The context is not for it: it would pass it on by mistake."""
    own = dict(scope)
    own["headers"] = [(k, v) for k, v in scope["headers"] if k.lower() != _CONTEXT]
    if scope.get("extensions"):
        own["extensions"] = {k: v for k, v in scope["extensions"].items() if k in _EXTENSIONS}
    return own


def _header(vote: c.CallVote) -> bytes:
    return _carrying.vote_header(vote).encode()


async def _answer(send: Send, problem: Problem, vote: bytes) -> None:
    headers = [(k.lower().encode(), v.encode()) for k, v in problem.headers()]
    if vote:
        headers.append((_VOTE, vote))
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": problem.body})
