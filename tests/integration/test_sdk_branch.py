"""A branch in the service's process, on real PostgreSQL, without a coordinator: guard, votes, what the drivers see."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.support.databases import Databases, database_of, prepared
from txcoord.testing.postgres import PostgresServer
from txcoord_client import NotIdle, Rejected
from txcoord_client._sources import Resources
from txcoord_client._xa.branch import Branch, Failed, Stage
from txcoord_client._xa.postgresql import PostgreSQL
from txcoord_client.protocol import postgresql as pg
from txcoord_client.protocol.xid import Xid

TX = "0190000000007000800000000000000a"
FAR_US = 4_000_000_000_000_000
XID = Xid("0123456789", FAR_US, TX, "1")


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]


class Database:
    """A resource's database, and an engine on it."""

    def __init__(self, server: PostgresServer, url: str) -> None:
        self.server = server
        self.url = url
        self.name = database_of(url)
        self.engine: AsyncEngine = create_async_engine(url, pool_size=2, max_overflow=0)
        self.sql("CREATE TABLE note (id int PRIMARY KEY, body text NOT NULL)")
        for statement in pg.ddl():
            self.sql(statement)

    def sql(self, statement: str) -> str:
        return self.server.sql(statement, self.name)

    def branch(self, target: Any = None, number: str = "1", not_after_us: int = FAR_US) -> Branch:
        resources = Resources({"notes": self.engine})
        source = resources.source(self.engine if target is None else target, resource="notes")
        return Branch(number, source, Xid(XID.log_id, FAR_US, TX, number), not_after_us, PostgreSQL())

    @property
    def notes(self) -> list[str]:
        return self.sql("SELECT body FROM note ORDER BY id").splitlines()

    @property
    def prepared(self) -> list[str]:
        return prepared(self.server, self.url)


@pytest.fixture
async def db(pg: PostgresServer, pg_database: Databases) -> AsyncIterator[Database]:
    database = Database(pg, pg_database(pg))
    yield database
    await database.engine.dispose()


async def opened(branch: Branch) -> Any:
    async def no_check(held: object, source: object, dialect: object) -> None:
        pass

    await branch.open(no_check, until())
    return branch.held.value


