"""Contract of wake-ups between nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from tests.support.acceptance import eventually
from tests.support.redis_nodes import Nodes, nodes_of
from tests.support.redis_server import RedisServer
from txcoord.adapters.redis.wakeups import RedisWakeups


class Node:
    """One that hears all about ``decided`` and ``ended``."""

    def __init__(self, nodes: Nodes, name: str, prefix: str = "t") -> None:
        self.wakeups = RedisWakeups(nodes.link(prefix=prefix), node=name, spawn=nodes.spawn)
        self.heard: list[tuple[str, str]] = []
        for topic in ("decided", "ended"):
            self.wakeups.hear(topic, lambda names, topic=topic: self._hear(topic, names))

    def _hear(self, topic: str, names: Sequence[str]) -> None:
        self.heard += [(topic, name) for name in names]

    async def listening(self) -> Node:
        self.wakeups.start()
        await asyncio.wait_for(self.wakeups.subscribed.wait(), 30)
        return self


@pytest.fixture
async def nodes(any_redis: RedisServer) -> AsyncIterator[Nodes]:
    with any_redis.client() as client:
        client.flushall()
    async with nodes_of(any_redis) as nodes:
        yield nodes


async def test_all_others_hear_it(nodes: Nodes) -> None:
    one, two, three = [await Node(nodes, name).listening() for name in ("n1", "n2", "n3")]
    foreign = await Node(nodes, "n4", prefix="other").listening()
    one.wakeups.tell("decided", "a")
    one.wakeups.tell("ended", "b")
    one.wakeups.tell("unheard", "c")
    two.wakeups.tell("ended", "d")
    await eventually(lambda: len(one.heard) + len(two.heard) + len(three.heard) == 6, within=30)
    assert sorted(three.heard) == [("decided", "a"), ("ended", "b"), ("ended", "d")]
    assert one.heard == [("ended", "d")]
    assert not foreign.heard


async def test_many_go_in_few_messages_and_each_once(nodes: Nodes) -> None:
    one, two = [await Node(nodes, name).listening() for name in ("n1", "n2")]
    for number in range(20_000):
        one.wakeups.tell("ended", f"{number % 12_000}")
    await eventually(lambda: ("ended", "9999") in two.heard, within=30)
    assert len(two.heard) == 10_000, "more than that is not kept"


async def test_what_is_no_message_changes_nothing(nodes: Nodes) -> None:
    one, two = [await Node(nodes, name).listening() for name in ("n1", "n2")]

    def broken(names: Sequence[str]) -> None:
        raise RuntimeError(f"{names}")

    two.wakeups.hear("broken", broken)
    with nodes.server.client() as client:
        for junk in (b"", b"\xff\xfe", b"n9", b"n9\n\n \nended", b"n9\nbroken x", b"a" * 5_000_000):
            client.publish("t:news", junk)
    one.wakeups.tell("ended", "last")
    await eventually(lambda: ("ended", "last") in two.heard, within=30)


async def test_it_goes_on_when_redis_is_back(own_redis: RedisServer) -> None:
    async with nodes_of(own_redis) as nodes:
        one, two = [await Node(nodes, name).listening() for name in ("n1", "n2")]
        own_redis.kill()
        await eventually(lambda: not two.wakeups.subscribed.is_set(), within=30)
        one.wakeups.tell("ended", "lost")
        own_redis.start()
        await asyncio.wait_for(two.wakeups.subscribed.wait(), 30)

        def told_again() -> bool:
            one.wakeups.tell("ended", "again")
            return ("ended", "again") in two.heard

        await eventually(told_again, within=30)


async def test_before_redis_is_there(own_redis: RedisServer) -> None:
    own_redis.kill()
    async with nodes_of(own_redis) as nodes:
        two = Node(nodes, "n2")
        two.wakeups.start()
        two.wakeups.tell("ended", "x")
        own_redis.start()
        await asyncio.wait_for(two.wakeups.subscribed.wait(), 30)
