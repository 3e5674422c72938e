"""HTTP services for tests: an ASGI or WSGI application on a port, and a server of somebody who takes no part."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from wsgiref.types import WSGIApplication

import uvicorn
from werkzeug.serving import make_server

Handler = Callable[[dict[str, Any]], Awaitable[Any]]


@asynccontextmanager
async def serving_asgi(app: Any, *, leave: bool = False, **options: Any) -> AsyncIterator[str]:
    """uvicorn in this loop; the URL where it is. ``leave``: in the end, whatever is still on its way."""
    options = {"port": 0, "lifespan": "off", "log_level": "critical", "ws": "none", **options}
    server = uvicorn.Server(uvicorn.Config(app, **options))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    server.capture_signals = _no_signals  # type: ignore[method-assign]
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
        if serving.done():
            serving.result()
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"{'https' if 'ssl_certfile' in options else 'http'}://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        server.force_exit = leave
        await serving


@contextmanager
def _no_signals() -> Iterator[None]:
    yield


@contextmanager
def serving_wsgi(app: WSGIApplication) -> Iterator[str]:
    """werkzeug's server, a thread for each request; the URL where it is."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def asgi_app(handler: Handler) -> Any:
    """The smallest ASGI application: JSON in, JSON out."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        said = await handler(json.loads(body or b"{}"))
        status, answer = said if isinstance(said, tuple) else (200, said)
        headers = [(b"content-type", b"application/json"), (b"x-served-by", b"notes")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    return app


class Plain:
    """A service that knows nothing of transactions: it remembers what headers it got."""

    def __init__(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.seen: list[dict[str, str]] = []
        self.status = status
        self.headers = headers or {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Plain:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        plain = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                plain.seen.append({k.lower(): v for k, v in self.headers.items()})
                self.send_response(plain.status)
                for key, value in {"content-length": "2", **plain.headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(b"ok")

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        return Answer


class Between:
    """A proxy at the level of HTTP: passes each request on, and lets a test meddle with the reply.

    ``meddle(number, headers, body)`` is called with each reply (numbers from 1) and answers the headers to send, or
    None to drop the connection instead.
    """

    def __init__(self, port: int, meddle: Callable[[int, dict[str, str]], dict[str, str] | None]) -> None:
        self._target = port
        self._meddle = meddle
        self.count = 0
        self.port = 0

    async def __aenter__(self) -> Between:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._one(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # Somebody hung up.
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, headers, body = await _message(reader)
        headers["connection"] = "close"
        onward, upward = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            upward.write(_raw(line, headers, body))
            line, headers, body = await _message(onward)
        finally:
            upward.close()
        self.count += 1
        changed = self._meddle(self.count, headers)
        if changed is not None:
            writer.write(_raw(line, {**changed, "connection": "close"}, body))
            await writer.drain()


async def _message(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
    if headers.pop("transfer-encoding", "") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        headers["content-length"] = str(len(body))
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = b""
    return head[0], headers, body


def _raw(line: str, headers: dict[str, str], body: bytes) -> bytes:
    return "\r\n".join([line, *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode("latin-1") + body


@contextmanager
def between(url: str, meddle: Callable[[int, dict[str, str]], dict[str, str] | None]) -> Iterator[Between]:
    """A :class:`Between` in a thread of its own, for callers that block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    proxy = Between(int(url.rpartition(":")[2]), meddle)
    try:
        asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result(10)
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(proxy.__aexit__(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
