"""A branch in the service's process, on real MariaDB and MySQL, without a coordinator: votes, what the drivers see,
and the session that must finish what it has prepared."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import aiomysql
import asyncmy
import pymysql
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tests.support.databases import Databases, database_of
from txcoord.testing.mariadb import MariaDBServer, MySQLServer
from txcoord_client import NotIdle, Rejected
from txcoord_client._sources import Resources
from txcoord_client._xa.branch import Branch, Failed, Stage
from txcoord_client._xa.mariadb import MariaDB, MySQL
from txcoord_client.protocol import mariadb as my
from txcoord_client.protocol.xid import Xid
from txcoord_client.sync._sources import Resources as SyncResources
from txcoord_client.sync._xa.branch import Branch as SyncBranch
from txcoord_client.sync._xa.branch import Stage as SyncStage
from txcoord_client.sync._xa.mariadb import MariaDB as SyncMariaDB
from txcoord_client.sync._xa.mariadb import MySQL as SyncMySQL

AnyServer = MariaDBServer | MySQLServer
FAR_US = 4_000_000_000_000_000
LOG = "0123456789"
DRIVERS = ("aiomysql", "asyncmy")


class Database:
    """A resource's database, and an engine on it."""

    _numbers = 0

    def __init__(self, server: AnyServer, url: str, driver: str) -> None:
        self.server = server
        self.url = make_url(url)
        self.name = database_of(url)
        self.engine: AsyncEngine = create_async_engine(
            self.url.set(drivername=f"mysql+{driver}"), pool_size=2, max_overflow=0
        )
        self.sql("CREATE TABLE note (id int PRIMARY KEY, body varchar(99) NOT NULL) ENGINE=InnoDB")
        for statement in my.ddl():
            self.sql(statement)
        Database._numbers += 1
        self.tx_id = f"01900000000070008{Database._numbers:015x}"

    def sql(self, statement: str) -> str:
        return self.server.sql(statement, self.name)

    @property
    def holds(self) -> bool:
        return isinstance(self.server, MariaDBServer)

    def branch(
        self, target: Any = None, not_after_us: int = FAR_US, number: str = "1", **options: Any
    ) -> Branch:
        source = Resources({"notes": self.engine}).source(
            self.engine if target is None else target, resource="notes"
        )
        dialect = MariaDB() if self.holds else MySQL()
        return Branch(number, source, Xid(LOG, FAR_US, self.tx_id, number), not_after_us, dialect, **options)

    def sync_branch(self, target: Any) -> SyncBranch:
        source = SyncResources({}).source(target, resource="notes")
        dialect = SyncMariaDB() if self.holds else SyncMySQL()
        return SyncBranch("1", source, Xid(LOG, FAR_US, self.tx_id, "1"), FAR_US, dialect)

    @property
    def notes(self) -> list[str]:
        return self.sql("SELECT body FROM note ORDER BY id").splitlines()

    @property
    def prepared(self) -> int:
        return sum(self.tx_id.encode() in gtrid for _, gtrid, _ in self.server.prepared())

    def roll_back(self, branch: Any) -> None:
        """From another session, once the one that prepared is gone from InnoDB too: before, that would lose it."""
        ends = time.monotonic() + 20
        # InnoDB makes that table anew only when nobody has read it for 0.1 s.
        while self.sql(
            "DO SLEEP(0.15); SELECT trx_id FROM information_schema.INNODB_TRX"
            f" WHERE trx_mysql_thread_id = {branch.xid.connection_id}"
        ):
            assert time.monotonic() < ends, "the session still holds it"
        self.sql(my.xa_rollback(str(branch.xid)))
        assert self.prepared == 0

    async def finish(self, branch: Any) -> None:
        """Commit what is prepared: on MariaDB its own session does, on MySQL any."""
        if self.holds:
            assert branch.kept
            done = branch.finish(True, 5.0)
            assert await done if asyncio.iscoroutine(done) else done
        else:
            assert not branch.kept
            self.sql(my.xa_commit(str(branch.xid)))

    @property
    def connect(self) -> dict[str, Any]:
        """Arguments of a driver's connect; aiomysql calls the database otherwise."""
        host, port = self.url.host, self.url.port
        return {"host": host, "port": port, "user": self.url.username, "password": "", "database": self.name}

    @property
    def connect_aiomysql(self) -> dict[str, Any]:
        options = self.connect
        options["db"] = options.pop("database")
        return options


