"""The part of a Coordinator that is about other services: who gets its transactions, and how one takes part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from . import interceptors
from ._asgi_types import Application
from ._carrying import Targets
from .asgi import AsyncDoor, Middleware
from .errors import Rejected

if TYPE_CHECKING:
    import httpx


class Services:
    """What a Coordinator has for calls between services."""

    _targets: Targets

    def client_interceptors(self: Any, target: str = "") -> list[Any]:
        """For ``grpc.aio.insecure_channel(target, interceptors=…)``: unary calls on that channel carry the current
        transaction, and their replies must bring a vote. Streaming calls inside a transaction are refused.

        With ``target`` only if ``propagate_to`` names it: for code that makes channels to anybody.
        """
        if target and not self._targets.grpc(target):
            return []
        return interceptors.for_client(self)

    def server_interceptor(self: Any) -> interceptors.ServerInterceptor:
        """For ``grpc.aio.server(interceptors=[…])``: handlers run inside the caller's transaction, their branches
        are prepared when they end, and the vote rides on the reply."""
        return interceptors.ServerInterceptor(self)

    def httpx_transport(
        self: Any,
        inner: httpx.AsyncBaseTransport | None = None,
        *,
        propagate_to: str | Iterable[str] | None = None,
    ) -> httpx.AsyncBaseTransport:
        """For ``httpx.AsyncClient(transport=…)``: requests to the named hosts carry the current transaction, and
        their replies must bring a vote. ``inner`` does the work (default: ``httpx.AsyncHTTPTransport()``).

        ``propagate_to`` names hosts as ``host``, ``host:port`` or ``*.domain`` (default: the Coordinator's). Raises
        Rejected when nobody is named.
        """
        from ._httpx import AsyncTransport

        return AsyncTransport(self, inner, chosen(self._targets, propagate_to))

    def asgi(self: Any, app: Application) -> Middleware:
        """ASGI middleware, to be the outermost one: ``app = coord.asgi(app)``. A request that carries a transaction
        is served inside it; the reply is held back until the application's coroutine has returned and its work is
        prepared, and has the vote."""
        return Middleware(app, AsyncDoor(self))


def chosen(mine: Targets, propagate_to: str | Iterable[str] | None) -> Targets:
    """The targets of one client. Raises Rejected when nobody is named."""
    targets = mine if propagate_to is None else Targets(propagate_to)
    if not targets:
        raise Rejected(
            "nobody is named who gets the transaction: say propagate_to=['stock.internal:8080'], here or for the "
            "Coordinator"
        )
    return targets
