"""Unchanged code on MariaDB and MySQL, beside PostgreSQL, inside a global transaction. The session that prepared has
to finish on MariaDB: nothing of the application's may lead to it any more."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any

import pymysql
import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tests.acceptance import test_joining_django as djangos
from tests.acceptance.conftest import new_databases
from tests.support.acceptance import INSERT, Site, eventually, new_gid
from tests.support.acceptance_mariadb import AnyServer, MariaDb
from tests.support.acceptance_sync import soon
from tests.support.databases import Databases
from txcoord.testing.postgres import PostgresServer
from txcoord_client import Aborted, Coordinator, NoTransaction, OverlappingUnits, Rejected
from txcoord_client.sync import Coordinator as SyncCoordinator


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    body: Mapped[str] = mapped_column(primary_key=True)


@pytest.fixture(scope="module", params=["mariadb", "mysql"])
def site(
    request: pytest.FixtureRequest, pg18: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    server: AnyServer = request.getfixturevalue(request.param)
    databases = Databases()
    [accounts] = new_databases(databases, pg18)
    ledger = MariaDb("ledger", server, databases(server, "mysql+asyncmy"))
    ledger.make_table()
    site = Site(tmp_path_factory.mktemp("joining"), accounts, ledger, valves=False)
    try:
        site.start()
        yield site
    finally:
        site.stop()
        databases.drop_all()


def url(site: Site, driver: str) -> str:
    return site.ledger.url.replace("+asyncmy", f"+{driver}")


class App:
    def __init__(self, site: Site, coord: Coordinator, ledger: AsyncEngine, accounts: AsyncEngine) -> None:
        self.site, self.coord, self.ledger, self.accounts = site, coord, ledger, accounts
        self.body = new_gid()

    async def add(self, body: str = "", engine: AsyncEngine | None = None) -> None:
        async with AsyncSession(engine or self.ledger) as session:
            session.add(Note(body=body or self.body))
            await session.commit()

    async def notes(self) -> list[str]:
        """When nothing is prepared any more."""
        await eventually(lambda: not self.site.prepared())
        return notes(self.site, self.body)


def notes(site: Site, body: str) -> list[str]:
    return site.ledger.sql(f"SELECT body FROM note WHERE body LIKE '{body}%' ORDER BY body").split()


@pytest.fixture(params=["asyncmy", "aiomysql"])
async def app(site: Site, request: pytest.FixtureRequest) -> AsyncIterator[App]:
    ledger = create_async_engine(url(site, request.param), pool_size=6, max_overflow=0)
    accounts = create_async_engine(site.accounts.url, pool_size=6, max_overflow=0)
    async with Coordinator(site.address, resources={"ledger": ledger, "accounts": accounts}) as coord:
        coord.instrument(ledger, resource="ledger")
        coord.instrument(accounts, resource="accounts")
        yield App(site, coord, ledger, accounts)
        assert ledger.pool.checkedout() == accounts.pool.checkedout() == 0  # type: ignore[attr-defined]
    await ledger.dispose()
    await accounts.dispose()
    await eventually(lambda: not site.prepared())


async def test_both_databases(app: App) -> None:
    async with app.coord.begin("t"):
        await app.add()
        await app.add(engine=app.accounts)
        assert app.site.counts(app.body) == (0, 0)
    await app.notes()
    assert app.site.counts(app.body) == (1, 1)


async def test_units(app: App) -> None:
    async with app.coord.begin("t"):
        await app.add(f"{app.body}-1")
        async with AsyncSession(app.ledger) as session:
            session.add(Note(body=f"{app.body}-2"))
            await session.flush()
            await session.rollback()
            session.add(Note(body=f"{app.body}-3"))
            await session.commit()
        with pytest.raises(ZeroDivisionError):
            async with AsyncSession(app.ledger) as session, session.begin():
                session.add(Note(body=f"{app.body}-4"))
                await session.flush()
                raise ZeroDivisionError
        async with AsyncSession(app.ledger) as outer, outer.begin(), outer.begin_nested():
            outer.add(Note(body=f"{app.body}-5"))
            await outer.flush()
            # A savepoint of another session by the same name would replace its own.
            async with AsyncSession(app.ledger) as inner, inner.begin(), inner.begin_nested():
                inner.add(Note(body=f"{app.body}-6"))
            with pytest.raises(ZeroDivisionError):
                async with outer.begin_nested():
                    outer.add(Note(body=f"{app.body}-7"))
                    await outer.flush()
                    raise ZeroDivisionError
        async with AsyncSession(app.ledger) as session:
            with pytest.raises(DBAPIError):
                await session.execute(text("SELECT no_such_column FROM note"))
            await session.rollback()
        async with AsyncSession(app.ledger) as session:
            found = await session.scalars(select(Note.body).where(Note.body.startswith(app.body)))
            assert len(list(found)) == 4
    assert await app.notes() == [f"{app.body}-{n}" for n in (1, 3, 5, 6)]


async def test_an_exception_undoes_all(app: App) -> None:
    with pytest.raises(ZeroDivisionError):
        async with app.coord.begin("t"):
            await app.add()
            await app.add(engine=app.accounts)
            raise ZeroDivisionError
    assert await app.notes() == []
    assert app.site.counts(app.body) == (0, 0)


async def test_overlapping_units(app: App) -> None:
    with pytest.raises(Aborted) as caught:
        async with (
            app.coord.begin("t"),
            AsyncSession(app.ledger) as older,
            AsyncSession(app.ledger) as younger,
        ):
            for number, session in enumerate((older, younger)):
                session.add(Note(body=f"{app.body}-{number}"))
                await session.flush()
            with pytest.raises(OverlappingUnits):
                await older.commit()
    assert caught.value.reason == "OVERLAPPING_UNITS"
    assert await app.notes() == []


@pytest.mark.parametrize(
    "statement",
    [
        "COMMIT",
        "START TRANSACTION",
        "XA RECOVER",
        "CREATE TABLE made_inside (n int)",
        "ALTER TABLE note COMMENT 'x'",
        "/* x */ TRUNCATE note",
        "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SET @@autocommit = 1",
        "SET SESSION autocommit = 1",
    ],
)
async def test_what_is_refused(app: App, statement: str) -> None:
    async with app.coord.begin("t"):
        async with AsyncSession(app.ledger) as session:
            session.add(Note(body=app.body))
            await session.flush()
            with pytest.raises(Rejected):
                await session.execute(text(statement))
            await session.commit()
        if app.site.ledger.holds:  # type: ignore[attr-defined] # MySQL has no temporary tables inside XA
            async with AsyncSession(app.ledger) as session, session.begin():
                await session.execute(text("CREATE TEMPORARY TABLE IF NOT EXISTS mine (n int)"))
        async with app.ledger.connect() as conn:
            for level in ("AUTOCOMMIT", "SERIALIZABLE"):
                with pytest.raises(Rejected):
                    await conn.execution_options(isolation_level=level)
    assert await app.notes() == [app.body]


async def test_a_deadlock_dooms_it(app: App) -> None:
    db = app.site.ledger
    db.sql("CREATE TABLE IF NOT EXISTS pair (id int PRIMARY KEY, n int) ENGINE=InnoDB")
    db.sql("REPLACE INTO pair VALUES (1, 0), (2, 0)")
    started = asyncio.Barrier(2)

    async def swap(first: int, second: int) -> None:
        async with app.coord.begin("t"):
            await app.add(f"{app.body}-{first}")
            async with AsyncSession(app.ledger) as session:
                await session.execute(text("UPDATE pair SET n = n + 1 WHERE id = :id"), {"id": first})
                await started.wait()
                try:
                    await session.execute(text("UPDATE pair SET n = n + 1 WHERE id = :id"), {"id": second})
                    await session.commit()
                except DBAPIError:  # swallowed
                    await session.rollback()

    ends = await asyncio.gather(swap(1, 2), swap(2, 1), return_exceptions=True)
    assert sorted(getattr(end, "reason", str(end)) for end in ends) == ["DEADLOCK", "None"]
    assert len(await app.notes()) == 1
    assert db.sql("SELECT sum(n) FROM pair") == "2"


async def test_a_lost_connection_dooms_it(app: App) -> None:
    with pytest.raises(Aborted) as caught:
        async with app.coord.begin("t"):
            await app.add()
            async with AsyncSession(app.ledger) as session:
                number = await session.scalar(text("SELECT connection_id()"))
                app.site.ledger.sql(f"KILL {number}")
                with pytest.raises(DBAPIError):
                    await session.execute(text("SELECT 1"))
            with pytest.raises(Rejected):
                await app.add(f"{app.body}-2")
    assert caught.value.reason == "CONNECTION_LOST"
    assert await app.notes() == []


async def test_a_session_that_stays_open_does_not_lead_to_the_branch(app: App) -> None:
    session = AsyncSession(app.ledger)
    async with app.coord.begin("t"):
        await app.add()
        await app.add(engine=app.accounts)
        assert list(await session.scalars(select(Note.body).where(Note.body == app.body))) == [app.body]
    with pytest.raises(NoTransaction):
        await session.execute(text("SELECT 1"))
    await session.close()
    assert await app.notes() == [app.body]


@pytest.mark.parametrize("autocommit", [False, True])
async def test_writes_outside_are_refused(app: App, autocommit: bool) -> None:
    engine = app.ledger.execution_options(isolation_level="AUTOCOMMIT") if autocommit else app.ledger
    app.site.ledger.sql("DROP PROCEDURE IF EXISTS note_it")
    app.site.ledger.sql("CREATE PROCEDURE note_it(b text) INSERT INTO note VALUES (b)")
    for statement in (INSERT, "CALL note_it(:body)"):
        async with AsyncSession(engine) as session:
            assert await session.scalar(text("SELECT 1")) == 1
            with pytest.raises(NoTransaction):
                await session.execute(text(statement), {"body": app.body})
    with app.coord.outside():
        await app.add(engine=engine)
    with pytest.raises(NoTransaction):
        await app.add(engine=engine)
    async with app.coord.begin("t"):
        await app.add(f"{app.body}-2")
    assert await app.notes() == [app.body, f"{app.body}-2"]


# ---- threads ----


@pytest.fixture
def ledger(site: Site) -> Iterator[Engine]:
    engine = create_engine(url(site, "pymysql"), pool_size=6, max_overflow=0)
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


def test_in_threads(site: Site, ledger: Engine) -> None:
    body = new_gid()

    def add(body: str) -> None:
        with Session(ledger) as session:
            session.add(Note(body=body))
            session.commit()

    with closing(SyncCoordinator(site.address, resources={"ledger": ledger})) as coord:
        coord.instrument(ledger, resource="ledger")
        with coord.begin("t"):
            add(f"{body}-1")
            with Session(ledger) as session:
                session.add(Note(body=f"{body}-2"))
                session.flush()
            raw: Any = ledger.raw_connection()
            raw.cursor().execute("INSERT INTO note VALUES (%s)", (f"{body}-3",))
            raw.commit()
            with pytest.raises(Rejected):
                raw.dbapi_connection.autocommit(True)
            raw.close()
            assert notes(site, body) == []
        with pytest.raises(NoTransaction):
            add(body)
        with pytest.raises(ZeroDivisionError), coord.begin("t"):
            add(body)
            raise ZeroDivisionError
        with coord.outside():
            add(f"{body}-4")
        soon(lambda: not site.prepared())
        assert notes(site, body) == [f"{body}-1", f"{body}-3", f"{body}-4"]


def test_django(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over PyMySQL, which stands in for mysqlclient."""
    monkeypatch.setattr(pymysql, "version_info", (2, 2, 7, "final", 0))
    pymysql.install_as_MySQLdb()
    djangos.configured()
    from django.db import IntegrityError, connection, transaction

    with djangos.using(
        site, "refuse", database=site.ledger, resource="ledger", ENGINE="django.db.backends.mysql"
    ) as shop:
        with shop.coord.begin("t"):
            shop.add(f"{shop.body}-1")
            with transaction.atomic():
                shop.add(f"{shop.body}-2")
                with pytest.raises(ZeroDivisionError), transaction.atomic():
                    shop.add(f"{shop.body}-3")
                    raise ZeroDivisionError
            with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
                shop.add(f"{shop.body}-4")
                cursor.execute("INSERT INTO note (body) VALUES (NULL)")
            transaction.set_autocommit(False)
            shop.add(f"{shop.body}-5")
            transaction.rollback()
            transaction.set_autocommit(True)
            assert notes(site, shop.body) == []
        with pytest.raises(NoTransaction):
            shop.add(f"{shop.body}-6")
        with shop.coord.outside(), transaction.atomic():
            shop.add(f"{shop.body}-7")
        with pytest.raises(NoTransaction), transaction.atomic():
            shop.add(f"{shop.body}-8")
        with pytest.raises(ZeroDivisionError), shop.coord.begin("t"):
            shop.add(f"{shop.body}-9")
            raise ZeroDivisionError
        soon(lambda: not site.prepared())
        assert notes(site, shop.body) == [f"{shop.body}-{n}" for n in (1, 2, 7)]
