"""Branches that were prepared for a transaction that was aborted without hearing of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from ..core.model import Branch, Decision, Tx
from ..observe import logs
from ..ports import Clock, Finished, Finisher, Spawn

log = logs.get("txcoord.strays")


class Strays:
    """Frees their locks as soon as their caller tells of them; the scan would do it later."""

    def __init__(
        self,
        finishers: Mapping[str, Finisher],
        *,
        spawn: Spawn,
        alarm: Callable[[str, str, str, str], None],
        clock: Clock,
        hold_us: int,
    ) -> None:
        self._finishers = finishers
        self._clock = clock
        self._hold_us = hold_us
        self._spawn = spawn
        self._alarm = alarm

    def undo(self, tx: Tx, asked: Iterable[Branch]) -> None:
        """Roll back what the caller of an aborted transaction names and its row does not: the abort is durable, so
        nothing else can become of it."""
        if tx.decision is not Decision.ABORT:
            return
        for branch in asked:
            finisher = self._finishers.get(branch.resource)
            if branch.xid and finisher is not None and tx.branch(branch.id) is None:
                self._spawn(self._undo(finisher, tx, branch), f"stray:{tx.tx_id}")

    async def _undo(self, finisher: Finisher, tx: Tx, branch: Branch) -> None:
        if branch.has_holder:
            await self._clock.sleep(self._hold_us / 1_000_000)
        result = await finisher.finish(branch.xid, False)
        log.info("branch.undone_late", tx_id=tx.tx_id, branch=branch.id, result=result.finished)
        if result.finished is Finished.HEURISTIC:
            self._alarm("heuristic", tx.tx_id, branch.id, result.reason)
