"""Recovery that knows when this node is not to judge others: its clock is off, or an operator drains it."""

from __future__ import annotations

from ..adapters.embedded import SystemClock
from ..engine.recovery import Recovery
from ..observe import logs
from ..ports import Leases

log = logs.get("txcoord.node")


class CarefulLeases:
    """Leases that a node whose clock is off does not get: it judges nobody."""

    def __init__(self, leases: Leases, clock: SystemClock, tolerance_us: int) -> None:
        self._leases = leases
        self._clock = clock
        self._tolerance_us = tolerance_us
        self.wanted = True
        """Is this node to take new work?"""

    async def acquire(self, duty: str, owner: str, ttl_us: int) -> int | None:
        """None also while the clock is off, or the node is to take nothing new."""
        if not self.wanted:
            return None
        if self._clock.is_off(self._tolerance_us):
            log.warning("clock.off", duty=duty, ahead_ms=self._clock.ahead_us // 1000)
            return None
        return await self._leases.acquire(duty, owner, ttl_us)

    async def release(self, duty: str, owner: str) -> None:
        """Give it up."""
        await self._leases.release(duty, owner)


class CarefulRecovery(Recovery):
    """Recovery that takes nothing over while the node's clock is off, or it is to take nothing new."""

    wanted = True
    """Is this node to take new work?"""

    def watch_clock(self, clock: SystemClock, tolerance_us: int) -> None:
        """Which clock, and how far it may be off."""
        self._clock, self._tolerance_us = clock, tolerance_us

    async def take_over(self) -> int:
        """Renew our leases; take rows of others only with a good clock."""
        if self.wanted and not self._clock.is_off(self._tolerance_us):
            return await super().take_over()
        if self.wanted:
            log.warning("clock.off", duty="takeover", ahead_ms=self._clock.ahead_us // 1000)
        await self._renew([live for live in self._c.live if live.logged])
        return 0
