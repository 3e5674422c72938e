"""What has waited for a target that is back is made due, at a limited pace: what is due first, so many a second.

Each node takes what it carries out itself; what was handed off, one node of the fleet takes for all: that has the lease
``drain:<target>``. What this misses is due by itself, at its own time: nothing depends on it but how soon.
"""

from __future__ import annotations

import math

from ..core.calling import op_of
from ..observe import logs
from ..ports import Leases, LogUnavailable, Spawn, Task
from .carrier import Carrier

log = logs.get("txcoord.drain")

_TURN_S = 0.1
"""Short: what is pulled in one turn is called in one burst, and others wait for it."""
_LEASE_US = 10_000_000
_BRANCHES = 8.0
"""Of a transaction, as long as none was seen."""


class Drain:
    """Of one node, for all targets."""

    def __init__(self, carrier: Carrier, *, leases: Leases, spawn: Spawn) -> None:
        self._c = carrier
        self._leases = leases
        self._spawn = spawn
        self._tasks: dict[str, Task] = {}
        self._again: set[str] = set()
        self._branches: dict[str, float] = {}
        """Of a transaction of those that wait for a target, as the last ones were."""
        carrier.gate.returned = self.begin
        carrier.gate.perhaps_back = self._one

    def begin(self, target: str) -> None:
        """Let what waits for this target go on."""
        task = self._tasks.get(target)
        if task is not None and not task.done():
            self._again.add(target)  # More may wait by now than it has seen.
            return
        self._tasks[target] = self._spawn(self._run(target), f"drain:{target}")

    def _one(self, target: str) -> None:
        self._c.calls.hurry(target, 1)

    def stop(self) -> None:
        """End."""
        for task in self._tasks.values():
            task.cancel()

    async def _run(self, target: str) -> None:
        c = self._c
        pulled, saved, then = 0, 0.0, c.clock.monotonic() - _TURN_S
        try:
            while not c.gate.holds(c.gate.called(target)):
                pace = c.gate.pace(c.gate.called(target)) or math.inf
                pace = min(float(c.settings.gate.drain_per_s), pace)
                now = c.clock.monotonic()
                saved, then = min(saved, 1.0) + pace * min(now - then, 2 * _TURN_S), now
                most = int(saved)
                if most <= 0:
                    await c.clock.sleep(_TURN_S)
                    continue
                found = c.calls.hurry(target, most)
                if found < most:
                    found += await self._handed_off(target, most - found)
                pulled += found
                saved -= (
                    found  # If a transaction had more branches than there was room for, that is made up for.
                )
                if not found and target not in self._again:
                    break
                self._again.discard(target)
                await c.clock.sleep(_TURN_S)
        finally:
            self._tasks.pop(target, None)
            self._branches.pop(target, None)
            self._again.discard(target)
            await self._leave(target)
        if pulled:
            log.info("drained", target=target, pulled=pulled)

    async def _handed_off(self, target: str, most: int) -> int:
        """Pull at most so many transactions out of the log, if this node is the one that does. How many branches."""
        c, owner = self._c, self._c.settings.node
        try:
            if await self._leases.acquire(f"drain:{target}", owner, _LEASE_US) is None:
                return 0
            rows_most = max(1, int(most / self._branches.get(target, _BRANCHES)))
            rows = await c.log.claim_waiting(owner, c.settings.lease_us, target, rows_most)
        except LogUnavailable as error:
            log.debug("log.unavailable", duty="drain", reason=str(error))
            self._again.add(target)
            await c.clock.sleep(1)
            return 0
        for tx in rows:
            try:
                c.adopt(tx)
            except Exception:
                log.exception("drain.failed", tx_id=tx.tx_id)
        found = sum(b.resource == target and op_of(b) is not None for tx in rows for b in tx.branches)
        if rows:
            self._branches[target] = max(1.0, found / len(rows))
        return found

    async def _leave(self, target: str) -> None:
        try:
            await self._leases.release(f"drain:{target}", self._c.settings.node)
        except LogUnavailable as error:
            log.debug("log.unavailable", duty="drain", reason=str(error))
