"""Coordinators in this process on one log, that share a Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from tests.support.acceptance_wire import RawTx, Wire, wire_to
from txcoord.adapters.sql.migrate import migrate
from txcoord.config import Settings
from txcoord.wiring import Node


class Fleet:
    """Nodes that come and go."""

    def __init__(self, log_url: str, redis_url: str, stack: AsyncExitStack) -> None:
        self._log_url = log_url
        self._redis_url = redis_url
        self._stack = stack

    async def node(self, name: str, *, redis: bool = True, **more: Any) -> tuple[Node, Wire]:
        """One more node, and a raw client of it."""
        settings = {
            "listen": "127.0.0.1:0",
            "node": {"name": name, "drain_timeout": "1s"},
            "log": {"url": self._log_url},
            # Long: the machine may be busy.
            "redis": {"url": self._redis_url if redis else "", "timeout": "5s"},
            **more,
        }
        node = await self._stack.enter_async_context(Node(Settings.model_validate(settings)))
        return node, await self._stack.enter_async_context(wire_to(node.address))


@asynccontextmanager
async def fleet_on(log_url: str, redis_url: str) -> AsyncIterator[Fleet]:
    """On a new log."""
    await migrate(log_url)
    async with AsyncExitStack() as stack:
        yield Fleet(log_url, redis_url, stack)


def at(tx: RawTx, wire: Wire) -> RawTx:
    """The same transaction, asked about at another node."""
    return RawTx(wire, tx.tx_id, tx.gid, tx.deadline_us, tx.name, tx.labels, tx.begun)
