"""A TCP proxy before a PostgreSQL or MariaDB server that breaks connections at chosen moments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

from sqlalchemy import make_url

_READY = b"Z\x00\x00\x00\x05I"
"""PostgreSQL's ReadyForQuery, outside of a transaction: what was sent has been committed."""
_DONE = b"\x00\x00\x00\x02\x00\x00\x00"
"""MariaDB's OK, outside of a transaction and with no more results to come."""


class Proxy:
    """Forwards, until it is told to break.

    Arm it and then write: the first connection that carries `marker` in a request is the one that breaks.
    """

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        mariadb = self._target.get_backend_name() == "mysql"
        self._committed = (lambda data: data.endswith(_DONE)) if mariadb else (lambda data: _READY in data)
        self._server: asyncio.Server | None = None
        self._marker = b""
        self._swallow = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.broke = asyncio.Event()
        self.marked = asyncio.Event()
        """A marked request has gone to the server."""

    @property
    def url(self) -> str:
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return self._target.set(port=port).render_as_string(hide_password=False)

    def lose_reply(self, marker: bytes) -> None:
        """Break the connection when the reply to a marked request comes from the server, and keep the reply."""
        self._marker, self._swallow = marker, True

    def lose_connection(self, marker: bytes) -> None:
        """Close the client's side as soon as a marked request is on its way; the server is told nothing."""
        self._marker, self._swallow = marker, False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(OSError, asyncio.CancelledError):
            async with _connected(self._target.host or "", self._target.port or 0) as (up_reader, up_writer):
                await self._between(reader, writer, up_reader, up_writer)
        writer.transport.abort()
        self._tasks.discard(task)

    async def _between(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        lost = False

        async def up() -> None:
            nonlocal lost
            while data := await reader.read(65536):
                if self._marker and self._marker in data:
                    self._marker = b""
                    lost = True
                    self.marked.set()
                up_writer.write(data)
                await up_writer.drain()
                if lost and not self._swallow:
                    self.broke.set()
                    writer.transport.abort()
                    await asyncio.Event().wait()  # the server's side stays open

        async def down() -> None:
            while data := await up_reader.read(65536):
                if lost:
                    if self._swallow and self._committed(data):
                        self.broke.set()
                        return
                    continue
                writer.write(data)
                await writer.drain()

        tasks = [asyncio.create_task(up()), asyncio.create_task(down())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def _connected(
    host: str, port: int
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
