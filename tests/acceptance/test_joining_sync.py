"""Threads: sessions of unchanged code on an instrumented engine, in the synchronous SDK. What differs from
``test_joining_sqlalchemy`` is here."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from tests.support.acceptance import INSERT, Site, new_gid
from tests.support.acceptance_sync import SyncClient, soon, sync_client
from txcoord_client.sync import Aborted, ForkedAfterUse, NotIdle, NoTransaction, OverlappingUnits, Rejected


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    body: Mapped[str] = mapped_column(primary_key=True)


class App:
    """An application that knows nothing of global transactions."""

    def __init__(self, client: SyncClient, site: Site, outside: Any) -> None:
        self.client, self.site, self.coord = client, site, client.coord
        for name, engine in client.engines.items():
            assert client.coord.instrument(engine, resource=name, outside=outside) is engine
        self.sessions = sessionmaker(client.accounts)
        self.body = new_gid()

    def add(self, body: str = "", engine: Engine | None = None) -> None:
        with Session(engine or self.client.accounts) as session:
            session.add(Note(body=body or self.body))
            session.commit()

    def notes(self) -> list[str]:
        rows = self.site.accounts.sql(f"SELECT body FROM note WHERE body LIKE '{self.body}%' ORDER BY body")
        return rows.split()


@pytest.fixture(params=["refuse", "local"])
def app(site: Site, request: pytest.FixtureRequest) -> Iterator[App]:
    with sync_client(site) as client:
        yield App(client, site, request.param)
        assert [engine.pool.checkedout() for engine in client.engines.values()] == [0, 0]  # type: ignore[attr-defined]
    assert site.prepared() == []


@pytest.fixture
def refusing(site: Site) -> Iterator[App]:
    with sync_client(site) as client:
        yield App(client, site, "refuse")


def test_two_engines_commit_together(app: App) -> None:
    with app.coord.begin("t") as g:
        app.add()
        app.add(engine=app.client.ledger)
        assert app.site.counts(app.body) == (0, 0)
    assert app.site.counts(app.body) == (1, 1)
    assert app.site.prepared(g.tx_id) == []


def test_an_exception_undoes_what_was_committed(app: App) -> None:
    with pytest.raises(ZeroDivisionError), app.coord.begin("t"):
        app.add()
        raise ZeroDivisionError
    assert app.notes() == []


def test_units(app: App) -> None:
    with app.coord.begin("t"):
        app.add(f"{app.body}-1")
        with app.sessions() as session:
            session.add(Note(body=f"{app.body}-2"))
            session.flush()
            session.rollback()
            session.add(Note(body=f"{app.body}-3"))
            session.commit()
            assert len(session.scalars(select(Note).where(Note.body.startswith(app.body))).all()) == 2
        with pytest.raises(DBAPIError), app.sessions.begin() as session:
            session.add(Note(body=f"{app.body}-4"))
            session.flush()
            session.execute(text("SELECT 1/0"))
        with app.sessions.begin() as session:
            session.add(Note(body=f"{app.body}-5"))
            with pytest.raises(ZeroDivisionError), session.begin_nested():
                session.add(Note(body=f"{app.body}-6"))
                session.flush()
                raise ZeroDivisionError
        old = app.client.accounts.pool
        app.client.accounts.dispose()
        with app.client.accounts.begin() as conn:
            conn.execute(text(INSERT), {"body": f"{app.body}-7"})
        raw = app.client.accounts.raw_connection()
        raw.cursor().execute("INSERT INTO note VALUES (%s)", (f"{app.body}-8",))
        raw.commit()
        driver: Any = raw.driver_connection
        driver.execute("INSERT INTO note VALUES (%s)", (f"{app.body}-9",))
        raw.close()
    old.dispose()  # SQLAlchemy leaves to the garbage what comes back to a pool that was disposed of
    assert app.notes() == [f"{app.body}-{n}" for n in (1, 3, 5, 7, 8)]


def test_what_a_swallowed_error_leaves(app: App) -> None:
    with app.coord.begin("t"):
        with app.sessions() as session:
            session.add(Note(body=app.body))
            session.flush()
            with pytest.raises(DBAPIError):
                session.execute(text("SELECT 1/0"))
            with pytest.raises(Rejected) as caught:
                session.commit()
        assert caught.value.reason == "SILENT_ROLLBACK"
        app.add(f"{app.body}-2")
    assert app.notes() == [f"{app.body}-2"]


def test_overlapping_units(app: App) -> None:
    with pytest.raises(Aborted) as caught, app.coord.begin("t"):
        older, younger = app.sessions(), app.sessions()
        for number, session in enumerate((older, younger)):
            session.add(Note(body=f"{app.body}-{number}"))
            session.flush()
        with pytest.raises(OverlappingUnits):
            older.commit()
        younger.close()
        older.close()
    assert caught.value.reason == "OVERLAPPING_UNITS"
    assert app.notes() == []


def test_a_lost_connection_dooms_it(app: App) -> None:
    with pytest.raises(Aborted) as caught, app.coord.begin("t"):
        app.add()
        with app.sessions() as session:
            pid = session.scalar(text("SELECT pg_backend_pid()"))
            app.site.accounts.sql(f"SELECT pg_terminate_backend({pid})")
            with pytest.raises(DBAPIError):
                session.execute(text("SELECT 1"))
        with pytest.raises(Rejected):
            app.add(f"{app.body}-2")
    assert caught.value.reason == "CONNECTION_LOST"
    assert app.notes() == []


def test_work_that_is_not_ended_dooms_it(app: App) -> None:
    session = app.sessions()
    with pytest.raises(Aborted) as caught, app.coord.begin("t"):
        session.add(Note(body=app.body))
        session.flush()
    assert caught.value.reason == "UNIT_OPEN"
    with pytest.raises(NoTransaction):
        session.commit()
    session.close()
    assert app.notes() == []


def test_modes_are_refused(refusing: App) -> None:
    app = refusing
    with app.coord.begin("t"):
        for level in ("AUTOCOMMIT", "SERIALIZABLE"):
            with app.client.accounts.connect() as conn, pytest.raises(Rejected):
                conn.execution_options(isolation_level=level)
        with app.client.accounts.connect() as conn:
            for statement in ("COMMIT", "SELECT 1; COMMIT", "SELECT ';'; /* ; */ ROLLBACK"):
                with pytest.raises(Rejected):
                    conn.exec_driver_sql(statement)
            conn.exec_driver_sql("SELECT '; COMMIT', $$; COMMIT$$ -- ; COMMIT")
            assert conn.get_isolation_level() == "READ COMMITTED"
        raw = app.client.accounts.raw_connection()
        with pytest.raises(Rejected):
            raw.dbapi_connection.autocommit = True  # type: ignore[union-attr]
        with pytest.raises(Rejected):
            raw.tpc_begin("x")
        raw.close()
        app.add()
    assert app.notes() == [app.body]


@pytest.mark.parametrize("autocommit", [False, True])
def test_writes_outside_are_refused(refusing: App, autocommit: bool) -> None:
    app = refusing
    engine = app.client.accounts
    if autocommit:
        engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    for _ in range(2):
        with pytest.raises(NoTransaction):
            app.add(engine=engine)
    with app.coord.outside():
        app.add(engine=engine)
    with pytest.raises(NoTransaction):
        app.add(f"{app.body}-2", engine)
    # Past SQLAlchemy it is the driver's error.
    raw = engine.raw_connection()
    with pytest.raises(DBAPIError.__mro__[-2], match="read-only"):  # any Exception
        raw.cursor().execute("INSERT INTO note VALUES ('x')")
    raw.close()
    if not autocommit:
        with app.coord.begin("t"):
            app.add(f"{app.body}-3")
    assert app.notes() == [app.body, f"{app.body}-3"][: 1 if autocommit else 2]


# ---- threads ----


def started(work: Callable[[], Any]) -> BaseException | None:
    """Run it in a thread of its own; what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def test_a_thread_that_lost_the_context_commits_nothing(refusing: App) -> None:
    app = refusing
    with app.coord.begin("t"):
        app.add(f"{app.body}-1")
        assert isinstance(started(lambda: app.add(f"{app.body}-2")), NoTransaction)
        with ThreadPoolExecutor() as pool, pytest.raises(NoTransaction):
            pool.submit(app.add, f"{app.body}-3").result()
    assert app.notes() == [f"{app.body}-1"]


