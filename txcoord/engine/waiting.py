"""Waiting for a transaction: one that is known, or one that may not be known yet.

The second is for who holds a prepared branch of it: thousands of them wait most of the time, so they cost nothing but
a place in a dictionary. A decision made on another node is seen when they ask again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import replace
from typing import Protocol

from ..core.model import Decision, Tx, TxState
from ..ports import Clock, Log, LogUnavailable, Spawn
from .live import LiveSet, WaitLevel, reached

_UNLOGGED_KEPT = 10_000


class _Coordinator(Protocol):
    log: Log
    live: LiveSet
    clock: Clock

    async def get(self, tx_id: str) -> Tx | None: ...


class Waiting:
    """Who waits on this node."""

    def __init__(self, coordinator: _Coordinator, *, spawn: Spawn, interval_s: float) -> None:
        self._c = coordinator
        self._spawn = spawn
        self._interval_s = interval_s
        self._expected: dict[str, set[asyncio.Future[Tx]]] = {}
        self._unlogged: OrderedDict[str, Tx] = OrderedDict()
        """Aborts that no row says: nobody else can tell who asks later."""
        self._wanted: dict[str, asyncio.Future[Tx | None]] = {}
        self._reading = False

    def __len__(self) -> int:
        return sum(len(futures) for futures in self._expected.values())

    # ---- one that is known ----

    async def wait(self, tx: Tx, level: WaitLevel, timeout_s: float) -> Tx:
        """Wait until it has reached ``level``, at most ``timeout_s`` seconds; answers how it stands then."""
        c = self._c
        if reached(tx, level):
            return tx
        until = c.clock.monotonic() + timeout_s
        while True:
            left = until - c.clock.monotonic()
            if left <= 0:
                return tx
            live = c.live.get(tx.tx_id)
            if live is not None:
                tx = live.tx
                if reached(tx, level):
                    return tx
                future = c.live.wait(live, level)
                try:
                    done, _ = await asyncio.wait({future}, timeout=left)
                finally:
                    c.live.leave(live, future)
                if not done:
                    return live.tx
                tx = future.result()
                if reached(tx, level):
                    return tx
                continue
            # Undecided, or another node carries it out: the log tells.
            tx = await self._as_logged(tx)
            if reached(tx, level):
                return tx
            await c.clock.sleep(min(left, self._interval_s))

    async def _as_logged(self, tx: Tx) -> Tx:
        try:
            fresh = await self._c.get(tx.tx_id)
        except LogUnavailable:
            return tx  # What is known stays true; whoever waits asked for no more than that.
        if fresh is None and tx.decision is Decision.ABORT and not tx.ended:
            # An abort without a row that is not on its way any more: all of it is undone.
            return replace(tx, state=TxState.ABORTED)
        return fresh or tx

    # ---- one that may not be known yet ----

    def decided(self, tx: Tx, *, logged: bool) -> None:
        """A decision that has just become known here."""
        if not logged:
            self._unlogged[tx.tx_id] = tx
            if len(self._unlogged) > _UNLOGGED_KEPT:
                self._unlogged.popitem(last=False)
        for future in self._expected.pop(tx.tx_id, ()):
            if not future.done():
                future.set_result(tx)

    def unlogged(self, tx_id: str) -> Tx | None:
        """An abort of this node's that no row says."""
        tx = self._unlogged.get(tx_id)
        if tx is not None and not tx.ended and self._c.live.get(tx_id) is None:
            # It is not on its way any more, so all of it is undone; else a row would say so.
            tx = self._unlogged[tx_id] = replace(tx, state=TxState.ABORTED)
        return tx

    async def expect(self, tx_id: str, level: WaitLevel, timeout_s: float) -> Tx | None:
        """As :meth:`wait`, and for its decision first; None while there is none, or no such transaction."""
        c = self._c
        until = c.clock.monotonic() + timeout_s
        future: asyncio.Future[Tx] = asyncio.get_running_loop().create_future()
        self._expected.setdefault(tx_id, set()).add(future)
        try:
            # It is expected from before it is read: a decision in between is not missed.
            try:
                tx = await self._known(tx_id)
            except LogUnavailable:
                tx = None  # Coming back at once would only storm it.
            if tx is None or tx.decision is None:
                await asyncio.wait({future}, timeout=max(0.0, timeout_s))
                if not future.done():
                    return None
                tx = future.result()
        finally:
            left = self._expected.get(tx_id)
            if left is not None:
                left.discard(future)
                if not left:
                    del self._expected[tx_id]
        return await self.wait(tx, level, until - c.clock.monotonic())

    async def _known(self, tx_id: str) -> Tx | None:
        live = self._c.live.get(tx_id)
        if live is not None:
            return live.tx
        return self.unlogged(tx_id) or await self._read(tx_id)

    async def _read(self, tx_id: str) -> Tx | None:
        """The row as it is in the log now. While one question is on its way the next one fills."""
        future = self._wanted.get(tx_id)
        if future is None:
            future = self._wanted[tx_id] = asyncio.get_running_loop().create_future()
        if not self._reading:
            self._reading = True
            self._spawn(self._read_wanted(), "expected:read")
        return await asyncio.shield(future)

    async def _read_wanted(self) -> None:
        try:
            while self._wanted:
                wanted, self._wanted = self._wanted, {}
                try:
                    rows = await self._c.log.read(list(wanted))
                except Exception as error:
                    for future in wanted.values():
                        future.set_exception(error)
                        future.exception()  # Perhaps nobody is left to look at it.
                    continue
                for tx_id, future in wanted.items():
                    future.set_result(rows.get(tx_id))
        finally:
            self._reading = False
