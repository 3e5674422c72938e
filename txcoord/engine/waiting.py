"""Waiting for a transaction: one that is known, or one that may not be known yet.

The second is for who holds a prepared branch of it: thousands of them wait most of the time. What is decided and
carried out on this node is told at once. What other nodes do is in the log: one question for all who wait asks it,
again and again, and no more often than the log has time for. Nodes that can wake each other up say what they have
decided or ended: whoever waits for that looks at once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..core.evolve import replace
from ..core.model import Decision, Tx, TxState
from ..observe import logs
from ..ports import Clock, Log, LogUnavailable, Spawn, Wakeups
from .live import LiveSet, WaitLevel, reached

log = logs.get("txcoord.waiting")

_UNLOGGED_KEPT = 10_000
_RATIO = 4
"""Between two questions there is this many times as long as the last one took."""
_DECIDED = "decided"
_ENDED = "ended"
_AWAY_S = 1.0
"""But no longer than that after one that had no answer: how long that took says nothing of how busy the log is."""


class _Coordinator(Protocol):
    log: Log
    live: LiveSet
    clock: Clock

    async def get(self, tx_id: str) -> Tx | None: ...


@dataclass(eq=False, slots=True)
class _Watcher:
    """Who wants to look at a transaction again when there is news of it."""

    future: asyncio.Future[Tx | None]
    """The transaction as it was decided here, or None: the log has news."""
    ended: bool
    """It is decided already: the news is its end."""
    polled: bool


class Waiting:
    """Who waits on this node. ``shared``: other nodes decide too."""

    def __init__(
        self,
        coordinator: _Coordinator,
        *,
        spawn: Spawn,
        interval_s: float,
        shared: bool,
        wakeups: Wakeups | None = None,
    ) -> None:
        self._c = coordinator
        self._spawn = spawn
        self._interval_s = interval_s
        self._shared = shared
        self._wakeups = wakeups
        if wakeups is not None:
            wakeups.hear(_DECIDED, self._heard_decided)
            wakeups.hear(_ENDED, self._heard_ended)
        self._watched: dict[str, set[_Watcher]] = {}
        self._polling = False
        self._unlogged: OrderedDict[str, Tx] = OrderedDict()
        """Aborts that no row says: nobody else can tell who asks later."""
        self._wanted: dict[str, asyncio.Future[Tx | None]] = {}
        self._reading = False

    def __len__(self) -> int:
        return sum(len(watchers) for watchers in self._watched.values())

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
            if live is not None and live.tx.state is not TxState.ACTIVE:
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
            # Undecided, or another node carries it out: the log tells. Watched from before it is read.
            watcher = self._watch(tx.tx_id, ended=level > WaitLevel.DECIDED)
            try:
                tx = await self._as_logged(tx)
                if reached(tx, level):
                    return tx
                if tx.ended:
                    await c.clock.sleep(min(left, self._interval_s))  # Its deliveries go on.
                else:
                    await asyncio.wait({watcher.future}, timeout=max(0.0, until - c.clock.monotonic()))
            finally:
                self._leave(tx.tx_id, watcher)

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
        else:
            self.tell_others(tx)
        self._tell(tx.tx_id, tx)

    def tell_others(self, tx: Tx) -> None:
        """It is in the log now that this is decided, or has ended: whoever waits for it on another node may look."""
        if self._wakeups is not None:
            self._wakeups.tell(_ENDED if reached(tx, WaitLevel.COMMITTED) else _DECIDED, tx.tx_id)

    def _heard_decided(self, tx_ids: Sequence[str]) -> None:
        for tx_id in tx_ids:
            self._tell(tx_id, None, only_undecided=True)

    def _heard_ended(self, tx_ids: Sequence[str]) -> None:
        for tx_id in tx_ids:
            self._tell(tx_id, None)

    def unlogged(self, tx_id: str) -> Tx | None:
        """An abort of this node's that no row says."""
        tx = self._unlogged.get(tx_id)
        if tx is not None and not tx.ended and self._c.live.get(tx_id) is None:
            # It is not on its way any more, so all of it is undone; else a row would say so.
            tx = self._unlogged[tx_id] = replace(tx, state=TxState.ABORTED)
        return tx

    async def expect(self, tx_id: str, level: WaitLevel, timeout_s: float) -> Tx | None:
        """As :meth:`wait`, and for its decision first; None while there is none, or no such transaction."""
        until = self._c.clock.monotonic() + timeout_s
        while True:
            # It is expected from before it is read: a decision in between is not missed.
            watcher = self._watch(tx_id, ended=False, polled=self._shared)
            try:
                try:
                    tx = await self._known(tx_id)
                except LogUnavailable:
                    tx = None  # Coming back at once would only storm it.
                if tx is None or tx.decision is None:
                    left = until - self._c.clock.monotonic()
                    await asyncio.wait({watcher.future}, timeout=max(0.0, left))
                    if not watcher.future.done():
                        return None
                    tx = watcher.future.result()
            finally:
                self._leave(tx_id, watcher)
            if tx is not None:
                return await self.wait(tx, level, until - self._c.clock.monotonic())

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

    # ---- news ----

    def _watch(self, tx_id: str, *, ended: bool, polled: bool = True) -> _Watcher:
        watcher = _Watcher(asyncio.get_running_loop().create_future(), ended, polled)
        self._watched.setdefault(tx_id, set()).add(watcher)
        if polled and not self._polling:
            self._polling = True
            self._spawn(self._poll(), "waiting:poll")
        return watcher

    def _leave(self, tx_id: str, watcher: _Watcher) -> None:
        watchers = self._watched.get(tx_id)
        if watchers is not None:
            watchers.discard(watcher)
            if not watchers:
                del self._watched[tx_id]

    def _tell(self, tx_id: str, tx: Tx | None, *, only_undecided: bool = False) -> None:
        for watcher in self._watched.get(tx_id, ()):
            if not watcher.future.done() and not (only_undecided and watcher.ended):
                watcher.future.set_result(tx)

    async def _poll(self) -> None:
        """Ask the log for all who wait, as long as anybody does."""
        clock = self._c.clock
        pause = 0.0
        try:
            while True:
                await clock.sleep(max(self._interval_s, pause))
                undecided, unended = self._asked_for()
                if not undecided and not unended:
                    return
                begun = clock.monotonic()
                pause = _AWAY_S
                try:
                    decided, ended = await self._c.log.news(undecided, unended)
                except LogUnavailable:
                    continue
                except Exception:
                    log.exception("waiting.poll_failed")
                    continue
                pause = (clock.monotonic() - begun) * _RATIO
                for tx_id in ended:
                    self._tell(tx_id, None)
                for tx_id in decided:
                    self._tell(tx_id, None, only_undecided=True)
        finally:
            self._polling = False

    def _asked_for(self) -> tuple[list[str], list[str]]:
        """Of which a decision is wanted, and of which the end. What is carried out here is told here."""
        undecided, unended = [], []
        for tx_id, watchers in self._watched.items():
            waiting = [w for w in watchers if w.polled and not w.future.done()]
            live = self._c.live.get(tx_id)
            # What a client decides, and whose steps are run here, may be decided on any node.
            if waiting and (live is None or live.tx.state is TxState.ACTIVE):
                if any(not w.ended for w in waiting):
                    undecided.append(tx_id)
                if any(w.ended for w in waiting):
                    unended.append(tx_id)
        return undecided, unended
