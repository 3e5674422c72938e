"""What the contract suite of the log is made of: places where a log can live, and changes to write there."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import database_of
from txcoord.adapters.sql.log import SqlLog
from txcoord.adapters.sql.migrate import migrate
from txcoord.adapters.sql.store import ReplyLost
from txcoord.core.model import (
    Audit,
    Branch,
    BranchState,
    Change,
    ChangeKind,
    DecidedBy,
    Decision,
    HistoryEntry,
    Kind,
    Tx,
    TxState,
    Windows,
    WriteResult,
    Written,
)
from txcoord.ports import LogIdentity, LogUnavailable
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer

S = 1_000_000
WINDOWS = Windows(grace_us=5 * S, retention_us=100 * S)
DETAIL_US = 10 * S
_numbers = itertools.count(1)
_migrated: dict[int, str] = {}
"""The database that the contract tests share on each server: they empty it instead of making one each."""
_TABLES = (
    "tx",
    "branch",
    "history",
    "audit",
    "resource",
    "lease",
    "outbox",
    "outbox_held",
    "ordering",
    "node",
    "node_audit",
    "replay",
    "replay_item",
)


# ---- changes ----


def new_id() -> str:
    """A tx id that is above all earlier ones of this process."""
    return f"{time.time_ns() // 1_000_000:012x}7{os.getpid() & 0xFFF:03x}8{next(_numbers):015x}"


def xa(number: str = "1", state: BranchState = BranchState.OPEN, **more: Any) -> Branch:
    return Branch(number, Kind.XA, state, more.pop("resource", "accounts"), f"txc1.x.{number}", **more)


def active(now_us: int, *branches: Branch, **more: Any) -> Tx:
    """An undecided transaction."""
    start = Tx(
        new_id(), "shop", now_us + 30 * S, name="order", created_us=now_us, version=1, branches=branches
    )
    return replace(start, **more)


def committing(now_us: int, *branches: Branch, **more: Any) -> Tx:
    """One that was decided a moment ago and is carried out by node n1, whose lease is `lease_until_us`."""
    values: dict[str, Any] = {
        "state": TxState.COMMITTING,
        "decision": Decision.COMMIT,
        "decided_by": DecidedBy.CLIENT,
        "decided_us": now_us,
        "epoch": 1,
        "owner": "n1",
        "lease_until_us": now_us + 10 * S,
    }
    return active(now_us, *(branches or (xa(state=BranchState.FINISHING),)), **{**values, **more})


def aborted(now_us: int, **more: Any) -> Tx:
    values: dict[str, Any] = {
        "state": TxState.ABORTED,
        "decision": Decision.ABORT,
        "decided_by": DecidedBy.DEADLINE,
        "reason": "DEADLINE",
        "decided_us": now_us,
        "ended_us": now_us,
        "epoch": 1,
    }
    return active(now_us, **{**values, **more})


def insert(tx: Tx, **more: Any) -> Change:
    return Change(ChangeKind.INSERT, tx, tx.branches, **more)


def amend(old: Tx, new: Tx, *touched: Branch, **more: Any) -> Change:
    new = replace(new, version=old.version + 1)
    return Change(ChangeKind.AMEND, new, touched, expected_version=old.version, **more)


def decide(old: Tx, decision: Decision, **more: Any) -> Change:
    """Decide an undecided row."""
    commit = decision is Decision.COMMIT
    new = replace(
        old,
        state=TxState.COMMITTING if commit else TxState.ABORTING,
        decision=decision,
        decided_by=DecidedBy.CLIENT,
        decided_us=old.created_us + 1,
        epoch=old.epoch + 1,
        owner="n1",
    )
    return amend(old, new, *old.branches, **more)


def end(tx: Tx, **more: Any) -> Change:
    """The end record of a decided transaction for which all went well."""
    state = TxState.COMMITTED if tx.decision is Decision.COMMIT else TxState.ABORTED
    new = replace(tx, state=state, ended_us=tx.decided_us + 1)
    return Change(ChangeKind.PROGRESS, new, expected_epoch=tx.epoch, **{"forced": False, **more})


def operate(tx: Tx, actor: str = "ann", **more: Any) -> Change:
    """An operator retries the first branch."""
    moved = replace(tx.branches[0], attempts=0, reason="")
    new = replace(tx, epoch=tx.epoch + 1, branches=(moved, *tx.branches[1:]))
    at_us = tx.decided_us + 5
    return Change(
        ChangeKind.OPERATE,
        new,
        new.branches,
        expected_epoch=tx.epoch,
        history=(HistoryEntry(at_us, "operator.retry", moved.id, actor, "again"),),
        audit=Audit(actor, "again", "retry", at_us),
        **more,
    )


def release(tx: Tx, **more: Any) -> Change:
    return Change(ChangeKind.RELEASE_GID, replace(tx, gid=""), **{"expected_version": tx.version, **more})


# ---- a place for a log ----


@dataclass
class Place:
    """A migrated, empty log database, and the logs that a test opens on it."""

    url: str
    server: PostgresServer | MariaDBServer | None = None
    opened: list[SqlLog] = field(default_factory=list)
    identities: list[LogIdentity] = field(default_factory=list)

    async def open(self, url: str | None = None, **options: Any) -> SqlLog:
        """One more node's log."""
        values: dict[str, Any] = {"windows": WINDOWS, "detail_retention_us": DETAIL_US, "tick_s": 0.005}
        log = SqlLog(url or self.url, **{**values, **options})
        self.identities.append(await log.open())
        self.opened.append(log)
        return log

    async def close(self) -> None:
        for log in self.opened:
            await log.close()


