"""Sessions on MariaDB and MySQL that are not as the SDK would like to have them, and those that wait for a decision."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiomysql
import asyncmy
import pymysql
import pytest
from sqlalchemy import text

from tests.integration.test_sdk_branch_mysql import AnyServer, Database, insert, opened, until
from tests.support.databases import Databases
from txcoord.testing.mariadb import MariaDBServer
from txcoord_client import NotIdle, Unavailable, _aio, _keeping
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client._runtime import Runtime
from txcoord_client._xa.branch import Branch
from txcoord_client.access import Access
from txcoord_client.protocol import mariadb as my

IDENTITY = "0" * 31 + "1"


@pytest.fixture(params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> AnyServer:
    found: AnyServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def db(server: AnyServer, new_database: Databases) -> AsyncIterator[Database]:
    database = Database(server, new_database(server), "asyncmy")
    yield database
    await database.engine.dispose()


@pytest.fixture
async def maria(mariadb: MariaDBServer, new_database: Databases) -> AsyncIterator[Database]:
    database = Database(mariadb, new_database(mariadb), "asyncmy")
    yield database
    await database.engine.dispose()


# ---- a session that is given ----


@pytest.mark.parametrize("driver", ["aiomysql", "asyncmy"])
async def test_a_connection_with_work_of_its_own_is_refused_and_keeps_it(db: Database, driver: str) -> None:
    """What the SDK reads before the branch begins must not roll it back."""
    made = aiomysql.connect(**db.connect_aiomysql) if driver == "aiomysql" else asyncmy.connect(**db.connect)
    conn = await made
    async with conn.cursor() as cursor:
        await cursor.execute("INSERT INTO note VALUES (1, 'mine')")
    with pytest.raises(NotIdle):
        await opened(db.branch(conn))
    await conn.commit()
    assert db.notes == ["mine"]
    await opened(branch := db.branch(conn))
    await branch.rollback(until())
    await branch.release(False)
    conn.close()


def test_so_is_one_of_pymysql(db: Database) -> None:
    conn = pymysql.connect(**db.connect)
    conn.cursor().execute("INSERT INTO note VALUES (1, 'mine')")

    def check(held: Any, source: Any, dialect: Any) -> None:
        held.fetch_alone(dialect.identity)

    with pytest.raises(NotIdle):
        db.sync_branch(conn).open(check, time.monotonic() + 5)
    conn.commit()
    assert db.notes == ["mine"]
    conn.close()


@pytest.mark.parametrize("one_phase", [True, False])
async def test_the_marker_is_in_the_database_of_the_resource_wherever_use_has_led(
    db: Database, server: AnyServer, new_database: Databases, one_phase: bool
) -> None:
    """Else nobody would find it: what was committed would count as never committed."""
    other = Database(server, new_database(server), "asyncmy")
    db.sql(my.set_identity(IDENTITY))
    runtime = Runtime(
        "127.0.0.1:1", "default", None, version="0", call_timeout=1.0, participants={}, access=Access()
    )  # type: ignore[arg-type]
    runtime._known["notes"] = pb.ResourceInfo(name="notes", engine="mysql", identity=IDENTITY)
    for number in (1, 2):  # The second one's session comes from the pool, where the first has left it.
        branch = db.branch()
        await branch.open(runtime._check_identity, until())
        conn = branch.held.value
        await conn.execute(text(f"INSERT INTO {db.name}.note VALUES ({number}, 'x')"))
        await conn.exec_driver_sql(f"USE {other.name}")
        if one_phase:
            await branch.commit_one_phase(until())
        else:
            await branch.prepare(until())
            await db.finish(branch)
        await branch.release(True)
        assert db.sql("SELECT count(*) FROM txcoord_marker") == "1"
        db.sql("DELETE FROM txcoord_marker")
    assert other.sql("SELECT count(*) FROM txcoord_marker") == "0"
    await other.engine.dispose()
    await runtime.close()


@pytest.mark.parametrize("where", ["INSERT", "XA PREPARE"])
def test_an_interrupt_in_a_thread_comes_out(db: Database, where: str) -> None:
    conn = pymysql.connect(**db.connect)
    branch = db.sync_branch(conn)
    branch.open(lambda held, source, dialect: None, time.monotonic() + 5)
    conn.cursor().execute("INSERT INTO note VALUES (1, 'mine')")
    execute = branch.held.execute

    def interrupted(sql: str) -> str:
        if where in sql:
            raise KeyboardInterrupt
        return execute(sql)

    branch.held.execute = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        branch.prepare(time.monotonic() + 5)
    branch.release(False)
    assert (db.prepared, db.notes) == (0, [])


# ---- sessions that wait for the decision ----


class Told:
    """The coordinator, as a keeper sees it."""

    def __init__(
        self, *, decision: c.Decision = c.DECISION_UNSPECIFIED, listed: tuple[c.Branch, ...] = ()
    ) -> None:
        self.decision = decision
        self.listed = listed
        self.reports: list[tuple[str, c.BranchEvent]] = []
        self.asked = 0

    async def call(self, name: str, request: Any, until: float, **names: str) -> Any:
        if name == "get":
            branches = [c.BranchDetail(spec=branch) for branch in self.listed]
            return pb.GetResponse(transaction=c.Transaction(branches=branches))
        self.asked += 1
        if self.asked == 1:
            raise Unavailable("not yet", definite=True)
        outcome = c.Outcome(decision=self.decision)
        return pb.WaitResponse(results=[pb.WaitResult(outcome=outcome)] if self.decision else [])

    def tell(self, name: str, request: pb.ReportRequest, *more: Any, **names: str) -> None:
        self.reports += [(report.branch, report.event) for report in request.reports]


class Keeping:
    """As much of a transaction and its runtime as a keeper needs."""

    def __init__(self, wire: Told, tx_id: str) -> None:
        self.wire, self.tx_id, self.deadline_us, self.closed = wire, tx_id, 1, False
        self.tasks = _aio.Tasks()
        self.left: list[Branch] = []

    @property
    def _runtime(self) -> Any:
        return self

    async def release_branch(self, branch: Branch, holder: object, committed: bool) -> None:
        await branch.release(committed)
        self.left.append(branch)


async def prepared(db: Database, target: Any = None) -> Branch:
    branch = db.branch(target)
    await insert(await opened(branch), 1, "one") if target is None else await opened(branch)
    await branch.prepare(until())
    assert branch.kept
    return branch


async def test_a_session_commits_only_what_is_in_the_list_that_was_committed(maria: Database) -> None:
    branch = await prepared(maria)
    other = branch.to_pb()
    other.xa.connection_id += 1  # The same call, run by another session.
    wire = Told(decision=c.DECISION_COMMIT, listed=(other,))
    tx: Any = Keeping(wire, maria.tx_id)
    await _keeping._await_decision(tx, [branch])
    assert (maria.prepared, maria.notes, wire.reports) == (1, [], [])
    assert tx.left == [branch]
    maria.roll_back(branch)


async def test_a_session_commits_what_is_in_it(maria: Database) -> None:
    branch = await prepared(maria)
    assert await branch.lives(5.0)
    wire = Told(decision=c.DECISION_COMMIT, listed=(branch.to_pb(),))
    tx: Any = Keeping(wire, maria.tx_id)
    await _keeping._await_decision(tx, [branch])
    assert (maria.prepared, maria.notes) == (0, ["one"])
    assert wire.reports == [("1", c.BRANCH_EVENT_COMMITTED)]


async def test_a_session_that_was_ended_waits_no_more(maria: Database) -> None:
    """By the node that took the abort: no other one knows of it, and none will ever."""
    branch = await prepared(maria)
    wire = Told()
    tx: Any = Keeping(wire, maria.tx_id)
    waiting = asyncio.ensure_future(_keeping._await_decision(tx, [branch]))
    while wire.asked < 3:  # noqa: ASYNC110 - until it has asked some more
        await asyncio.sleep(0)
    assert not waiting.done(), "it lives, and waits"
    maria.sql(my.kill(branch.xid.connection_id))
    async with asyncio.timeout(10):
        await waiting
    assert tx.left == [branch]
    assert maria.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    maria.roll_back(branch)


async def test_a_drivers_connection_of_the_caller_is_closed_rather_than_left_prepared_with_him(
    maria: Database,
) -> None:
    conn = await asyncmy.connect(**maria.connect)
    branch = await prepared(maria, conn)
    wire = Told()
    tx: Any = Keeping(wire, maria.tx_id)
    await _keeping.keep(tx, [branch])
    assert not branch.kept
    assert not branch.to_pb().xa.held, "the coordinator need not wait for it"
    with pytest.raises(asyncmy.errors.MySQLError):
        await conn.cursor().execute("SELECT 1")
    await tx.tasks.drain(5)
    maria.roll_back(branch)
