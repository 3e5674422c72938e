"""A coordinator node for tests: the real engine, on a log in memory, that can be killed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any

from txcoord.adapters.embedded import EmbeddedQueue
from txcoord.core.events import Begin, Commit, Enlist, OnePhaseDone, Rollback
from txcoord.core.model import Branch, BranchState, Kind, Tx, Windows
from txcoord.engine.coordinator import Coordinator, EngineSettings
from txcoord.engine.due import Carrying
from txcoord.engine.failpoints import Switchboard
from txcoord.engine.live import WaitLevel
from txcoord.engine.recovery import Recovery, RecoverySettings
from txcoord.ports import Caller, Clock, Due, Finisher, Queue, SharedGate, TargetRules
from txcoord.testing.memory_beside import MemoryLeases
from txcoord.testing.memory_log import LOG_ID, MemoryLog, Storage
from txcoord_client.protocol import identifiers
from txcoord_client.protocol.xid import Xid

_numbers = random.Random(7)


def tx_id_at(now_us: int) -> str:
    return identifiers.new_tx_id(now_us, _numbers.getrandbits)


def new_tx(clock: Clock, *, gid: str = "", deadline_s: float = 30.0, one_phase: str = "") -> Tx:
    """A transaction as its initiator makes it."""
    now_us = clock.now_us()
    return Tx(
        tx_id_at(now_us),
        "shop",
        now_us + round(deadline_s * 1_000_000),
        gid,
        one_phase_resource=one_phase,
    )


def xid_of(tx: Tx, branch: str, log_id: str = LOG_ID, session: int = 0) -> str:
    return str(Xid(log_id, tx.deadline_us, tx.tx_id, branch, session))


def xa(
    tx: Tx, branch: str, resource: str, state: BranchState = BranchState.READY, *, session: int = 0
) -> Branch:
    """An XA branch, on MariaDB with the session that prepares it."""
    return Branch(branch, Kind.XA, state, resource, xid_of(tx, branch, session=session))


class EagerQueue(EmbeddedQueue):
    """It needs no start: a node may only carry out what it is told, without its loops."""

    carrying: Carrying

    async def start(self, carry: Any) -> None:
        if self._carry is None:
            await super().start(carry)

    def put(self, due: Due) -> None:
        if self._carry is None:
            self._carry = self.carrying.carry
            self._begin(self._tell_time(), "queue:timer")
        super().put(due)


class Node:
    """One process: coordinator and recovery."""

    def __init__(
        self,
        storage: Storage,
        databases: Mapping[str, Finisher],
        clock: Clock,
        *,
        name: str = "a",
        windows: Windows | None = None,
        recovery: RecoverySettings | None = None,
        lazy_s: float | None = 0.02,
        latency_s: float = 0.001,
        caller: Caller | None = None,
        queue: Queue | None = None,
        shared_gate: SharedGate | None = None,
        targets: TargetRules | None = None,
        **settings: Any,
    ) -> None:
        self.storage = storage
        self.clock = clock
        self.failpoints = Switchboard()
        self.log = MemoryLog(storage, lazy_s=lazy_s, latency_s=latency_s)
        self.tasks: set[asyncio.Task[None]] = set()
        self.crashes: list[BaseException] = []
        self.queue = queue or EagerQueue(clock, self._spawn)
        self.coordinator = Coordinator(
            self.log,
            databases,
            settings=EngineSettings(name, windows=windows or storage.windows, **settings),
            clock=clock,
            randomness=random.Random(1),
            spawn=self._spawn,
            failpoints=self.failpoints,
            caller=caller,
            queue=self.queue,
            shared_gate=shared_gate,
        )
        self.carrying = Carrying(self.coordinator, failpoints=self.failpoints)
        if isinstance(self.queue, EagerQueue):
            self.queue.carrying = self.carrying
        self.coordinator.identity = storage.identity
        self.recovery = Recovery(
            self.coordinator,
            leases=MemoryLeases(storage),
            settings=recovery or RecoverySettings(),
            spawn=self._spawn,
            failpoints=self.failpoints,
            targets=targets,
        )

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.crashes.append(error)

    async def start(self) -> None:
        await self.recovery.start()
        await self.queue.start(self.carrying.carry)

    async def kill(self) -> None:
        """As SIGKILL would: nothing is flushed, nothing is said."""
        self.log.abandon()
        await self._end()

    async def stop(self) -> None:
        self.recovery.stop()
        self.coordinator.phase_two.stop()
        self.coordinator.calls.stop()
        await self._end()
        assert not self.crashes, self.crashes

    async def _end(self) -> None:
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- what clients ask ----

    async def begin(self, tx: Tx) -> Tx:
        return await self.coordinator.begin(Begin(tx))

    async def enlist(self, tx: Tx, *branches: Branch, begun: bool = False) -> Tx:
        return await self.coordinator.enlist(Enlist(tx, branches), begun=begun)

    async def commit(self, tx: Tx, *branches: Branch, begun: bool = False) -> Tx:
        return await self.coordinator.commit(Commit(replace(tx, branches=branches), begun))

    async def rollback(self, tx: Tx, *branches: Branch, begun: bool = False, **more: Any) -> Tx:
        event = Rollback(replace(tx, branches=branches), **more)
        return await self.coordinator.rollback(event, begun=begun)

    async def report(self, tx: Tx, branch: Branch) -> Tx:
        return await self.coordinator.one_phase_done(OnePhaseDone(replace(tx, branches=(branch,))))

    async def ended(self, tx: Tx, timeout_s: float = 60.0) -> Tx:
        return await self.coordinator.wait(tx, WaitLevel.COMMITTED, timeout_s)


def states(tx: Tx) -> Sequence[str]:
    return [b.state.value for b in tx.branches]
