"""What the nodes of a fleet share: through Redis where the settings name one, else nothing, which is right as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..adapters.embedded import InProcessRegistry
from ..config import Settings, microseconds
from ..ports import Leases, Registry, SharedGate, Spawn, Wakeups
from .errors import ExitCode, StartError

if TYPE_CHECKING:
    from ..adapters.redis.link import RedisLink
    from ..adapters.redis.registry import RedisRegistry
    from ..adapters.redis.wakeups import RedisWakeups


class Shared:
    """One node's part in it. Nothing is connected before :meth:`start`, and starting waits for nothing.

    Raises StartError where Redis is named and its client is not installed.
    """

    def __init__(self, settings: Settings, log_id: str, *, now_us: Callable[[], int], spawn: Spawn) -> None:
        self._link: RedisLink | None = None
        self._wakeups: RedisWakeups | None = None
        self.gate: SharedGate | None = None
        """What the fleet knows of targets; None: this node is alone in that."""
        self._registry: RedisRegistry | None = None
        self.registry: Registry = InProcessRegistry(now_us)
        """The live instances of participants that have registered themselves."""
        if settings.redis.url.get_secret_value():
            self._link = link = link_of(settings, log_id)
            from ..adapters.redis.gate import RedisGate
            from ..adapters.redis.registry import RedisRegistry
            from ..adapters.redis.wakeups import RedisWakeups

            self.gate = RedisGate(link)
            self._wakeups = RedisWakeups(link, node=settings.node_name, spawn=spawn)
            self._registry = RedisRegistry(link, self._wakeups, now_us=now_us, spawn=spawn)
            self.registry = self._registry

    def leases(self, behind: Leases) -> Leases:
        """Leases that are asked for in Redis first, if there is one."""
        if self._link is None:
            return behind
        from ..adapters.redis.leases import RedisLeases

        return RedisLeases(self._link, behind)

    @property
    def wakeups(self) -> Wakeups | None:
        """What wakes up who waits on other nodes."""
        return self._wakeups

    def up(self) -> dict[tuple[str, ...], float]:
        """Did Redis answer what it was asked last? Empty where there is none."""
        return {} if self._link is None else {(): int(not self._link.away)}

    def start(self) -> None:
        """Begin."""
        if self._wakeups is not None:
            self._wakeups.start()
        if self._registry is not None:
            self._registry.start()

    def stop(self) -> None:
        """Tell and hear nothing more."""
        if self._wakeups is not None:
            self._wakeups.stop()
        if self._registry is not None:
            self._registry.stop()

    async def close(self) -> None:
        """Disconnect."""
        if self._link is not None:
            await self._link.close()


def link_of(settings: Settings, log_id: str) -> RedisLink:
    """The Redis that the settings name. Raises StartError."""
    try:
        from ..adapters.redis.link import RedisLink
    except ModuleNotFoundError as error:
        raise StartError(
            ExitCode.CONFIG,
            "NOT_INSTALLED",
            "redis.url is set, and the client of Redis is not installed: pip install 'txcoord[redis]'",
        ) from error
    redis = settings.redis
    return RedisLink(
        redis.url.get_secret_value(),
        prefix=f"{redis.prefix}:{log_id}",
        timeout_s=microseconds(redis.timeout) / 1_000_000,
        ca_file=str(redis.ca_file or ""),
    )