async def shared_place(server: PostgresServer | MariaDBServer) -> Place:
    """The database of this server that tests take turns on, emptied."""
    url = _migrated.get(id(server))
    if url is None:
        server.create_database("log_contract")
        url = _migrated[id(server)] = server.url("log_contract")
        await migrate(url)
    tables = [f"txcoord_{name}" for name in _TABLES]
    if isinstance(server, MariaDBServer):
        empty = "; ".join(f"DELETE FROM {table}" for table in tables)
    else:
        empty = f"TRUNCATE {', '.join(tables)}"
    server.sql(empty, database_of(url))
    return Place(url, server)


async def sqlite_place(folder: Path) -> Place:
    url = f"sqlite+aiosqlite:///{folder}/log.db"
    await migrate(url)
    return Place(url)


class LogContract:
    """Every test of a class of this kind runs on each kind of log."""

    @pytest.fixture(params=["sqlite", "pg18", "pg17", "mariadb"])
    async def place(self, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
        if request.param == "sqlite":
            place = await sqlite_place(tmp_path)
        else:
            place = await shared_place(request.getfixturevalue(request.param))
        yield place
        await place.close()

    @pytest.fixture
    async def log(self, place: Place) -> SqlLog:
        return await place.open()


# ---- what tests do with a log ----


async def written(log: SqlLog, *changes: Change) -> list[Written]:
    """Write changes one after the other."""
    return [(await log.write(change)).written for change in changes]


async def put(log: SqlLog, *txs: Tx) -> None:
    """Make rows."""
    results = await asyncio.gather(*(log.write(insert(tx)) for tx in txs))
    assert {r.written for r in results} <= {Written.OK}


async def get(log: SqlLog, tx_id: str) -> Tx:
    return (await log.read([tx_id]))[tx_id]


def lazily(log: SqlLog, change: Change) -> asyncio.Future[WriteResult]:
    """Write lazily; the future hears what became of it."""
    future: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()
    log.write_lazily(change, future.set_result)
    return future


class Held:
    """Holds the next flush, once it has taken its batch, until it is let go."""

    def __init__(self, log: SqlLog) -> None:
        self._log = log
        self._go = asyncio.Event()
        self.taken = asyncio.Event()
        log.gate.in_flush = self._hold

    async def _hold(self) -> None:
        self.taken.set()
        await self._go.wait()

    def let_go(self) -> None:
        self._log.gate.in_flush = None
        self._go.set()


async def until_waiting(log: SqlLog, count: int) -> None:
    """Until so many changes wait for a flush."""
    while len(log.gate) < count:  # noqa: ASYNC110 - the loop itself is what is waited for
        await asyncio.sleep(0)


def lose_replies(log: SqlLog, count: int = 1, *, then_away: bool = False) -> Callable[[], None]:
    """The next flushes that write something are written, but the node never hears of it. ``then_away``: and
    after them nothing can be written, until the function that this returns is called."""
    store: Any = log.store
    real = store.write

    async def write(rounds: list[Any], relaxed: bool) -> Any:
        nonlocal count
        if not count and then_away:
            raise LogUnavailable("away")
        flushed = await real(rounds, relaxed)
        if count and rounds:
            count -= 1
            raise ReplyLost("the connection broke after COMMIT")
        return flushed

    store.write = write

    def come_back() -> None:
        store.write = real

    return come_back
