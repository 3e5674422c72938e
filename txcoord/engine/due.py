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
_GATHER_S = 0.1
"""Between two claims. Each costs the log as much as a flush: one for every few rows would hold up all others."""


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
        self._asked: list[tuple[Sequence[Due], asyncio.Future[list[Tx]]]] = []
        self._claiming = False

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
                rows = await self._claimed(due)
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

    async def _claimed(self, due: Sequence[Due]) -> list[Tx]:
        """Claim these: at once, or together with others in a moment. Raises LogUnavailable."""
        asked: asyncio.Future[list[Tx]] = asyncio.get_running_loop().create_future()
        self._asked.append((due, asked))
        if not self._claiming:
            self._claiming = True
            self._c.spawn(self._claim(), "due:claim")
        return await asked

    async def _claim(self) -> None:
        """Claim for all who ask, a few hundred rows at a time, one claim after the other."""
        c = self._c
        try:
            while self._asked:
                some: list[tuple[Sequence[Due], asyncio.Future[list[Tx]]]] = []
                epochs: dict[str, int] = {}
                # What is told twice, with another epoch, is asked for by itself: only one of them can be.
                while self._asked and (not some or _fits(self._asked[0][0], epochs)):
                    due, asked = self._asked.pop(0)
                    some.append((due, asked))
                    for one in due:
                        epochs[one.tx_id] = max(one.epoch, epochs.get(one.tx_id, 0))
                try:
                    rows = await c.log.claim_due(c.settings.node, c.settings.lease_us, list(epochs.items()))
                except Exception as error:
                    for _, asked in some:
                        if not asked.done():
                            asked.set_exception(error)
                else:
                    found = {tx.tx_id: tx for tx in rows}
                    for due, asked in some:
                        if asked.done():
                            continue  # Whoever has asked is gone: it is taken over when its lease has run out.
                        asked.set_result([found.pop(one.tx_id) for one in due if one.tx_id in found])
                if len(epochs) < _AT_ONCE:
                    await c.clock.sleep(_GATHER_S)
        finally:
            self._claiming = False

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


def _fits(due: Sequence[Due], epochs: dict[str, int]) -> bool:
    return len(epochs) + len(due) <= _AT_ONCE and all(
        epochs.get(one.tx_id, one.epoch) == one.epoch for one in due
    )


__all__ = ["Carrying"]
