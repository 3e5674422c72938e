"""What is known of targets, within one process: for a node that shares nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...core.room import Room, Rooms


class InProcessGate:
    """``ports.SharedGate`` for this process alone. Never lost."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self._rooms = Rooms()

    async def opened(self, target: str, reason: str, ttl_us: int) -> None:
        """It is dead, for so long."""
        self._rooms.opened(target, reason, self._now_us() + ttl_us)

    async def closed(self, target: str) -> None:
        """It is not."""
        self._rooms.closed(target)

    async def dead(self) -> Mapping[str, str]:
        """Those that are."""
        return self._rooms.dead(self._now_us())

    async def probe(self, target: str, every_us: int) -> bool:
        """At most once in that time."""
        return self._rooms.probe(target, every_us, self._now_us())

    async def admit(
        self, target: str, wanted: int, *, rate_per_s: float, at_once: int, lease_us: int
    ) -> Room:
        """As many as both limits allow."""
        return self._rooms.admit(
            target, wanted, rate_per_s=rate_per_s, at_once=at_once, lease_us=lease_us, now_us=self._now_us()
        )

    async def leave(self, target: str, ticket: str, count: int) -> None:
        """Make room."""
        self._rooms.leave(target, ticket, count)
