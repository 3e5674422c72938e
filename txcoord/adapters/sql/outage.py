"""The log's database does not answer: said once, then again now and then, and when it is back."""

from __future__ import annotations

from collections.abc import Callable

from ...observe import logs

log = logs.get("txcoord.log")

_AGAIN_S = 10.0


class Outage:
    """What is known of it. ``now`` is a clock in seconds that never goes back."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._kinds: set[str] = set()
        """What fails: reading, writing. One may work without the other: a full disk, a replica."""
        self._since = 0.0
        self._said = 0.0

    def fails(self, kind: str) -> bool:
        """Has the last of these failed?"""
        return kind in self._kinds

    def trouble(self, kind: str, error: Exception) -> None:
        """One has failed."""
        now = self._now()
        if not self._kinds:
            self._since = self._said = now
            log.error("log.unavailable", reason=str(error))
        elif now - self._said >= _AGAIN_S:
            self._said = now
            log.error("log.unavailable", reason=str(error), for_s=round(now - self._since, 1))
        self._kinds.add(kind)

    def well(self, kind: str) -> None:
        """One has worked."""
        if kind in self._kinds:
            self._kinds.discard(kind)
            if not self._kinds:
                log.info("log.back", after_s=round(self._now() - self._since, 1))
