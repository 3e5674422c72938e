"""The ports by which the world outside hears of transactions; see :mod:`.ports`.

No implementation here, and nothing but the core is imported.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from .core.model import Announcement, Topic


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An announcement that waits in the log."""

    tx_id: str
    announcement: Announcement

    @property
    def key(self) -> tuple[str, int, int]:
        """By which it is taken away."""
        return (self.tx_id, self.announcement.epoch, self.announcement.seq)


class Outbox(Protocol):
    """The announcements in the log that are not published yet."""

    async def take(self, published: Sequence[tuple[str, int, int]], limit: int) -> list[Outgoing]:
        """Delete those that are published, by their keys, and answer the oldest that are left: those of a transaction
        in their order, and none without those before it. What is answered is on disk: no crash of the log can lose
        it any more. Others may take the same. Raises LogUnavailable."""
        ...

    async def hold(self, tx_ids: Collection[str], hold_us: int) -> None:
        """Pass by what these transactions announce, so long. Raises LogUnavailable."""
        ...


class Publishing(Enum):
    """What became of a record on its way to a topic."""

    SENT = "sent"
    """All replicas that count have it."""
    AWAY = "away"
    """The broker is away, or too busy: try again soon, all of them."""
    REFUSED = "refused"
    """This very record is not taken."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record for a topic."""

    topic: Topic
    key: str
    """Records with one key stay in order."""
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class TopicRecord:
    """What is delivered to a topic of the users' own."""

    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


class TopicWriter(Protocol):
    """Puts deliveries on topics of the users' own."""

    async def write(
        self, topic: str, records: Sequence[TopicRecord], timeout_s: float
    ) -> Sequence[tuple[Publishing, str]]:
        """What became of each, and why. Never raises, but for being cancelled; answers within the time-out."""
        ...

    async def close(self) -> None: ...


class Publisher(Protocol):
    """Puts records on topics."""

    async def publish(self, records: Sequence[Record]) -> Sequence[tuple[Publishing, str]]:
        """What became of each, and why. Never raises, but for being cancelled; waits until it is known, at most a
        time-out of its own."""
        ...

    async def close(self) -> None: ...
