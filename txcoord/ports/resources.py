"""Databases on which branches are finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ..core.model import Tx


class Finished(Enum):
    """What became of an attempt to finish a branch in its database."""

    DONE = "done"
    """Proven: the tag, or the marker."""
    RETRY = "retry"
    """Unreachable, busy or refused: try again."""
    HEURISTIC = "heuristic"
    """Someone else finished it, against the decision."""


@dataclass(frozen=True, slots=True)
class FinishResult:
    """What became of it, and why."""

    finished: Finished
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PreparedBranch:
    """One prepared transaction of this log, as its database lists it."""

    xid: str
    owner: str
    prepared_us: int


class Probed(Enum):
    """The database's answer to "was it committed in one phase?"."""

    COMMITTED = "committed"
    NEVER = "never"
    """A tombstone is there: it was not, and never will be."""
    OPEN = "open"
    """The local commit is still open: ask again."""
    TOO_LATE = "too_late"
    """After W nothing is written and nothing is known."""


class ResourceTrouble(Exception):
    """A resource cannot be used: unreachable, wrong credentials, wrong identity, not made ready."""

    def __init__(self, resource: str, reason: str, message: str) -> None:
        super().__init__(f"resource {resource!r}: {message}")
        self.resource = resource
        self.reason = reason
        self.message = message


class NotAnswered(Exception):
    """Whoever was asked what became of a local transaction has not told: unreachable, or it could not find out."""

    def __init__(self, target: str, reason: str, retry_after_us: int = 0) -> None:
        super().__init__(f"{target}: {reason}")
        self.target = target
        self.reason = reason
        """A code, perhaps followed by a text."""
        self.retry_after_us = retry_after_us


class Answerer(Protocol):
    """Asks participants what became of local transactions in databases of their own."""

    async def query_back(
        self, target: str, participant: str, tx: Tx, timeout_s: float, identity: str = ""
    ) -> Probed:
        """Ask once; ``participant`` is the name under which the target is asked, ``identity`` that of the database that
        is meant, empty: not known. NEVER says that a tombstone is there. Raises NotAnswered for anything that is no
        answer."""
        ...


class Finisher(Protocol):
    """Finishes XA branches straight on one resource's database."""

    name: str

    @property
    def engine(self) -> str:
        """``postgresql``, ``mariadb`` or ``mysql``: what it was when it was reached last."""
        ...

    @property
    def lists_server(self) -> bool:
        """Are the branches of other databases on the server among those that are listed?"""
        ...

    async def identity(self) -> str:
        """The identity row of the database. Raises ResourceTrouble."""
        ...

    async def finish(self, xid: str, commit: bool) -> FinishResult:
        """COMMIT or ROLLBACK the prepared branch, with proof; safe to repeat, and to race."""
        ...

    async def list_prepared(self, log_ids: Sequence[str]) -> list[PreparedBranch]:
        """Prepared transactions of these logs; never anyone else's. In this database, or, where
        ``lists_server``, on its whole server."""
        ...

    async def has_ended(self, xid: str, commit: bool) -> bool:
        """Has the session that prepared the branch finished it, as was decided? Changes nothing. Raises
        ResourceTrouble."""
        ...

    async def owns(self, xid: str) -> bool:
        """Is the prepared branch in this database, and not in another one of its server? Raises ResourceTrouble."""
        ...

    async def in_limbo(self) -> int:
        """How many prepared branches the server holds and cannot name any more. Raises ResourceTrouble."""
        ...

    async def probe_one_phase(self, tx_id: str, not_after_us: int) -> Probed:
        """Tombstone the one-phase marker key. Raises ResourceTrouble."""
        ...

    async def prune_markers(self, not_after_us: int, limit: int) -> int:
        """Delete a small batch of markers older than ``not_after_us``."""
        ...

    def by_hand(self, xid: str, commit: bool) -> str:
        """The statement with which a person finishes the branch there."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ResourceStatus:
    """A resource as this node sees it."""

    name: str
    engine: str
    identity: str = ""
    version: str = ""
    problem: str = ""
    """Why it cannot be used now, for people; empty when all is well."""
