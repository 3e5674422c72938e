"""Sessions, connections and engines of unchanged code on an instrumented engine: what they commit and roll back
inside a global transaction is a unit of it. Each test reads the databases afterwards."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.util import greenlet_spawn

from tests.support.acceptance import INSERT, Client, Site
from tests.support.joining import App, Note
from txcoord_client import Aborted, NotIdle, NoTransaction, OverlappingUnits, Rejected


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
        old = app.client.accounts.pool
        await app.client.accounts.dispose()
        await app.add(f"{app.body}-2")
        assert app.notes() == []
    await greenlet_spawn(old.dispose)  # SQLAlchemy leaves to the garbage what comes back to it
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
