"""A service in a process of its own, on the SDK: it serves, or does one transaction and dies where it is told to.

python -m tests.support.acceptance_service serve PORT COORDINATOR NAME=URL …
python -m tests.support.acceptance_service once WHERE GID TIMEOUT COORDINATOR NAME=URL …
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from txcoord_client import Coordinator, _finish, _keeping

INSERT = text("INSERT INTO note (body) VALUES (:body)")


async def die(*_: object) -> NoReturn:
    """As `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still here")


# ---- one transaction ----


async def once(
    coord: Coordinator, engines: Mapping[str, AsyncEngine], where: str, gid: str, timeout: float
) -> None:
    """Write in all databases, and die `before_prepare`, `after_prepare`, `after_decision` or not at all."""
    if where == "after_prepare":
        _finish._ask_commit = die
    if where == "after_decision":
        _keeping._finished = die
        _finish._followed = die
    async with coord.begin("once", gid=gid, timeout=timeout) as g:
        for engine in engines.values():
            async with g.xa(engine) as db:
                await db.execute(INSERT, {"body": gid})
        if where == "before_prepare":
            await die()


# ---- a server ----


class Notes:
    """What the server does in the caller's transaction: a request says where it writes, and what goes wrong."""

    def __init__(self, coord: Coordinator, engines: Mapping[str, AsyncEngine]) -> None:
        self._coord = coord
        self._engines = engines

    async def write(self, request: bytes, context: Any) -> bytes:
        """Write a note in each database of ``to``."""
        order = json.loads(request)
        context.set_trailing_metadata((("served-by", "notes"),))
        for name in order.get("to", ()):
            async with self._coord.xa(self._engines[name]) as db:
                await db.execute(INSERT, {"body": order["body"]})
        for name in order.get("read", ()):
            async with self._coord.xa(self._engines[name]) as db:
                await db.execute(text("SELECT count(*) FROM note"))
        if order.get("die") == "handler":
            await die()
        if order.get("die") == "vote":
            _finish.release = die
        return json.dumps({"branch": self._coord.current.tx_id}).encode()


async def serve(coord: Coordinator, engines: Mapping[str, AsyncEngine], port: str) -> None:
    """Serve until SIGTERM."""
    notes = Notes(coord, engines)
    server = grpc.aio.server(interceptors=[coord.server_interceptor()])
    handlers = {"Write": grpc.unary_unary_rpc_method_handler(notes.write)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Notes", handlers),))
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await status.set("", health_pb2.HealthCheckResponse.SERVING)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await server.stop(2)


async def main(what: str, *arguments: str) -> None:
    count = {"serve": 1, "once": 3}[what]
    own, (address, *databases) = arguments[:count], arguments[count:]
    engines = {name: create_async_engine(url) for name, _, url in (d.partition("=") for d in databases)}
    coord = Coordinator(address, resources=engines)
    if what == "serve":
        await serve(coord, engines, *own)
    else:
        await once(coord, engines, own[0], own[1], float(own[2]))
    await coord.close()
    for engine in engines.values():
        await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
