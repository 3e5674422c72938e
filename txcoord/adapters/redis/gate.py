"""What nodes tell each other of targets, in Redis and by its clock."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import partial

from ...core.room import Room
from .link import RedisLink

_BUSY_US = 100_000
"""When to ask again where all places are taken."""

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
"""
# KEYS: dead. ARGV: target, for how long, reason.
_OPENED = (
    _NOW
    + """
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now + ARGV[2]) .. ' ' .. ARGV[3])
local left = redis.call('PTTL', KEYS[1])
redis.call('PEXPIRE', KEYS[1], math.max(left, math.ceil(ARGV[2] / 1000)))
"""
)
# KEYS: dead.
_DEAD = (
    _NOW
    + """
local found = {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local until_us, reason = string.match(all[i + 1], '^(%d+) (.*)$')
  if until_us and tonumber(until_us) > now then
    found[#found + 1] = all[i]
    found[#found + 1] = reason
  else
    redis.call('HDEL', KEYS[1], all[i])
  end
end
return found
"""
)
# KEYS: until (a sorted set: ticket, until when), held (a hash: ticket, how many), bucket (a hash).
# ARGV: wanted, rate a second, at once, lease, ticket. Answers granted and when to ask again, in microseconds; -1: all
# places are taken.
_ADMIT = (
    _NOW
    + """
local granted, rate, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if most > 0 then
  for _, ticket in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
    redis.call('ZREM', KEYS[1], ticket)
    redis.call('HDEL', KEYS[2], ticket)
  end
  local taken = 0
  for _, count in ipairs(redis.call('HVALS', KEYS[2])) do taken = taken + count end
  granted = math.min(granted, math.max(0, most - taken))
  if granted == 0 then return {0, -1} end
end
local again = -1
if rate > 0 then
  local full = math.max(1, rate / 10)
  local tokens, at = full, now
  local known = redis.call('HMGET', KEYS[3], 'tokens', 'at')
  if known[1] and known[2] then
    at = math.max(now, tonumber(known[2]))
    tokens = math.min(full, known[1] + (at - known[2]) * rate / 1000000)
  end
  granted = math.min(granted, math.floor(tokens + 0.000000001))
  tokens = tokens - granted
  redis.call('HSET', KEYS[3], 'tokens', string.format('%.9f', tokens), 'at', string.format('%.0f', at))
  -- A bucket that is full again is as one that was never used.
  redis.call('PEXPIRE', KEYS[3], math.min(86400000, math.ceil((full - tokens) / rate * 1000) + 1000))
  again = math.max(0, math.floor((1 - tokens) * 1000000 / rate) + 1)
end
if most > 0 and granted > 0 then
  redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[4]), ARGV[5])
  redis.call('HSET', KEYS[2], ARGV[5], granted)
  local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
  local left = math.ceil((last[2] - now) / 1000) + 1000
  redis.call('PEXPIRE', KEYS[1], left)
  redis.call('PEXPIRE', KEYS[2], left)
end
return {granted, again}
"""
)
# KEYS: until, held. ARGV: ticket, how many.
_LEAVE = """
local held = tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or '0')
if held > tonumber(ARGV[2]) then
  redis.call('HINCRBY', KEYS[2], ARGV[1], -ARGV[2])
else
  redis.call('HDEL', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[1], ARGV[1])
end
"""


class RedisGate:
    """``ports.SharedGate``. A dead node's places come back with their leases; what Redis forgets is found out again."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._dead = link.key("dead")
        self._opened = link.script(_OPENED)
        self._all_dead = link.script(_DEAD)
        self._admit = link.script(_ADMIT)
        self._leave = link.script(_LEAVE)

    async def opened(self, target: str, reason: str, ttl_us: int) -> None:
        """It is dead, for so long."""
        await self._opened([self._dead], [target, ttl_us, reason[:500]])

    async def closed(self, target: str) -> None:
        """It is not."""
        await self._link.run(lambda: self._link.client.hdel(self._dead, target))

    async def dead(self) -> Mapping[str, str]:
        """Those that are."""
        found = [
            item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)
            for item in await self._all_dead([self._dead], [])
        ]
        return dict(zip(found[::2], found[1::2], strict=True))

    async def probe(self, target: str, every_us: int) -> bool:
        """Whoever comes first in that time."""
        first = partial(
            self._link.client.set, self._link.key("probe", target), 1, nx=True, px=max(1, every_us // 1000)
        )
        return bool(await self._link.run(first))

    async def admit(
        self, target: str, wanted: int, *, rate_per_s: float, at_once: int, lease_us: int
    ) -> Room:
        """As many as both limits allow."""
        if not rate_per_s and not at_once:
            return Room(wanted)
        ticket = secrets.token_hex(8) if at_once else ""
        keys = [self._link.key(what, target) for what in ("until", "held", "bucket")]
        granted, again_us = await self._admit(keys, [wanted, rate_per_s, at_once, lease_us, ticket])
        if granted == wanted:
            return Room(wanted, ticket=ticket)
        return Room(granted, again_us if again_us >= 0 else _BUSY_US, ticket if granted else "")

    async def leave(self, target: str, ticket: str, count: int) -> None:
        """Make room."""
        await self._leave([self._link.key(what, target) for what in ("until", "held")], [ticket, count])
