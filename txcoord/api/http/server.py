"""The HTTP server: sockets, sizes, slow clients, leaving. Beside the gRPC server, on the same loop."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from txcoord_client.protocol import reasons

from ...core.errors import Refusal, Refused
from ...observe import logs
from ..grpc.mapping import Limits
from ..grpc.operations import Operations
from ..tls import ServerTls
from ..tokens import Tokens
from .asking import Asked
from .front import Answer, Front, refusal
from .problems import HttpRefused

log = logs.get("txcoord.http")

_CUT_S = 0.5
_CUT = Refusal("UNAVAILABLE", reasons.SHUTTING_DOWN, "this node has left", False, retry_after_us=100_000)
_BUSY_US = 1_000_000
_SMALL = 64 * 1024
"""Bytes of a body that are always taken; connections have a limit."""
_ALWAYS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Server": "txcoord"}


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """How long, in seconds, and how much is waited for."""

    limits: Limits = field(default_factory=Limits)
    head_s: float = 10.0
    """From a connection's begin to the end of its first request's head."""
    idle_s: float = 75.0
    """Between an answer and the end of the next request's head on the same connection."""
    body_s: float = 20.0
    """A request's whole body."""
    send_s: float = 30.0
    """Until a client has read an answer."""
    connections: int = 1_000
    """At a time. A further one is told so and closed."""
    bodies: int = 64 * 1024 * 1024
    """Bytes, in all, of large bodies that are coming in."""
    hosts: tuple[str, ...] = ()
    """Names by which it is called, ``*.domain`` for all below one; none: on loopback its own, elsewhere any."""


