"""Services that call each other, each with an SDK of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
from sqlalchemy import text

from tests.support.acceptance import INSERT, Client

Handler = Callable[[bytes, Any], Awaitable[bytes]]


@asynccontextmanager
async def serving(
    handlers: dict[str, Handler], *interceptors: Any, streams: dict[str, Any] | None = None
) -> AsyncIterator[str]:
    """A gRPC server in this process; the address where it is."""
    server = grpc.aio.server(interceptors=interceptors)
    methods = {name: grpc.unary_unary_rpc_method_handler(h) for name, h in handlers.items()}
    methods.update(streams or {})
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Notes", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(1)


class Pair:
    """A caller with the accounts, a callee with the ledger, each with an SDK of its own."""

    def __init__(self, caller: Client, callee: Client) -> None:
        self.caller = caller
        self.callee = callee
        self.stack = AsyncExitStack()

    async def serve(self, handler: Handler, **more: Any) -> Callable[..., Any]:
        """Let the callee serve this; the caller's stub of it."""
        address = await self.stack.enter_async_context(
            serving({"Do": handler}, self.callee.coord.server_interceptor(), **more)
        )
        return await self.stub(address)

    async def stub(self, address: str, method: str = "Do") -> Callable[..., Any]:
        channel = await self.stack.enter_async_context(
            grpc.aio.insecure_channel(address, interceptors=self.caller.coord.client_interceptors())
        )
        return channel.unary_unary(f"/Notes/{method}")

    async def write(self, body: str) -> None:
        """What most handlers do."""
        async with self.callee.coord.xa(self.callee.ledger) as db:
            await db.execute(text(INSERT), {"body": body})
