"""Contract of the registry of participants. Each kind of it is a ``House`` below: nodes over the same state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Protocol

import pytest

from tests.support.acceptance import eventually
from tests.support.redis_nodes import Nodes, nodes_of
from tests.support.redis_server import RedisServer
from txcoord.adapters.embedded import InProcessRegistry
from txcoord.adapters.redis.registry import RedisRegistry
from txcoord.adapters.redis.wakeups import RedisWakeups
from txcoord.core.instances import Instance
from txcoord.ports import Registry

S = 1_000_000
TTL_US = 60 * S


def stock(number: int, namespace: str = "default", address: str = "") -> Instance:
    return Instance(namespace, "stock", f"host/{number}", address or f"grpc://10.0.0.{number}:1", "v1")


def where(registry: Registry, namespace: str = "default") -> set[str]:
    return {str(place) for place in registry.places(namespace, "stock")}


class House(Protocol):
    """Nodes, and the time by which they judge."""

    ttl_us: int

    async def node(self) -> Registry: ...

    async def pass_(self, us: int) -> None:
        """So much time passes."""
        ...


class InProcess:
    """One node is all of them."""

    def __init__(self) -> None:
        self.now_us = 1_800_000_000 * S
        self.ttl_us = TTL_US
        self._registry = InProcessRegistry(lambda: self.now_us, ttl_us=TTL_US)

    async def node(self) -> Registry:
        return self._registry

    async def pass_(self, us: int) -> None:
        self.now_us += us


class OnRedis:
    """Nodes that share a Redis, which has a clock of its own."""

    def __init__(self, nodes: Nodes, ttl_us: int = TTL_US) -> None:
        self.ttl_us = ttl_us
        self.ahead_us = 0
        self._nodes = nodes
        self._count = 0

    def _now_us(self) -> int:
        return time.time_ns() // 1000 + self.ahead_us

    async def pass_(self, us: int) -> None:
        await asyncio.sleep(us / S)

    async def node(self) -> RedisRegistry:
        self._count += 1
        link = self._nodes.link()
        wakeups = RedisWakeups(link, node=f"n{self._count}", spawn=self._nodes.spawn)
        registry = RedisRegistry(
            link,
            wakeups,
            now_us=self._now_us,
            spawn=self._nodes.spawn,
            ttl_us=self.ttl_us,
            pull_s=0.2,
        )
        wakeups.start()
        registry.start()
        return registry


@pytest.fixture
def ttl_us() -> int:
    return TTL_US


@pytest.fixture(params=["in-process", "redis", "valkey"])
async def house(request: pytest.FixtureRequest, ttl_us: int) -> AsyncIterator[House]:
    if request.param == "in-process":
        yield InProcess()
        return
    server = request.getfixturevalue("redis_server" if request.param == "redis" else "valkey_server")
    with server.client() as client:
        client.flushall()
    async with nodes_of(server) as nodes:
        yield OnRedis(nodes, ttl_us)


async def test_who_registers_is_found_at_every_node_until_it_leaves(house: House) -> None:
    one, other = await house.node(), await house.node()
    assert not one.is_known("stock")
    assert where(one) == set()
    assert await one.register(stock(1))
    assert await other.register(stock(2))
    assert await other.register(stock(3, "tenant"))
    assert one.is_known("stock")
    both = {"grpc://10.0.0.1:1", "grpc://10.0.0.2:1"}
    await eventually(lambda: where(one) == where(other) == both)
    await eventually(lambda: where(one, "tenant") == {"grpc://10.0.0.3:1"})
    await other.leave(stock(1).key)
    await eventually(lambda: where(one) == where(other) == {"grpc://10.0.0.2:1"})
    assert not await other.beat(stock(1).key)
    assert await one.beat(stock(2).key)
    await one.leave(("default", "stock", "unknown"))


async def test_another_one_comes_first_each_time(house: House) -> None:
    node = await house.node()
    for number in (1, 2, 3):
        await node.register(stock(number))
    await node.register(stock(4, address="grpc://10.0.0.1:1"))
    orders = [[str(place) for place in node.places("default", "stock")] for _ in range(8)]
    assert {order[0] for order in orders} == {f"grpc://10.0.0.{n}:1" for n in (1, 2, 3)}
    assert all(len(order) == 3 for order in orders)


@pytest.mark.parametrize("ttl_us", [S // 2])
async def test_who_is_not_heard_is_called_no_more_but_for_the_last_one(house: House) -> None:
    node = await house.node()
    await node.register(stock(1))
    await node.register(stock(2))
    await house.pass_(house.ttl_us // 2)
    assert await node.beat(stock(2).key)
    await house.pass_(house.ttl_us * 3 // 4)
    await eventually(lambda: where(node) == {"grpc://10.0.0.2:1"})
    await house.pass_(house.ttl_us)
    await eventually(lambda: where(node) == {"grpc://10.0.0.2:1"})


async def test_one_that_registers_again_has_its_new_address(house: House) -> None:
    node, other = await house.node(), await house.node()
    await node.register(stock(1))
    await eventually(lambda: where(other) == {"grpc://10.0.0.1:1"})
    await node.leave(stock(1).key)
    assert where(node) == set()
    await node.register(stock(1, address="grpc://10.0.0.9:1"))
    assert where(node) == {"grpc://10.0.0.9:1"}
    await eventually(lambda: where(other) <= {"grpc://10.0.0.9:1"})


# ---- Redis is lost ----


async def test_lost_and_back_empty(own_redis: RedisServer) -> None:
    async with nodes_of(own_redis) as nodes:
        house = OnRedis(nodes)
        one, other = await house.node(), await house.node()
        await one.register(stock(1))
        await eventually(lambda: where(other) == {"grpc://10.0.0.1:1"})
        own_redis.kill()
        await other.register(stock(2))
        for _ in range(5):  # All that time nobody can say that he lives.
            house.ahead_us += TTL_US - 20 * S
            await other.pull()
            await one.pull()
        assert where(other) == {"grpc://10.0.0.1:1", "grpc://10.0.0.2:1"}
        own_redis.start()
        # Signs of life fill it again: what one node has heard, and what the other has.
        await eventually(lambda: _heard(one, other))
        third = await house.node()
        await eventually(lambda: where(third) == where(one) == {"grpc://10.0.0.1:1", "grpc://10.0.0.2:1"})


async def _heard(one: Registry, other: Registry) -> bool:
    assert await one.beat(stock(1).key)
    assert await other.beat(stock(2).key)
    return where(one) == {"grpc://10.0.0.1:1", "grpc://10.0.0.2:1"}


async def test_what_is_nonsense_there_is_passed_by(redis_server: RedisServer) -> None:
    async with nodes_of(redis_server) as nodes:
        node = await OnRedis(nodes).node()
        far = 9_000_000_000_000_000
        with redis_server.client() as client:
            client.delete("t:participants")
            for field, value in (
                (b"default stock", f"{far} {{}}"),
                (b"default stock x", f"{far} nonsense"),
                (b"default stock y", f"{far} []"),
                (b"default stock z", "nonsense"),
                (b"\xff\xfe", f"{far} {{}}"),
                (b"default stock ok", f'{far} {{"address": "grpc://a:1", "version": "", "left": false}}'),
                (b"default stock bad", f'{far} {{"address": "nowhere", "version": "", "left": false}}'),
            ):
                client.hset("t:participants", field, value)
            await eventually(lambda: where(node) == {"grpc://a:1"})
            client.delete("t:participants")
            client.set("t:participants", "of another kind")
            await node.pull()
            assert where(node) == {"grpc://a:1"}
            client.delete("t:participants")
