"""The queue of a world: each node's own timers, or a broker that all share, and that loses, repeats and delays."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from txcoord.adapters.embedded import EmbeddedQueue
from txcoord.core.model import TAKEN, Tx
from txcoord.core.ordering import WAITS
from txcoord.engine.coordinator import Coordinator
from txcoord.ports import Due, Queue

from .loop import Process

if TYPE_CHECKING:
    from .world import World

Carry = Callable[[Sequence[Due]], Awaitable[None]]
_AGAIN_S = 0.5
_SLACK_US = 100_000
"""A node knows the log's clock only so well."""
_CLOCKS = ("log_clock", "log_clock_there_and_back")
"""Faults after which a node's time is not the log's for a while."""


class Broker:
    """Has a record until a node has consumed it. What is put while faults happen may get lost, come twice, or late."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.consumers: dict[Process, Carry] = {}
        self.carried: dict[tuple[str, int], list[Process]] = {}
        """Who is at a record, by tx id and epoch."""
        self.claimed: set[tuple[str, int, Process]] = set()
        """Which records have made somebody's claim good."""
        self.records = 0
        self.lost = 0
        self._rng = world.rng("queue")

    def put(self, due: Due) -> None:
        """A record is on its way."""
        draw, world = self._rng.random(), self.world
        if world.faults_over or draw > 0.3:
            self._later(due)
        elif draw < 0.1:
            self.lost += 1
            world.note("queue lost", tx=due.tx_id, epoch=due.epoch)
        elif draw < 0.2:
            self._later(due)
            self._later(due, self._rng.uniform(0.0, 1.0))
        else:
            self._later(due, self._rng.uniform(0.2, 3.0))

    def _later(self, due: Due, more_s: float = 0.0) -> None:
        self.records += 1
        wait_s = max(0.0, (due.due_us - self.world.log.now_us()) / 1e6) + more_s
        self.world.loop.outside(wait_s, self._deliver, due)

    def _deliver(self, due: Due) -> None:
        left_us = due.due_us - self.world.log.now_us()
        if left_us > 0:
            self.world.loop.outside(left_us / 1e6, self._deliver, due)
            return
        up = [process for process in self.consumers if process.alive]
        if not up:
            self.world.loop.outside(_AGAIN_S, self._deliver, due)
            return
        process = self._rng.choice(up)
        consumed: list[bool] = []

        async def carry() -> None:
            await self.consumers[process]([due])
            consumed.append(True)

        def died() -> None:
            if not consumed:
                self._deliver(due)

        process.when_dead.append(died)
        process.start(carry(), "carry")


class BrokerQueue:
    """``ports.Queue`` of one process at the broker."""

    def __init__(self, broker: Broker, process: Process) -> None:
        self._broker = broker
        self._process = process

    async def start(self, carry: Carry) -> None:
        self._broker.consumers[self._process] = carry

    def put(self, due: Due) -> None:
        self._broker.put(due)

    def hold(self, yes: bool) -> None:
        raise AssertionError("no node is drained here")

    def depth(self) -> Mapping[str, int]:
        return {}

    async def stop(self) -> None:
        self._broker.consumers.pop(self._process, None)


class Watched:
    """A queue whose carrying is checked."""

    def __init__(self, queue: Queue, world: World, process: Process) -> None:
        self._queue = queue
        self._world = world
        self._process = process
        self._node = process.name.partition("#")[0]
        self.put, self.depth, self.stop = queue.put, queue.depth, queue.stop

    async def start(self, carry: Carry) -> None:
        async def watched(due: Sequence[Due]) -> None:
            self._world.note("due", by=self._node, txs=",".join(one.tx_id[-6:] for one in due))
            carried = self._world.broker.carried
            for one in due:
                carried.setdefault((one.tx_id, one.epoch), []).append(self._process)
            await carry(due)
            for one in due:
                by = carried[one.tx_id, one.epoch]
                by.remove(self._process)
                # Else it was overtaken, perhaps by the sweep; or it came twice, and the other one is not consumed.
                mine = (one.tx_id, one.epoch, self._process) in self._world.broker.claimed
                if mine and not any(process.alive for process in by):
                    consumed(self._world, self._node, one)

        await self._queue.start(watched)


def watch_claims(world: World, process: Process, log: Any) -> None:
    """Notice which records a node has claimed."""
    real = log.claim_due

    async def claim_due(owner: str, lease_us: int, due: Sequence[tuple[str, int]]) -> list[Tx]:
        rows: list[Tx] = await real(owner, lease_us, due)
        world.broker.claimed.update((tx.tx_id, tx.epoch - TAKEN, process) for tx in rows)
        return rows

    log.claim_due = claim_due


def queue_of(world: World, process: Process, clock: Any, spawn: Any) -> Queue:
    """Some worlds have a broker."""
    broker = world.plan.seed % 2
    queue: Queue = BrokerQueue(world.broker, process) if broker else EmbeddedQueue(clock, spawn)
    return Watched(queue, world, process)


def _was_dead(coordinator: Coordinator, target: str) -> bool:
    seen = coordinator.gate.seen().get(target)
    return seen is not None and seen.since_us > 0


def consumed(world: World, node: str, due: Due) -> None:
    """It counts as done: what became of the attempt must be in the log."""
    if any(fault.what in _CLOCKS for fault in world.plan.faults):
        return  # It was due, and is not any more.
    coordinator = world.nodes[node].coordinator
    if coordinator is not None and _was_dead(coordinator, due.target):
        return  # It was put off: that is not written each time.
    found = world.log.select(
        "SELECT t.owner, t.epoch, b.attempts, b.xid, b.state FROM txcoord_tx t JOIN txcoord_branch b"
        f" ON b.tx_id = t.tx_id WHERE t.tx_id = '{due.tx_id}' AND b.id = '{due.branch}' AND t.ended_us = 0"
    )
    if not found:
        return
    owner, epoch, attempts, xid, state = found[0]
    if "@" in xid:
        return  # The session that holds it may have said something of it meanwhile.
    if (owner, epoch, attempts) == (node, due.epoch + TAKEN, due.attempt - 1) and state in (
        "finishing",
        "undoing",
    ):
        world.checker.wrong(
            f"attempt {due.attempt} of branch {due.branch} of {world.checker.name_of(due.tx_id)} was consumed by"
            f" {node}, and what became of it is not in the log"
        )


def called(world: World, tx: Tx, branch: str) -> None:
    """A node calls a participant: not before the log says so.

    A message that waits only for those of its key before it goes as soon as it has its turn: the time that is in the
    log is when it asks again by itself. One that has failed, or is put off for anything else, does not.
    """
    if tx.decision is None or any(fault.what in _CLOCKS for fault in world.plan.faults):
        return  # A running plan is never handed off: whoever has lost it may still be at it.
    found = world.log.select(
        f"SELECT b.next_attempt_us, b.reason LIKE '{WAITS}%' AND o.turn = 1 FROM txcoord_tx t"
        " JOIN txcoord_branch b ON b.tx_id = t.tx_id"
        " LEFT JOIN txcoord_ordering o ON o.tx_id = b.tx_id AND o.branch = b.id"
        f" WHERE t.tx_id = '{tx.tx_id}' AND b.id = '{branch}' AND t.epoch = {tx.epoch}"
    )
    early_us, its_turn = (found[0][0] - world.log.now_us(), found[0][1]) if found else (0, None)
    if early_us > _SLACK_US and not its_turn:
        world.checker.wrong(
            f"branch {branch} of {world.checker.name_of(tx.tx_id)} was called {early_us / 1e6:.1f} s before it was due"
        )
