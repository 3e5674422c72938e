"""What goes wrong again and again is said once, then now and then, and when it is over."""

from __future__ import annotations

from collections.abc import Callable

from ..observe import logs
from ..ports import ResourceTrouble

log = logs.get("txcoord.recovery")

_AGAIN_US = 600_000_000


class Troubles:
    """Of one duty with one resource."""

    def __init__(self, duty: str, now_us: Callable[[], int]) -> None:
        self._duty = duty
        self._now_us = now_us
        self._resource = ""
        self._since_us = 0
        self._said_us = 0

    def trouble(self, error: ResourceTrouble) -> None:
        """It could not be done."""
        now_us = self._now_us()
        if not self._resource:
            self._resource, self._since_us, self._said_us = error.resource, now_us, now_us
            log.warning("resource.trouble", duty=self._duty, resource=error.resource, reason=str(error))
        elif now_us - self._said_us >= _AGAIN_US:
            self._said_us = now_us
            for_s = (now_us - self._since_us) // 1_000_000
            log.warning(
                "resource.trouble", duty=self._duty, resource=error.resource, reason=str(error), for_s=for_s
            )

    def well(self) -> None:
        """It was done."""
        if self._resource:
            after_s = (self._now_us() - self._since_us) // 1_000_000
            log.info("resource.well_again", duty=self._duty, resource=self._resource, after_s=after_s)
            self._resource = ""
