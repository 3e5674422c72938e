"""What has waited for a target that is back is made due, at a limited pace: what is due first, so many a second.

What this misses is due by itself, at its own time: nothing depends on it but how soon.
"""

from __future__ import annotations

import math

from ..observe import logs
from ..ports import Spawn, Task
from .carrier import Carrier

log = logs.get("txcoord.drain")

_TURN_S = 0.25


class Drain:
    """Of one node, for all targets."""

    def __init__(self, carrier: Carrier, *, spawn: Spawn) -> None:
        self._c = carrier
        self._spawn = spawn
        self._tasks: dict[str, Task] = {}
        self._again: set[str] = set()
        carrier.gate.returned = self.begin

    def begin(self, target: str) -> None:
        """Let what waits for this target go on."""
        task = self._tasks.get(target)
        if task is not None and not task.done():
            self._again.add(target)  # More may wait by now than it has seen.
            return
        self._tasks[target] = self._spawn(self._run(target), f"drain:{target}")

    def stop(self) -> None:
        """End."""
        for task in self._tasks.values():
            task.cancel()

    async def _run(self, target: str) -> None:
        c = self._c
        pulled, saved = 0, 0.0
        try:
            while not c.gate.holds(target):
                pace = min(float(c.settings.gate.drain_per_s), c.gate.pace(target) or math.inf)
                saved = min(saved, 1.0) + pace * _TURN_S
                most = int(saved)
                if not most:
                    await c.clock.sleep(_TURN_S)
                    continue
                found = c.calls.hurry(target, most)
                pulled += found
                saved -= found
                if not found and target not in self._again:
                    break
                self._again.discard(target)
                await c.clock.sleep(_TURN_S)
        finally:
            self._tasks.pop(target, None)
            self._again.discard(target)
        if pulled:
            log.info("drained", target=target, branches=pulled)
