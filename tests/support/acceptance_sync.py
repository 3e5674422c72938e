"""The synchronous SDK on a site: a caller with the accounts, a callee with the ledger, each with an SDK of its own."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import requests
from sqlalchemy import Engine, create_engine, text

from tests.support.acceptance import INSERT, Site
from tests.support.acceptance_http import serving_wsgi
from txcoord_client.sync import Coordinator, Transaction


def soon(check: Callable[[], Any], *, within: float = 20.0) -> Any:
    """Wait until ``check`` answers something true; answer that."""
    until = time.monotonic() + within
    while not (value := check()):
        if time.monotonic() > until:
            raise AssertionError(f"not within {within:.0f} s: {inspect.getsource(check).strip()}")
        time.sleep(0.03)
    return value


class SyncClient:
    """The SDK on a site, as a service has it."""

    def __init__(self, site: Site, **options: Any) -> None:
        self.engines = {
            db.name: create_engine(
                db.url.replace("+asyncpg", "+psycopg"), pool_size=10, max_overflow=0, pool_timeout=5
            )
            for db in site.databases
        }
        self.coord = Coordinator(site.address, resources=self.engines, **options)

    @property
    def accounts(self) -> Engine:
        return self.engines["accounts"]

    @property
    def ledger(self) -> Engine:
        return self.engines["ledger"]

    def write(self, g: Transaction, engine: Engine, body: str) -> None:
        """One note in one database."""
        with g.xa(engine) as db:
            db.execute(text(INSERT), {"body": body})

    def close(self) -> None:
        self.coord.close()
        for engine in self.engines.values():
            engine.dispose()


@contextmanager
def sync_client(site: Site, **options: Any) -> Iterator[SyncClient]:
    """The SDK, closed in the end."""
    client = SyncClient(site, **options)
    try:
        yield client
    finally:
        client.close()


class Pair:
    """A caller and a callee, in threads."""

    def __init__(self, caller: SyncClient, callee: SyncClient, stack: ExitStack) -> None:
        self.caller = caller
        self.callee = callee
        self.stack = stack

    def write(self, body: str) -> None:
        """What most handlers do."""
        with self.callee.coord.xa(self.callee.ledger) as db:
            db.execute(text(INSERT), {"body": body})

    def serve(self, app: Any) -> str:
        """Let the callee serve this WSGI application; where it is."""
        return self.stack.enter_context(serving_wsgi(self.callee.coord.wsgi(app)))

    def handle(self, handler: Callable[[], tuple[str, bytes] | bytes]) -> str:
        """The smallest WSGI application."""

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            said = handler()
            status, body = said if isinstance(said, tuple) else ("200 OK", said)
            start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
            return [body]

        return self.serve(app)

    def session(self, inner: Any = None, *, to: tuple[str, ...] = ("127.0.0.1",)) -> requests.Session:
        """requests, as the caller uses it."""
        session = self.stack.enter_context(requests.Session())
        session.mount("http://", self.caller.coord.requests_adapter(inner, propagate_to=to))
        return session

    def grpc(self, handler: Any, client: SyncClient | None = None) -> str:
        """Let the callee serve this unary handler at ``/Notes/Do``; the address."""
        return self.grpc_methods(
            {"Do": grpc.unary_unary_rpc_method_handler(handler)},
            (client or self.callee).coord.server_interceptor(),
        )

    def grpc_methods(self, methods: dict[str, Any], *interceptors: Any) -> str:
        server = grpc.server(ThreadPoolExecutor(8), interceptors=interceptors)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Notes", methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self.stack.callback(lambda: server.stop(1).wait())
        return f"127.0.0.1:{port}"

    def stub(self, address: str, client: SyncClient | None = None) -> Any:
        """The caller's stub of ``/Notes/Do``."""
        return self.channel(address, client).unary_unary("/Notes/Do")

    def channel(self, address: str, client: SyncClient | None = None) -> grpc.Channel:
        channel = self.stack.enter_context(grpc.insecure_channel(address))
        coord = (client or self.caller).coord
        return grpc.intercept_channel(channel, *coord.client_interceptors())


@contextmanager
def sync_pair(site: Site) -> Iterator[Pair]:
    """Both, and what they serve, closed in the end."""
    with sync_client(site) as caller, sync_client(site) as callee, ExitStack() as stack:
        yield Pair(caller, callee, stack)
