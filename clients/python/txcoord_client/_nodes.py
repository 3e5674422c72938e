"""Which coordinator is asked, where there are several on one log: one of them, as long as it is well.

Every one gives the same answers, so nothing is lost by going to another; but a transaction that stays at one node
spares the others a look into the log. Each process draws an order of its own, so that their load is spread.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from ._pb import coordinator_pb2 as pb
from ._pb import coordinator_pb2_grpc as rpc
from .access import Access
from .errors import Rejected

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
_LOOK_UP_S = 1.0
_LEAST_SHARE_S = 0.2
_DNS = "dns:///"
_DEFAULT_PORT = 7070
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
)


def open_channel(address: str, access: Access) -> grpc.aio.Channel:
    """The transport seam: tests put a coordinator in process here."""
    if access.tls is None:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    return grpc.aio.secure_channel(
        address, access.tls.credentials(), options=(*_OPTIONS, *access.tls.options)
    )


def joined(address: str | Iterable[str]) -> str:
    """One text of one address or several; ``grpc://host:port`` is forgiven. Raises Rejected."""
    given = [address] if isinstance(address, str) else list(address)
    parts = [part.strip().removeprefix("grpc://") for text in given for part in text.split(",")]
    if not parts or not all(parts):
        raise Rejected(f"address {address!r}: host:port is expected, or several of them")
    return ",".join(dict.fromkeys(parts))


class Node:
    """One coordinator, and the channel to it."""

    def __init__(self, address: str, access: Access) -> None:
        self.address = address
        self.channel = open_channel(address, access)
        self._access = access
        self.stub: Any = rpc.CoordinatorServiceStub(self.channel)
        self.hello: pb.HelloResponse | None = None
        """What it has said since it was chosen."""
        self.away_until = 0.0
        self.log_away_since: float | None = None
        """Since when it has answered nothing but that its log is away."""
        self.users = 0
        """Streams and calls on its channel."""
        self._pause_s = _FIRST_PAUSE_S

    async def call(self, method: str, request: Any, timeout: float) -> Any:
        """A unary call. Raises AioRpcError."""
        self.users += 1
        try:
            return await getattr(self.stub, method)(request, timeout=timeout, **self._access.metadata())
        finally:
            self.users -= 1

    def session(self) -> Any:
        """A Session stream. Raises Rejected where there is no token to show."""
        return self.stub.Session(**self._access.metadata())

    def well(self) -> None:
        """It has done something."""
        self._pause_s = _FIRST_PAUSE_S
        self.log_away_since = None

    def away(self, now: float) -> None:
        """It is not to be asked for a while."""
        if self.away_until <= now:
            self.away_until = now + self._pause_s
            self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        self.hello = None
        self.log_away_since = None


class Nodes:
    """All of them. ``draw`` is a random number between 0 and 1."""

    def __init__(self, address: str, access: Access, draw: Callable[[], float]) -> None:
        self._access = access
        self._hosts: dict[str, str] = {}
        """The name that has led to an address."""
        self._given = joined(address).split(",")
        self._draw = draw
        self._named = [a for a in self._given if a.startswith(_DNS)]
        """What DNS may lead elsewhere at any time."""
        self._nodes: dict[str, Node] = {}
        self._gone: list[Node] = []
        """What DNS does not name any more; closed when nobody uses it."""
        self._current: Node | None = None
        self._looked_at = 0.0
        self._stale = bool(self._named)
        self._know([a for a in self._given if not a.startswith(_DNS)])

    @property
    def several(self) -> bool:
        """Is there another one to go to?"""
        return len(self._nodes) > 1

    @property
    def known(self) -> list[Node]:
        """All of them, as far as their names were looked up."""
        return list(self._nodes.values())

    def share(self, seconds: float, most: float) -> float:
        """So long one of them may keep whoever has so much time: there is some left for the last of them."""
        return max(min(most, seconds / (len(self._nodes) + 1)), _LEAST_SHARE_S)

    async def pick(self) -> Node:
        """The one to ask now: the same as before, unless it was left."""
        loop = asyncio.get_running_loop()
        if self._named and self._stale and (not self._nodes or loop.time() - self._looked_at > _LOOK_UP_S):
            await self._look_up(loop)
        node = self._current
        if node is None:
            now = loop.time()
            nodes = list(self._nodes.values())
            well = [n for n in nodes if n.away_until <= now]
            node = well[0] if well else min(nodes, key=lambda n: n.away_until)
            self._current = node
        return node

    def leave(self, node: Node) -> None:
        """It does not answer, refuses, or goes away: another one is better."""
        self._stale = bool(self._named)
        if not self.several or self._nodes.get(node.address) is not node:
            return
        node.away(asyncio.get_running_loop().time())
        if self._current is node:
            self._current = None
            # The last one to come back to.
            self._nodes[node.address] = self._nodes.pop(node.address)

    async def close(self) -> None:
        """Close all channels."""
        for node in (*self._nodes.values(), *self._gone):
            await node.channel.close(None)

    def _know(self, addresses: Iterable[str]) -> None:
        new = [a for a in addresses if a not in self._nodes]
        for address in sorted(new, key=lambda _: self._draw()):
            self._nodes[address] = Node(address, self._access.of_host(self._hosts.get(address, "")))

    async def _look_up(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looked_at = loop.time()
        found = [a for a in self._given if not a.startswith(_DNS)]
        for name in self._named:
            try:
                addresses = await _resolved(loop, name)
                self._hosts |= dict.fromkeys(addresses, _host_and_port(name)[0])
                found += addresses
            except (OSError, UnicodeError):
                # What it led to before may be well all the same. Where that is nothing gRPC tells what is wrong.
                found += self._nodes or [name]
        self._stale = False
        self._know(found)
        unused = [node for node in self._gone if not node.users]
        self._gone = [node for node in self._gone if node.users]
        for address in [a for a in self._nodes if a not in found]:
            node = self._nodes.pop(address)
            self._gone.append(node)  # Who has just been told to use it may do so yet.
            if self._current is node:
                self._current = None
        for node in unused:
            await node.channel.close(None)


def _host_and_port(name: str) -> tuple[str, int]:
    host, _, port = name.removeprefix(_DNS).rpartition(":")
    if not host or host.endswith("]") != host.startswith("[") or not port.isdigit():
        host, port = name.removeprefix(_DNS), str(_DEFAULT_PORT)
    return host.strip("[]"), int(port)


async def _resolved(loop: asyncio.AbstractEventLoop, name: str) -> list[str]:
    host, port = _host_and_port(name)
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = []
    for family, _, _, _, where in found:
        number = str(where[0])
        port_number = int(where[1])
        v6 = family == socket.AF_INET6
        addresses.append(f"[{number}]:{port_number}" if v6 else f"{number}:{port_number}")
    return addresses
