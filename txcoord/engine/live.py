"""The transactions that this node is carrying out, and who waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from ..core.model import Tx


class WaitLevel(IntEnum):
    """How far a caller wants to wait."""

    ACCEPTED = 1
    DECIDED = 2
    COMMITTED = 3
    DELIVERED = 4


def reached(tx: Tx, level: WaitLevel) -> bool:
    """Is it so? A transaction that only an operator can move on counts as reached: nothing more comes."""
    if tx.decision is None:
        return level is WaitLevel.ACCEPTED
    if level <= WaitLevel.DECIDED:
        return True
    if tx.shown_parked:
        return True
    if not tx.ended:
        return False
    if level is WaitLevel.COMMITTED:
        return True
    return tx.rests


@dataclass(slots=True)
class Live:
    """One transaction in phase two on this node."""

    tx: Tx
    logged: bool = True
    """False: an abort that no row says; its progress is not written either."""
    lease_until_us: int = 0
    """Until when it is surely ours: written with the row, or renewed since."""
    tells_all: bool = False
    """All news of it are written: its row has said, or may say, what is not so any more."""
    waiters: dict[asyncio.Future[Tx], WaitLevel] = field(default_factory=dict)
    watchers: set[asyncio.Future[None]] = field(default_factory=set)
    """Who wants to look again at any news."""


class LiveSet:
    """All of them."""

    def __init__(self) -> None:
        self._by_id: dict[str, Live] = {}
        self._emptied: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Live]:
        return iter(list(self._by_id.values()))

    def get(self, tx_id: str) -> Live | None:
        """The live transaction of that id."""
        return self._by_id.get(tx_id)

    def put(self, tx: Tx, *, logged: bool | None = None) -> Live:
        """Make it live, or bring it up to date, and tell who waited for this. ``logged`` None: as it was."""
        live = self._by_id.get(tx.tx_id)
        if live is None:
            live = self._by_id[tx.tx_id] = Live(tx, logged is not False)
        else:
            live.tx = tx
            if logged is not None:
                live.logged = logged
            if live.waiters:
                self._tell(live)
            self._ring(live)
        if tx.owner:  # Else it is being handed off: until that is written it is kept.
            live.lease_until_us = max(live.lease_until_us, tx.lease_until_us)
        return live

    def drop(self, tx_id: str) -> None:
        """It is not ours any more, it rests, or it has ended. Who still waits looks at the log."""
        live = self._by_id.pop(tx_id, None)
        if live is not None:
            for future in live.waiters:
                if not future.done():
                    future.set_result(live.tx)
            live.waiters.clear()
            self._ring(live)
        if not self._by_id:
            emptied, self._emptied = self._emptied, []
            for waiting in emptied:
                if not waiting.done():
                    waiting.set_result(None)

    def wait(self, live: Live, level: WaitLevel) -> asyncio.Future[Tx]:
        """A future of the transaction at that level. Whoever stops waiting says so: :meth:`leave`."""
        future: asyncio.Future[Tx] = asyncio.get_running_loop().create_future()
        live.waiters[future] = level
        return future

    @staticmethod
    def news(live: Live) -> asyncio.Future[None]:
        """A future of its next news."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        live.watchers.add(future)
        return future

    @staticmethod
    def _ring(live: Live) -> None:
        for future in live.watchers:
            if not future.done():
                future.set_result(None)
        live.watchers.clear()

    @staticmethod
    def leave(live: Live, future: asyncio.Future[Tx]) -> None:
        """Wait no longer: a stuck transaction must not collect those who have left."""
        live.waiters.pop(future, None)

    async def drained(self) -> None:
        """Wait until nothing is live."""
        while self._by_id:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._emptied.append(waiting)
            await waiting

    @staticmethod
    def _tell(live: Live) -> None:
        for future, level in list(live.waiters.items()):
            if future.done():
                del live.waiters[future]
            elif reached(live.tx, level):
                del live.waiters[future]
                future.set_result(live.tx)