def test_run_in_executor_commits_nothing_silently(refusing: App) -> None:
    app = refusing

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(NoTransaction):
            await loop.run_in_executor(None, app.add, f"{app.body}-2")
        await asyncio.to_thread(app.add, f"{app.body}-3")

    with app.coord.begin("t"):
        app.add(f"{app.body}-1")
        asyncio.run(main())
        assert app.notes() == []
    assert app.notes() == [f"{app.body}-1", f"{app.body}-3"]


def test_a_thread_with_the_context_takes_part(app: App) -> None:
    with app.coord.begin("t"):
        context = contextvars.copy_context()
        assert started(lambda: context.run(app.add, f"{app.body}-1")) is None
        app.add(f"{app.body}-2")
        assert app.notes() == []
    assert app.notes() == [f"{app.body}-1", f"{app.body}-2"]


def test_threads_side_by_side(app: App) -> None:
    """They overlap, mostly: never is one committed without the others."""

    def one(number: int) -> None:
        with app.sessions.begin() as session:
            session.add(Note(body=f"{app.body}-{number}"))
            session.flush()
            session.execute(text("SELECT 1"))

    for _ in range(5):
        app.body = new_gid()
        try:
            with app.coord.begin("t"), ThreadPoolExecutor(4) as pool:
                waiting = [pool.submit(contextvars.copy_context().run, one, number) for number in range(8)]
                for future in waiting:
                    future.result()
        except (Aborted, OverlappingUnits):
            assert app.notes() == []
        else:
            assert len(app.notes()) == 8


