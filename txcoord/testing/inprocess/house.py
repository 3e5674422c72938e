"""What is behind the fixture: the coordinator's loop, its node, which comes and goes, and the log, which stays."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ...core.model import Change, HistoryEntry, Tx, WriteResult
from ...engine.failpoints import NAMES, Switchboard
from ..memory_log import Storage
from .loop import Loop, LoopThread, belonging_to
from .node import Node
from .services import Caller, Services
from .wire import Aborted, Context, away

T = TypeVar("T")

PLACES = {
    "begin": ("begin",),
    "enlist": ("enlist",),
    "submit": ("submit",),
    "decision": ("commit", "rollback", "decide", "deadline"),
    "call": ("call",),
    "finish": ("finish",),
}
"""Where a coordinator can be made to die, by the names of its failpoints."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened."""

    at_us: int
    tx_id: str
    """Empty: to all."""
    text: str


@dataclass(slots=True)
class Crash:
    """One that was asked for."""

    said: str
    points: frozenset[str]
    left: int
    restart: bool
    used: int = 0


@dataclass
class _Storage(Storage):
    """A log that tells of decisions."""

    note: Callable[[str, str], None] = lambda tx_id, text: None
    changed: Callable[[], None] = lambda: None

    def apply(self, change: Change) -> WriteResult:
        """Write it."""
        before = self.rows.get(change.tx.tx_id)
        result = super().apply(change)
        self.changed()
        row = self.rows.get(change.tx.tx_id)
        if row is not None and row.decision is not None and (before is None or before.decision is None):
            why = f": {row.reason}" if row.reason else ""
            self.note(row.tx_id, f"decided {row.decision} by {row.decided_by}{why}")
        return result


class House:
    """Everything of one test. What is not marked belongs to the coordinator's loop."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.resources: dict[str, str] = {}
        self.services = Services(self)
        self.storage = _Storage(self.loop.now_us, note=self.note)
        self.notes: list[Note] = []
        self.crashes: list[Crash] = []
        self.node: Node | None = None
        self.down = False
        """Is it to stay away?"""
        self.bugs = 0
        self._own: set[asyncio.Task[Any]] = set()
        self._starting: asyncio.Task[Node] | None = None
        self._home: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self.thread = LoopThread(self.loop, "txcoord.coordinator")

    # ---- from any thread ----

    def now_us(self) -> int:
        """Virtual time."""
        return self.loop.now_us()

    def used_here(self) -> None:
        """This thread's loop is where the user's asynchronous code runs."""
        if not threading.current_thread().name.startswith("txcoord."):
            self._home = asyncio.get_running_loop()

    def home(self) -> asyncio.AbstractEventLoop | None:
        """The loop for the user's asynchronous participants; None: none runs."""
        found = self._home
        return found if found is not None and found.is_running() else None

    def note(self, tx_id: str, text: str) -> None:
        """For the story."""
        self.notes.append(Note(self.now_us(), tx_id, text))

    def close(self) -> None:
        """The end of the test."""
        self._closed = True
        self.thread.run(self._close())
        self.thread.close()

    # ---- the node ----

    def own(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that does not die with the node."""
        task: asyncio.Task[T] = self.loop.create_task(work, context=contextvars.Context())
        self._own.add(task)
        task.add_done_callback(self._own.discard)
        return task

    async def up(self) -> Node | None:
        """The node, started if need be; None: it is to stay away."""
        if self.down or self._closed:
            return None
        node = self.node
        if node is not None and not node.dead:
            return node
        if self._starting is None:
            self._starting = self.own(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> Node:
        try:
            board = Switchboard()
            for name in NAMES:
                board.on(name, self._at)
            node = Node(self.loop, self.storage, Caller(self.services), board, self.resources)
            again = self.node is not None
            self.storage.changed = node.clock.changed.set
            await self.loop.create_task(node.start(), context=belonging_to(node.tasks))
            self.node = node
            if again:
                self.note("", "the coordinator is started again")
            return node
        finally:
            self._starting = None

    async def _at(self, point: str) -> None:
        for crash in self.crashes:
            if crash.left and point in crash.points:
                crash.left -= 1
                crash.used += 1
                self.kill(crash.said, restart=crash.restart)
                await self.loop.create_future()

    def kill(self, why: str, *, restart: bool = True) -> None:
        """As SIGKILL."""
        self.down = not restart
        node = self.node
        if node is None or node.dead:
            return
        self.note("", f"the coordinator is killed ({why})")
        node.kill()
        self.bugs += node.crashes
        for stream in list(node.streams):
            stream.break_off()
        for task in list(node.tasks):
            task.cancel()
        self.own(node.gone())

    # ---- what is asked ----

    async def unary(self, name: str, data: bytes, timeout: float | None) -> Any:
        """A unary call: the response, or the error."""
        node = await self.up()
        if node is None:
            return await away("the coordinator is down", for_good=True)
        method = getattr(node.servicer, name)
        work = method(_REQUESTS[name].FromString(data), Context(timeout))
        serving: asyncio.Task[Any] = self.loop.create_task(work, context=belonging_to(node.tasks))
        try:
            with self.loop.somebody_waits():
                return await asyncio.shield(serving)
        except Aborted as aborted:
            return aborted.error()
        except asyncio.CancelledError:
            if not serving.cancelled():
                serving.cancel()
                raise
            return await away("the coordinator has died", for_good=False)

    # ---- what has become of it ----

    async def rows(self, blocked: asyncio.AbstractEventLoop | None) -> list[Tx]:
        """All transactions, oldest first, as the node knows them, or the log where there is none, once nothing more
        happens at this moment. ``blocked`` is the loop whose thread waits for that."""
        await self.loop.still(blocked)
        node = self.node
        if node is not None and not node.dead:
            await node.log.settle()
        found = []
        for tx_id in list(self.storage.rows):
            live = node.look(tx_id) if node is not None and not node.dead else None
            found.append(live or self.storage.row(tx_id))
        return sorted(found, key=lambda tx: (tx.created_us, tx.tx_id))

    async def history(self, tx_id: str) -> Sequence[HistoryEntry]:
        """What is in the log beside its row."""
        return self.storage.histories.get(tx_id, [])

    async def settle(self, seconds: float) -> None:
        """Let time go on until everything has ended, at most so far."""
        self.down = False
        await self.up()
        await self.loop.let_go_on(seconds, self._quiet)

    async def advance(self, seconds: float) -> None:
        """Let time go on exactly so far."""
        await self.loop.let_go_on(seconds)

    def _quiet(self) -> bool:
        node = self.node
        if node is None or node.dead:
            if not self.down:
                self.own(self.up())  # It has died meanwhile.
                return False
            return True
        for tx_id in list(self.storage.rows):
            tx = node.look(tx_id) or self.storage.rows[tx_id]
            if not tx.rests:
                return False
        return True

    async def _close(self) -> None:
        node = self.node
        if node is not None and not node.dead:
            self.bugs += node.crashes
            node.kill()
            await node.gone()
        await self.services.close()


def _requests() -> dict[str, Any]:
    from txcoord_client._pb import coordinator_pb2 as pb

    service = pb.DESCRIPTOR.services_by_name["CoordinatorService"]
    return {m.name: getattr(pb, m.input_type.name) for m in service.methods}


_REQUESTS = _requests()
