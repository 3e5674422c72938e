"""Live instances of participants, shared by the fleet: each node tells Redis whom it hears, and asks whom others do.

What a node knows it keeps for itself: while Redis is away nobody who was known is forgotten, and after an empty restart
each has the time of some signs of life to be heard again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence

from ...core.instances import Instance, Instances, Key
from ...core.targets import Target
from ...ports import SharedLost, Spawn, Task, Wakeups
from .link import RedisLink

_TOPIC = "participants"
_PULL_S = 2.0
_DAY_MS = 86_400_000

# KEYS: participants. ARGV: which, for how long in microseconds, what is to be known of it, for how long all is kept.
_PUT = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now + ARGV[2]) .. ' ' .. ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
"""
# KEYS: participants. Answers which, for how much longer, and what is known of it, of each whose time is not over.
_ALL = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local found = {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local until_us, what = string.match(all[i + 1], '^(%d+) (.*)$')
  if until_us and tonumber(until_us) > now then
    found[#found + 1] = all[i]
    found[#found + 1] = string.format('%.0f', until_us - now)
    found[#found + 1] = what
  else
    redis.call('HDEL', KEYS[1], all[i])
  end
end
return found
"""


class RedisRegistry:
    """``ports.Registry``. ``now_us`` is this node's clock: Redis tells durations only."""

    def __init__(
        self,
        link: RedisLink,
        wakeups: Wakeups,
        *,
        now_us: Callable[[], int],
        spawn: Spawn,
        ttl_us: int = 10_000_000,
        pull_s: float = _PULL_S,
    ) -> None:
        self.ttl_us = ttl_us
        self._wakeups = wakeups
        self._now_us = now_us
        self._spawn = spawn
        self._pull_s = pull_s
        self._known = Instances()
        self._key = link.key("participants")
        self._put = link.script(_PUT)
        self._all = link.script(_ALL)
        self._news = asyncio.Event()
        self._task: Task | None = None
        wakeups.hear(_TOPIC, lambda _: self._news.set())

    def start(self) -> None:
        """Ask Redis from now on."""
        self._task = self._spawn(self._pull_again(), "registry:pull")

    def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()

    async def register(self, one: Instance) -> bool:
        """It is there."""
        if not self._known.heard(one, self._now_us() + self.ttl_us):
            return False
        await self._tell(one, left=False)
        self._wakeups.tell(_TOPIC, one.participant)
        return True

    async def beat(self, key: Key) -> bool:
        """It is still there: all of it is told again, Redis may have lost it."""
        one = self._known.get(key)
        if one is None or not self._known.heard(one, self._now_us() + self.ttl_us):
            return False
        await self._tell(one, left=False)
        return True

    async def leave(self, key: Key) -> None:
        """It is called no more."""
        one = self._known.get(key)
        if one is not None:
            self._known.left(key, self._now_us() + self.ttl_us)
            await self._tell(one, left=True)
            self._wakeups.tell(_TOPIC, one.participant)

    def is_known(self, participant: str) -> bool:
        """Has one of this name registered?"""
        return self._known.is_known(participant)

    def places(self, namespace: str, participant: str) -> Sequence[Target]:
        """Where to call it."""
        return self._known.places(namespace, participant, self._now_us())

    def instances(self) -> Sequence[tuple[Instance, int]]:
        """Each that is known."""
        return list(self._known)

    async def _tell(self, one: Instance, *, left: bool) -> None:
        what = json.dumps({"address": one.address, "version": one.version, "left": left})
        with contextlib.suppress(SharedLost):
            await self._put([self._key], [" ".join(one.key), self.ttl_us, what, _DAY_MS])

    async def _pull_again(self) -> None:
        while True:
            await self.pull()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pull_s):
                    await self._news.wait()
            self._news.clear()

    async def pull(self) -> None:
        """Whom do the others hear?"""
        try:
            found = await self._all([self._key], [])
        except SharedLost:
            now_us = self._now_us()
            self._known.keep(now_us, now_us + self.ttl_us)
            return
        now_us = self._now_us()
        for which, left_us, what in zip(found[::3], found[1::3], found[2::3], strict=False):
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                self._take(which.decode(), now_us + min(int(left_us), self.ttl_us), json.loads(what))
        self._known.forget(now_us)

    def _take(self, which: str, until_us: int, what: dict[str, object]) -> None:
        namespace, participant, instance = which.split(" ")
        if what["left"]:
            self._known.left((namespace, participant, instance), until_us)
            return
        one = Instance(namespace, participant, instance, str(what["address"]), str(what["version"]))
        self._known.told(one, until_us)