@pytest.fixture(params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> AnyServer:
    found: AnyServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=DRIVERS)
async def db(
    request: pytest.FixtureRequest, server: AnyServer, new_database: Databases
) -> AsyncIterator[Database]:
    database = Database(server, new_database(server), request.param)
    yield database
    await database.engine.dispose()


async def opened(branch: Branch) -> Any:
    async def no_check(held: Any, source: Any, dialect: Any) -> None:
        await held.fetch_alone("SELECT 1 FROM note")

    await branch.open(no_check, until())
    return branch.held.value


def until(seconds: float = 10.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def insert(conn: Any, number: int, body: str) -> None:
    await conn.execute(text("INSERT INTO note VALUES (:id, :body)"), {"id": number, "body": body})


async def test_work_is_prepared_with_its_marker_and_finished(db: Database) -> None:
    branch = db.branch()
    conn = await opened(branch)
    await insert(conn, 1, "one")
    await branch.prepare(until())
    assert branch.stage is Stage.PREPARED
    assert (db.prepared, db.notes) == (1, [])
    assert bool(branch.xid.connection_id) is db.holds
    await db.finish(branch)
    assert (db.prepared, db.notes) == (0, ["one"])
    assert db.sql("SELECT branch, op, state FROM txcoord_marker") == "1|xa|1"
    await branch.release(True)
    # The pool's connection is as good as new.
    async with db.engine.begin() as plain:
        await insert(plain, 2, "two")
    assert db.notes == ["one", "two"]


async def test_its_own_session_rolls_back_what_it_has_prepared(db: Database) -> None:
    branch = db.branch()
    await insert(await opened(branch), 1, "one")
    await branch.prepare(until())
    if db.holds:
        assert await branch.finish(False, 5.0)
    else:
        db.sql(my.xa_rollback(str(branch.xid)))
    await branch.release(False)
    assert (db.prepared, db.notes) == (0, [])


@pytest.mark.parametrize("what", ["commit", "rollback"])
async def test_commit_and_rollback_of_the_connection_are_refused(db: Database, what: str) -> None:
    branch = db.branch()
    conn = await opened(branch)
    await insert(conn, 1, "one")
    with pytest.raises(Rejected, match=what):
        await getattr(conn, what)()
    with pytest.raises(Failed) as caught:
        await branch.prepare(until())
    assert caught.value.reason == "GUARD"
    await branch.release(False)
    assert (db.prepared, db.notes) == (0, [])


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK", "BEGIN", "CREATE TABLE other (i int)"])
async def test_the_server_refuses_what_would_end_the_branch(db: Database, statement: str) -> None:
    branch = db.branch()
    conn = await opened(branch)
    await insert(conn, 1, "one")
    with pytest.raises(OperationalError, match="1399"):
        await conn.exec_driver_sql(statement)
    await branch.prepare(until())
    assert db.notes == []
    await db.finish(branch)
    await branch.release(True)
    assert db.notes == ["one"]


async def test_savepoints_work_inside(db: Database) -> None:
    branch = db.branch()
    conn = await opened(branch)
    await insert(conn, 1, "one")
    with pytest.raises(ValueError, match="part"):  # noqa: PT012
        async with conn.begin_nested():
            await insert(conn, 2, "two")
            raise ValueError("part")
    await branch.prepare(until())
    await db.finish(branch)
    await branch.release(True)
    assert db.notes == ["one"]


async def test_one_phase_commits_with_its_marker(db: Database) -> None:
    branch = db.branch()
    await insert(await opened(branch), 1, "one")
    await branch.commit_one_phase(until())
    assert branch.stage is Stage.COMMITTED
    await branch.release(True)
    assert (db.prepared, db.notes) == (0, ["one"])
    assert db.sql("SELECT branch, op, state FROM txcoord_marker") == "0|one|1"


async def test_only_a_branch_that_was_declared_to_read_drops_out(db: Database) -> None:
    db.sql("INSERT INTO note VALUES (1, 'one')")
    branch = db.branch(read_only=True)
    conn = await opened(branch)
    assert (await conn.execute(text("SELECT body FROM note"))).scalar() == "one"
    with pytest.raises(OperationalError, match="1792"):
        await insert(conn, 2, "two")
    await branch.prepare(until())
    assert branch.stage is Stage.READ_ONLY
    await branch.release(True)
    assert db.sql("SELECT count(*) FROM txcoord_marker") == "0"
    # The next transaction on that connection may write.
    async with db.engine.begin() as plain:
        await insert(plain, 3, "three")
    undeclared = db.branch()
    await (await opened(undeclared)).execute(text("SELECT body FROM note"))
    await undeclared.prepare(until())
    assert undeclared.stage is Stage.PREPARED
    await db.finish(undeclared)
    await undeclared.release(True)


@pytest.mark.parametrize("one_phase", [False, True])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("mode", ["''", "'TRADITIONAL'"])
async def test_a_tombstone_or_lateness_stops_the_end(
    db: Database, late: bool, one_phase: bool, mode: str
) -> None:
    """Whatever the mode of the session: a lenient one would make 0 of a missing value."""
    if not late:
        key = ("0", "one") if one_phase else ("1", "xa")
        db.sql(my.insert_marker(db.tx_id, *key, FAR_US, 2))
    branch = db.branch(not_after_us=1 if late else FAR_US)
    conn = await opened(branch)
    await conn.exec_driver_sql(f"SET SESSION sql_mode = {mode}, time_zone = '-11:00', timestamp = 1")
    await insert(conn, 1, "one")
    with pytest.raises(Failed) as caught:
        await (branch.commit_one_phase(until()) if one_phase else branch.prepare(until()))
    assert caught.value.reason == ("DEADLINE" if late else "DECIDED")
    assert branch.stage is Stage.ROLLED_BACK
    await branch.release(False)
    assert (db.prepared, db.notes) == (0, [])


async def test_the_victim_of_a_deadlock_says_so(db: Database) -> None:
    db.sql("INSERT INTO note VALUES (1, 'one'), (2, 'two')")
    branch = db.branch()
    conn = await opened(branch)
    await conn.exec_driver_sql("UPDATE note SET body = 'x' WHERE id = 1")
    async with db.engine.connect() as other:
        # Of two it kills the one that has written less.
        await other.exec_driver_sql("UPDATE note SET body = 'y' WHERE id = 2")
        await other.exec_driver_sql("INSERT INTO note VALUES (3, 'a'), (4, 'b'), (5, 'c'), (6, 'd')")

        async def cross() -> None:
            await other.exec_driver_sql("UPDATE note SET body = 'y' WHERE id = 1")

        waiting = asyncio.create_task(cross())
        try:
            await conn.exec_driver_sql("UPDATE note SET body = 'x' WHERE id = 2")
        except OperationalError as error:
            assert "1213" in str(error)  # noqa: PT017
        else:
            pytest.fail("no deadlock")
        await waiting
        await other.rollback()
    with pytest.raises(Failed) as caught:  # Its error was swallowed.
        await branch.prepare(until())
    assert caught.value.reason in ("DEADLOCK", "SERIALIZATION_FAILURE")
    await branch.release(False)
    assert (db.prepared, db.notes) == (0, ["one", "two"])
    async with db.engine.connect() as again:
        assert (await again.execute(text("SELECT 1"))).scalar() == 1


async def test_a_session_is_flushed_and_free_again_afterwards(db: Database) -> None:
    async with AsyncSession(db.engine) as session:
        branch = db.branch(session)
        await insert(await opened(branch), 1, "one")
        await branch.prepare(until())
        await db.finish(branch)
        await branch.release(True)
        assert not session.in_transaction()
        assert (await session.execute(text("SELECT body FROM note"))).scalar() == "one"


async def test_a_callers_session_that_must_be_kept_is_taken_out_of_its_hands(db: Database) -> None:
    """The pool never sees a prepared connection: the session gets another one."""
    if not db.holds:
        return  # On MySQL no session is kept.
    async with AsyncSession(db.engine) as session:
        branch = db.branch(session)
        await insert(await opened(branch), 1, "one")
        await branch.prepare(until())
        await branch.held.take_out()
        assert not session.in_transaction()
        assert (await session.execute(text("SELECT count(*) FROM note"))).scalar() == 0
        assert (await session.execute(text("SELECT CONNECTION_ID()"))).scalar() != branch.xid.connection_id
        await session.commit()
    assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert (db.prepared, db.notes) == (1, [])
    assert await branch.finish(True, 5.0)
    await branch.release(True)
    assert (db.prepared, db.notes) == (0, ["one"])


async def test_a_busy_connection_is_refused(db: Database) -> None:
    async with db.engine.connect() as conn:
        await conn.execute(text("SELECT 1"))
        with pytest.raises(NotIdle):
            await opened(db.branch(conn))
    raw = await aiomysql.connect(**db.connect_aiomysql)
    async with raw.cursor() as cursor:
        await cursor.execute("SELECT * FROM note")
    branch = db.branch(raw)

    async def no_check(held: object, source: object, dialect: object) -> None:
        pass

    with pytest.raises(NotIdle):
        await branch.open(no_check, until())
    raw.close()


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("module", [aiomysql, asyncmy])
async def test_connections_and_pools_of_the_drivers(
    server: AnyServer, new_database: Databases, module: Any, pooled: bool
) -> None:
    db = Database(server, new_database(server), "aiomysql")
    options = db.connect_aiomysql if module is aiomysql else db.connect
    pool = await module.create_pool(**options, minsize=1, maxsize=1) if pooled else None
    target = pool or await module.connect(**options)
    branch = db.branch(target)
    conn = await opened(branch)
    async with conn.cursor() as cursor:
        await cursor.execute("INSERT INTO note VALUES (%s, %s)", (1, "one"))
    with pytest.raises(Rejected, match="commit"):
        await conn.commit()
    await branch.rollback(until())
    await branch.release(False)
    assert db.notes == []
    if not pooled:
        target = await module.connect(**options)
    # The server may not have noticed yet that the first one's connection is closed: another name.
    again = db.branch(target, number="2")
    conn = await opened(again)
    async with conn.cursor() as cursor:
        await cursor.execute("INSERT INTO note VALUES (%s, %s)", (2, "two"))
    await again.prepare(until())
    await db.finish(again)
    await again.release(True)
    assert db.notes == ["two"]
    if pool is None:
        await conn.rollback()  # The caller's own again.
        conn.close()
    else:
        pool.close()
        await pool.wait_closed()
    await db.engine.dispose()


@pytest.mark.parametrize("how", ["engine", "session", "pymysql"])
def test_threads(server: AnyServer, new_database: Databases, how: str) -> None:
    db = Database(server, new_database(server), "aiomysql")
    engine = create_engine(db.url.set(drivername="mysql+pymysql"), pool_size=1, max_overflow=0)
    session = Session(engine)
    raw = pymysql.connect(**db.connect)
    targets: dict[str, Any] = {"engine": engine, "session": session, "pymysql": raw}
    branch = db.sync_branch(targets[how])
    branch.open(lambda held, source, dialect: held.fetch_alone("SELECT 1 FROM note"), 2**31)  # type: ignore[arg-type, return-value]
    value = branch.held.value
    if how == "pymysql":
        with value.cursor() as cursor:
            cursor.execute("INSERT INTO note VALUES (%s, %s)", (1, "one"))
    else:
        value.execute(text("INSERT INTO note VALUES (1, 'one')"))
    branch.prepare(2**31)
    assert branch.stage is SyncStage.PREPARED
    assert (db.prepared, db.notes) == (1, [])
    if db.holds:
        assert branch.finish(True, 5.0)
    else:
        db.sql(my.xa_commit(str(branch.xid)))
    branch.release(True)
    assert (db.prepared, db.notes) == (0, ["one"])
    session.close()
    raw.close()
    engine.dispose()


async def test_a_session_that_is_killed_leaves_the_branch_to_the_coordinator(db: Database) -> None:
    if not db.holds:
        return  # On MySQL no session is kept.
    branch = db.branch()
    await insert(await opened(branch), 1, "one")
    await branch.prepare(until())
    db.sql(my.kill(branch.xid.connection_id))
    assert not await branch.finish(True, 5.0)
    assert branch.stage is Stage.PREPARED
    assert not branch.kept
    assert db.prepared == 1


async def test_a_connection_that_died_in_its_pool_is_replaced(db: Database) -> None:
    async with db.engine.connect() as one, db.engine.connect() as two:
        ids = [(await c.execute(text("SELECT CONNECTION_ID()"))).scalar() for c in (one, two)]
    for number in ids:
        assert isinstance(number, int)
        db.sql(my.kill(number))
    branch = db.branch()
    await insert(await opened(branch), 1, "one")
    await branch.commit_one_phase(until())
    await branch.release(True)
    assert db.notes == ["one"]
    assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
