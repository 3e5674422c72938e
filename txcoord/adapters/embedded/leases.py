"""Leases within one process: for a log that only one node can use."""

from __future__ import annotations

from collections.abc import Callable


class InProcessLeases:
    """Who does which duty, until when. The token of a duty grows with every acquisition."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self._held: dict[str, tuple[str, int, int]] = {}

    async def acquire(self, duty: str, owner: str, ttl_us: int) -> int | None:
        """Take or keep it; None while another owner holds it."""
        now_us = self._now_us()
        holder, token, until_us = self._held.get(duty, ("", 0, 0))
        if holder and holder != owner and until_us > now_us:
            return None
        self._held[duty] = (owner, token + 1, now_us + ttl_us)
        return token + 1

    async def release(self, duty: str, owner: str) -> None:
        """Give it up, if it is this owner's."""
        holder, token, _ = self._held.get(duty, ("", 0, 0))
        if holder == owner:
            self._held[duty] = ("", token, 0)