def test_a_thread_that_is_still_at_work_dooms_it(app: App) -> None:
    at_work, errors = threading.Event(), []

    def slow() -> None:
        with app.sessions.begin() as session:
            session.add(Note(body=f"{app.body}-2"))
            session.flush()
            at_work.set()
            try:
                session.execute(text("SELECT pg_sleep(20)"))
            except BaseException as error:
                errors.append(error)
                raise

    with pytest.raises(Aborted) as caught, app.coord.begin("t", timeout=5):
        app.add(f"{app.body}-1")
        context = contextvars.copy_context()
        thread = threading.Thread(target=lambda: _quietly(lambda: context.run(slow)))
        thread.start()
        at_work.wait()
        # Until it is at work in the database.
        while (
            app.site.accounts.sql(
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(20)%' "
                "AND state = 'active' AND pid <> pg_backend_pid()"
            )
            == "0"
        ):
            pass
    assert caught.value.reason in ("UNIT_OPEN", "APPLICATION_ERROR")
    thread.join()
    assert errors
    assert app.notes() == []


def _quietly(work: Callable[[], Any]) -> None:
    with contextlib.suppress(Exception):
        work()


def test_a_session_from_before_takes_no_part(app: App) -> None:
    with app.sessions() as session:
        session.execute(text("SELECT 1"))
        with pytest.raises((NotIdle, NoTransaction)), app.coord.begin("t"):
            session.add(Note(body=app.body))
            session.commit()
    assert app.notes() == []


def test_a_forked_child_has_no_part_in_it(app: App) -> None:
    """The branch's connection is its parent's."""
    with app.coord.begin("t"):
        app.add(f"{app.body}-1")
        session = app.sessions()
        session.scalar(text("SELECT 1"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of newer Pythons: there are threads
            child = os.fork()
        if not child:
            raised = 0
            for work in (lambda: app.add(f"{app.body}-2"), lambda: session.execute(text("SELECT 1"))):
                try:
                    work()
                except ForkedAfterUse:
                    raised += 1
            session.close()
            os._exit(raised)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
        session.close()
        app.add(f"{app.body}-3")
    assert app.notes() == [f"{app.body}-1", f"{app.body}-3"]


def test_a_transaction_leaves_nothing_behind(app: App) -> None:
    with app.coord.begin("t") as g:
        app.add()
        left = weakref.ref(g)
    del g
    gc.collect()
    soon(lambda: gc.collect() >= 0 and left() is None)


def test_a_transaction_of_its_own_inside(app: App) -> None:
    with pytest.raises(ZeroDivisionError), app.coord.begin("t"):
        app.add(f"{app.body}-1")
        with app.coord.begin("other", new=True):
            app.add(f"{app.body}-2")
        app.add(f"{app.body}-3")
        raise ZeroDivisionError
    assert app.notes() == [f"{app.body}-2"]


def test_an_engine_is_instrumented_once(app: App) -> None:
    with pytest.raises(Rejected, match="already"):
        app.coord.instrument(app.client.accounts, resource="accounts")
    with pytest.raises(Rejected, match="resource name"):
        app.coord.instrument(create_engine(app.client.accounts.url), resource="x y")
    with pytest.raises(Rejected, match="outside="):
        app.coord.instrument(create_engine(app.client.accounts.url), resource="accounts", outside="x")  # type: ignore[arg-type]
    for wrong in (7, object(), create_engine("sqlite://")):
        with pytest.raises(Rejected):
            app.coord.instrument(wrong, resource="accounts")


def test_isolation_of_the_engine_counts(app: App) -> None:
    engine = create_engine(app.client.accounts.url, isolation_level="SERIALIZABLE")
    app.coord.instrument(engine, resource="accounts")
    with app.coord.begin("t"), Session(engine) as session:
        assert session.scalar(text("SHOW transaction_isolation")) == "serializable"
    engine.dispose()
