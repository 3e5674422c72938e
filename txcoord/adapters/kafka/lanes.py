"""What is due, target by target: one that hangs holds up nobody else's."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from ...observe import logs
from ...ports import Due, Spawn
from .partitions import Partition

log = logs.get("txcoord.queue")

Carry = Callable[[Sequence[Due]], Awaitable[None]]
_AGAIN_S: Final = 1.0


@dataclass(slots=True)
class _Lane:
    due: deque[tuple[Partition | None, int, Due]] = field(default_factory=deque)
    carried: int = 0


class Lanes:
    """Gives out ``batch`` of one target at a time, and no more than ``width`` of it at once.

    One that has as many again waiting is crowded; with ``keep`` in all lanes together these are full.
    """

    def __init__(self, spawn: Spawn, *, batch: int = 100, width: int = 1_000, keep: int = 20_000) -> None:
        self._spawn = spawn
        self._batch = batch
        self._width = width
        self._keep = keep
        self._carry: Carry | None = None
        self._lanes: dict[str, _Lane] = {}
        self._count = 0
        self._tasks: set[asyncio.Future[None]] = set()
        self._stopped = False

    def start(self, carry: Carry) -> None:
        """Begin."""
        self._carry = carry

    @property
    def count(self) -> int:
        """How many are due, or are being carried out."""
        return self._count

    @property
    def full(self) -> bool:
        """Is nothing more to be read for now?"""
        return self._count >= self._keep

    def crowded(self, target: str) -> bool:
        """Has this target enough to do?"""
        lane = self._lanes.get(target)
        return lane is not None and len(lane.due) >= self._width

    def put(self, part: Partition | None, offset: int, due: Due) -> None:
        """It is due; ``part``: the partition of which it is consumed when it is done."""
        self._lanes.setdefault(due.target, _Lane()).due.append((part, offset, due))
        self._count += 1

    def give_out(self) -> None:
        """Have carried out what is due."""
        for target in list(self._lanes):
            self._give_out(target, self._lanes[target])

    async def stop(self) -> None:
        """End; what is being carried out is left as it is, and not consumed."""
        self._stopped = True
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _give_out(self, target: str, lane: _Lane) -> None:
        while lane.due and lane.carried < self._width and not self._stopped:
            batch: list[tuple[Partition | None, int, Due]] = []
            most = min(self._batch, self._width - lane.carried)
            while lane.due and len(batch) < most:
                one = lane.due.popleft()
                if one[0] is not None and one[0].gone:
                    self._count -= 1  # Whoever has the partition now reads it again.
                else:
                    batch.append(one)
            if batch:
                lane.carried += len(batch)
                task = self._spawn(self._carried(target, lane, batch), f"queue:{target}")
                assert isinstance(task, asyncio.Future)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        if not lane.due and not lane.carried:
            self._lanes.pop(target, None)  # Targets come and go.

    async def _carried(
        self, target: str, lane: _Lane, batch: Sequence[tuple[Partition | None, int, Due]]
    ) -> None:
        assert self._carry is not None
        done = False
        try:
            await self._carry([due for _, _, due in batch])
            done = True
        except Exception:
            # What became of them is not known, so they are not consumed.
            log.exception("queue.carry_failed", target=target, count=len(batch))
            await asyncio.sleep(_AGAIN_S)
        finally:
            lane.carried -= len(batch)
            if done:
                self._count -= len(batch)
                for part, offset, _ in batch:
                    if part is not None:
                        part.consumed(offset)
            else:
                lane.due.extendleft(reversed(batch))
            if not self._stopped and self._lanes.get(target) is lane:
                self._give_out(target, lane)
