"""Serves `/metrics`, on an address of its own: whoever may read figures may nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from ...observe.metrics import CONTENT_TYPE


class MetricsServer:
    """One listening server. ``render`` makes the text, and waits for nothing."""

    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render
        self._connections: web.Server | None = None
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; answers the port. Raises OSError when the address cannot be bound."""
        self._connections = web.Server(
            self._answer, access_log=None, keepalive_timeout=75.0, lingering_time=1.0
        )
        self._server = await asyncio.get_running_loop().create_server(
            self._connections, host.strip("[]"), port
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Leave at once."""
        server, self._server = self._server, None
        if server is None or self._connections is None:
            return
        server.close()
        await self._connections.shutdown(0.5)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/metrics":
            return web.Response(status=404, text="/metrics is here, and nothing else\n")
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        return web.Response(body=self._render(), headers={"Content-Type": CONTENT_TYPE})


__all__ = ["MetricsServer"]
