"""Deadlines: what is undecided and late is aborted.

A transaction that may have been committed in one phase is decided by its own database, which has to be asked
first: itself, or through the participant whose it is. That may take long, or fail: it is done aside, so that no other
deadline waits for it, and again until there is an answer. Silence is none.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping

from ..core import answering
from ..core.errors import Refused
from ..core.model import Tx, TxState
from ..core.plans import runs
from ..observe import logs
from ..ports import LogUnavailable, Spawn, Task
from .coordinator import Coordinator

log = logs.get("txcoord.deadlines")

_WIDTH = 4
_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_STUCK_US = 60_000_000
"""So long after its deadline, or after somebody has asked for its abort, a plan in doubt whose steps still do not say
whether they were done is for a person to see."""


class Deadlines:
    """Aborts what is undecided past its deadline."""

    def __init__(self, coordinator: Coordinator, *, batch: int, spawn: Spawn) -> None:
        self._c = coordinator
        self._batch = batch
        self._spawn = spawn
        self._asked: dict[str, str] = {}
        """Those that wait for an answer, and whose it is."""
        self._silent: Counter[str] = Counter()
        """How often in a row a participant has not answered."""
        self._due: dict[str, deque[Tx]] = {}
        self._workers: dict[str, set[Task]] = {}
        self._stuck: set[str] = set()
        """Plans that there was an alarm for."""
        self._unwanted: dict[str, int] = {}
        """Plans in doubt that somebody wants aborted: since when that is known here."""

    @property
    def asking(self) -> Mapping[str, int]:
        """How many wait for an answer, by the resource or participant that is asked."""
        return Counter(answering.target_of(name) or name for name in self._asked.values())

    async def sweep(self) -> int:
        """Look at all that are late. How many there were."""
        # The oldest come first: those that are being asked about must not hide the others.
        late = await self._c.log.overdue(self._batch + len(self._asked))
        ended = await asyncio.gather(
            *(self._expire(tx) for tx in late if not tx.one_phase_resource), return_exceptions=True
        )
        for tx in late:
            if tx.one_phase_resource and tx.tx_id not in self._asked:
                self._ask(tx)
        self._forget()
        now_us = self._c.clock.now_us()
        # A plan is seen to by whoever runs it. In doubt its steps decide, and side by side they share flushes.
        plans = [
            tx
            for tx in (live.tx for live in self._c.live)
            if tx.decision is None
            and tx.deadline_us < now_us
            and not tx.one_phase_resource
            and not tx.in_doubt
        ]
        self._look_for_stuck(now_us)
        ended += await asyncio.gather(*map(self._expire, plans), return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException):
                raise error
        return len(late)

    def _look_for_stuck(self, now_us: int) -> None:
        """Alarm once for each plan that nothing ends but an answer of its steps."""
        in_doubt = {
            tx.tx_id: tx
            for tx in (live.tx for live in self._c.live)
            if tx.state is TxState.RUNNING and tx.in_doubt
        }
        self._unwanted = {
            tx_id: self._unwanted.get(tx_id, now_us)
            for tx_id, tx in in_doubt.items()
            if tx.unwanted is not None
        }
        stuck = {
            tx_id: tx
            for tx_id, tx in in_doubt.items()
            if min(tx.deadline_us, self._unwanted.get(tx_id, tx.deadline_us)) + _STUCK_US < now_us
        }
        for tx_id in stuck.keys() - self._stuck:
            step = next((b for b in stuck[tx_id].branches if runs(stuck[tx_id], b)), None)
            if step is not None:
                detail = f"{step.resource} does not say whether it was done: {step.reason}"
                self._c.alarm("plan_in_doubt", tx_id, step.id, detail)
        self._stuck = set(stuck)

    def stop(self) -> None:
        """End the workers."""
        for workers in self._workers.values():
            for worker in workers:
                worker.cancel()

    async def _expire(self, tx: Tx) -> float:
        """Expire one. 0, or, where there was no answer, for how many seconds nobody is to be asked again. One bad row
        stops no other."""
        name = tx.one_phase_resource
        try:
            await self._c.expire(tx)
        except Refused as refused:
            refusal = refused.refusal
            log.warning(
                "deadline.refused", tx_id=tx.tx_id, reason=refusal.reason, asked=name, why=refusal.message
            )
            return self._pause_s(name, refusal.reason == "NOT_ANSWERED", refusal.retry_after_us)
        except LogUnavailable:
            raise
        except Exception:
            log.exception("deadline.failed", tx_id=tx.tx_id)
            return _PAUSE_S
        self._silent.pop(name, None)
        return 0.0

    def _pause_s(self, name: str, silent: bool, least_us: int) -> float:
        """A database that does not answer is not stormed, and a service still less: it may be away for days."""
        if not silent:
            self._silent.pop(name, None)
            return _PAUSE_S
        self._silent[name] = times = min(self._silent[name] + 1, 16)
        return max(min(_PAUSE_S * 2.0 ** (times - 1), _LONGEST_PAUSE_S), least_us / 1e6)

    def _forget(self) -> None:
        """Whoever is not asked any more: senders name whom they like."""
        for name, workers in list(self._workers.items()):
            if not self._due[name] and all(w.done() for w in workers):
                del self._workers[name], self._due[name]
                self._silent.pop(name, None)

    def _ask(self, tx: Tx) -> None:
        name = tx.one_phase_resource
        self._asked[tx.tx_id] = name
        self._due.setdefault(name, deque()).append(tx)
        workers = {w for w in self._workers.get(name, set()) if not w.done()}
        if len(workers) < _WIDTH:
            workers.add(self._spawn(self._work(name), f"deadline:{name}"))
        self._workers[name] = workers

    async def _work(self, name: str) -> None:
        due = self._due[name]
        while due:
            tx = due.popleft()
            try:
                pause_s = await self._expire(tx)
            except LogUnavailable:
                pause_s = _PAUSE_S
            try:
                if pause_s:
                    await self._c.clock.sleep(pause_s)
            finally:
                del self._asked[tx.tx_id]  # The next sweep brings it again.
