"""Leases: the log's own, and in Redis who holds them, so that nobody else asks the log for them."""

from __future__ import annotations

import contextlib

from ...ports import Leases, SharedLost
from .link import RedisLink

# KEYS: the duty's. ARGV: owner, for how long in milliseconds. Answers 1 if another one holds it. What has no end, or
# one that is too far off, was not written here.
_HELD = """
local token, owner = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (.*)$')
local left = redis.call('PTTL', KEYS[1])
if owner and owner ~= ARGV[1] and left > 0 and left <= tonumber(ARGV[2]) then return 1 end
return 0
"""
# KEYS: the duty's. ARGV: owner, for how long in milliseconds, token. An older token changes nothing: it came late.
_TAKEN = """
local token = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) ')
if not token or tonumber(token) <= tonumber(ARGV[3]) then
  redis.call('SET', KEYS[1], ARGV[3] .. ' ' .. ARGV[1], 'PX', ARGV[2])
end
"""
# KEYS: the duty's. ARGV: owner.
_RELEASED = """
local owner = string.match(redis.call('GET', KEYS[1]) or '', '^%d+ (.*)$')
if owner == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""


class RedisLeases:
    """``ports.Leases`` in front of those of the log.

    Only these give a lease, and its token: there is one holder whatever Redis says, forgets or is too late to say, and
    nothing changes over when it goes or comes back. Redis can only keep others from asking, for the time of one lease.
    """

    def __init__(self, link: RedisLink, behind: Leases) -> None:
        self._link = link
        self._behind = behind
        self._held = link.script(_HELD)
        self._taken = link.script(_TAKEN)
        self._released = link.script(_RELEASED)

    async def acquire(self, duty: str, owner: str, ttl_us: int) -> int | None:
        """The log's token, or None while another owner holds it."""
        keys, ttl_ms = [self._link.key("lease", duty)], ttl_us // 1_000
        with contextlib.suppress(SharedLost):
            if await self._held(keys, [owner, ttl_ms]):
                return None
        token = await self._behind.acquire(duty, owner, ttl_us)
        if token is not None and ttl_ms:
            with contextlib.suppress(SharedLost):
                await self._taken(keys, [owner, ttl_ms, token])
        return token

    async def release(self, duty: str, owner: str) -> None:
        """Give it back, if it is this owner's: to the log first, or who asks in between would be refused there."""
        await self._behind.release(duty, owner)
        with contextlib.suppress(SharedLost):
            await self._released([self._link.key("lease", duty)], [owner])
