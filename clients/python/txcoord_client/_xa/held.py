"""A connection that belongs to a branch: what the SDK needs of every driver."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

RefusedEnd = Callable[[str], Exception]
"""Called with ``commit`` or ``rollback`` when the application tries to end the branch itself; answers the error
to raise."""


class Held(Protocol):
    """One connection, from the start of the branch until its end in this process."""

    value: Any
    """What the application works with: the connection or session."""

    schema: str
    """MySQL, MariaDB: the database that the marker belongs in, once it is known to be the resource's; empty: the
    session's."""

    async def open(self) -> None:
        """Get the connection. Raises NotIdle when it is in a transaction already."""
        ...

    async def start(self, first: str, refused: RefusedEnd) -> None:
        """Begin the branch with this statement, on PostgreSQL inside a transaction that is begun with it."""
        ...

    async def flush(self) -> None:
        """Write what an ORM session still holds back."""
        ...

    async def execute(self, sql: str) -> str:
        """Send SQL, on PostgreSQL as one simple-query message; answer the last command tag, on MySQL and MariaDB
        the number of rows. Raises the driver's error."""
        ...

    async def fetch_row(self, sql: str) -> tuple[Any, ...] | None:
        """The first row, or None."""
        ...

    async def fetch_alone(self, sql: str) -> tuple[Any, ...] | None:
        """The first row, before the branch begins: no transaction is left open."""
        ...

    @property
    def wrote(self) -> bool:
        """Has a statement been seen that writes? False proves nothing."""
        ...

    @property
    def in_transaction(self) -> bool:
        """Does the driver see an open transaction?"""
        ...

    def forget_transaction(self) -> None:
        """The branch's transaction has ended behind the driver's back: let the driver know."""
        ...

    def abort(self) -> None:
        """Break the connection, so that whoever waits for it gets an error. From any thread, at once."""
        ...

    async def take_out(self) -> None:
        """The branch is prepared and its session must be kept: what the application has must not lead to it any
        more."""
        ...

    async def release(self, committed: bool) -> None:
        """Give the connection back, or the session its freedom. Nothing is sent to the database."""
        ...

    async def discard(self) -> None:
        """The connection is broken or in an unknown state: nobody must use it again."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """Where the connections of a branch come from."""

    key: Hashable
    """The same key in one transaction means the same branch."""
    resource: str
    family: str
    """Of the driver: ``postgresql`` or ``mysql``."""
    make: Callable[[], Held]
    pool: Hashable | None = None
    """The pool to be admitted to; None: the caller holds the connection already."""
    pool_size: int = 0
    identity_of: object = None
    """What the identity check is remembered for: the engine or pool."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A driver's class that may be given to ``g.xa``."""

    family: str
    """``postgresql`` or ``mysql``."""
    make: Callable[[Any], Held]
    pool_size: Callable[[Any], int] | None = None
    """None: it is a connection, and no pool."""
