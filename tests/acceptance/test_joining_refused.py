"""Instrumented SQLAlchemy engines: what is refused inside a global transaction, what becomes of it when things break,
and what happens outside of one."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from tests.support.acceptance import INSERT, Client, Site, new_gid
from tests.support.joining import App, Note
from txcoord_client import Aborted, NotIdle, NoTransaction, Rejected


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


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_a_hidden_end_is_noticed(refusing: App, end: str) -> None:
    """Past everything that looks at statements. A stray COMMIT is in the database; the rest is not."""
    app = refusing
    for more in (False, True):
        app.body = new_gid()
        with pytest.raises((Aborted, Rejected, DBAPIError)) as caught:
            async with app.coord.begin("t") as g:
                await app.add(f"{app.body}-1")
                await app.add(engine=app.client.ledger)
                async with app.client.accounts.connect() as conn:
                    await conn.execute(text(INSERT), {"body": f"{app.body}-2"})
                    raw = (await conn.get_raw_connection()).driver_connection
                    assert raw is not None
                    await raw.execute(end)
                    if more:
                        await conn.commit()
                if more:
                    await app.add(f"{app.body}-3")
        assert g.rollback_only
        assert g._rollback_only == "GUARD" if more else caught.value
        assert app.notes() == ([f"{app.body}-1", f"{app.body}-2"] if end == "COMMIT" else [])
        assert app.site.counts(app.body) == (0, 0)


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


async def test_what_was_opened_outside_does_not_write_inside(app: App) -> None:
    """Nor the other way round: what was opened inside stays there."""
    async with app.coord.begin("t"):
        with app.coord.outside():
            session = app.sessions()
            session.add(Note(body=f"{app.body}-1"))
            await session.flush()
        with pytest.raises(NotIdle):
            await session.execute(text(INSERT), {"body": f"{app.body}-2"})
        await session.rollback()
        session.add(Note(body=f"{app.body}-3"))
        with app.coord.outside():
            await session.commit()
        assert app.notes() == [f"{app.body}-3"]
        session.add(Note(body=f"{app.body}-4"))
        await session.flush()
        with app.coord.outside():
            await session.commit()
        await session.close()
        assert app.notes() == [f"{app.body}-3"]
    assert app.notes() == [f"{app.body}-3", f"{app.body}-4"]
