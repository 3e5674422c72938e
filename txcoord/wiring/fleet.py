"""A node among the nodes of its log: it says that it is there, and hears when it is to take nothing new."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from .. import __version__
from ..observe import logs
from ..ports import LogUnavailable, NodeOrder, Nodes, NodeStatus

log = logs.get("txcoord.fleet")

_GONE_LEASES = 3


class Fleet:
    """This node's place in it. ``drain`` is told when that changes."""

    def __init__(
        self,
        nodes: Nodes,
        name: str,
        role: str,
        *,
        lease_s: float,
        live: Callable[[], int],
        clock_offset_us: Callable[[], int],
        drain: Callable[[bool], Awaitable[None]],
    ) -> None:
        self._nodes = nodes
        self._name = name
        self._role = role
        self._lease_s = lease_s
        self._live = live
        self._clock_offset_us = clock_offset_us
        self._drain = drain
        self._turn = asyncio.Lock()
        self._unsaid: NodeStatus | None = None
        self.draining = False

    async def join(self, address: str) -> None:
        """Begin. It serves already: where the log is away just now, it is said later."""
        self._unsaid = NodeStatus(self._name, self._role, address, __version__)
        with contextlib.suppress(LogUnavailable):
            await self._say_unsaid()

    async def _say_unsaid(self) -> None:
        if self._unsaid is not None:
            await self._nodes.join(self._unsaid)
            self._unsaid = None

    async def keep(self) -> None:
        """Say for ever that it is there."""
        while True:
            await asyncio.sleep(self._lease_s / 4)
            try:
                await self.look()
            except LogUnavailable:
                continue  # Readiness says so.

    async def look(self) -> None:
        """Say it once, and hear. Raises LogUnavailable."""
        async with self._turn:
            await self._say_unsaid()
            wanted = await self._nodes.seen(self._name, self._live(), self._clock_offset_us())
            if wanted is not self.draining:
                self.draining = wanted
                log.warning("node.drained" if wanted else "node.takes_work_again", node=self._name)
                await self._drain(wanted)

    async def leave(self) -> None:
        """End. Raises LogUnavailable."""
        await self._nodes.leave(self._name)

    # ---- what operators ask ----

    async def all(self) -> list[NodeStatus]:
        """All nodes of the log. Raises LogUnavailable."""
        return await self._nodes.all()

    async def order(self, name: str, draining: bool, order: NodeOrder) -> NodeStatus | None:
        """Let a node take nothing new, or new work again; None: there is none of that name. Raises LogUnavailable."""
        status = await self._nodes.drain(name, draining, order)
        if status is not None and name == self._name:
            await self.look()
        return status

    def is_gone(self, status: NodeStatus, now_us: int) -> bool:
        """Was it not heard of for so long that nothing is its own any more?"""
        return now_us - status.seen_us > _GONE_LEASES * self._lease_s * 1_000_000
