"""Sessions, connections and engines of unchanged code on an instrumented engine: what they commit and roll back
inside a global transaction is a unit of it. Each test reads the databases afterwards."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.support.acceptance import INSERT, Client, Site, new_gid
from txcoord_client import Aborted, NotIdle, NoTransaction, OverlappingUnits, Rejected


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    body: Mapped[str] = mapped_column(primary_key=True)


class App:
    """An application that knows nothing of global transactions."""

    def __init__(self, client: Client, site: Site, outside: str) -> None:
        self.client, self.site, self.coord, self.outside = client, site, client.coord, outside
        for name, engine in client.engines.items():
            client.coord.instrument(engine, resource=name, outside=outside)
        self.sessions = async_sessionmaker(client.accounts)
        self.body = new_gid()

    async def add(self, body: str = "", engine: AsyncEngine | None = None) -> None:
        """As a service function would: a session of its own, committed."""
        async with AsyncSession(engine or self.client.accounts) as session:
            session.add(Note(body=body or self.body))
            await session.commit()

    async def read(self) -> list[str]:
        """A session that is only closed."""
        async with self.sessions() as session:
            return list(await session.scalars(select(Note.body).where(Note.body.startswith(self.body))))

    def notes(self) -> list[str]:
        rows = self.site.accounts.sql(f"SELECT body FROM note WHERE body LIKE '{self.body}%' ORDER BY body")
        return rows.split()

    @property
    def counts(self) -> tuple[int, ...]:
        return self.site.counts(self.body)


@pytest.fixture(params=["refuse", "local"])
async def app(client: Client, site: Site, request: pytest.FixtureRequest) -> AsyncIterator[App]:
    app = App(client, site, request.param)
    yield app
    assert {name: e.pool.checkedout() for name, e in client.engines.items()} == {  # type: ignore[attr-defined]
        "accounts": 0,
        "ledger": 0,
    }
    assert site.prepared() == []


@pytest.fixture
async def refusing(client: Client, site: Site) -> App:
    return App(client, site, "refuse")


@pytest.fixture
async def local(client: Client, site: Site) -> App:
    return App(client, site, "local")


async def test_two_engines_commit_together(app: App) -> None:
    async with app.coord.begin("t"):
        await app.add()
        await app.add(engine=app.client.ledger)
        assert app.counts == (0, 0)
    assert app.counts == (1, 1)


async def test_an_exception_that_leaves_undoes_what_was_committed(app: App) -> None:
    with pytest.raises(ZeroDivisionError):
        async with app.coord.begin("t"):
            await app.add()
            await app.add(engine=app.client.ledger)
            raise ZeroDivisionError
    assert app.counts == (0, 0)


async def test_a_read_only_session_dooms_nothing(app: App) -> None:
    async with app.coord.begin("t") as g:
        assert await app.read() == []
        await app.add()
        assert await app.read() == [app.body]
        assert not g.rollback_only
    assert app.notes() == [app.body]


async def test_only_reading_prepares_nothing(app: App) -> None:
    async with app.coord.begin("t") as g:
        await app.read()
    assert g.outcome is not None
    assert g.outcome.committed
    assert await app.coord.get(tx_id=g.tx_id) is None


async def test_a_unit_that_rolls_back_undoes_only_itself(app: App) -> None:
    async with app.coord.begin("t"):
        await app.add(f"{app.body}-1")
        async with app.sessions() as session:
            session.add(Note(body=f"{app.body}-2"))
            await session.flush()
            await session.rollback()
            session.add(Note(body=f"{app.body}-3"))
            await session.commit()
        async with app.sessions() as session:
            session.add(Note(body=f"{app.body}-4"))
            await session.flush()
    assert app.notes() == [f"{app.body}-1", f"{app.body}-3"]


async def test_a_caught_exception_undoes_its_unit(app: App) -> None:
    async with app.coord.begin("t"):
        await app.add(f"{app.body}-1")
        with pytest.raises(ZeroDivisionError):
            async with app.sessions.begin() as session:
                session.add(Note(body=f"{app.body}-2"))
                await session.flush()
                raise ZeroDivisionError
        with pytest.raises(DBAPIError):
            async with app.sessions.begin() as session:
                session.add(Note(body=f"{app.body}-3"))
                await session.flush()
                await session.execute(text("SELECT 1/0"))
        await app.add(f"{app.body}-4")
    assert app.notes() == [f"{app.body}-1", f"{app.body}-4"]


async def test_nested_blocks(app: App) -> None:
    async with app.coord.begin("t"), app.sessions.begin() as session:
        session.add(Note(body=f"{app.body}-1"))
        async with session.begin_nested():
            session.add(Note(body=f"{app.body}-2"))
        with pytest.raises(ZeroDivisionError):
            async with session.begin_nested():
                session.add(Note(body=f"{app.body}-3"))
                await session.flush()
                raise ZeroDivisionError
        with pytest.raises(DBAPIError):
            async with session.begin_nested():
                await session.execute(text("SELECT 1/0"))
        session.add(Note(body=f"{app.body}-4"))
    assert app.notes() == [f"{app.body}-{n}" for n in (1, 2, 4)]


async def test_a_nested_begin_that_raises_dooms_it(app: App) -> None:
    with pytest.raises(Aborted) as caught:
        async with app.coord.begin("t"):
            await app.add()
            with pytest.raises(ZeroDivisionError):
                async with app.coord.begin("inner"):
                    raise ZeroDivisionError
    assert caught.value.reason == "APPLICATION_ERROR"
    assert app.notes() == []


async def test_a_session_inside_another_ones_work(app: App) -> None:
    """The inner one commits; both are there, or none."""
    async with app.coord.begin("t"), app.sessions.begin() as outer:
        outer.add(Note(body=f"{app.body}-1"))
        await outer.flush()
        await app.add(f"{app.body}-2")
        assert len(await app.read()) == 2
    assert app.notes() == [f"{app.body}-1", f"{app.body}-2"]


async def test_a_session_that_only_read_and_is_closed_last_undoes_no_other(app: App) -> None:
    async with app.coord.begin("t"), app.sessions() as outer:
        await outer.scalars(select(Note))
        await app.add(f"{app.body}-1")
        await outer.scalars(select(Note))
        await app.add(f"{app.body}-2")
    assert app.notes() == [f"{app.body}-1", f"{app.body}-2"]


async def test_rolling_back_around_what_another_committed_is_told(app: App) -> None:
    """It cannot be undone alone: what the other one committed would go with it."""
    with pytest.raises((Aborted, OverlappingUnits)) as caught:
        async with app.coord.begin("t"), app.sessions() as outer:
            outer.add(Note(body=f"{app.body}-1"))
            await outer.flush()
            await app.add(f"{app.body}-2")
            await outer.rollback()
    assert caught.value.reason == "OVERLAPPING_UNITS"
    assert app.notes() == []


@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
async def test_overlapping_units(app: App, end: str) -> None:
    with pytest.raises(Aborted) as caught:
        async with app.coord.begin("t"):
            older, younger = app.sessions(), app.sessions()
            older.add(Note(body=f"{app.body}-1"))
            await older.flush()
            younger.add(Note(body=f"{app.body}-2"))
            await younger.flush()
            with pytest.raises(OverlappingUnits):
                await getattr(older, end)()
            with pytest.raises(OverlappingUnits):
                await younger.commit()
            await younger.close()
            await older.close()
    assert caught.value.reason == "OVERLAPPING_UNITS"
    assert app.notes() == []


async def test_work_of_an_older_unit_is_not_undone_by_a_younger_ones_rollback(app: App) -> None:
    with pytest.raises((Aborted, OverlappingUnits)) as caught:
        async with app.coord.begin("t"), app.sessions() as older, app.sessions() as younger:
            older.add(Note(body=f"{app.body}-1"))
            await older.flush()
            younger.add(Note(body=f"{app.body}-2"))
            await younger.flush()
            older.add(Note(body=f"{app.body}-3"))
            await older.flush()
            await younger.rollback()
    assert caught.value.reason == "OVERLAPPING_UNITS"
    assert app.notes() == []


async def test_a_failed_session_gives_way_to_one_that_notes_the_failure(app: App) -> None:
    app.site.accounts.sql("CREATE TABLE IF NOT EXISTS strict (id int PRIMARY KEY, body text NOT NULL)")
    async with app.coord.begin("t"), app.sessions() as session:
        session.add(Note(body=f"{app.body}-1"))
        with pytest.raises(IntegrityError):
            await session.execute(text("INSERT INTO strict (id) VALUES (1)"))
        await app.add(f"{app.body}-2")
        await session.rollback()
    assert app.notes() == [f"{app.body}-2"]


async def test_a_swallowed_error_is_told_by_commit(app: App) -> None:
    async with app.coord.begin("t"):
        async with app.sessions() as session:
            session.add(Note(body=app.body))
            await session.flush()
            with pytest.raises(DBAPIError):
                await session.execute(text("SELECT 1/0"))
            with pytest.raises(Rejected) as caught:
                await session.commit()
        assert caught.value.reason == "SILENT_ROLLBACK"
        await app.add(f"{app.body}-2")
    assert app.notes() == [f"{app.body}-2"]


async def test_core_connections_and_raw_ones(app: App) -> None:
    engine = app.client.accounts
    async with app.coord.begin("t"):
        async with engine.begin() as conn:
            await conn.execute(text(INSERT), {"body": f"{app.body}-1"})
        async with engine.connect() as conn:
            await conn.execute(text(INSERT), {"body": f"{app.body}-2"})
        async with engine.connect() as conn:
            await conn.execute(text(INSERT), {"body": f"{app.body}-3"})
            await conn.commit()
            await conn.execute(text(INSERT), {"body": f"{app.body}-4"})
        fairy: Any = await engine.raw_connection()

        def work() -> None:
            cursor = fairy.cursor()
            cursor.execute(f"INSERT INTO note VALUES ('{app.body}-5')")
            fairy.commit()
            cursor.execute(f"INSERT INTO note VALUES ('{app.body}-6')")
            cursor.close()
            fairy.rollback()
            fairy.close()

        async with engine.connect() as conn:
            await conn.run_sync(lambda _: work())
    assert app.notes() == [f"{app.body}-{n}" for n in (1, 3, 5)]


async def test_the_drivers_own_connection_works_inside_the_unit(app: App) -> None:
    engine = app.client.accounts
    async with app.coord.begin("t"):
        for commit in (True, False):
            async with engine.connect() as conn:
                await conn.execute(text("SELECT 1"))
                raw: Any = (await conn.get_raw_connection()).driver_connection
                await raw.execute(f"INSERT INTO note VALUES ('{app.body}-{commit}')")
                await (conn.commit() if commit else conn.rollback())
        async with engine.connect() as conn, conn.begin():
            raw = (await conn.get_raw_connection()).driver_connection
            await raw.copy_records_to_table("note", records=[(f"{app.body}-copied",)])
    assert app.notes() == [f"{app.body}-True", f"{app.body}-copied"]
    with pytest.raises(Rejected, match="undone alone"):
        async with app.coord.begin("t"):
            await app.add(f"{app.body}-2")
            async with engine.connect() as conn:
                raw = (await conn.get_raw_connection()).driver_connection
                await raw.execute(f"INSERT INTO note VALUES ('{app.body}-3')")
    assert app.notes() == [f"{app.body}-True", f"{app.body}-copied"]


async def test_streams_and_many_rows(app: App) -> None:
    async with app.coord.begin("t"), app.sessions.begin() as session:
        session.add_all([Note(body=f"{app.body}-{n}") for n in range(20)])
        await session.flush()
        rows = await session.stream(select(Note).where(Note.body.startswith(app.body)))
        assert len([row async for row in rows]) == 20
    assert len(app.notes()) == 20


async def test_disposed_in_between(app: App) -> None:
    async with app.coord.begin("t"):
        await app.add(f"{app.body}-1")
        await app.client.accounts.dispose()
        await app.add(f"{app.body}-2")
        assert app.notes() == []
    assert app.notes() == [f"{app.body}-1", f"{app.body}-2"]
    await app.client.accounts.dispose()
    with pytest.raises(ZeroDivisionError):
        async with app.coord.begin("t"):
            await app.add(f"{app.body}-3")
            raise ZeroDivisionError
    assert app.notes() == [f"{app.body}-1", f"{app.body}-2"]


async def test_copies_with_options_and_pool_events(app: App) -> None:
    seen: list[str] = []
    engine = app.client.accounts.execution_options(logging_token="mine")
    event.listen(app.client.accounts.sync_engine, "checkout", lambda *a: seen.append("checkout"))
    event.listen(app.client.accounts.sync_engine, "checkin", lambda *a: seen.append("checkin"))
    async with app.coord.begin("t"):
        await app.add(f"{app.body}-1", engine)
        await app.add(f"{app.body}-2", engine)
    assert app.notes() == [f"{app.body}-1", f"{app.body}-2"]
    assert seen == ["checkout", "checkin"]


async def test_pre_ping(app: App) -> None:
    engine = create_async_engine(app.site.accounts.url, pool_pre_ping=True)
    app.coord.instrument(engine, resource="accounts")
    for number in range(2):
        async with app.coord.begin("t"):
            await app.add(f"{app.body}-{number}", engine)
            await app.add(f"{app.body}-{number}-2", engine)
    assert len(app.notes()) == 4
    await engine.dispose()


async def test_beside_blocks(app: App) -> None:
    """``g.xa`` and instrumented sessions work in one branch."""
    async with app.coord.begin("t") as g:
        async with g.xa(app.client.accounts) as db:
            await db.execute(text(INSERT), {"body": f"{app.body}-1"})
        await app.add(f"{app.body}-2")
        async with g.xa(app.client.accounts) as db:
            await db.execute(text(INSERT), {"body": f"{app.body}-3"})
        assert len(g._branches) == 1
    assert app.notes() == [f"{app.body}-{n}" for n in (1, 2, 3)]


async def test_what_is_given_to_a_block_is_a_branch_as_ever(app: App) -> None:
    engine = app.client.accounts
    async with engine.connect() as conn, AsyncSession(engine) as session:
        await conn.execute(text("SELECT 1"))
        await conn.rollback()
        async with app.coord.begin("t") as g:
            async with g.xa(conn) as db:
                await db.execute(text(INSERT), {"body": f"{app.body}-1"})
            async with g.xa(session):
                session.add(Note(body=f"{app.body}-2"))
                await session.flush()
            await app.add(f"{app.body}-3")
            async with engine.connect() as inside:
                with pytest.raises(NotIdle):
                    async with g.xa(inside):
                        pass
        with pytest.raises(NoTransaction) if app.outside == "refuse" else contextlib.nullcontext():
            await conn.execute(text(INSERT), {"body": f"{app.body}-4"})
            await conn.rollback()
    assert app.notes() == [f"{app.body}-{n}" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    "statement",
    [
        "COMMIT",
        " rollback",
        "BEGIN",
        "/* x */ COMMIT",
        "-- x\nEND",
        "START TRANSACTION",
        "PREPARE TRANSACTION 'x'",
        "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    ],
)
async def test_raw_ends_are_refused(refusing: App, statement: str) -> None:
    app = refusing
    async with app.coord.begin("t"), app.sessions.begin() as session:
        session.add(Note(body=app.body))
        await session.flush()
        with pytest.raises(Rejected) as caught:
            await session.execute(text(statement))
        assert caught.value.reason in ("GUARD", "NOT_SUPPORTED")
    assert app.notes() == [app.body]


async def test_isolation_autocommit_and_twophase_are_refused(refusing: App) -> None:
    app = refusing
    engine = app.client.accounts
    async with app.coord.begin("t"):
        for level in ("AUTOCOMMIT", "SERIALIZABLE"):
            async with engine.connect() as conn:
                with pytest.raises(Rejected) as caught:
                    await conn.execution_options(isolation_level=level)
                assert caught.value.reason == "NOT_SUPPORTED"
            with pytest.raises(Rejected):
                await app.add(engine=engine.execution_options(isolation_level=level))
        async with engine.connect() as conn:
            with pytest.raises(Rejected):
                await conn.execution_options(postgresql_readonly=True)
        async with AsyncSession(engine, twophase=True) as session:
            with pytest.raises(Rejected, match="twophase"):
                await session.execute(text("SELECT 1"))
        await app.add()
    assert app.notes() == [app.body]
    autocommit = create_async_engine(app.site.accounts.url, isolation_level="AUTOCOMMIT")
    app.coord.instrument(autocommit, resource="accounts")
    with pytest.raises(Rejected, match="AUTOCOMMIT"):
        async with app.coord.begin("t"):
            await app.add(f"{app.body}-2", autocommit)
    assert app.notes() == [app.body]
    await autocommit.dispose()


async def test_isolation_of_the_engine_counts(app: App) -> None:
    engine = create_async_engine(app.site.accounts.url, isolation_level="SERIALIZABLE")
    app.coord.instrument(engine, resource="accounts")
    async with app.coord.begin("t"), AsyncSession(engine) as session:
        assert await session.scalar(text("SHOW transaction_isolation")) == "serializable"
        conn = await session.connection()
        assert await conn.get_isolation_level() == "SERIALIZABLE"
    await engine.dispose()


async def test_a_lost_connection_dooms_it(app: App) -> None:
    with pytest.raises(Aborted) as caught:
        async with app.coord.begin("t"):
            await app.add()
            async with app.sessions() as session:
                pid = await session.scalar(text("SELECT pg_backend_pid()"))
                app.site.accounts.sql(f"SELECT pg_terminate_backend({pid})")
                with pytest.raises(DBAPIError):
                    await session.execute(text("SELECT 1"))
            with pytest.raises(Rejected):
                await app.add(f"{app.body}-2")
    assert caught.value.reason == "CONNECTION_LOST"
    assert caught.value.retriable
    assert app.notes() == []
    async with app.coord.begin("t"):
        await app.add(f"{app.body}-3")
    assert app.notes() == [f"{app.body}-3"]


async def test_a_cancelled_statement_dooms_it(app: App) -> None:
    with pytest.raises(Aborted):
        async with app.coord.begin("t"):
            await app.add()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05), app.sessions() as session:
                    await session.execute(text("SELECT pg_sleep(20)"))
    assert app.notes() == []


async def test_a_deadlock_dooms_it(app: App) -> None:
    db = app.site.accounts
    db.sql("CREATE TABLE IF NOT EXISTS pair (id int PRIMARY KEY, n int)")
    db.sql("INSERT INTO pair VALUES (1, 0), (2, 0) ON CONFLICT (id) DO UPDATE SET n = 0")
    started = asyncio.Barrier(2)

    async def swap(first: int, second: int) -> None:
        async with app.coord.begin("t"):
            with_error: BaseException | None = None
            async with app.sessions() as session:
                await session.execute(text("UPDATE pair SET n = n + 1 WHERE id = :id"), {"id": first})
                await started.wait()
                try:
                    await session.execute(text("UPDATE pair SET n = n + 1 WHERE id = :id"), {"id": second})
                    await session.commit()
                except DBAPIError as error:
                    with_error = error
                    await session.rollback()
            if with_error is not None:  # swallowed
                with pytest.raises(Rejected):
                    await app.add()

    ends = await asyncio.gather(swap(1, 2), swap(2, 1), return_exceptions=True)
    lost = [end for end in ends if end is not None]
    assert [getattr(end, "reason", end) for end in lost] == ["DEADLOCK"]
    assert db.sql("SELECT sum(n) FROM pair") == "2"
    assert app.notes() == []


async def test_work_that_is_not_ended_dooms_it(app: App) -> None:
    session = app.sessions()
    with pytest.raises(Aborted) as caught:
        async with app.coord.begin("t"):
            session.add(Note(body=app.body))
            await session.flush()
    assert caught.value.reason == "UNIT_OPEN"
    with pytest.raises(NoTransaction):
        await session.commit()
    await session.close()
    assert app.notes() == []


async def test_a_session_that_only_read_may_stay_open(app: App) -> None:
    session = app.sessions()
    async with app.coord.begin("t"):
        await app.add()
        assert list(await session.scalars(select(Note.body).where(Note.body == app.body))) == [app.body]
    with pytest.raises(NoTransaction):
        await session.execute(text("SELECT 1"))
    await session.rollback()
    assert await session.scalar(text("SELECT 1")) == 1
    await session.close()
    assert app.notes() == [app.body]


async def test_a_function_that_writes_is_work(app: App) -> None:
    app.site.accounts.sql(
        "CREATE OR REPLACE FUNCTION note_it(b text) RETURNS int LANGUAGE sql AS "
        "$$INSERT INTO note VALUES (b); SELECT 1$$"
    )
    call, cte = (
        "SELECT note_it(:body)",
        "WITH x AS (INSERT INTO note VALUES (:body) RETURNING 1) SELECT * FROM x",
    )
    async with app.coord.begin("t"):
        for number, statement in enumerate((call, cte)):
            async with app.sessions.begin() as session:
                await session.execute(text(statement), {"body": f"{app.body}-{number}"})
            async with app.sessions() as session:
                await session.execute(text(statement), {"body": f"{app.body}-{number}-undone"})
    assert app.notes() == [f"{app.body}-0", f"{app.body}-1"]
    for statement in (call, cte):
        with pytest.raises(Aborted) as caught:
            async with app.coord.begin("t"):
                session = app.sessions()
                await session.execute(text(statement), {"body": f"{app.body}-3"})
        assert caught.value.reason == "UNIT_OPEN"
        await session.close()
    assert app.notes() == [f"{app.body}-0", f"{app.body}-1"]


# ---- outside ----


@pytest.mark.parametrize(
    "statement",
    [
        INSERT,
        "WITH x AS (INSERT INTO note VALUES (:body) RETURNING 1) SELECT * FROM x",
        "SELECT note_it(:body)",
        "SELECT * FROM note WHERE body = :body FOR UPDATE",
        "CREATE TABLE outside_made AS SELECT CAST(:body AS text)",
    ],
)
@pytest.mark.parametrize("autocommit", [False, True])
async def test_writes_outside_are_refused(refusing: App, statement: str, autocommit: bool) -> None:
    app = refusing
    app.site.accounts.sql(
        "CREATE OR REPLACE FUNCTION note_it(b text) RETURNS int LANGUAGE sql AS "
        "$$INSERT INTO note VALUES (b); SELECT 1$$"
    )
    engine = app.client.accounts
    if autocommit:
        engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    for _ in range(2):
        async with AsyncSession(engine) as session:
            assert await session.scalar(text("SELECT 1")) == 1
            with pytest.raises(NoTransaction, match="outside"):
                await session.execute(text(statement), {"body": app.body})
    assert app.notes() == []
    with app.coord.outside():
        async with AsyncSession(engine) as session:
            await session.execute(text(INSERT), {"body": f"{app.body}-1"})
            await session.commit()
    with pytest.raises(NoTransaction, match="outside"):
        await app.add()
    async with app.coord.begin("t"):
        with app.coord.outside():
            await app.add(f"{app.body}-2")
        await app.add(f"{app.body}-3")
        assert app.notes() == [f"{app.body}-1", f"{app.body}-2"]
        with pytest.raises(ZeroDivisionError):
            raise ZeroDivisionError
    assert app.notes() == [f"{app.body}-{n}" for n in (1, 2, 3)]


async def test_outside_local_leaves_code_alone(local: App) -> None:
    await local.add()
    assert local.notes() == [local.body]


async def test_a_task_started_inside_joins_while_it_lasts(app: App) -> None:
    async with app.coord.begin("t"):
        await asyncio.create_task(app.add(f"{app.body}-1"))
    assert app.notes() == [f"{app.body}-1"]


async def test_a_background_task_that_outlives_it_commits_nothing(app: App) -> None:
    go = asyncio.Event()

    async def later() -> None:
        await go.wait()
        await app.add(f"{app.body}-2")

    async with app.coord.begin("t"):
        await app.add(f"{app.body}-1")
        task = asyncio.create_task(later())
    go.set()
    with pytest.raises(NoTransaction):
        await task
    assert app.notes() == [f"{app.body}-1"]


async def test_a_connection_from_before_takes_no_part(app: App) -> None:
    async with app.sessions() as session:
        await session.execute(text("SELECT 1"))
        with pytest.raises((NotIdle, NoTransaction)):
            async with app.coord.begin("t"):
                session.add(Note(body=app.body))
                await session.commit()
    async with app.client.accounts.connect() as conn:
        with pytest.raises((NotIdle, NoTransaction)):
            async with app.coord.begin("t"):
                await conn.execute(text(INSERT), {"body": app.body})
    assert app.notes() == []
    async with app.sessions() as session:
        await session.execute(text("SELECT 1"))
        await session.commit()
        async with app.coord.begin("t"):
            session.add(Note(body=app.body))
            await session.commit()
    assert app.notes() == [app.body]


async def test_parallel_sessions_of_one_transaction(app: App) -> None:
    """They overlap, mostly: never is one committed without the other."""

    async def one(number: int) -> None:
        async with app.sessions.begin() as session:
            session.add(Note(body=f"{app.body}-{number}"))
            await session.flush()
            await session.execute(text("SELECT 1"))

    try:
        async with app.coord.begin("t"), asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(one(number))
    except (Aborted, ExceptionGroup):
        assert app.notes() == []
    else:
        assert len(app.notes()) == 5
