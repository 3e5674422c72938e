"""A world from a seed: its parts, its faults, its trace, and its end."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from txcoord.core.model import Windows
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client.protocol.xid import Xid

from . import patches
from .checker import Checker
from .clients import SimClient
from .log import LOG_ID, LogServer
from .loop import Process, SimLoop
from .mariadb import MariaDB
from .network import Network
from .node import SimNode
from .participants import SimParticipant
from .plan import Fault, Plan
from .postgres import Database, PostgreSQL, Tx
from .queue import Broker
from .settings import EPOCH_US, FAULTS_S, GRACE_US, QUIET_S
from .wire import KEEPALIVE_S, Stream

_STEPS = 400_000
"""More than that in one world is a loop without end."""


@dataclass
class Result:
    """What became of a world."""

    plan: Plan
    violations: list[str]
    digest: str
    virtual_s: float
    steps: int
    trace: list[str] = field(default_factory=list)
    actions: list[dict[str, Any]] = field(default_factory=list)
    fired: list[Fault] = field(default_factory=list)
    told: int = 0
    committed: int = 0
    moved: int = 0
    """How often a service has gone from one coordinator to another."""
    effects: int = 0
    """What participants have done, and"""
    undone: int = 0
    """cancelled or compensated."""


class World:
    """Everything."""

    def __init__(self, plan: Plan, *, keep_trace: bool = False) -> None:
        self.plan = plan
        self.order_key = "k" if plan.seed % 2 else ""
        """Of all messages: in half of the worlds each place gets them one after the other."""
        self.loop = SimLoop()
        self.checker = Checker(self)
        self.windows = Windows(GRACE_US, int(plan.retention_s * 1_000_000))
        names = [f"n{i + 1}" for i in range(plan.nodes)]
        self.address: str | list[str] = [f"{n}:7070" for n in names] if plan.addresses else "any:7070"
        self.streams: dict[Stream, None] = {}
        self._used: dict[Process, str] = {}
        self._moved = 0
        self.running: dict[Process | None, int] = {}
        self.actions: list[dict[str, Any]] = []
        self.fired: list[Fault] = []
        self._trace: list[str] | None = [] if keep_trace else None
        self._hash = hashlib.blake2b(digest_size=16)
        self.faults_over = False
        self.over = False
        self._undone: set[tuple[str, str]] = set()
        self._again: dict[tuple[str, str], str] = {}
        self._counts: dict[str, int] = {}
        self._armed = {(f.target, f.nth): f for f in plan.faults if f.nth}
        self._node_rng = self.rng("balancer")
        self.net = Network(self)
        self.log = LogServer(self)
        self.log.keeps_all = not plan.loses_lazy
        self.databases: dict[str, Database] = {
            name: (PostgreSQL if kind == "postgresql" else MariaDB)(self, name)
            for name, kind in plan.databases
        }
        self.foreign = _foreign()
        for database in self.databases.values():
            for xid in self.foreign:
                database.prepared[xid] = Tx(self.now_us(), xid=xid)
        self.broker = Broker(self)
        self.nodes = {name: SimNode(self, name) for name in names}
        used = {place for op in plan.ops for place in (*op.tries, *op.steps, *op.messages)}
        self.places = {
            f"p{n}": SimParticipant(self, f"p{n}", database)
            for n, database in enumerate(list(self.databases.values())[:2], 1)
            if f"p{n}" in used
        }
        """Services that take part by TCC and saga: p1 works in the first database, p2 in the second."""
        self._asked: dict[tuple[str, str, str], int] = {}
        self.clients = {name: SimClient(self, name) for name in ("c1", "c2", "s1", "auditor")}

    def rng(self, name: str) -> random.Random:
        """Draws of one part: what others draw does not change them."""
        return random.Random(f"{self.plan.seed} {name}")

    def now_us(self) -> int:
        """True time."""
        return EPOCH_US + int(self.loop.now * 1_000_000)

    # ---- the trace ----

    def note(self, event: str, /, **facts: Any) -> None:
        """One line of the trace; the digest is made of all of them."""
        said = " ".join(f"{key}={value}" for key, value in facts.items() if value not in ("", None))
        line = f"{self.loop.now:9.4f} {event} {said}"
        self._hash.update(line.encode())
        if self._trace is not None:
            self._trace.append(line)

    def acted(self, action: str, tx_id: str, branch: str = "", node: str = "", **facts: Any) -> None:
        """A step of the model, by the names of ``tests/model/Xa.tla``."""
        if action == "prepare_lands" and (tx_id, branch) in self._undone:
            # A call that was delivered twice: what it prepares the second time is another branch of the same name.
            self._undone.remove((tx_id, branch))
            self._again[tx_id, branch] = self._again.get((tx_id, branch), "") + "'"
        elif action in ("finish", "session_rolls_back"):
            self._undone.add((tx_id, branch))
        names = [b + self._again.get((tx_id, b), "") for b in (branch, *facts.pop("branches", ()))]
        step = {"action": action, "tx": tx_id, "branch": names[0], "branches": names[1:], "node": node}
        at_us = self.log.now_us()
        if action == "OrphanFound":
            # Who looks has seen that it is past H: that the log's clock has gone back since makes it no earlier.
            at_us = max(at_us, self.log.shown_us)
        self.actions.append({**step, "at_us": at_us, **facts})

    # ---- what the code comes past ----

    def point(self, name: str, process: Process, where: str, detail: str) -> str:
        """Something happens for the nth time: what is to go wrong with it?"""
        count = self._counts[name] = self._counts.get(name, 0) + 1
        self.note(name, n=count, by=process.name, at=where, what=detail)
        fault = self._armed.get((name, count))
        if fault is None or self.faults_over:
            return ""
        self._fire(fault)
        return fault.verb

    def _fire(self, fault: Fault) -> None:
        self.fired.append(fault)
        self.note("FAULT", what=str(fault))

    async def turn(self) -> None:
        """Let others run."""
        await asyncio.sleep(0)

    def wire_message(self, stream: Stream, data: bytes) -> None:
        """A message of an SDK to a node."""
        message = pb.SessionRequest.FromString(data)
        names = ",".join(str(op.WhichOneof("request")) for op in message.operations)
        for op in message.operations:
            if op.HasField("rollback"):
                self.checker.rollback_sent(op.rollback)
            elif op.HasField("submit"):
                self.checker.submit_sent(op.submit)
            elif op.HasField("enlist"):
                self.checker.effects.expect(op.enlist.tx_id, op.enlist.branches)
            elif op.HasField("commit"):
                self.checker.effects.expect(op.commit.tx_id, op.commit.branches)
        process = stream._process
        before = self._used.get(process)
        self._moved += before is not None and before != stream.node_name
        self._used[process] = stream.node_name
        do = self.point("wire", process, stream.node_name, names)
        if do in ("crash_server", "crash_server_before", "crash_client_after"):
            do = "lose_reply"
        stream.carry(data, do)

    async def call(
        self, process: Process | None, context: Any, databases: tuple[str, ...], seconds: float
    ) -> tuple[bool, Any]:
        """A call between services. Raises ConnectionError."""
        assert process is not None
        service = self.clients["s1"]
        data = context.SerializeToString()
        do = self.point("call", process, "s1", ",".join(databases))
        future: asyncio.Future[tuple[bool, Any]] = self.loop.create_future()
        back = process.context

        def answer(result: Any) -> None:
            delay = self.net.delay("s1", process.name)
            self.loop.call_later(delay, patches.settle, future, result, context=back.copy())

        def arrive(heard: bool) -> None:
            if not service.up:
                answer(ConnectionError("refused"))
                return

            async def serve() -> None:
                result = await service.serve(data, databases)
                if heard:
                    answer(result)

            assert service.process is not None
            service.process.start(serve(), "serve")
            if heard:
                service.process.when_dead.append(lambda: answer(ConnectionError("reset")))

        delay = self.net.delay(process.name, "s1")
        if do == "lose_request":
            answer(ConnectionError("reset"))
        elif do.startswith("late"):
            self.net.send(delay + float(do[4:]), arrive, False)
            answer(ConnectionError("reset"))
        else:
            self.net.send(delay, arrive, do != "lose_reply")
            if do == "twice":
                self.net.send(delay * 20, arrive, False)
            elif do == "lose_reply":
                self.net.send(delay * 10, answer, ConnectionError("reset"))
            elif do == "crash_client":
                self.crash(process)
            elif do.startswith("stop_client"):
                self.stop(process, float(do[11:]))
        async with asyncio.timeout(seconds):
            return await future

    def asked(self, tx_id: str, branch: str, op: str) -> int:
        """How often a participant's own code has been asked for it, this time included."""
        key = (tx_id, branch, op)
        self._asked[key] = self._asked.get(key, 0) + 1
        return self._asked[key]

    def node_at(self, target: str) -> SimNode | None:
        """Who serves there: a node by its name, or, behind a balancer, any that is up."""
        name = target.partition(":")[0]
        if name in self.nodes:
            return self.nodes[name]
        up = [node for node in self.nodes.values() if node.up]
        return self._node_rng.choice(up) if up else None

    # ---- faults ----

    def crash(self, process: Process, seconds: float = 1.0) -> None:
        """Kill a process; its place starts another one later."""
        if not process.alive:
            return
        self.note("killed", who=process.name)
        self.checker.running -= self.running.pop(process, 0)
        process.kill()
        self.loop.outside(seconds, self._start, process.name.partition("#")[0])

    def _place(self, name: str) -> SimNode | SimClient | SimParticipant | None:
        return self.nodes.get(name) or self.clients.get(name) or self.places.get(name)

    def _start(self, name: str) -> None:
        place = self._place(name)
        if place is not None and not place.up:
            self.note("started", who=name)
            place.start()

    def stop(self, process: Process, seconds: float) -> None:
        """It stands still for so long."""
        self.note("stopped", who=process.name, seconds=seconds)
        process.stop()
        self.loop.outside(seconds, self._wake, process)
        for stream in list(self.streams):
            if stream.node_name == process.name.partition("#")[0] and seconds > KEEPALIVE_S:
                self.loop.outside(KEEPALIVE_S, stream.unheard)

    def _wake(self, process: Process) -> None:
        self.note("woke", who=process.name)
        process.wake()

    def crash_server(self, server: Any, seconds: float = 1.0) -> None:
        """Kill a database, or the log's."""
        if server.up:
            self.note("server killed", who=server.name)
            server.crash()
            self.loop.outside(seconds, self._restart_server, server)

    def _restart_server(self, server: Any) -> None:
        self.note("server started", who=server.name)
        server.restart()

    def _happen(self, fault: Fault) -> None:
        self._fire(fault)
        target, seconds = fault.target, fault.seconds
        server = self.log if target == "log" else self.databases.get(target)
        place = self._place(target)
        match fault.what:
            case "crash" if server is not None:
                self.crash_server(server, seconds)
            case "crash" if place is not None and place.process is not None:
                self.crash(place.process, seconds)
            case "hang" if isinstance(place, SimParticipant):
                place.hung_until = self.loop.now + seconds
            case "leave" if isinstance(place, SimNode | SimClient) and place.process is not None:
                place.process.start(place.leave(), "leave")
            case "stop" if place is not None and place.process is not None:
                self.stop(place.process, seconds)
            case "cut":
                self.net.cut(target, fault.other, self.loop.now + seconds)
                for stream in list(self.streams):
                    ends = (stream.client_name.partition("#")[0], stream.node_name)
                    if {target, fault.other} == set(ends) and seconds > KEEPALIVE_S:
                        self.loop.outside(KEEPALIVE_S, stream.unheard)
            case "slow":
                self.net.slow_until, self.net.slow_s = self.loop.now + seconds, 0.5
            case "slow_disk":
                self.log.slow_s = 0.7
                self.loop.outside(seconds, self._disk_is_fast)
            case "full_disk":
                self.log.full = True
                self.loop.outside(seconds, self._disk_is_empty)
            case "log_clock":
                self.log.step(seconds)
            case "log_clock_there_and_back":
                self.log.step(seconds)
                self.loop.outside(2.0, self._clock_back, seconds)
            case "wall_clock" if isinstance(place, SimNode):
                place.wall_off_us += int(seconds * 1e6)
            case "skew" if isinstance(server, Database):
                server.skew_us = int(seconds * 1e6)
            case "slow_detach" if isinstance(server, MariaDB):
                server.detach_s = seconds

    def _look(self) -> None:
        auditor = self.clients["auditor"]
        if auditor.process is not None and auditor.up:
            auditor.process.start(auditor.look(), "look")

    def _clock_back(self, seconds: float) -> None:
        self.note("the log's clock jumps back", seconds=seconds)
        self.log.step(-seconds)

    def _disk_is_fast(self) -> None:
        self.log.slow_s = 0.0

    def _disk_is_empty(self) -> None:
        self.log.full = False

    def limbo(self, database: MariaDB) -> None:
        """An operator restarts that server, once he was alarmed."""
        if not database.limbo:
            return
        if self.faults_over and "in_limbo" in self.checker.alarms:
            self.note("the operator restarts", who=database.name)
            self.crash_server(database)
        else:
            self.loop.outside(1.0, self.limbo, database)

    # ---- the course of a world ----

    def run(self) -> Result:
        """From its beginning to its end."""
        with patches.applied(self):
            try:
                self._run()
            finally:
                self.over = True
                self.loop.bury()
        for error in self.loop.errors:
            self.checker.wrong(f"nobody caught: {error}")
        return Result(
            self.plan,
            self.checker.violations,
            self._hash.hexdigest(),
            self.loop.now,
            self.loop.steps,
            self._trace or [],
            self.actions,
            self.fired,
            sum(len(a.told) for a in self.checker.attempts.values()),
            sum(1 for d in self.checker.decisions.values() if d == "commit"),
            self._moved,
            self.checker.effects.count,
            self.checker.effects.undone,
        )

    def _run(self) -> None:
        loop = self.loop
        for fault in self.plan.faults:
            if not fault.nth:
                loop.outside(fault.at_s, self._happen, fault)
        for at_s in self.plan.looks:
            loop.outside(at_s, self._look)
        if self.plan.beyond:
            loop.outside(6.0, self._clock_back, 10.0)
        for node in self.nodes.values():
            node.start()
        for service in self.places.values():
            service.start()
        for client in self.clients.values():
            client.start()
        last = max((f.at_s + max(f.seconds, 0.0) for f in self.plan.faults if not f.nth), default=0.0)
        begun = max((op.at_s for op in self.plan.ops), default=0.0)
        # Faults that are aimed at something can only happen while something happens.
        while loop.now < FAULTS_S and (loop.now <= max(last, begun) or self.checker.running):
            loop.run(loop.now + 0.5)
        self.faults_over = True
        self._heal()
        healed = loop.now
        until = healed + QUIET_S
        quiet = 0
        # Twice in a row: what is at rest for a moment only is not at rest.
        while loop.now < until and loop.steps < _STEPS and quiet < 2:
            loop.run(loop.now + 0.5)
            quiet = 0 if self.checker.unsettled() else quiet + 1
        left = self.checker.unsettled()
        for text in left:
            self.checker.wrong(f"{QUIET_S:g} s after the last fault: {text}")
        if not left:
            self._audit()
        self.checker.final()

    def _audit(self) -> None:
        """Everybody can learn how his transaction ended."""
        auditor = self.clients["auditor"]
        assert auditor.process is not None
        done = self.loop.create_future()
        auditor.process.start(auditor.audit(done), "audit")
        until = self.loop.now + 60.0
        while not done.done() and self.loop.now < until:
            self.loop.run(self.loop.now + 0.5)
        if not done.done():
            self.checker.wrong("the auditor got no answer")
        while self.checker.unsettled() and self.loop.now < until:
            self.loop.run(self.loop.now + 0.5)
        for text in self.checker.unsettled():
            self.checker.wrong(f"after the audit: {text}")

    def _heal(self) -> None:
        """Faults stop."""
        self.net._cuts.clear()
        self.net.slow_until = 0.0
        self._disk_is_fast()
        self._disk_is_empty()
        for database in self.databases.values():
            database.skew_us = self.log.offset_us
            if isinstance(database, MariaDB):
                database.detach_s = min(database.detach_s, 0.06)
        for node in self.nodes.values():
            # Clocks agree again; until then a node that is off neither scans nor takes over.
            node.wall_off_us = self.log.offset_us

    def watch_node(self, node: SimNode, coordinator: Any, recovery: Any, tasks: Any) -> None:
        """A node has started."""
        self.note("node started", who=node.name)

    # ---- the truth ----

    def has_row(self, row: str) -> bool:
        """Is it committed?"""
        return any(row in database.rows for database in self.databases.values())

    def is_foreign(self, xid: str) -> bool:
        """Is it none of this log's?"""
        return not xid.startswith(f"txc1.{LOG_ID}.")


def _foreign() -> tuple[str, ...]:
    """Prepared transactions of others: another manager's, and another txcoord's."""
    return ("other-tm.42.1", str(Xid("9999999999", EPOCH_US - 10**9, "0" * 32, "1")))


Hook = Callable[[World], None]