def until(seconds: float = 10.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def insert(conn: Any, number: int, body: str) -> None:
    await conn.execute(text("INSERT INTO note VALUES (:id, :body)"), {"id": number, "body": body})


async def test_work_is_prepared_with_its_marker_and_the_connection_is_clean(db: Database) -> None:
    branch = db.branch()
    conn = await opened(branch)
    await insert(conn, 1, "one")
    await branch.prepare(until())
    assert branch.stage is Stage.PREPARED
    assert (db.prepared, db.notes) == ([str(XID)], [])
    await branch.release(True)
    # The pool's connection is as good as new, and a local transaction on it stands by itself.
    async with db.engine.begin() as plain:
        await insert(plain, 2, "two")
    assert db.notes == ["two"]
    db.sql(f"COMMIT PREPARED '{XID}'")
    assert db.notes == ["one", "two"]
    assert db.sql("SELECT branch, op, state FROM txcoord_marker") == "1|xa|1"


async def test_a_failed_statement_whose_error_is_swallowed_is_no_vote(db: Database) -> None:
    """PostgreSQL answers such a PREPARE with the tag ROLLBACK and no error (databases.md)."""
    branch = db.branch()
    conn = await opened(branch)
    await insert(conn, 1, "one")
    with pytest.raises(Exception, match="duplicate key"):
        await insert(conn, 1, "again")
    with pytest.raises(Failed) as caught:
        await branch.prepare(until())
    assert caught.value.reason == "SILENT_ROLLBACK"
    assert (branch.stage, db.prepared) == (Stage.ROLLED_BACK, [])
    await branch.release(False)
    assert db.notes == []


@pytest.mark.parametrize("noticed", [True, False])
@pytest.mark.parametrize("stray", ["COMMIT", "ROLLBACK", "COMMIT; BEGIN", "ROLLBACK; BEGIN"])
async def test_a_stray_end_inside_the_branch_is_caught(db: Database, stray: str, noticed: bool) -> None:
    """Also where no statement was noticed that writes: after a stray COMMIT it looks as if nothing was written."""
    branch = db.branch()
    conn = await opened(branch)
    raw = (await conn.get_raw_connection()).driver_connection
    await insert(conn, 1, "one")
    await raw.execute(stray)
    branch.held.wrote = noticed  # type: ignore[misc]
    with pytest.raises(Failed) as caught:
        await branch.prepare(until())
    assert caught.value.reason == "GUARD"
    # Neither prepared nor a marker that would prove a commit that nobody decided.
    assert (db.prepared, db.sql("SELECT count(*) FROM txcoord_marker")) == ([], "0")
    await branch.release(False)


@pytest.mark.parametrize("what", ["commit", "rollback"])
async def test_commit_and_rollback_of_the_connection_are_refused(db: Database, what: str) -> None:
    branch = db.branch()
    conn = await opened(branch)
    await insert(conn, 1, "one")
    with pytest.raises(Rejected, match="inside a global transaction"):
        await getattr(conn, what)()
    with pytest.raises(Failed) as caught:
        await branch.prepare(until())
    assert caught.value.reason == "GUARD"
    await branch.release(False)
    assert (db.prepared, db.notes) == ([], [])
    async with db.engine.connect() as plain:
        assert (await plain.execute(text("SELECT 1"))).scalar() == 1


async def test_savepoints_work_inside(db: Database) -> None:
    branch = db.branch()
    conn = await opened(branch)
    await insert(conn, 1, "one")
    with pytest.raises(Exception, match="duplicate key"):
        async with conn.begin_nested():
            await insert(conn, 1, "again")
    async with conn.begin_nested():
        await insert(conn, 2, "two")
    await branch.prepare(until())
    await branch.release(True)
    db.sql(f"COMMIT PREPARED '{XID}'")
    assert db.notes == ["one", "two"]


async def test_a_branch_that_wrote_nothing_drops_out(db: Database) -> None:
    branch = db.branch()
    conn = await opened(branch)
    await conn.execute(text("SELECT count(*) FROM note"))
    await branch.prepare(until())
    assert (branch.stage, db.prepared) == (Stage.READ_ONLY, [])
    await branch.release(True)


async def test_a_locking_read_does_not_drop_out(db: Database) -> None:
    db.sql("INSERT INTO note VALUES (1, 'one')")
    branch = db.branch()
    conn = await opened(branch)
    await conn.execute(text("SELECT * FROM note FOR UPDATE"))
    await branch.prepare(until())
    assert (branch.stage, db.prepared) == (Stage.PREPARED, [str(XID)])
    await branch.release(True)


async def test_one_phase_commits_with_its_marker(db: Database) -> None:
    branch = db.branch()
    conn = await opened(branch)
    await insert(conn, 1, "one")
    await branch.commit_one_phase(until())
    assert (branch.stage, db.prepared, db.notes) == (Stage.COMMITTED, [], ["one"])
    assert db.sql("SELECT branch, op, state FROM txcoord_marker") == "0|one|1"
    await branch.release(True)


@pytest.mark.parametrize("one_phase", [False, True])
async def test_a_tombstone_or_lateness_stops_the_end(db: Database, one_phase: bool) -> None:
    key = ("0", "one") if one_phase else ("1", "xa")
    db.sql(pg.probe(TX, *key, FAR_US))
    for not_after_us, reason in ((FAR_US, "DECIDED"), (int(time.time() * 1e6) - 1_000_000, "DEADLINE")):
        branch = db.branch(not_after_us=not_after_us)
        await insert(await opened(branch), 1, "one")
        with pytest.raises(Failed) as caught:
            await (branch.commit_one_phase(until()) if one_phase else branch.prepare(until()))
        assert caught.value.reason == reason
        await branch.release(False)
    assert (db.prepared, db.notes) == ([], [])


async def test_a_session_is_flushed_and_free_again_afterwards(db: Database) -> None:
    async with AsyncSession(db.engine, expire_on_commit=False) as session:
        branch = db.branch(session)
        assert await opened(branch) is session
        note = Note(id=1, body="one")
        session.add(note)
        with pytest.raises(Rejected, match="inside a global transaction"):
            await session.commit()
        await branch.rollback(until())
        await branch.release(False)
        branch = db.branch(session)
        await opened(branch)
        session.add(Note(id=2, body="two"))
        await branch.prepare(until())
        assert db.prepared == [str(XID)]
        db.sql(f"COMMIT PREPARED '{XID}'")
        await branch.release(True)
        assert not session.in_transaction()
        assert list(await session.scalars(select(Note.body))) == ["two"]
        await session.commit()
    assert db.notes == ["two"]


async def test_a_session_or_connection_must_be_idle(db: Database) -> None:
    async with AsyncSession(db.engine) as session:
        await session.execute(text("SELECT 1"))
        with pytest.raises(NotIdle):
            await opened(db.branch(session))
        await session.commit()
    async with db.engine.connect() as conn:
        await conn.execute(text("SELECT 1"))
        with pytest.raises(NotIdle):
            await opened(db.branch(conn))
    raw = await asyncpg.connect(db.url.replace("+asyncpg", ""))
    async with raw.transaction():
        with pytest.raises(NotIdle):
            await opened(db.branch(raw))
    await raw.close()


async def test_a_callers_connection_is_idle_again_afterwards(db: Database) -> None:
    async with db.engine.connect() as conn:
        branch = db.branch(conn)
        assert await opened(branch) is conn
        await insert(conn, 1, "one")
        await branch.prepare(until())
        await branch.release(True)
        assert not conn.in_transaction()
        await insert(conn, 2, "two")
        await conn.commit()
    assert (db.notes, db.prepared) == (["two"], [str(XID)])


@pytest.mark.parametrize("pooled", [False, True])
async def test_asyncpg_connections_and_pools(db: Database, pooled: bool) -> None:
    dsn = db.url.replace("+asyncpg", "")
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=1)
    raw = await asyncpg.connect(dsn)
    branch = db.branch(pool if pooled else raw)
    conn = await opened(branch)
    async with conn.transaction():  # becomes a savepoint
        await conn.execute("INSERT INTO note VALUES (1, 'one')")
    await branch.prepare(until())
    assert db.prepared == [str(XID)]
    await branch.release(True)
    async with pool.acquire() if pooled else _same(raw) as again, again.transaction():
        await again.execute("INSERT INTO note VALUES (2, 'two')")
    assert db.notes == ["two"]
    await pool.close()
    await raw.close()


