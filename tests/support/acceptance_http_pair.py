"""A caller and a callee on a site, HTTP between them, each with an SDK of its own."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import httpx
from sqlalchemy import text

from tests.support.acceptance import INSERT, Client
from tests.support.acceptance_http import Handler, asgi_app, serving_asgi


class Http:
    """A caller with the accounts, a callee with the ledger, HTTP between them."""

    def __init__(self, caller: Client, callee: Client, stack: AsyncExitStack) -> None:
        self.caller = caller
        self.callee = callee
        self.stack = stack

    async def serve(self, app: Any, client: Client | None = None) -> str:
        """Let the callee serve this ASGI application; where it is."""
        return await self.stack.enter_async_context(serving_asgi((client or self.callee).coord.asgi(app)))

    async def handle(self, handler: Handler) -> str:
        return await self.serve(asgi_app(handler))

    async def http(
        self,
        *,
        to: tuple[str, ...] = ("127.0.0.1",),
        by: Client | None = None,
        inner: Any = None,
        **more: Any,
    ) -> httpx.AsyncClient:
        transport = (by or self.caller).coord.httpx_transport(inner, propagate_to=to)
        return await self.stack.enter_async_context(httpx.AsyncClient(transport=transport, **more))

    async def write(self, body: str) -> None:
        """What most handlers do."""
        async with self.callee.coord.xa(self.callee.ledger) as db:
            await db.execute(text(INSERT), {"body": body})

    def writing(self, body: str, answer: Any = "done") -> Handler:
        async def handler(request: dict[str, Any]) -> Any:
            await self.write(body)
            return answer

        return handler
