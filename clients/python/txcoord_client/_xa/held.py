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

    async def open(self) -> None:
        """Get the connection. Raises NotIdle when it is in a transaction already."""
        ...

    async def start(self, refused: RefusedEnd) -> None:
        """Begin the branch: BEGIN and the guard's savepoint."""
        ...

    async def flush(self) -> None:
        """Write what an ORM session still holds back."""
        ...

    async def execute(self, sql: str) -> str:
        """Send one simple-query message; answer the last command tag. Raises the driver's error."""
        ...

    async def fetch_value(self, sql: str) -> Any:
        """One value, or None."""
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
    make: Callable[[], Held]
    pool: Hashable | None = None
    """The pool to be admitted to; None: the caller holds the connection already."""
    pool_size: int = 0
    identity_of: object = None
    """What the identity check is remembered for: the engine or pool."""
