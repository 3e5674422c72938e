"""Live instances of participants, as far as this process has heard them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...core.instances import Instance, Instances, Key
from ...core.targets import Target

TTL_US = 10_000_000


class InProcessRegistry:
    """``ports.Registry`` for this process alone."""

    def __init__(self, now_us: Callable[[], int], *, ttl_us: int = TTL_US) -> None:
        self.ttl_us = ttl_us
        self._now_us = now_us
        self._known = Instances()

    async def register(self, one: Instance) -> bool:
        """It is there."""
        now_us = self._now_us()
        self._known.forget(now_us)
        return self._known.heard(one, now_us + self.ttl_us)

    async def beat(self, key: Key) -> bool:
        """It is still there."""
        one = self._known.get(key)
        return one is not None and self._known.heard(one, self._now_us() + self.ttl_us)

    async def leave(self, key: Key) -> None:
        """It is called no more."""
        self._known.left(key, self._now_us() + self.ttl_us)

    def is_known(self, participant: str) -> bool:
        """Has one of this name registered?"""
        return self._known.is_known(participant)

    def places(self, namespace: str, participant: str) -> Sequence[Target]:
        """Where to call it."""
        return self._known.places(namespace, participant, self._now_us())

    def instances(self) -> Sequence[tuple[Instance, int]]:
        """Each that is known."""
        return list(self._known)