class HttpServer:
    """One listening HTTP server over the operations that the gRPC server has."""

    def __init__(
        self,
        operations: Operations,
        settings: HttpSettings,
        *,
        now_us: Callable[[], int],
        tokens: Tokens | None = None,
        tls: ServerTls | None = None,
    ) -> None:
        self.front = Front(operations, settings.limits, now_us=now_us, tokens=tokens)
        self._tls = tls
        self._settings = settings
        self._connections: _Connections | None = None
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Future[Answer]] = set()
        self._on_loopback = False
        self._coming = 0
        """Bytes of large bodies that are not there as a whole yet."""

    async def start(self, host: str, port: int) -> int:
        """Listen; answers the port. Raises OSError when the address cannot be bound."""
        host = host.strip("[]")
        self._on_loopback = _is_loopback(host)
        self._connections = _Connections(
            self._answer,
            head_s=self._settings.head_s,
            most=self._settings.connections,
            keepalive_timeout=self._settings.idle_s,
            access_log=None,
            lingering_time=1.0,
            auto_decompress=False,
        )
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            self._connections, host, port, ssl=self._tls.context if self._tls is not None else None
        )
        return int(self._server.sockets[0].getsockname()[1])

    def ready(self, yes: bool) -> None:
        """Say whether this node can work: an unready one is asked by nobody, and answers all the same."""
        self.front.ready = yes

    def drain(self) -> None:
        """Take nothing new; what is open is still answered."""
        self.front.draining = True

    async def stop(self, grace_s: float) -> None:
        """Stop taking, answer what is open, leave."""
        if self._server is None or self._connections is None:
            return
        self.drain()
        if self._open and grace_s > 0:
            await asyncio.wait(self._open, timeout=grace_s)
        server, self._server = self._server, None
        server.close()
        for task in self._open:
            task.cancel()
        self._connections.pre_shutdown()
        await self._connections.shutdown(min(grace_s, _CUT_S))

    # ---- one request ----

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        assert self._connections is not None
        connection = self._connections.of(request)
        if connection is None:
            return web.Response(status=503)  # Its client has gone.
        connection.head_is_there()
        asked = Asked(
            request.method if request.method != "HEAD" else "GET",
            request.rel_url.raw_path,
            request.rel_url.raw_query_string,
            {name.lower(): value for name, value in request.headers.items()},
        )
        answer, keep = await self._answered(request, asked, connection)
        response = web.Response(
            status=answer.status,
            body=answer.body,
            content_type=answer.content_type,
            headers={**_ALWAYS, **answer.headers},
        )
        if self.front.draining or not keep:
            response.force_close()
        connection.answer_leaves(self._settings.send_s)
        return response

    async def _answered(
        self, request: web.BaseRequest, asked: Asked, connection: _Connection
    ) -> tuple[Answer, bool]:
        """The answer, and whether the connection can be used again."""
        try:
            self._check_host(asked)
            route = self.front.check(asked)
            body = await self._body(request)
        except Exception as error:
            return refusal(error), False
        task = asyncio.ensure_future(self.front.answer(asked, body))
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        if route is not None and not route.changes:
            connection.when_lost = task.cancel
        try:
            # What was asked for goes on, whoever leaves; only its answer has nowhere to go.
            return await asyncio.shield(task), True
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            # Its client has gone, or the node has left: it was cut off.
            return refusal(Refused(_CUT)), False
        finally:
            connection.when_lost = None

    def _check_host(self, asked: Asked) -> None:
        """A page of another site, whose name was made to lead here, is no caller. It has that name: not one of ours,
        and not an address."""
        hosts = self._settings.hosts
        if not asked.headers.get("host") or not (hosts or self._on_loopback):
            return
        host = _host_of(asked.headers["host"]).lower().rstrip(".")
        if _is_loopback(host) or any(_is_called(host, name.lower()) for name in hosts):
            return
        if self._on_loopback:
            why = "this server listens on loopback, and is called localhost or 127.0.0.1"
        elif _is_address(host):
            return
        else:
            why = f"this server is called {', '.join(hosts)[:200]}"
        raise HttpRefused(421, f"Host {host[:80]!r}: {why}; other names are set as http_hosts")

    async def _body(self, request: web.BaseRequest) -> bytes:
        most = self._settings.limits.message
        if (request.content_length or 0) > most:
            raise _too_large(most)
        if not request.can_read_body:
            return b""
        if request.headers.get("expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        out = bytearray()
        held = 0
        try:
            async with asyncio.timeout(self._settings.body_s):
                async for chunk in request.content.iter_any():
                    out += chunk
                    if len(out) > most:
                        raise _too_large(most)
                    if len(out) > _SMALL:
                        self._coming += len(out) - held
                        held = len(out)
                        if self._coming > self._settings.bodies:
                            raise Refused(_busy("too many large bodies are coming in"))
        except TimeoutError:
            text = f"the body was not there within {self._settings.body_s:.0f} s"
            raise HttpRefused(408, text) from None
        except (web.RequestPayloadError, ConnectionError) as error:
            raise HttpRefused(400, f"the body cannot be read: {error}") from None
        finally:
            self._coming -= held
        return bytes(out)


def _too_large(most: int) -> HttpRefused:
    return HttpRefused(413, f"the body is larger than {most} bytes", reason=reasons.TOO_LARGE)


def _busy(why: str) -> Refusal:
    return Refusal("UNAVAILABLE", reasons.OVERLOADED, f"{why}: again later", True, retry_after_us=_BUSY_US)


def _host_of(header: str) -> str:
    """The host in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def _is_called(host: str, name: str) -> bool:
    return host == name or (name.startswith("*.") and host.endswith(name[1:]))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _no_room(most: int) -> bytes:
    """An answer to whatever would have been asked."""
    answer = refusal(
        Refused(_busy(f"{most} connections are open, which is what limits.http_connections says"))
    )
    headers = {
        **_ALWAYS,
        **answer.headers,
        "Content-Type": answer.content_type,
        "Content-Length": str(len(answer.body)),
        "Connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 503 Service Unavailable\r\n{head}\r\n".encode() + answer.body


class _Connection:
    """What there is to know of a connection beside what aiohttp knows."""

    def __init__(self, transport: asyncio.Transport, head_s: float) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self.when_lost: Callable[[], object] | None = None
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(head_s, transport.abort)

    def head_is_there(self) -> None:
        """A request has come."""
        self.stop()

    def answer_leaves(self, send_s: float) -> None:
        """An answer is written: whoever does not read it holds it no longer than that."""
        self._timer = self._loop.call_later(send_s, self._sent_by_now)

    def _sent_by_now(self) -> None:
        self._timer = None
        if self._transport.get_write_buffer_size():
            self._transport.abort()

    def lost(self) -> None:
        self.stop()
        if self.when_lost is not None:
            self.when_lost()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Connections(web.Server):
    """aiohttp's low-level server, with an eye on slow clients, on those that leave, and on how many there are."""

    def __init__(self, handler: object, *, head_s: float, most: int, **options: object) -> None:
        super().__init__(handler, **options)  # type: ignore[arg-type]
        self._head_s = head_s
        self._most = most
        self._full = False
        self._known: dict[web.RequestHandler, _Connection] = {}

    def of(self, request: web.BaseRequest) -> _Connection | None:
        """The connection of a request; None when it is gone."""
        return self._known.get(request.protocol)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """A client has connected."""
        super().connection_made(handler, transport)
        if len(self._known) < self._most:
            self._known[handler] = _Connection(transport, self._head_s)
            return
        if not self._full:
            self._full = True
            log.warning("http.full", connections=self._most)
        transport.write(_no_room(self._most))
        transport.close()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """It is gone."""
        super().connection_lost(handler, exc)
        connection = self._known.pop(handler, None)
        if connection is not None:
            connection.lost()
            self._full = self._full and len(self._known) > self._most // 2

    def __call__(self) -> web.RequestHandler:
        return _Handler(self, loop=self._loop, **self._kwargs)


class _Handler(web.RequestHandler):
    """Answers what is no HTTP, or crashes, with a problem as well."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """An answer to what never reached the API."""
        if status >= 500:
            log.error("http.crashed", exc_info=exc)
            answer = refusal(RuntimeError(f"{type(exc).__name__}: {exc}"))
        else:
            text = " ".join((message or "this is no HTTP request").split())[:200]
            answer = refusal(HttpRefused(status, text))
        response = web.Response(
            status=answer.status, body=answer.body, content_type=answer.content_type, headers=_ALWAYS
        )
        response.force_close()
        return response
