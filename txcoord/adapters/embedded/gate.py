"""What is known of targets, within one process: for a node alone, or while what the fleet shares is away."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ...core.breaker import Bucket
from ...ports import Room

_BUSY_US = 100_000
"""When to ask again where all places are taken: whoever leaves says so earlier to those of its own process."""


@dataclass(slots=True)
class _Target:
    bucket: Bucket = field(default_factory=Bucket)
    probed_us: int = 0
    dead_until_us: int = 0
    reason: str = ""
    held: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By ticket: how many calls, and until when."""


class InProcessGate:
    """``ports.SharedGate`` for this process alone."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self._targets: dict[str, _Target] = {}
        self._tickets = itertools.count(1)

    def _of(self, target: str) -> _Target:
        return self._targets.setdefault(target, _Target())

    async def opened(self, target: str, reason: str, ttl_us: int) -> None:
        """It is dead, for so long."""
        found = self._of(target)
        found.dead_until_us, found.reason = self._now_us() + ttl_us, reason

    async def closed(self, target: str) -> None:
        """It is not."""
        self._of(target).dead_until_us = 0

    async def dead(self) -> Mapping[str, str]:
        """Those that are."""
        now_us = self._now_us()
        return {name: t.reason for name, t in self._targets.items() if t.dead_until_us > now_us}

    async def probe(self, target: str, every_us: int) -> bool:
        """At most once in that time."""
        found, now_us = self._of(target), self._now_us()
        if found.probed_us and now_us - found.probed_us < every_us:
            return False
        found.probed_us = now_us
        return True

    async def admit(
        self, target: str, wanted: int, *, rate_per_s: float, at_once: int, lease_us: int
    ) -> Room:
        """As many as both limits allow."""
        found, now_us = self._of(target), self._now_us()
        granted = wanted
        if at_once:
            for ticket in [ticket for ticket, (_, until_us) in found.held.items() if until_us <= now_us]:
                del found.held[ticket]
            granted = min(granted, max(0, at_once - sum(count for count, _ in found.held.values())))
            if not granted:
                return Room(0, _BUSY_US)
        again_us = _BUSY_US
        if rate_per_s:
            granted, again_us = found.bucket.take(granted, rate_per_s, now_us)
        ticket = ""
        if at_once and granted:
            ticket = str(next(self._tickets))
            found.held[ticket] = granted, now_us + lease_us
        return Room(granted, 0 if granted == wanted else again_us, ticket)

    async def leave(self, target: str, ticket: str, count: int) -> None:
        """Make room."""
        held = self._of(target).held
        if ticket in held:
            left, until_us = held.pop(ticket)
            if left > count:
                held[ticket] = left - count, until_us
