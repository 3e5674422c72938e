"""What operators have said, kept beside the log."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from ..core.model import (
    Audit,
    TargetAudit,
    TargetRule,
)
from ..core.replaying import AuditQuery, AuditRow, ItemState, JobState, ParkedBranch, Replay, ReplayItem
from .log import Query


class Replays(Protocol):
    """Jobs that retry parked branches, kept beside the log. All raise LogUnavailable."""

    async def create(self, replay: Replay) -> Replay:
        """Write it with its audit row, or answer the one that the same request has made before."""
        ...

    async def get(self, namespace: str, replay_id: str) -> Replay | None:
        """One job, with its counts."""
        ...

    async def page(self, namespace: str, before: str, limit: int) -> list[Replay]:
        """A page, newest first, from before this id on; empty: from the newest."""
        ...

    async def items(self, replay_id: str, after: tuple[str, str], limit: int) -> list[ReplayItem]:
        """A page of its items, by tx id and branch, after this one."""
        ...

    async def pick(self, replay_id: str, states: Collection[ItemState], limit: int) -> list[ReplayItem]:
        """The first items in one of these states."""
        ...

    async def turn(
        self, namespace: str, replay_id: str, state: JobState, order: Audit, rate_per_s: float
    ) -> Replay | None:
        """Cancel a job, or resume it, with the audit row in the same SQL transaction; how it is then. One that is so
        already, or is done, stays as it is. None: there is none."""
        ...

    async def claim(self, owner: str, lease_us: int, mine: Collection[str]) -> list[Replay]:
        """Take over running jobs that nobody runs: their lease is over, or they carry this owner's name and are none
        of ``mine``."""
        ...

    async def save(
        self, replay: Replay, lease_us: int, items: Sequence[ReplayItem] = (), new: Sequence[ReplayItem] = ()
    ) -> Replay | None:
        """Write where it stands, with what became of items and with new ones, in one SQL transaction; answers it with
        its counts. None: it is this owner's no more, and nothing was written."""
        ...

    async def parked(
        self, query: Query, since_us: int, after: tuple[str, str], limit: int, *, by_hand: bool = True
    ) -> list[ParkedBranch]:
        """Parked branches of the transactions that the query finds, those for its resource, kind and reason, parked
        since then, by tx id and branch, after this one. ``by_hand``: also those that an operator has parked."""
        ...

    async def audits(self, query: AuditQuery) -> list[AuditRow]:
        """A page of the audit trail, newest first."""
        ...


class TargetRules(Protocol):
    """What operators have said about targets, kept beside the log. Each method raises LogUnavailable."""

    async def all(self) -> Sequence[TargetRule]:
        """All rules, also those that limit nothing any more."""
        ...

    async def change(self, audit: TargetAudit, edit: Callable[[TargetRule], TargetRule]) -> TargetRule:
        """Change the rule of the target that the audit names (one that limits nothing, if it has none) and write the
        audit, both or neither. ``edit`` may be called more than once; who, why and when are the audit's, and the
        log's clock."""
        ...

    async def parked(self) -> Mapping[str, int]:
        """How many parked branches there are for each target; of all together no more than 10,000 are counted."""
        ...

    async def note(self, target: str, edit: Callable[[TargetRule], TargetRule]) -> TargetRule:
        """Change what is noted of a target, not what anybody has said: no audit, and who, why and when stay as they
        are. ``edit`` may be called more than once."""
        ...
