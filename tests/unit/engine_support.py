"""A shop with two databases, for tests of the engine on virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.fake_database import FakeDatabase
from tests.support.node import Node, new_tx, xa
from tests.support.virtual import VirtualClock
from txcoord.core.errors import Refused
from txcoord.core.model import Branch, Tx, Windows
from txcoord.testing.memory_log import Storage

WINDOWS = Windows()


def refused_reason(error: pytest.ExceptionInfo[Refused]) -> str:
    return error.value.refusal.reason


class Shop:
    """A log, two databases and the nodes that come and go."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.storage = Storage(self.clock.now_us, WINDOWS)
        self.a = FakeDatabase("a", self.clock.now_us, WINDOWS)
        self.b = FakeDatabase("b", self.clock.now_us, WINDOWS)
        self.nodes: list[Node] = []

    def node(self, name: str = "n1", **more: Any) -> Node:
        node = Node(self.storage, {"a": self.a, "b": self.b}, self.clock, name=name, **more)
        self.nodes.append(node)
        return node

    async def kill(self, node: Node) -> None:
        self.nodes.remove(node)
        await node.kill()

    def tx(self, **more: Any) -> Tx:
        return new_tx(self.clock, **more)

    def prepared(self, tx: Tx) -> tuple[Branch, Branch]:
        """Both branches of a transaction, prepared."""
        one, two = xa(tx, "1", "a"), xa(tx, "2", "b")
        self.a.prepare(one.xid)
        self.b.prepare(two.xid)
        return one, two


@asynccontextmanager
async def a_shop() -> AsyncIterator[Shop]:
    shop = Shop()
    try:
        yield shop
    finally:
        for node in shop.nodes:
            await node.stop()