class _same:
    def __init__(self, value: Any) -> None:
        self.value = value

    async def __aenter__(self) -> Any:
        return self.value

    async def __aexit__(self, *args: object) -> None:
        pass


async def test_isolation_of_the_engine_is_kept(db: Database) -> None:
    engine = create_async_engine(db.url, isolation_level="SERIALIZABLE")
    branch = Branch("1", Resources({"notes": engine}).source(engine), XID, FAR_US, PostgreSQL())
    conn = await opened(branch)
    assert (await conn.execute(text("SHOW transaction_isolation"))).scalar() == "serializable"
    await branch.rollback(until())
    await branch.release(False)
    await engine.dispose()


async def test_a_connection_that_dies_before_prepare_votes_no_and_leaves_the_pool(db: Database) -> None:
    branch = db.branch()
    conn = await opened(branch)
    await insert(conn, 1, "one")
    db.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'")
    with pytest.raises(Failed) as caught:
        await branch.prepare(until())
    assert caught.value.reason == "CONNECTION_LOST"
    await branch.release(False)
    assert (db.notes, db.prepared) == ([], [])
    async with db.engine.connect() as plain:
        assert (await plain.execute(text("SELECT 1"))).scalar() == 1


@pytest.mark.parametrize("one_phase", [False, True])
async def test_a_missing_marker_table_is_not_the_applications_error(db: Database, one_phase: bool) -> None:
    db.sql("DROP TABLE txcoord_marker")
    branch = db.branch()
    await insert(await opened(branch), 1, "one")
    with pytest.raises(Failed, match="resource check notes --fix") as caught:
        await (branch.commit_one_phase(until()) if one_phase else branch.prepare(until()))
    assert caught.value.reason == "RESOURCE_NOT_PREPARED"
    await branch.release(False)
    assert db.notes == []
