"""A cancel that Redis's client swallows is not lost, and is no trouble of Redis."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from txcoord.adapters.redis.link import RedisLink


@pytest.mark.parametrize("then", [None, RedisConnectionError("closed"), TimeoutError(), OSError("closed")])
async def test_a_command_that_swallows_a_cancel(then: Exception | None) -> None:
    link = RedisLink("redis://127.0.0.1:1", prefix="p", timeout_s=3600.0)
    sent = asyncio.Event()

    async def command() -> str:
        try:
            sent.set()
            return await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            if then is not None:
                raise then from None
            return "answered all the same"

    task = asyncio.ensure_future(link.run(command))
    await sent.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not link.away
    await link.close()
