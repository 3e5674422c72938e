"""A process of participants that only answer, each on a port of its own, as services are: for ``txcoord bench``.

With the SDK they are mounted as any participant is, but nothing is done and there is no database. Without it there is
one unary method that answers at once.

``python -m txcoord.cli.bench.answering NAME=PORT …``; a name after ``hung:`` takes
calls and never answers one, after ``deaf:`` it takes connections and never says a word; ``web:STATUS:`` is an endpoint
over HTTP that answers all with that status, with 0 nothing.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from txcoord_client import Participant
from txcoord_client._answers import Answer, Call

BARE_METHOD: Final = "/txcoord.bench.Bare/Do"
HUNG: Final = "hung:"
DEAF: Final = "deaf:"
WEB: Final = "web:"


class Answering(Participant):
    """Everything is done at once."""

    async def execute(self, call: Call) -> Answer:
        return Answer.done()


def declared(name: str, kind: type[Participant] = Participant) -> tuple[Participant, Any, Any]:
    """A participant with one TCC operation and one step."""
    participant = kind(name, concurrency=10_000)

    @participant.tcc
    class Reserve:
        async def attempt(self, db: Any, *, item: int, n: int) -> None: ...

        async def confirm(self, db: Any) -> None: ...

        async def cancel(self, db: Any) -> None: ...

    @participant.action
    async def act(db: Any, *, item: int, n: int) -> None: ...

    @act.compensate
    async def undo(db: Any) -> None: ...

    return participant, Reserve, act


class _Bare(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method != BARE_METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(self._do)

    async def _do(self, request: bytes, context: Any) -> bytes:
        return b""


class _Hung(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_stream_rpc_method_handler(self._do)

    async def _do(self, request: bytes, context: Any) -> Any:
        await asyncio.get_running_loop().create_future()
        yield b""  # Never.


async def serve(places: Sequence[str]) -> None:
    """Serve these, ``NAME=PORT`` each, until a signal comes."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    servers: list[grpc.aio.Server] = []
    deaf: list[asyncio.Server] = []
    for place in places:
        name, _, port = place.partition("=")
        if name.startswith(DEAF):
            deaf.append(await asyncio.start_server(_listen_only, "127.0.0.1", int(port)))
            continue
        if name.startswith(WEB):
            deaf.append(
                await asyncio.start_server(
                    partial(_web, name.split(":")[1]), "127.0.0.1", int(port), backlog=1_000
                )
            )
            continue
        # Another server on the same port would take half of the calls.
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        if name.startswith(HUNG):
            server.add_generic_rpc_handlers((_Hung(),))
        else:
            declared(name, Answering)[0].add_to(server)
            server.add_generic_rpc_handlers((_Bare(),))
            servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
            await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
            health_pb2_grpc.add_HealthServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        servers.append(server)
    await stopped.wait()
    for server in servers:
        await server.stop(None)
    for listener in deaf:
        listener.close()


async def _listen_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(65_536):
        pass
    writer.close()


async def _web(status: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    reply = f"HTTP/1.1 {status} .\r\ncontent-length: 0\r\nretry-after: 30\r\nlocation: /elsewhere\r\n\r\n"
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            found = re.search(r"content-length: *(\d+)", head)
            await reader.readexactly(int(found[1]) if found is not None else 0)
            if status != "0":
                writer.write(reply.encode())
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # It has hung up.
    finally:
        writer.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1:]))
