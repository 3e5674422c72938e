"""A TCP proxy before a PostgreSQL server, in a thread of its own, that holds what a test tells it to hold."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import make_url


class Hold:
    """Requests with a certain text that the valve does not let through."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.count = 0
        """How many requests are, or were, held."""
        self.seen = threading.Event()
        self.opened = asyncio.Event()

    async def reached(self, wait_s: float = 15.0) -> None:
        """Wait until a request is held."""
        if not await asyncio.to_thread(self.seen.wait, wait_s):
            raise AssertionError(f"nothing with {self.text!r} came by within {wait_s:.0f} s")


class Valve:
    """Forwards everything, but for what is held. One for a whole session: tests take turns."""

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._holds: list[Hold] = []
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="valve", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    @property
    def url(self) -> str:
        """The target's URL, through the valve."""
        port = self._server.sockets[0].getsockname()[1]
        return self._target.set(port=port).render_as_string(hide_password=False)

    @contextmanager
    def holding(self, text: str) -> Iterator[Hold]:
        """Hold requests that contain ``text`` (empty: all of them), each until the block ends."""
        hold = Hold(text.encode())
        self._loop.call_soon_threadsafe(self._holds.append, hold)
        try:
            yield hold
        finally:
            self._loop.call_soon_threadsafe(self._open, hold)

    @contextmanager
    def watching(self, text: str) -> Iterator[Hold]:
        """Count requests that contain ``text``, and hold none."""
        with self.holding(text) as watch:
            self._loop.call_soon_threadsafe(watch.opened.set)
            yield watch

    def close(self) -> None:
        """Cut all connections, and end."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _open(self, hold: Hold) -> None:
        self._holds.remove(hold)
        hold.opened.set()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", 0)

    async def _end(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._connect(reader, writer)
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(self._target.host, self._target.port)
        ways = [
            asyncio.ensure_future(self._forward(reader, up_writer, held=True)),
            asyncio.ensure_future(self._forward(up_reader, writer, held=False)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            up_writer.transport.abort()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, held: bool
    ) -> None:
        while data := await reader.read(65536):
            for hold in list(self._holds) if held else ():
                if hold.text in data:
                    hold.count += 1
                    hold.seen.set()
                    await hold.opened.wait()
            writer.write(data)
            await writer.drain()
