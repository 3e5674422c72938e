"""What lies between processes and servers: messages that are late, lost, or executed though nobody hears of it.

A connection keeps the order of its messages, as TCP does, and can break at any of them. What was sent before it broke
may still arrive and be carried out long after.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from txcoord.adapters.sql.batch import Flushed

from .loop import Process
from .replies import Answer

if TYPE_CHECKING:
    from .world import World


_LONG_S = 0.4


class Broken(Exception):
    """The connection is gone. What became of the last request is unknown."""


class Server(Protocol):
    """A database or the log, as the network sees it."""

    name: str
    up: bool
    links: dict[Link, None]

    def connected(self, link: Link) -> Any:
        """A new session."""
        ...

    def receive(self, session: Any, request: Any, reply: Callable[[Any], None]) -> None:
        """Carry a request out; ``reply`` at once, or later."""
        ...

    def closed(self, session: Any) -> None:
        """Its client is gone."""
        ...


class Network:
    """Delays and cuts."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng("network")
        self._cuts: dict[tuple[str, str], float] = {}
        self.slow_until = 0.0
        self.slow_s = 0.0
        self.late = 0
        """Messages that are on their way for long: while there are any, nothing is at rest."""

    def cut(self, source: str, target: str, until: float) -> None:
        """Nothing gets from one to the other until then."""
        self._cuts[source, target] = max(until, self._cuts.get((source, target), 0.0))

    def delay(self, source: str, target: str) -> float:
        """How long a message takes that leaves now."""
        rng, now = self._rng, self._world.loop.now
        out = rng.uniform(0.0003, 0.003)
        if rng.random() < 0.03:
            out += rng.uniform(0.0, 0.08)
        if now < self.slow_until:
            out += rng.uniform(0.0, self.slow_s)
        if self._cuts:
            until = self._cuts.get((source.partition("#")[0], target.partition("#")[0]), 0.0)
            if until > now:
                out += until - now
        return out

    def send(self, delay: float, callback: Callable[..., Any], *args: Any) -> None:
        """A message that arrives then, at a server or in the world outside of processes."""
        if delay < _LONG_S:
            self._world.loop.outside(delay, callback, *args)
            return
        self.late += 1
        self._world.loop.outside(delay, self._arrived, callback, args)

    def _arrived(self, callback: Callable[..., Any], args: Any) -> None:
        self.late -= 1
        callback(*args)


class Link:
    """A connection of a process to a server: one request at a time."""

    def __init__(self, world: World, client: Process, server: Server) -> None:
        self.world = world
        self.client = client
        self.server = server
        self.broken = False
        self._arrives = 0.0
        self._waiting: asyncio.Future[Any] | None = None
        self._session = server.connected(self)
        server.links[self] = None
        client.when_dead.append(self.close)

    async def ask(self, request: Any, kind: str, detail: str = "") -> Any:
        """Send it and wait for the answer. Raises Broken; an exception that the server answers with is raised."""
        world, net = self.world, self.world.net
        if self.broken or not self.client.alive:
            raise Broken("the connection is closed")
        future: asyncio.Future[Any] = world.loop.create_future()
        self._waiting = future
        do = world.point(kind, self.client, self.server.name, detail)
        delay = net.delay(self.client.name, self.server.name)
        if do.startswith("late"):
            delay += float(do[4:])
        if do == "lose_request":
            self._break(net.delay(self.server.name, self.client.name))
        else:
            self._send(delay, self._arrive, request, do, kind)
            if do.startswith("late"):
                # Whoever asked hears that it is broken; the request arrives all the same.
                self._break(net.delay(self.server.name, self.client.name))
            elif do == "crash_client":
                world.crash(self.client)
            elif do.startswith("stop_client"):
                world.stop(self.client, float(do[11:]))
        try:
            return await future
        finally:
            if not future.done() or future.cancelled():
                self.close()  # Its answer must not be read as another's.
            self._waiting = None

    def close(self) -> None:
        """Break it from this side; the server hears of it after what was sent before."""
        if not self.broken:
            self.broken = True
            self._send(self.world.net.delay(self.client.name, self.server.name), self._closed)
            self._fail(0.0)

    def server_gone(self) -> None:
        """The server has died: its sessions with it."""
        self.broken = True
        self._fail(self.world.net.delay(self.server.name, self.client.name))

    def _send(self, delay: float, callback: Callable[..., Any], *args: Any) -> None:
        """In order."""
        now = self.world.loop.now
        self._arrives = max(self._arrives, now + delay)
        self.world.net.send(self._arrives - now, callback, *args)

    def _arrive(self, request: Any, do: str, kind: str) -> None:
        if self not in self.server.links:
            return  # A session of before the server's crash, or closed by it.
        if not self.server.up:
            self._break(self.world.net.delay(self.server.name, self.client.name))
            return
        if do == "crash_server_before":
            self.world.crash_server(self.server)
            return
        if do.startswith("hand"):
            # A moment before: a person was faster.
            self.server.by_hand(do == "hand_commit")  # type: ignore[attr-defined]
        if do == "lie" and hasattr(self.server, "lie"):
            self.server.lie(self._session)
        self.server.receive(self._session, request, lambda answer: self._answered(answer, do, kind))

    def _answered(self, answer: Any, do: str, kind: str) -> None:
        world = self.world
        world.note("did", kind=kind, at=self.server.name, by=self.client.name, answer=_said(answer))
        if do == "crash_server":
            world.crash_server(self.server)
            return
        delay = world.net.delay(self.server.name, self.client.name)
        if do == "lose_reply":
            self._break(delay)
            return
        future = self._waiting
        if future is None:
            return
        if do == "crash_client_after":
            world.loop.outside(delay, world.crash, self.client)
            return
        world.loop.outside(delay, self._deliver, future, answer)

    def _deliver(self, future: asyncio.Future[Any], answer: Any) -> None:
        self.world.loop.call_soon(_settle, future, answer, context=self.client.context)

    def _break(self, delay: float) -> None:
        """The connection is lost: the client hears that after ``delay``, the server soon."""
        if not self.broken:
            self.broken = True
            self._send(self.world.net.delay(self.client.name, self.server.name), self._closed)
        self._fail(delay)

    def _fail(self, delay: float) -> None:
        future = self._waiting
        if future is not None and self.client.alive:
            context = self.client.context
            self.world.loop.call_later(delay, _settle, future, Broken("connection lost"), context=context)

    def _closed(self) -> None:
        if self.server.links.pop(self, 0) is None:
            self.server.closed(self._session)


def _said(answer: Any) -> str:
    if isinstance(answer, Flushed):
        return ",".join(str(result.written) for result in answer._by_item.values())
    return str(answer) if isinstance(answer, str | int | tuple | Answer | Exception) else ""


def _settle(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
