"""Several coordinators that share a Redis, as clients see them."""

from __future__ import annotations

import asyncio

from tests.support.acceptance import eventually
from tests.support.databases import Databases
from tests.support.redis_fleet import at, fleet_on
from tests.support.redis_server import RedisServer
from txcoord.testing.postgres import PostgresServer
from txcoord.wiring import Node
from txcoord_client._pb import common_pb2 as c


def _never_looks(node: Node) -> None:
    """It asks the log for none of those who wait, unless it is woken up."""
    node.coordinator.waiting._interval_s = 3600.0


async def _hears(node: Node) -> None:
    shared = node._shared
    assert shared is not None
    assert shared._wakeups is not None
    await asyncio.wait_for(shared._wakeups.subscribed.wait(), 30)


async def test_who_waits_at_another_node_is_woken_up(
    pg18: PostgresServer, new_database: Databases, redis_server: RedisServer
) -> None:
    async with fleet_on(new_database(pg18), redis_server.url) as fleet:
        (_, a), (there, b) = await fleet.node("n1"), await fleet.node("n2")
        _never_looks(there)
        await _hears(there)
        for level in (c.WAIT_LEVEL_DECIDED, c.WAIT_LEVEL_COMMITTED):
            tx = a.tx()
            await tx.begin()
            wait = asyncio.ensure_future(at(tx, b).reached(level, 50))
            await eventually(lambda: len(there.coordinator.waiting) == 1)
            await tx.commit()
            assert (await wait).decision == c.DECISION_COMMIT


async def test_nothing_waits_for_a_redis_that_is_lost(
    pg18: PostgresServer, new_database: Databases, own_redis: RedisServer
) -> None:
    async with fleet_on(new_database(pg18), own_redis.url) as fleet:
        own_redis.kill()
        (here, a), (there, b) = await fleet.node("n1"), await fleet.node("n2")

        async def told() -> None:
            tx = a.tx()
            await tx.begin()
            wait = asyncio.ensure_future(at(tx, b).reached(c.WAIT_LEVEL_COMMITTED, 50))
            await tx.commit()
            assert (await wait).decision == c.DECISION_COMMIT

        await told()
        own_redis.start()
        await _hears(there)
        await _hears(here)
        with own_redis.frozen():
            await told()
        own_redis.kill()
        await told()


async def test_a_target_that_one_node_found_dead_is_dead_for_all_of_them(
    pg18: PostgresServer, new_database: Databases, redis_server: RedisServer
) -> None:
    async with fleet_on(new_database(pg18), redis_server.url) as fleet:
        (here, _), (there, _) = await fleet.node("n1"), await fleet.node("n2")
        target = "grpc://127.0.0.1:1"
        one, other = here.coordinator.gate, there.coordinator.gate
        for number in range(one.settings.enough):
            one.failed(target, (f"{number}", "1"), "UNAVAILABLE: refused")
        assert not one.free(target)
        await eventually(lambda: other.holds(target))
        one.answered(target)
        await eventually(lambda: other.free(target))
