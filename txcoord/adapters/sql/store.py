"""What the log needs of a database: one class for each dialect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from sqlalchemy import URL, Connection, make_url

from ...ports import LogIdentity
from .batch import Flushed, Round

T = TypeVar("T")
Work = Callable[[Connection], T]


class FlushRefused(Exception):
    """The database refuses something in this flush; nothing of it was written."""


class ReplyLost(Exception):
    """Whether this flush was written is not known."""


class Store(Protocol):
    """One log database, as one node uses it. All but FlushRefused and ReplyLost is raised as LogUnavailable."""

    own_machine: bool
    """Is it on the machine of this node, and no other's? Then what a crash of it loses, this node has forgotten too."""

    async def open(self) -> None:
        """Connect, and refuse what cannot be a log."""
        ...

    def expect(self, identity: LogIdentity) -> None:
        """Write to this log only, whatever is at the URL later (another database, a restored backup)."""
        ...

    async def close(self) -> None: ...

    def abandon(self) -> None:
        """Drop everything at once, as a crash would."""
        ...

    async def write(self, rounds: Sequence[Round], relaxed: bool) -> Flushed:
        """Write a flush as one SQL transaction; ``relaxed``: it need not be on disk yet.

        After ReplyLost the next call begins only when the lost one can change nothing any more.
        """
        ...

    async def reading(self, work: Work[T]) -> T:
        """Run ``work`` on a connection, as one transaction that sees everything written before."""
        ...

    async def changing(self, work: Work[T], *, relaxed: bool = False) -> T:
        """Run ``work`` on a connection, as one transaction that is on disk when this returns; ``relaxed``: it need not
        be there yet."""
        ...

    def clock(self, conn: Connection) -> int:
        """The log's clock, asked now."""
        ...


def parse_url(url: str) -> URL:
    """The URL of a log, with the driver that is used for it here. Raises ValueError."""
    parsed = make_url(url)
    match parsed.get_backend_name():
        case "sqlite":
            return parsed.set(drivername="sqlite")
        case "postgresql" | "postgres":
            return parsed.set(drivername="postgresql+asyncpg")
        case "mariadb" | "mysql":
            return parsed.set(drivername="mysql+asyncmy")
    raise ValueError(
        f"a log cannot be on {parsed.get_backend_name()!r}: use sqlite:///…, postgresql://… or mariadb://…"
    )


def shown(url: URL) -> str:
    """The URL for messages, without its password."""
    return url.render_as_string(hide_password=True)
