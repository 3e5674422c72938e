"""How many calls of a target may be made: so many a second, so many at one time. And who probes one that is dead."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

_BUSY_US = 100_000
"""When to ask again where all places are taken: whoever leaves says so earlier to those of its own process."""


@dataclass(frozen=True, slots=True)
class Room:
    """How many calls of a target may be made now."""

    granted: int
    again_us: int = 0
    """Where not all were granted: how long from now, in microseconds, until it is worth asking again."""
    ticket: str = ""
    """Gives back what was granted under a limit of calls at one time; else empty."""


@dataclass(slots=True)
class Bucket:
    """Tokens that come at a rate. It holds a tenth of a second's worth, at least one."""

    tokens: float = 1.0
    at_us: int = 0

    def take(self, wanted: int, rate_per_s: float, now_us: int) -> tuple[int, int]:
        """How many of those wanted there are, and how many microseconds until there is another one."""
        most = max(1.0, rate_per_s / 10)
        passed_us = max(0, now_us - self.at_us) if self.at_us else 0
        self.tokens = min(most, self.tokens + passed_us * rate_per_s / 1_000_000) if self.at_us else most
        self.at_us = now_us
        taken = min(wanted, int(self.tokens + 1e-9))
        self.tokens -= taken
        return taken, max(0, int((1 - self.tokens) * 1_000_000 / rate_per_s) + 1)


@dataclass(slots=True)
class _Known:
    bucket: Bucket = field(default_factory=Bucket)
    probed_us: int = 0
    dead_until_us: int = 0
    reason: str = ""
    held: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By ticket: how many calls, and until when."""


class Rooms:
    """What is known of all targets in one process, by its clock. ``ports.SharedGate`` says what each method means."""

    def __init__(self) -> None:
        self._targets: dict[str, _Known] = {}
        self._tickets = itertools.count(1)

    def _of(self, target: str) -> _Known:
        return self._targets.setdefault(target, _Known())

    def opened(self, target: str, reason: str, until_us: int) -> None:
        """It is dead, until then."""
        known = self._of(target)
        known.dead_until_us, known.reason = until_us, reason

    def closed(self, target: str) -> None:
        """It is not."""
        self._of(target).dead_until_us = 0

    def dead(self, now_us: int) -> Mapping[str, str]:
        """Those that are, and why."""
        return {name: known.reason for name, known in self._targets.items() if known.dead_until_us > now_us}

    def probe(self, target: str, every_us: int, now_us: int) -> bool:
        """At most once in that time."""
        known = self._of(target)
        if known.probed_us and now_us - known.probed_us < every_us:
            return False
        known.probed_us = now_us
        return True

    def admit(
        self, target: str, wanted: int, *, rate_per_s: float, at_once: int, lease_us: int, now_us: int
    ) -> Room:
        """As many as both limits allow."""
        known = self._of(target)
        granted = wanted
        if at_once:
            for ticket in [ticket for ticket, (_, until_us) in known.held.items() if until_us <= now_us]:
                del known.held[ticket]
            granted = min(granted, max(0, at_once - sum(count for count, _ in known.held.values())))
            if not granted:
                return Room(0, _BUSY_US)  # And no token is taken.
        again_us = _BUSY_US
        if rate_per_s:
            granted, again_us = known.bucket.take(granted, rate_per_s, now_us)
        ticket = ""
        if at_once and granted:
            ticket = str(next(self._tickets))
            known.held[ticket] = granted, now_us + lease_us
        return Room(granted, 0 if granted == wanted else again_us, ticket)

    def leave(self, target: str, ticket: str, count: int) -> None:
        """Make room."""
        held = self._of(target).held
        if ticket in held:
            left, until_us = held.pop(ticket)
            if left > count:
                held[ticket] = left - count, until_us
