"""Sessions, connections and pools of the caller's: whatever is done to them, no work is committed but the
transaction's, and nothing is left behind."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.support.acceptance import INSERT, Client, Site, eventually, new_gid
from txcoord_client import Aborted, Coordinator, Rejected, Transaction
from txcoord_client._xa import sqlalchemy_


class Base(DeclarativeBase):
    pass


class Strict(Base):
    __tablename__ = "strict"
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str] = mapped_column(nullable=True)


class Here(Base):
    __tablename__ = "here"
    body: Mapped[str] = mapped_column(primary_key=True)


class There(Base):
    __tablename__ = "there"
    body: Mapped[str] = mapped_column(primary_key=True)


TABLES = (
    "CREATE TABLE IF NOT EXISTS strict (id int PRIMARY KEY, body text NOT NULL)",
    "CREATE TABLE IF NOT EXISTS here (body text PRIMARY KEY)",
    "CREATE TABLE IF NOT EXISTS there (body text PRIMARY KEY)",
)


@pytest.fixture
def tables(site: Site) -> Site:
    for db in site.databases:
        for statement in TABLES:
            db.sql(statement)
    return site


@pytest.fixture
async def clean(client: Client) -> AsyncIterator[Client]:
    """The SDK; in the end every connection has gone back, and no branch is remembered."""
    yield client
    assert {name: e.pool.checkedout() for name, e in client.engines.items()} == {  # type: ignore[attr-defined]
        "accounts": 0,
        "ledger": 0,
    }
    assert sqlalchemy_._writers == {}


@pytest.mark.parametrize("what", ["session", "connection"])
@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
async def test_ended_inside_by_the_application(clean: Client, site: Site, what: str, end: str) -> None:
    body = new_gid()
    mine: Any = AsyncSession(clean.accounts) if what == "session" else await clean.accounts.connect()
    with pytest.raises((Rejected, Aborted), match="inside"):
        async with clean.coord.begin("early") as g:
            async with g.xa(mine) as db:
                await db.execute(text(INSERT), {"body": body})
            await getattr(mine, end)()
    assert clean.accounts.pool.checkedout() == 0  # type: ignore[attr-defined]
    # It is as good as new.
    if end != "close" or what == "session":
        async with clean.coord.begin("again") as g, g.xa(mine) as db:
            await db.execute(text(INSERT), {"body": f"{body}-again"})
        assert site.accounts.count(f"{body}-again") == 1
    await mine.close()
    assert site.accounts.count(body) == 0


async def test_a_refused_commit_that_is_swallowed_dooms_it(clean: Client, site: Site) -> None:
    body = new_gid()
    async with AsyncSession(clean.accounts) as session:
        with pytest.raises(Aborted) as caught:
            async with clean.coord.begin("early") as g, g.xa(session) as db:
                await db.execute(text(INSERT), {"body": body})
                with pytest.raises(Rejected):
                    await session.commit()
        assert caught.value.reason == "GUARD"
    assert site.accounts.count(body) == 0


async def test_a_session_on_two_databases_is_refused(clean: Client, tables: Site) -> None:
    """Its commit would be a local one in the database that is no branch."""
    body = new_gid()
    binds = {Here: clean.accounts, There: clean.ledger}
    for swallow in (False, True):
        async with AsyncSession(clean.accounts, binds=binds) as session:
            with pytest.raises((Rejected, Aborted), match="one database"):
                async with clean.coord.begin("two") as g, g.xa(session) as db:
                    db.add(Here(body=body))
                    db.add(There(body=body))
                    if swallow:
                        with pytest.raises(Rejected):
                            await db.flush()
    for db in tables.databases:
        assert db.sql("SELECT count(*) FROM here") == db.sql("SELECT count(*) FROM there") == "0"


async def test_what_a_commit_hook_does_is_never_a_local_commit(clean: Client, site: Site) -> None:
    body = new_gid()
    async with AsyncSession(clean.accounts) as session:

        @event.listens_for(session.sync_session, "before_commit")
        def audit(sync_session: Any) -> None:
            sync_session.execute(text(INSERT), {"body": f"{body}-audit"})

        async with clean.coord.begin("hook") as g, g.xa(session) as db:
            await db.execute(text(INSERT), {"body": body})
    assert (site.accounts.count(body), site.accounts.count(f"{body}-audit")) == (1, 0)


async def test_a_twophase_session_is_refused(clean: Client) -> None:
    async with AsyncSession(clean.accounts, twophase=True) as session:
        with pytest.raises(Rejected, match="twophase"):
            async with clean.coord.begin("two") as g, g.xa(session):
                raise AssertionError("not reached")


@pytest.mark.parametrize(("number", "body"), [(1, None), (7, "again")], ids=["not null", "unique"])
async def test_what_a_flush_at_the_end_meets_is_the_applications(
    clean: Client, tables: Site, number: int, body: str | None
) -> None:
    """Not the marker's: it is neither a passed deadline, which would be tried again, nor a repeated call."""
    tables.accounts.sql("DELETE FROM strict; INSERT INTO strict VALUES (7, 'there')")
    calls = 0

    async def work(g: Any) -> None:
        nonlocal calls
        calls += 1
        async with g.xa(session) as db:
            db.add(Strict(id=number, body=body))

    async with AsyncSession(clean.accounts) as session:
        with pytest.raises(Aborted) as caught:
            await clean.coord.run(work)
    assert (caught.value.reason, caught.value.retriable, calls) == ("APPLICATION_ERROR", False, 1)


