"""A coordinator in this process that can die at any crash point, on a real log and real databases.

Dying is what SIGKILL does: nothing is flushed, nothing is said, every task and connection is gone. What a next one
finds is what was durable.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from txcoord.adapters.embedded import InProcessLeases, SystemClock, Tasks
from txcoord.adapters.sql.log import SqlLog
from txcoord.adapters.xa.postgresql import PostgresFinisher
from txcoord.core.backoff import Backoff
from txcoord.core.model import Windows
from txcoord.engine.coordinator import Coordinator, EngineSettings
from txcoord.engine.recovery import Recovery, RecoverySettings

T = TypeVar("T")
RARELY_S = 3600.0
"""Recovery's loops take one turn at the start; further ones are the scenario's."""


class Died(Exception):
    """The coordinator died under this call: whether it was done is not known."""


Hit = tuple[str, int]
"""The name of a crash point, and which time it is reached."""


class Points:
    """``ports.Failpoints``: counts what is reached, and kills at one hit; then counts anew, and may kill again."""

    def __init__(self, *crashes: Hit) -> None:
        self.hits: list[Counter[str]] = [Counter()]
        """Before the first crash, between it and the second, …"""
        self.process: Process | None = None
        self._crashes = list(crashes)

    @property
    def unfired(self) -> list[Hit]:
        """The crashes that did not happen."""
        return self._crashes

    async def reach(self, name: str) -> None:
        process = self.process
        assert process is not None
        if process.dead.is_set():
            # A thread of its log may end after it: nothing more of it is seen.
            await asyncio.get_running_loop().create_future()
        hits = self.hits[-1]
        hits[name] += 1
        if self._crashes and self._crashes[0] == (name, hits[name]):
            self._crashes.pop(0)
            self.hits.append(Counter())
            process.die()
            await asyncio.get_running_loop().create_future()


class Process:
    """One life of a coordinator."""

    def __init__(
        self, log_url: str, databases: Mapping[str, str], windows: Windows, points: Points, name: str = "n1"
    ) -> None:
        self.points = points
        self.dead = asyncio.Event()
        self.log = SqlLog(log_url, windows=windows, tick_s=RARELY_S)
        self._count_writes(self.log.store)
        self.clock = SystemClock()
        self.finishers = {key: PostgresFinisher(key, url, windows=windows) for key, url in databases.items()}
        self._tasks = Tasks()
        self.coordinator = Coordinator(
            self.log,
            self.finishers,
            settings=EngineSettings(name, windows=windows, backoff=Backoff(first_us=20_000, cap_us=50_000)),
            clock=self.clock,
            randomness=random.Random(1),
            spawn=self._tasks.spawn,
            failpoints=points,
        )
        self.recovery = Recovery(
            self.coordinator,
            leases=InProcessLeases(self.clock.now_us),
            settings=RecoverySettings(RARELY_S, RARELY_S, RARELY_S, RARELY_S),
            spawn=self._tasks.spawn,
            failpoints=points,
        )
        points.process = self

    def _count_writes(self, store: Any) -> None:
        """Every durable step of the log is a crash point too: before it, and after it with its reply lost."""

        def around(real: Callable[..., Any], name: str) -> Callable[..., Any]:
            async def counted(*arguments: Any, **options: Any) -> Any:
                if name == "log.flush" and not arguments[0]:
                    return await real(*arguments, **options)  # Only asks.
                await self.points.reach(f"{name}.before")
                out = await real(*arguments, **options)
                await self.points.reach(f"{name}.after")
                return out

            return counted

        store.write = around(store.write, "log.flush")
        store.changing = around(store.changing, "log.change")

    async def start(self) -> None:
        """As a process starts. Raises Died."""

        async def start() -> None:
            self.coordinator.identity = await self.log.open()
            self.clock.observe(await self.log.now_us())
            await self.recovery.start()

        await self.call(start())

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """A caller's request. Raises Died."""
        task = asyncio.ensure_future(work)
        dead = asyncio.ensure_future(self.dead.wait())
        try:
            await asyncio.wait({task, dead}, return_when=asyncio.FIRST_COMPLETED)
            if self.dead.is_set():
                raise Died
            return task.result()
        finally:
            for each in (task, dead):
                each.cancel()
            await asyncio.gather(task, dead, return_exceptions=True)

    def die(self) -> None:
        """From now on nothing of it reaches log or databases."""
        self.log.abandon()
        for finisher in self.finishers.values():
            finisher._forget_idle()
        self.dead.set()

    async def bury(self) -> None:
        """End what is left of it in this process."""
        if not self.dead.is_set():
            self.die()
        await self._tasks.stop()
        for finisher in self.finishers.values():
            await finisher.close()


def crash_points(hits: Mapping[str, int]) -> list[Hit]:
    """Every hit of every name."""
    return [(name, hit) for name, count in hits.items() for hit in range(1, count + 1)]
