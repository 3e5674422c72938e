"""What the nodes of a fleet share, and may lose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..core.instances import Instance
from ..core.room import Room
from ..core.targets import Target


class Leases(Protocol):
    """Leases for singleton duties, such as one recovery scanner per resource."""

    async def acquire(self, duty: str, owner: str, ttl_us: int) -> int | None:
        """A fencing token that only grows, or None while another owner holds it."""
        ...

    async def release(self, duty: str, owner: str) -> None: ...


class SharedLost(Exception):
    """What nodes share is away: each judges for itself until it is back. Nothing is lost by that but time."""


class SharedGate(Protocol):
    """What the nodes of a fleet tell each other of targets: which are dead, who probes, and how much room is left.

    May forget everything at any moment (an empty restart): the next calls find it out again. Each method raises
    SharedLost when it is away, and says so soon. Targets are addresses, of no namespace.
    """

    async def opened(self, target: str, reason: str, ttl_us: int) -> None:
        """This target was found dead: all nodes hold their calls back. Forgotten after ``ttl_us`` unless said again."""
        ...

    async def closed(self, target: str) -> None:
        """It has answered."""
        ...

    async def dead(self) -> Mapping[str, str]:
        """The targets that are known to be dead, each with the reason that was given last."""
        ...

    async def probe(self, target: str, every_us: int) -> bool:
        """May this node make a probe now? True at most once in ``every_us``, whoever asks (all ask with the same)."""
        ...

    async def admit(
        self, target: str, wanted: int, *, rate_per_s: float, at_once: int, lease_us: int
    ) -> Room:
        """Take room for calls, at most ``wanted`` (from 1). ``rate_per_s``: tokens a second, of which a tenth of a
        second's worth is kept, at least one; 0: no such limit. ``at_once``: calls at one time; 0: no such limit. What
        is not given back is free again after ``lease_us``."""
        ...

    async def leave(self, target: str, ticket: str, count: int) -> None:
        """So many calls of this ticket have ended. One that is not known any more changes nothing."""
        ...


class Wakeups(Protocol):
    """Tells the other nodes of a fleet that there is news, so that they look now and not only when they would have.

    Lossy: what is told may arrive late, twice or never. Whoever hears it reads the log, which alone knows.
    """

    def hear(self, topic: str, look: Callable[[Sequence[str]], None]) -> None:
        """Call ``look`` with the names that other nodes tell of this topic. To be said before anything is told."""
        ...

    def tell(self, topic: str, name: str) -> None:
        """There is news of this: a tx id, or another name without spaces. Coalesced; never waits, never raises."""
        ...


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A coordinator or worker, as it last said of itself."""

    name: str
    role: str
    """``coordinator``, ``worker`` or ``dev``."""
    address: str
    version: str
    started_us: int = 0
    seen_us: int = 0
    """When it was heard of last, by the log's clock."""
    live: int = 0
    """Transactions that it carries out."""
    draining: bool = False
    """It takes nothing new."""
    clock_offset_us: int = 0
    """Its clock minus the log's."""
    duties: tuple[str, ...] = ()
    """Singleton duties of which it has the lease."""


@dataclass(frozen=True, slots=True)
class NodeOrder:
    """What an operator did to a node."""

    action: str
    actor: str
    reason: str
    identity: str = ""
    """Name of the token that was shown; empty where none is needed."""
    at_us: int = 0


class Nodes(Protocol):
    """The nodes of a log."""

    async def join(self, status: NodeStatus) -> None:
        """It has started, and takes new work: a restart ends a drain. Raises LogUnavailable, as all of these do."""
        ...

    async def seen(self, name: str, live: int, clock_offset_us: int) -> bool:
        """It is there still. Is it to take nothing new?"""
        ...

    async def leave(self, name: str) -> None:
        """It has ended as it should."""
        ...

    async def all(self) -> list[NodeStatus]:
        """All that are known, by name; one that died stays for a day."""
        ...

    async def drain(self, name: str, draining: bool, order: NodeOrder) -> NodeStatus | None:
        """Say whether it is to take new work, with the audit row in one transaction; None: it is not known."""
        ...


class Registry(Protocol):
    """The live instances of participants, as they have registered themselves, each with signs of life.

    May forget everything at any moment: the next signs of life fill it again. Nothing here raises or waits for long.
    """

    @property
    def ttl_us(self) -> int:
        """How long an instance counts as live after a sign of life."""
        ...

    async def register(self, one: Instance) -> bool:
        """It is there. Known on this node at once, on others soon. False: there are too many."""
        ...

    async def beat(self, key: tuple[str, str, str]) -> bool:
        """Namespace, participant, instance: it is still there. False: it is not known, it has to register again."""
        ...

    async def leave(self, key: tuple[str, str, str]) -> None:
        """It is called no more."""
        ...

    def is_known(self, participant: str) -> bool:
        """Has one of this name registered, in whatever namespace?"""
        ...

    def places(self, namespace: str, participant: str) -> Sequence[Target]:
        """Where to call it, in the order in which to try them; empty if none is known."""
        ...

    def instances(self) -> Sequence[tuple[Instance, int]]:
        """Each that is known, and until when it is live, by this node's clock; the past for those that may be gone."""
        ...