@pytest.mark.parametrize("stray", ["COMMIT", "ROLLBACK", "COMMIT; BEGIN", "ROLLBACK; BEGIN"])
@pytest.mark.parametrize("alone", [True, False])
async def test_a_stray_end_is_caught_on_a_drivers_connection(
    clean: Client, site: Site, stray: str, alone: bool
) -> None:
    """After it the branch looks as if it had written nothing."""
    body = new_gid()
    conn = await asyncpg.connect(site.accounts.dsn)
    with pytest.raises(Aborted) as caught:
        async with clean.coord.begin("stray") as g:
            if not alone:
                await clean.write(g, clean.ledger, body)
            async with g.xa(conn, resource="accounts") as db:
                await db.execute(f"INSERT INTO note (body) VALUES ('{body}')")
                await db.execute(stray)
    assert caught.value.reason == "GUARD"
    assert site.ledger.count(body) == 0
    await eventually(lambda: not site.prepared(g.tx_id))
    await conn.close()


async def test_the_error_of_a_flush_comes_out_unchanged(clean: Client, tables: Site) -> None:
    """SQLAlchemy rolls the session back by itself when a flush fails: that is no end by the application."""
    tables.accounts.sql("DELETE FROM strict; INSERT INTO strict VALUES (7, 'there')")
    async with AsyncSession(clean.accounts) as session:
        with pytest.raises(IntegrityError):
            async with clean.coord.begin("flush") as g, g.xa(session) as db:
                db.add(Strict(id=7, body="again"))
                await db.flush()
        # Swallowed, it dooms the transaction: all that the session did is gone.
        body = new_gid()
        with pytest.raises(Aborted) as caught:
            async with clean.coord.begin("swallowed") as g, g.xa(session) as db:
                await db.execute(text(INSERT), {"body": body})
                db.add(Strict(id=7, body="again"))
                with pytest.raises(IntegrityError):
                    await db.flush()
                with pytest.raises(Rejected, match="flush"):
                    await db.rollback()
                    await db.execute(text(INSERT), {"body": body})
        assert caught.value.reason == "SILENT_ROLLBACK"
        # In a savepoint it undoes only that.
        async with clean.coord.begin("savepoint") as g, g.xa(session) as db:
            await db.execute(text(INSERT), {"body": body})
            with pytest.raises(IntegrityError):
                async with db.begin_nested():
                    db.add(Strict(id=7, body="again"))
    assert tables.accounts.count(body) == 1


async def test_a_deadlock_in_a_flush_is_tried_again(clean: Client, tables: Site) -> None:
    tables.accounts.sql("DELETE FROM strict; INSERT INTO strict VALUES (1, 'a'), (2, 'b')")
    both = asyncio.Barrier(2)
    tries = 0

    async def run(first: int, second: int) -> None:
        async with AsyncSession(clean.accounts) as session:

            async def once(g: Transaction) -> None:
                nonlocal tries
                tries += 1
                mine = tries
                async with g.xa(session) as db:
                    one, two = await db.get(Strict, first), await db.get(Strict, second)
                    assert one is not None
                    assert two is not None
                    one.body = g.tx_id
                    await db.flush()
                    if mine <= 2:
                        await both.wait()
                    two.body = g.tx_id
                    await db.flush()

            await clean.coord.run(once)

    await asyncio.gather(run(1, 2), run(2, 1))
    assert tries >= 3


async def test_a_read_only_serializable_branch_commits(clean: Client, site: Site) -> None:
    engine = create_async_engine(site.accounts.url, isolation_level="SERIALIZABLE")
    async with Coordinator(site.address, resources={"accounts": engine}) as coord:
        for resources in ([], ["accounts"]):
            gid = new_gid() if resources else ""
            async with coord.begin("read", gid=gid, resources=resources) as g, g.xa(engine) as db:
                await db.execute(text("SELECT count(*) FROM note"))
            assert g.outcome is not None
            assert g.outcome.state == "COMMITTED"
    await engine.dispose()


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("kind", ["engine", "pool"])
async def test_connections_that_died_in_their_pool_cost_no_transaction(
    clean: Client, site: Site, used: bool, kind: str
) -> None:
    """After a restart of the database: also where the engine has had no branch before."""
    body = new_gid()
    pool = await asyncpg.create_pool(site.accounts.dsn, min_size=4, max_size=4)
    target: Any = clean.accounts if kind == "engine" else pool
    if used:
        async with clean.coord.begin() as g, g.xa(target, resource="accounts"):
            pass
    if kind == "engine":
        own = [await clean.accounts.connect() for _ in range(4)]
        for connection in own:
            await connection.execute(text("SELECT 1"))
        for connection in own:
            await connection.close()
    site.accounts.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name <> 'txcoord-finisher'"
    )
    async with clean.coord.begin("after") as g:
        async with g.xa(target, resource="accounts") as db:
            if kind == "engine":
                await db.execute(text(INSERT), {"body": body})
            else:
                await db.execute(f"INSERT INTO note (body) VALUES ('{body}')")
        await clean.write(g, clean.ledger, body)
    assert (site.counts(body), site.prepared(g.tx_id)) == ((1, 1), [])
    await pool.close()
