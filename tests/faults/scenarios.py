"""What clients do, step by step, against a coordinator that may die at any step; and what must be so afterwards.

Each scenario is run once to count its crash points, then once for each. Its client is a good one: it asks again,
with the same content, until it is answered.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import asyncpg

from tests.faults.crashing import Died, Points, Process
from tests.support.node import tx_id_at
from txcoord.core.errors import Refused
from txcoord.core.events import Begin, Commit, Enlist, OnePhaseDone, Operate, Rollback
from txcoord.core.model import Audit, Branch, BranchState, Decision, Kind, Tx, Windows
from txcoord.engine.coordinator import Coordinator
from txcoord.engine.live import WaitLevel
from txcoord_client.protocol import postgresql as pg
from txcoord_client.protocol.xid import Xid

T = TypeVar("T")
S = 1_000_000
NAMES = ("a", "b")
_LIVES = 5
_PATIENCE_S = 15.0


LATE = (asyncpg.NotNullViolationError, asyncpg.UniqueViolationError)
"""The marker of a branch is refused: it is past its time, or its key is taken by a tombstone."""


class TooSlow(Exception):
    """The machine was too slow for a short deadline: the run proves nothing."""


@dataclass
class Place:
    """A log of its own, and two databases that many logs share."""

    log_url: str
    databases: dict[str, str]
    foreign: dict[str, list[str]]
    connections: Connections
    log_id: str = ""


@dataclass
class Run:
    """One run of a scenario."""

    place: Place
    points: Points
    scale: float = 1.0
    told: list[Decision] = field(default_factory=list)
    last: Tx | None = None
    """The transaction that the outcome is about."""
    involved: set[str] = field(default_factory=set)
    torn_by_hand: bool = False
    process: Process | None = None
    lives: int = 0
    reached: list[Counter[str]] = field(default_factory=list)
    """What the scenario has reached: before the first crash, after it, …"""

    def __post_init__(self) -> None:
        self.gid = f"g-{tx_id_at(time.time_ns() // 1000)}"
        self.grace_us = round(0.3 * S * self.scale)
        self.windows = Windows(grace_us=self.grace_us, retention_us=1000 * S)

    # ---- the coordinator's lives ----

    async def up(self) -> Process:
        """The coordinator, started again if it is dead."""
        while self.process is None or self.process.dead.is_set():
            if self.process is not None:
                await self.process.bury()
            self.lives += 1
            assert self.lives <= _LIVES, "it dies again and again"
            self.process = Process(self.place.log_url, self.place.databases, self.windows, self.points)
            with suppress(Died):
                await self.process.start()
                assert self.process.coordinator.identity is not None
                self.place.log_id = self.process.coordinator.identity.log_id
        return self.process

    async def ask(self, work: Callable[[Coordinator], Coroutine[Any, Any, T]]) -> T:
        """Ask until there is an answer."""
        while True:
            process = await self.up()
            with suppress(Died):
                return await process.call(work(process.coordinator))

    async def recover(self, work: Callable[[Process], Awaitable[Any]]) -> None:
        """A turn of recovery; it may die in it, and another one goes on."""

        async def turn(process: Process) -> None:
            await work(process)

        while True:
            process = await self.up()
            with suppress(Died):
                return await process.call(turn(process))

    async def end(self, tx: Tx) -> Tx:
        """Wait for the end, and believe what is told."""
        tx = await self.ask(lambda c: c.wait(tx, WaitLevel.COMMITTED, _PATIENCE_S))
        assert tx.decision is not None
        self.told.append(tx.decision)
        await self.recover(lambda p: p.log.settle())  # The lazy end record is a step as well.
        return tx

    # ---- the client ----

    def tx(self, *, gid: str | None = "", deadline_s: float = 30.0, one_phase: str = "") -> Tx:
        """``gid`` empty: this run's own; None: none."""
        now_us = time.time_ns() // 1000
        name = "" if gid is None else gid or self.gid
        deadline_us = now_us + round(deadline_s * S * self.scale)
        self.last = Tx(tx_id_at(now_us), "shop", deadline_us, name, one_phase_resource=one_phase)
        return self.last

    def branch(self, tx: Tx, number: str, resource: str, state: BranchState = BranchState.READY) -> Branch:
        return Branch(number, Kind.XA, state, resource, self._xid(tx, number))

    def _xid(self, tx: Tx, number: str) -> str:
        return str(Xid(self.place.log_id, tx.deadline_us, tx.tx_id, number))

    async def work(self, tx: Tx, number: str, resource: str, *, prepare: bool = True) -> Branch:
        """Work in one database, and prepare it."""
        self.involved.add(resource)
        limit_us = self.windows.marker_until(tx.deadline_us)
        async with self.place.connections.on(self.place.databases[resource]) as db:
            await db.execute(f"BEGIN; {pg.START_GUARD}")
            await db.execute(f"INSERT INTO work VALUES ('{self.gid}')")
            if prepare:
                xid = self._xid(tx, number)
                assert await db.execute(pg.prepare(tx.tx_id, number, xid, limit_us)) == pg.PREPARED_TAG
            else:
                assert await db.execute(pg.commit_one_phase(tx.tx_id, limit_us)) == pg.COMMITTED_TAG
        return self.branch(tx, number, resource)

    async def begin(self, tx: Tx, **options: Any) -> Tx:
        try:
            return await self.ask(lambda c: c.begin(Begin(tx), **options))
        except Refused as refused:
            if refused.refusal.reason == "DEADLINE":
                raise TooSlow from None
            raise

    async def commit(self, tx: Tx, *branches: Branch, begun: bool) -> Tx:
        event = Commit(replace(tx, branches=branches), begun)
        return await self.end(await self.ask(lambda c: c.commit(event)))

    async def rollback(self, tx: Tx, *branches: Branch, begun: bool, **options: Any) -> Tx:
        event = Rollback(replace(tx, branches=branches), **options)
        return await self.end(await self.ask(lambda c: c.rollback(event, begun=begun)))

    async def past(self, at_us: int) -> None:
        """Wait until then."""
        await asyncio.sleep(max(at_us - time.time_ns() // 1000, 0) / 1e6 + 0.005)

    async def sweep(self) -> None:
        """Deadlines have their turn."""
        await self.recover(lambda p: p.recovery.sweep_deadlines())

    async def scan(self) -> None:
        """Every database is scanned once."""
        for name in NAMES:
            await self.recover(lambda p, name=name: p.recovery.scan(p.finishers[name]))  # type: ignore[misc]


class Connections:
    """The client's own connections, for one block at a time."""

    def __init__(self) -> None:
        self._idle: dict[str, list[asyncpg.Connection]] = {}

    @asynccontextmanager
    async def on(self, url: str) -> AsyncIterator[asyncpg.Connection]:
        idle = self._idle.setdefault(url, [])
        db = (
            idle.pop() if idle else await asyncpg.connect(url.replace("+asyncpg", ""), statement_cache_size=0)
        )
        try:
            yield db
        finally:
            if db.is_in_transaction():
                db.terminate()
            else:
                idle.append(db)

    def close(self) -> None:
        for idle in self._idle.values():
            for db in idle:
                db.terminate()


# ---- the scenarios: each answers what the transaction that has the gid must have come to ----


async def commit_with_gid(run: Run) -> Decision:
    await run.up()
    tx = run.tx()
    await run.begin(tx)
    branches = [await run.work(tx, "1", "a"), await run.work(tx, "2", "b")]
    await run.commit(tx, *branches, begun=True)
    return Decision.COMMIT


async def commit_without_gid(run: Run) -> Decision:
    await run.up()
    tx = run.tx(gid=None)
    branches = [await run.work(tx, "1", "a"), await run.work(tx, "2", "b")]
    await run.commit(tx, *branches, begun=False)
    return Decision.COMMIT


async def commit_with_a_branch_of_another_process(run: Run) -> Decision:
    await run.up()
    tx = run.tx()
    await run.begin(tx)
    other = await run.work(tx, "1.1", "b")
    await run.ask(lambda c: c.enlist(Enlist(tx, (other,)), begun=True))
    await run.commit(tx, await run.work(tx, "2", "a"), begun=True)
    return Decision.COMMIT


async def rollback(run: Run) -> Decision:
    await run.up()
    tx = run.tx()
    await run.begin(tx)
    branches = [await run.work(tx, "1", "a"), await run.work(tx, "2", "b")]
    await run.rollback(tx, *branches, begun=True)
    return Decision.ABORT


async def commit_with_a_branch_that_voted_no(run: Run) -> Decision:
    await run.up()
    tx = run.tx()
    await run.begin(tx)
    run.involved.add("b")
    no = run.branch(tx, "2", "b", BranchState.REFUSED)
    await run.commit(tx, await run.work(tx, "1", "a"), no, begun=True)
    return Decision.ABORT


async def one_phase(run: Run) -> Decision:
    await run.up()
    tx = run.tx(one_phase="a")
    await run.begin(tx)
    branch = await run.work(tx, "1", "a", prepare=False)
    event = OnePhaseDone(replace(tx, branches=(branch,)))
    await run.end(await run.ask(lambda c: c.one_phase_done(event)))
    return Decision.COMMIT


async def one_phase_whose_reply_was_lost(run: Run) -> Decision:
    await run.up()
    tx = run.tx(one_phase="a")
    await run.begin(tx)
    await run.work(tx, "1", "a", prepare=False)
    await run.rollback(tx, begun=True, resources=("a",))
    return Decision.COMMIT


async def one_phase_whose_client_died_after_its_commit(run: Run) -> Decision:
    await run.up()
    tx = run.tx(one_phase="a", deadline_s=0.3)
    await run.begin(tx)
    await run.work(tx, "1", "a", prepare=False)
    await _expire(run, tx)
    return Decision.COMMIT


async def one_phase_whose_client_died_before_its_commit(run: Run) -> Decision:
    await run.up()
    tx = run.tx(one_phase="a", deadline_s=0.3)
    await run.begin(tx)
    await _expire(run, tx)
    try:
        await run.work(
            tx, "1", "a", prepare=False
        )  # Late: its marker's key is taken, or it is past its time.
    except LATE:
        return Decision.ABORT
    raise AssertionError("a local commit went through after the abort")


async def deadline(run: Run) -> Decision:
    await run.up()
    tx = run.tx(deadline_s=0.4)
    await run.begin(tx)
    branches = (await run.work(tx, "1", "a"), await run.work(tx, "2", "b"))
    try:
        await run.ask(lambda c: c.enlist(Enlist(tx, branches), begun=True))
    except Refused:
        raise TooSlow from None
    await _expire(run, tx)
    return Decision.ABORT


async def deadline_of_branches_that_nobody_knows(run: Run) -> Decision:
    await run.up()
    tx = run.tx(deadline_s=0.3)
    await run.begin(tx)
    await run.work(tx, "1", "a")
    await run.work(tx, "2", "b")
    await _expire(run, tx)
    await run.scan()
    return Decision.ABORT


async def orphan(run: Run) -> Decision:
    await run.up()
    tx = run.tx(gid=None, deadline_s=0.1)
    branches = [await run.work(tx, "1", "a"), await run.work(tx, "2", "b")]
    await run.past(run.windows.marker_until(tx.deadline_us))
    await run.scan()
    fence = await run.ask(lambda c: c.get(tx.tx_id))
    assert fence is not None, "rolled back, and no row says so"
    await run.commit(tx, *branches, begun=False)  # Too late.
    return Decision.ABORT


async def rollback_that_overtakes_a_prepare(run: Run) -> Decision:
    await run.up()
    tx = run.tx()
    await run.begin(tx)
    await run.rollback(tx, begun=True)
    await run.work(tx, "1", "a")
    await run.scan()
    return Decision.ABORT


async def same_gid_again_after_an_abort(run: Run) -> Decision:
    await run.up()
    first, second = run.tx(), run.tx()
    await run.begin(first)
    await run.rollback(first, await run.work(first, "1", "a"), begun=True, reason="DEADLOCK")
    run.told.clear()  # That was the first attempt's.
    await run.begin(second, retry_of=first.tx_id)
    branches = [await run.work(second, "1", "a"), await run.work(second, "2", "b")]
    await run.commit(second, *branches, begun=True)
    return Decision.COMMIT


async def branch_that_was_finished_by_hand(run: Run) -> Decision:
    """Somebody rolls a prepared branch back, though commit was decided: parked, until an operator resolves it."""
    await run.up()
    tx = run.tx()
    await run.begin(tx)
    branches = [await run.work(tx, "1", "a"), await run.work(tx, "2", "b")]
    async with run.place.connections.on(run.place.databases["b"]) as db:
        await db.execute(pg.rollback_prepared(branches[1].xid))
    run.torn_by_hand = True
    await run.commit(tx, *branches, begun=True)
    order = Operate("resolve", "2", Audit("ann", "seen", "resolve", time.time_ns() // 1000))
    try:
        await run.ask(lambda c: c.operate(tx.tx_id, order))
    except Refused as refused:
        assert refused.refusal.reason == "NOT_PARKED"  # noqa: PT017 - the order was carried out before the crash
        assert run.lives > 1
    assert (await run.end(tx)).heuristic
    return Decision.COMMIT


async def _expire(run: Run, tx: Tx) -> None:
    """Deadlines have their turns until this transaction is decided: a database may have to be asked first."""
    await run.past(tx.deadline_us)
    while True:
        await run.sweep()
        now = await run.ask(lambda c: c.get(tx.tx_id))
        if now is not None and now.decision is not None:
            await run.end(now)
            return
        await asyncio.sleep(0.005)


QUICK = (
    commit_with_gid,
    commit_without_gid,
    commit_with_a_branch_of_another_process,
    rollback,
    commit_with_a_branch_that_voted_no,
    one_phase,
    one_phase_whose_reply_was_lost,
    rollback_that_overtakes_a_prepare,
    same_gid_again_after_an_abort,
    branch_that_was_finished_by_hand,
)
WAITING = (
    one_phase_whose_client_died_after_its_commit,
    one_phase_whose_client_died_before_its_commit,
    deadline,
    deadline_of_branches_that_nobody_knows,
    orphan,
)
SCENARIOS = (*QUICK, *WAITING)
Scenario = Callable[[Run], Awaitable[Decision]]
