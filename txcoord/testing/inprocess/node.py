"""One coordinator: the real engine, recovery and servicer, on a log in memory. It can be killed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any, Protocol

from ...adapters.embedded import EmbeddedQueue, Tasks
from ...api.grpc.mapping import Limits
from ...api.grpc.operations import Operations
from ...api.grpc.servicer import CoordinatorServicer
from ...core.model import Tx, Windows
from ...engine.coordinator import Coordinator, EngineSettings
from ...engine.due import Carrying
from ...engine.failpoints import Switchboard
from ...engine.recovery import Recovery, RecoverySettings
from ...ports import Caller, ResourceStatus
from ..memory_beside import MemoryLeases
from ..memory_log import MemoryLog, Storage
from .loop import Loop

NAME = "in-process"


class Session(Protocol):
    """A stream to this node."""

    def break_off(self) -> None: ...


_SWEEP_S = 1.0
"""So late a deadline may be noticed."""


class Clock:
    """``ports.Clock`` on a loop's time."""

    def __init__(self, loop: Loop, storage: Storage) -> None:
        self._loop = loop
        self._storage = storage
        self.changed = asyncio.Event()
        """Of the log: something was written."""

    def now_us(self) -> int:
        """The log's time."""
        return self._loop.now_us()

    def observe(self, log_now_us: int) -> None:
        """It is the log's clock."""

    def monotonic(self) -> float:
        """Seconds."""
        return self._loop.now

    async def sleep(self, seconds: float) -> None:
        """Until time has gone on so far. Days may pass in a test: the sweep for deadlines sleeps until there is one."""
        if seconds != _SWEEP_S:
            await asyncio.sleep(seconds)
            return
        while True:
            undecided = [row.deadline_us for row in self._storage.rows.values() if row.decision is None]
            left = max((min(undecided) - self.now_us()) / 1e6, _SWEEP_S) if undecided else None
            self.changed.clear()
            try:
                async with asyncio.timeout(left):
                    await self.changed.wait()
            except TimeoutError:
                return


class _Draws(random.Random):
    """``ports.Randomness``: the same in each run of a test."""


class Node:
    """A process of the coordinator, as it were."""

    def __init__(
        self,
        loop: Loop,
        storage: Storage,
        caller: Caller,
        failpoints: Switchboard,
        resources: Mapping[str, str],
    ) -> None:
        self.dead = False
        self.tasks: set[asyncio.Task[Any]] = set()
        """All that run in it."""
        self.streams: set[Session] = set()
        self._loop = loop
        self._storage = storage
        self._urls = resources
        self._spawned = Tasks()
        self._finishers: dict[str, Any] = {}
        self._identities: dict[str, str] = {}
        self._caller = caller
        self._failpoints = failpoints
        self.log = MemoryLog(storage)
        self.clock = Clock(loop, storage)
        self.coordinator: Coordinator
        self.servicer: CoordinatorServicer

    async def start(self) -> None:
        """Take up what is in the log."""
        clock = self.clock
        for name, url in self._urls.items():
            finisher = Holding(self._loop, _finisher(name, url, self._storage.windows))
            self._finishers[name] = finisher
            self._identities[name] = await finisher.identity()
        queue = EmbeddedQueue(clock, self._spawned.spawn)
        coordinator = Coordinator(
            self.log,
            self._finishers,
            settings=EngineSettings(NAME, windows=self._storage.windows, shared=False),
            clock=clock,
            randomness=_Draws(7),
            spawn=self._spawned.spawn,
            failpoints=self._failpoints,
            caller=self._caller,
            queue=queue,
        )
        coordinator.identity = self._storage.identity
        recovery = Recovery(
            coordinator,
            leases=MemoryLeases(self._storage),
            # Seldom, since days may pass: the log is ours alone.
            settings=RecoverySettings(
                deadline_sweep_s=_SWEEP_S, takeover_s=10.0, scan_s=30.0, prune_s=3_600.0
            ),
            spawn=self._spawned.spawn,
            failpoints=self._failpoints,
        )
        await recovery.start()
        await queue.start(Carrying(coordinator, failpoints=self._failpoints).carry)
        self.coordinator = coordinator
        operations = Operations(coordinator, Limits(), self._statuses)
        self.servicer = CoordinatorServicer(operations, max_operations=1_000, now_us=clock.now_us)

    def _statuses(self) -> list[ResourceStatus]:
        return [ResourceStatus(name, f.engine, self._identities[name]) for name, f in self._finishers.items()]

    @property
    def crashes(self) -> int:
        """Tasks of the engine that have ended with an error: a bug."""
        return self._spawned.crashes

    def look(self, tx_id: str) -> Tx | None:
        """A transaction as this node sees it; not as the log has it, which may lag behind."""
        live = self.coordinator.live.get(tx_id)
        return live.tx if live is not None else None

    def kill(self) -> None:
        """As SIGKILL: nothing is written any more, nothing is said."""
        self.dead = True
        self.log.abandon()

    async def gone(self) -> None:
        """Its connections break."""
        for finisher in self._finishers.values():
            await finisher.close()


def _finisher(name: str, url: str, windows: Windows) -> Any:
    # Here: their drivers take long to import, and most tests have no database.
    from ...adapters.xa.mariadb import MariaFinisher
    from ...adapters.xa.postgresql import PostgresFinisher
    from ...config import engine_of

    make = PostgresFinisher if engine_of(url) == "postgresql" else MariaFinisher
    return make(name, url, windows=windows, width=2, timeout_s=10.0)


class Holding:
    """A finisher at a real database: while it is asked, time stands still."""

    def __init__(self, loop: Loop, finisher: Any) -> None:
        self._loop = loop
        self._finisher = finisher

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._finisher, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def held(*args: Any, **kwargs: Any) -> Any:
            with self._loop.holding():
                return await found(*args, **kwargs)

        return held
