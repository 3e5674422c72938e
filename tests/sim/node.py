"""A coordinator node: the real engine, recovery, log and finishers, and the real servicer, in a simulated process."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc

from txcoord.adapters.calling.credentials import Credentials
from txcoord.adapters.calling.dialling import Dialling
from txcoord.adapters.calling.grpc_ import GrpcCaller
from txcoord.adapters.embedded import SystemClock, Tasks
from txcoord.adapters.sql.leases import SqlLeases
from txcoord.adapters.xa.mariadb import MariaFinisher
from txcoord.adapters.xa.postgresql import PostgresFinisher
from txcoord.api.grpc.mapping import Limits
from txcoord.api.grpc.operations import Operations
from txcoord.api.grpc.servicer import CoordinatorServicer
from txcoord.core.action import Answer
from txcoord.core.targets import ANYBODY, Target
from txcoord.engine.coordinator import Coordinator, EngineSettings
from txcoord.engine.due import Carrying
from txcoord.engine.gate import Gate
from txcoord.engine.recovery import RecoverySettings
from txcoord.ports import CallRequest, LogUnavailable, Queue, ResourceStatus
from txcoord.wiring.careful import CarefulLeases, CarefulRecovery
from txcoord.wiring.node import Node

from .log import new_log
from .loop import Process
from .queue import called, queue_of, watch_claims
from .settings import (
    BACKOFF,
    GATE,
    HAND_OFF_US,
    HOLD_US,
    LEASE_US,
    OVERDUE_US,
    RETRY,
    SCAN_S,
    SWEEP_S,
    TAKEOVER_S,
    TOLERANCE_US,
    WIDTH,
)

if TYPE_CHECKING:
    from .world import World


_DRAIN_S = 3.0
"""``node.drain_timeout`` of such a world."""


class _Random(random.Random):
    """``ports.Randomness``."""


class _House(Node):
    """What of a node its end needs: the rest is made here."""

    def __init__(self, name: str, coordinator: Coordinator, recovery: Any, log: Any, clock: Any) -> None:
        self.settings: Any = SimpleNamespace(node_name=name)
        self.resources: Any = SimpleNamespace(by_name=coordinator.finishers)
        self.log, self.clock = log, clock
        self._coordinator, self._recovery, self._leases = coordinator, recovery, recovery._leases
        self._replayer = None


_PULLED_US = 5_000_000


class _Caller(GrpcCaller):
    """The real one; nobody looks up where a simulated participant is."""

    def __init__(self, world: World, node: str, log_id: str) -> None:
        self._world = world
        super().__init__(node=node, credentials=Credentials(ANYBODY), dialling=Dialling(ANYBODY))
        self.log_id = log_id
        self.gate: Gate | None = None
        self._known: dict[Target, grpc.aio.Channel] = {}

    def call(
        self, target: Any, requests: Sequence[CallRequest], timeout_s: float
    ) -> AsyncIterator[tuple[CallRequest, Answer]]:
        seen = self.gate.seen().get(str(target)) if self.gate is not None else None
        now_us = self._world.log.now_us()
        # What has waited for a target that is back is pulled forward.
        back = seen is not None and seen.since_us > 0 and now_us - seen.since_us < _PULLED_US
        for request in () if back else requests:
            called(self._world, request.tx, request.branch.id)
        return super().call(target, requests, timeout_s)

    async def _channel(self, target: Target) -> grpc.aio.Channel:
        found = self._known.get(target)
        if found is None:
            found = self._known[target] = grpc.aio.insecure_channel(f"{target.host}:{target.port}")
        return found


class SimNode:
    """One place where a node runs; its processes come and go."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.process: Process | None = None
        self.servicer: CoordinatorServicer | None = None
        self.coordinator: Coordinator | None = None
        self._house: _House | None = None
        self._carrying: Carrying
        self._queue: Queue
        self.wall_off_us = 0
        """How far its machine's wall clock is off."""
        self._incarnation = 0

    @property
    def up(self) -> bool:
        """Is there a process?"""
        return self.process is not None and self.process.alive

    def start(self) -> None:
        """A new process."""
        if self.up:
            return
        self._incarnation += 1
        self.servicer = None
        self.coordinator = None
        self._house = None
        self.process = Process(self.world.loop, f"{self.name}#{self._incarnation}")
        self.process.start(self._run(self.process), "node")

    async def _run(self, process: Process) -> None:
        """As ``wiring.Node`` does it. Without the log there is no node: the next one is started soon."""
        world = self.world
        rng = world.rng(f"{process.name}")
        base_us = rng.randrange(10**12)
        clock = SystemClock(
            wall_us=lambda: world.now_us() + self.wall_off_us,
            monotonic_us=lambda: base_us + int(world.loop.now * 1e6),
        )
        tasks = Tasks()
        log = new_log(world, process, world.windows)
        try:
            await log.store.open()
            log._open = True
            from txcoord.adapters.sql import reading

            identity = await log.store.reading(reading.identity)
            clock.observe(await log.now_us())
            finishers = {d.name: self._finisher(d) for d in world.databases.values()}
            caller = _Caller(world, self.name, identity.log_id)
            watch_claims(world, process, log)
            queue = queue_of(world, process, clock, tasks.spawn)
            coordinator = Coordinator(
                log,
                finishers,
                settings=EngineSettings(
                    self.name,
                    windows=world.windows,
                    lease_us=LEASE_US,
                    backoff=BACKOFF,
                    retry=RETRY,
                    hold_us=HOLD_US,
                    finish_width=WIDTH,
                    gate=GATE,
                    hand_off_us=HAND_OFF_US,
                    overdue_us=OVERDUE_US,
                ),
                clock=clock,
                randomness=_Random(rng.getrandbits(64)),
                spawn=tasks.spawn,
                failpoints=_Failpoints(world, process),
                caller=caller,
                queue=queue,
            )
            coordinator.identity = identity
            caller.gate = coordinator.gate
            recovery = CarefulRecovery(
                coordinator,
                leases=CarefulLeases(
                    # The real ones in some worlds: they cost much of a world's time.
                    SqlLeases(log) if world.plan.seed % 8 == 0 else log.store,
                    clock,
                    TOLERANCE_US,
                ),
                settings=RecoverySettings(
                    deadline_sweep_s=SWEEP_S,
                    scan_s=SCAN_S,
                    takeover_s=TAKEOVER_S,
                    prune_s=world.plan.prune_s,
                    deadline_max_us=20_000_000,
                ),
                spawn=tasks.spawn,
                failpoints=_Failpoints(world, process),
            )
            recovery.watch_clock(clock, TOLERANCE_US)
            await recovery.start()
            carrying = Carrying(coordinator, failpoints=_Failpoints(world, process))
            await queue.start(carrying.carry)
        except LogUnavailable:
            world.loop.outside(1.0, self._again, process)
            return
        world.watch_node(self, coordinator, recovery, tasks)
        self.coordinator = coordinator
        self._house = _House(self.name, coordinator, recovery, log, clock)
        self._carrying, self._queue = carrying, queue
        limits = Limits(deadline_default_us=5_000_000, deadline_max_us=20_000_000, wait_max_us=5_000_000)
        operations = Operations(coordinator, limits, self._statuses)
        self.servicer = CoordinatorServicer(operations, max_operations=1_000, now_us=clock.now_us)
        while True:
            await clock.sleep(4.0)
            try:
                clock.observe(await log.now_us())
            except LogUnavailable:
                continue

    async def leave(self) -> None:
        """As ``wiring.Node.stop``: take nothing new, end what is live, hand the rest over, go."""
        process, house, servicer = self.process, self._house, self.servicer
        assert process is not None
        if house is not None and servicer is not None and not servicer.draining:
            self.world.note("leaving", who=process.name)
            until = self.world.loop.now + _DRAIN_S
            servicer.drain()
            self._carrying.leave()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(servicer.drained(), _DRAIN_S)
            while house._going_on() and self.world.loop.now < until:  # noqa: ASYNC110 - as there
                await asyncio.sleep(0.01)
            await self._queue.stop()
            await house._hand_over()
            with contextlib.suppress(LogUnavailable, TimeoutError):
                await asyncio.wait_for(house.log.settle(), 1.0)
        self.world.crash(process)

    def _again(self, process: Process) -> None:
        if self.process is process:
            process.kill()
            self.start()

    def _finisher(self, database: Any) -> Any:
        make = PostgresFinisher if database.kind == "postgresql" else MariaFinisher
        scheme = database.kind
        return make(
            database.name,
            f"{scheme}://sim@{database.name}/x",
            windows=self.world.windows,
            expected_identity=database.identity,
            width=4,
            timeout_s=2.0,
        )

    def _statuses(self) -> list[ResourceStatus]:
        return [ResourceStatus(d.name, d.kind, d.identity) for d in self.world.databases.values()]


class _Failpoints:
    """``ports.Failpoints``: a process may die at any of them."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    async def reach(self, name: str) -> None:
        do = self._world.point(name, self._process, "", "")
        if do == "crash_client":
            self._world.crash(self._process)
            await self._world.loop.create_future()
        elif do.startswith("stop_client"):
            self._world.stop(self._process, float(do[11:]))
            # It stands still from here on: what follows runs when it wakes.
            await self._world.turn()
