"""Carrying out what the queue says is due."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ..core.events import Call, Finish
from ..core.machine import resume
from ..core.model import TAKEN, Tx
from ..observe import logs
from ..ports import Due, Failpoints, LogUnavailable
from .carrier import Carrier

log = logs.get("txcoord.due")

_AGAIN_S = 0.5
"""Between two tries while the log is away."""
_AT_ONCE = 200
"""Rows that are claimed in one statement."""


class Carrying:
    """``carry`` of :class:`txcoord.ports.Queue`: claims what is due, and makes its attempts.

    It returns once their outcome is in the log: ended, parked, handed off again, or lost to another node, which then
    has it. A transaction that is not that far after ``patience_s`` is not waited for any longer: its claim is in the
    log too, so that it is taken over if this node dies.
    """

    def __init__(self, carrier: Carrier, *, failpoints: Failpoints, patience_s: float = 60.0) -> None:
        self._c = carrier
        self._failpoints = failpoints
        self._patience_s = patience_s
        self._leaving = False
        self._wanted = asyncio.Event()
        self._wanted.set()

    def leave(self) -> None:
        """This node is about to stop: nothing more is claimed, and what comes counts as not consumed."""
        self._leaving = True

    def hold(self, yes: bool) -> None:
        """Claim nothing until it is said again: what is due meanwhile is swept by other nodes when it is overdue."""
        if yes:
            self._wanted.clear()
        else:
            self._wanted.set()

    async def carry(self, due: Sequence[Due]) -> None:
        """Claim these, make the attempts that are due, and wait until their outcome is in the log. Never raises for
        what the log or a participant does."""
        for start in range(0, len(due), _AT_ONCE):
            for tx in await self._taken(due[start : start + _AT_ONCE]):
                await self._outcome(tx)

    async def _taken(self, due: Sequence[Due]) -> list[Tx]:
        """Claimed, and begun. What is not among them was overtaken."""
        c = self._c
        if self._leaving:
            await asyncio.get_running_loop().create_future()
        await self._wanted.wait()
        doubtful = False
        while True:
            try:
                rows = await c.log.claim_due(
                    c.settings.node, c.settings.lease_us, [(one.tx_id, one.epoch) for one in due]
                )
                await self._failpoints.reach("due.after_claim")
                if doubtful:
                    rows += await self._claimed_before(due, {tx.tx_id for tx in rows})
            except LogUnavailable as error:
                # The log itself says that it is away. It may have claimed them all the same.
                log.debug("log.unavailable", duty="due", reason=str(error))
                doubtful = True
                await c.clock.sleep(_AGAIN_S)
                continue
            break
        for tx in rows:
            try:
                c.adopt(tx)
            except Exception:
                log.exception("due.failed", tx_id=tx.tx_id)
        return rows

    async def _claimed_before(self, due: Sequence[Due], known: set[str]) -> list[Tx]:
        """What a claim whose reply was lost has made ours."""
        c = self._c
        epochs = {one.tx_id: one.epoch + TAKEN for one in due if one.tx_id not in known}
        rows = await c.log.read(list(epochs))
        return [
            tx
            for tx in rows.values()
            if (tx.owner, tx.epoch) == (c.settings.node, epochs[tx.tx_id])
            and not tx.rests
            and c.live.get(tx.tx_id) is None
        ]

    async def _outcome(self, claimed: Tx) -> None:
        """Wait until what was due of it has been tried, and what became of that is written."""
        c = self._c
        tx_id = claimed.tx_id
        # Also what is due in a moment: that is not worth handing off again.
        soon_us = c.clock.now_us() + c.settings.hand_off_us
        due = [e.branch for e in resume(claimed) if isinstance(e, Call | Finish) and e.at_us <= soon_us]
        until = c.clock.monotonic() + self._patience_s
        while (left := until - c.clock.monotonic()) > 0:
            live = c.live.get(tx_id)
            if c.writes.any(tx_id):
                news = c.writes.none(tx_id)
            elif (
                live is None or live.tx.epoch != claimed.epoch or all(live.tx.branch(b.id) != b for b in due)
            ):
                return
            else:
                news = c.live.news(live)
            try:
                await asyncio.wait({news}, timeout=left)
            finally:
                if live is not None:
                    live.watchers.discard(news)
        log.warning("due.slow", tx_id=tx_id)


__all__ = ["Carrying"]
