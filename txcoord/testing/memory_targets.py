"""What is said about targets, in memory, beside a log in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from ..core.model import BranchState, TargetAudit, TargetRule
from .memory_log import Storage


class MemoryTargets:
    """``ports.TargetRules`` beside the storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def all(self) -> list[TargetRule]:
        self._storage.check()
        return [self._storage.targets[target] for target in sorted(self._storage.targets)]

    async def change(self, audit: TargetAudit, edit: Callable[[TargetRule], TargetRule]) -> TargetRule:
        self._storage.check()
        before = self._storage.targets.get(audit.target, TargetRule(audit.target))
        now_us = self._storage.clock()
        after = replace(edit(before), actor=audit.actor, reason=audit.reason, changed_us=now_us)
        self._storage.targets[audit.target] = after
        self._storage.target_audits.insert(0, replace(audit, at_us=now_us))
        return after

    async def parked(self) -> Mapping[str, int]:
        self._storage.check()
        rows = self._storage.rows.values()
        return Counter(b.resource for tx in rows for b in tx.branches if b.state is BranchState.PARKED)

    async def note(self, target: str, edit: Callable[[TargetRule], TargetRule]) -> TargetRule:
        self._storage.check()
        after = edit(self._storage.targets.get(target, TargetRule(target)))
        self._storage.targets[target] = after
        return after
