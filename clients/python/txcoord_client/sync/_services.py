"""The part of a Coordinator that is about other services: who gets its transactions, and how one takes part.

Written by hand: the frameworks and clients for threads are others than those for asyncio.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any
from wsgiref.types import WSGIApplication

from .. import asgi, wsgi
from .._asgi_types import Application
from .._carrying import Targets
from .._pb import common_pb2 as c
from .._services import chosen
from . import _joining, interceptors

if TYPE_CHECKING:
    import httpx
    from requests.adapters import BaseAdapter


class Services:
    """What a Coordinator has for calls between services."""

    _targets: Targets

    def client_interceptors(self: Any, target: str = "") -> list[Any]:
        """For ``grpc.intercept_channel(channel, *…)``: unary calls on that channel carry the current transaction, and
        their replies must bring a vote. Streaming calls inside a transaction are refused.

        With ``target`` only if ``propagate_to`` names it: for code that makes channels to anybody.
        """
        if target and not self._targets.grpc(target):
            return []
        return interceptors.for_client(self)

    def server_interceptor(self: Any) -> interceptors.ServerInterceptor:
        """For ``grpc.server(…, interceptors=[…])``: handlers run inside the caller's transaction, their branches are
        prepared when they end, and the vote rides on the reply."""
        return interceptors.ServerInterceptor(self)

    def httpx_transport(
        self: Any,
        inner: httpx.BaseTransport | None = None,
        *,
        propagate_to: str | Iterable[str] | None = None,
    ) -> httpx.BaseTransport:
        """For ``httpx.Client(transport=…)``: requests to the named hosts carry the current transaction, and their
        replies must bring a vote. ``inner`` does the work (default: ``httpx.HTTPTransport()``).

        ``propagate_to`` names hosts as ``host``, ``host:port`` or ``*.domain`` (default: the Coordinator's). Raises
        Rejected when nobody is named.
        """
        from .._httpx import Transport

        return Transport(self, inner, chosen(self._targets, propagate_to))

    def requests_adapter(
        self: Any, inner: BaseAdapter | None = None, *, propagate_to: str | Iterable[str] | None = None
    ) -> BaseAdapter:
        """For ``session.mount("http://", …)`` of requests; otherwise as :meth:`httpx_transport`. ``inner`` does the
        work (default: ``HTTPAdapter()``)."""
        from .._requests import Adapter

        return Adapter(self, inner, chosen(self._targets, propagate_to))

    def wsgi(self: Any, app: WSGIApplication) -> wsgi.Middleware:
        """WSGI middleware, to be the outermost one: ``app.wsgi_app = coord.wsgi(app.wsgi_app)``. A request that
        carries a transaction is served inside it; the reply is held back until the application has returned, its
        iterable is drained and closed, and its work is prepared, and has the vote."""
        return wsgi.Middleware(app, Door(self))

    def asgi(self: Any, app: Application) -> asgi.Middleware:
        """ASGI middleware for applications that work with their databases in threads, as FastAPI does for ``def``
        endpoints; to be the outermost one. See the asynchronous Coordinator."""
        return asgi.Middleware(app, ThreadDoor(self))


class Door:
    """How a transaction comes in and leaves, on the thread that serves the request."""

    def __init__(self, home: _joining.Home) -> None:
        self._home = home
        self.namespace = home.namespace

    @property
    def current(self) -> ContextVar[Any]:
        return self._home._current

    def join(self, context: c.CallContext) -> Any:
        return _joining.joined(self._home, context)

    def leave(self, tx: Any) -> None:
        _joining.left(tx)


class ThreadDoor:
    """The same for an event loop, which must not be held up."""

    def __init__(self, home: _joining.Home) -> None:
        self._door = Door(home)
        self._leaving: set[asyncio.Future[None]] = set()
        self.namespace = home.namespace

    @property
    def current(self) -> ContextVar[Any]:
        return self._door.current

    async def join(self, context: c.CallContext) -> Any:
        return await asyncio.to_thread(self._door.join, context)

    async def leave(self, tx: Any) -> None:
        # To be done whatever becomes of the waiting; a thread that has not begun could be cancelled.
        work = asyncio.ensure_future(asyncio.to_thread(self._door.leave, tx))
        self._leaving.add(work)
        work.add_done_callback(self._leaving.discard)
        await asyncio.shield(work)
