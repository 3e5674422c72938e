"""The synchronous SDK, on the coordinator and databases of the asynchronous one's tests. It is made from that by
``scripts/sync``: what is tested here is what a thread does otherwise, and the drivers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import psycopg_pool
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

from tests.support.acceptance import INSERT, Db, Site, new_gid
from txcoord_client.sync import (
    Aborted,
    AlreadyCommitted,
    Coordinator,
    NotIdle,
    NoTransaction,
    Rejected,
    ResourceBusy,
    Transaction,
)
from txcoord_client.sync._runtime import Runtime
from txcoord_client.sync._xa.branch import Branch


def engine_on(db: Db, **options: Any) -> Engine:
    return create_engine(
        db.url.replace("+asyncpg", "+psycopg"), **{"pool_size": 4, "max_overflow": 0} | options
    )


class Client:
    def __init__(self, site: Site, **options: Any) -> None:
        self.site = site
        self.accounts = engine_on(site.accounts)
        self.ledger = engine_on(site.ledger)
        self.coord = Coordinator(
            site.address, resources={"accounts": self.accounts, "ledger": self.ledger}, **options
        )

    def write(self, g: Transaction, target: Any, body: str) -> None:
        with g.xa(target) as db:
            db.execute(text(INSERT), {"body": body})

    def write_both(self, g: Transaction, body: str) -> None:
        self.write(g, self.accounts, body)
        self.write(g, self.ledger, body)

    def idle(self) -> bool:
        return [e.pool.checkedout() for e in (self.accounts, self.ledger)] == [0, 0]  # type: ignore[attr-defined]

    def close(self) -> None:
        self.coord.close()
        self.accounts.dispose()
        self.ledger.dispose()


@pytest.fixture
def client(site: Site) -> Iterator[Client]:
    client = Client(site)
    yield client
    client.close()


def eventually(check: Any, within: float = 20.0) -> None:
    until = time.monotonic() + within
    while not check():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_two_databases_commit_together(client: Client, site: Site) -> None:
    body = new_gid()
    with client.coord.begin("sync") as g:
        client.write_both(g, body)
        assert client.coord.current is g
    assert g.outcome is not None
    assert g.outcome.state == "COMMITTED"
    assert (site.counts(body), site.prepared(g.tx_id), client.idle()) == ((1, 1), [], True)


def test_an_exception_aborts_and_comes_out_unchanged(client: Client, site: Site) -> None:
    body = new_gid()
    error = ValueError("no")
    with pytest.raises(ValueError, match="no") as caught, client.coord.begin("sync") as g:  # noqa: PT012
        client.write_both(g, body)
        raise error
    assert caught.value is error
    assert (site.counts(body), site.prepared(g.tx_id), client.idle()) == ((0, 0), [], True)


def test_one_database_commits_in_one_phase_and_a_gid_counts_once(client: Client, site: Site) -> None:
    gid = new_gid()
    with client.coord.begin("sync", gid=gid, resources=["accounts"]) as g:
        client.write(g, client.accounts, gid)
    with pytest.raises(AlreadyCommitted), client.coord.begin("sync", gid=gid):
        pass
    assert site.counts(gid) == (1, 0)


def test_run_does_the_work_once_and_gives_the_result_again(client: Client, site: Site) -> None:
    gid = new_gid()

    def work(g: Transaction) -> dict[str, int]:
        client.write_both(g, gid)
        return {"n": 7}

    assert client.coord.run(work, gid=gid) == {"n": 7}
    assert client.coord.run(work, gid=gid) == {"n": 7}
    assert site.counts(gid) == (1, 1)


def test_the_decorator_takes_functions_and_refuses_coroutines(client: Client, site: Site) -> None:
    body = new_gid()

    @client.coord.transaction("sync")
    def work() -> str:
        client.write_both(client.coord.current, body)
        return body

    assert work() == body
    assert site.counts(body) == (1, 1)
    with pytest.raises(TypeError, match="async"):

        @client.coord.transaction("sync")
        async def no() -> None: ...


def test_a_session_is_flushed_and_free_again(client: Client, site: Site) -> None:
    body = new_gid()
    with Session(client.accounts) as session:
        with client.coord.begin("sync") as g:
            client.write(g, client.ledger, body)
            with g.xa(session) as db, db.begin_nested():
                db.execute(text(INSERT), {"body": body})
        assert not session.in_transaction()
        assert session.scalar(text("SELECT count(*) FROM note WHERE body = :body"), {"body": body}) == 1
    assert (site.counts(body), client.idle()) == ((1, 1), True)


@pytest.mark.parametrize("what", ["commit", "rollback"])
def test_whoever_ends_a_session_dooms_it(client: Client, site: Site, what: str) -> None:
    body = new_gid()
    with Session(client.accounts) as session:
        with pytest.raises(Aborted) as caught, client.coord.begin("sync") as g:  # noqa: PT012
            client.write(g, client.ledger, body)
            with g.xa(session) as db:
                db.execute(text(INSERT), {"body": body})
                with pytest.raises(Rejected, match=what):
                    getattr(db, what)()
        assert caught.value.reason == "GUARD"
    assert (site.counts(body), client.idle()) == ((0, 0), True)


def test_a_busy_connection_is_refused(client: Client) -> None:
    with client.accounts.connect() as connection:
        connection.execute(text("SELECT 1"))
        with pytest.raises(NotIdle), client.coord.begin("sync") as g, g.xa(connection):
            pass


def test_psycopg_connections_and_pools(client: Client, site: Site) -> None:
    body = new_gid()
    with (
        psycopg.connect(site.accounts.dsn) as connection,
        psycopg.connect(site.ledger.dsn, autocommit=True) as other,
        psycopg_pool.ConnectionPool(site.ledger.dsn, min_size=1, max_size=2, open=True) as pool,
    ):
        with client.coord.begin("sync") as g:
            with g.xa(connection, resource="accounts") as db, db.transaction():
                db.execute("INSERT INTO note (body) VALUES (%s)", (body,))
            with g.xa(other, resource="ledger") as db:
                db.execute("INSERT INTO note (body) VALUES (%s)", (body,))
                with pytest.raises(RuntimeError), db.transaction():  # noqa: PT012
                    db.execute("INSERT INTO note (body) VALUES (%s)", (body,))
                    raise RuntimeError
        assert site.counts(body) == (1, 1)
        with client.coord.begin("sync") as g:
            with g.xa(pool, resource="ledger") as db:
                db.execute("INSERT INTO note (body) VALUES (%s)", (body,))
            with g.xa(connection, resource="accounts") as db:
                db.execute("INSERT INTO note (body) VALUES (%s)", (body,))
        assert site.counts(body) == (2, 2)
        assert pool.get_stats()["pool_available"] == 1
        # They are the caller's own again.
        connection.execute("INSERT INTO note (body) VALUES (%s)", (body,))
        connection.commit()
        assert site.counts(body) == (3, 2)


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("what", ["commit", "rollback", "COMMIT", "ROLLBACK; BEGIN"])
def test_whoever_ends_a_psycopg_branch_dooms_it(
    client: Client, site: Site, what: str, autocommit: bool
) -> None:
    body = new_gid()
    with psycopg.connect(site.accounts.dsn, autocommit=autocommit) as connection:
        with pytest.raises(Aborted) as caught, client.coord.begin("sync") as g:  # noqa: PT012
            client.write(g, client.ledger, body)
            with g.xa(connection, resource="accounts") as db:
                db.execute("SELECT 1")
                if what.islower():
                    with pytest.raises(Rejected):
                        getattr(db, what)()
                else:
                    db.execute(what)
                    db.execute("INSERT INTO note (body) VALUES (%s)", (body,))
        assert caught.value.reason == "GUARD"
    assert site.counts(body) == (0, 0) if not (autocommit and what == "COMMIT") else site.counts(body)[1] == 0
    assert site.prepared(g.tx_id) == []


def test_a_lock_that_is_not_got_ends_with_the_deadline(client: Client, site: Site) -> None:
    """The thread cannot be cancelled: its connection is broken, and nobody waits for ever."""
    body = new_gid()
    with psycopg.connect(site.accounts.dsn) as blocker:
        blocker.execute("LOCK TABLE txcoord_marker IN EXCLUSIVE MODE")
        before = time.monotonic()
        with pytest.raises(Aborted), client.coord.begin("sync", timeout=1.5) as g:
            client.write_both(g, body)
        assert time.monotonic() - before < 20
        blocker.rollback()
    eventually(lambda: not site.prepared(g.tx_id))
    assert site.counts(body) == (0, 0)
    eventually(client.idle)


def test_a_full_pool_is_told_at_the_deadline(client: Client) -> None:
    held = threading.Event()
    leave = threading.Event()

    def hold() -> None:
        with client.coord.begin("sync") as g, g.xa(client.accounts):
            held.set() if client.accounts.pool.checkedout() == 4 else None  # type: ignore[attr-defined]
            leave.wait(30)

    with ThreadPoolExecutor(4) as threads:
        work = [threads.submit(hold) for _ in range(4)]
        held.wait(30)
        with (
            pytest.raises(ResourceBusy, match="accounts"),
            client.coord.begin("sync", timeout=0.5) as g,
            g.xa(client.accounts),
        ):
            pass
        leave.set()
        for one in work:
            one.result(30)


def test_threads_have_transactions_of_their_own(client: Client, site: Site) -> None:
    bodies = [new_gid() for _ in range(24)]
    seen: list[bool] = []

    def work(body: str) -> None:
        seen.append(client.coord.current_or_none() is None)
        with client.coord.begin("sync") as g:
            client.write_both(g, body)

    with client.coord.begin("outer") as g:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(work, bodies))
        assert client.coord.current is g
    assert all(seen)
    assert [site.counts(body) for body in bodies] == [(1, 1)] * 24
    assert client.idle()


def test_nothing_is_current_in_a_new_thread(client: Client) -> None:
    with client.coord.begin("sync"), ThreadPoolExecutor(1) as threads, pytest.raises(NoTransaction):
        threads.submit(lambda: client.coord.xa(client.accounts)).result()


def test_questions_and_the_end_of_a_coordinator(site: Site) -> None:
    client = Client(site)
    gid = new_gid()
    with client.coord.begin("sync", gid=gid) as g:
        client.write_both(g, gid)
    found = client.coord.get(gid)
    assert found is not None
    assert found.committed
    assert client.coord.get("no-such-gid") is None
    client.close()
    assert not [t.name for t in threading.enumerate() if t.name == "txcoord.wire"]
    del g


def test_closing_waits_for_ends_in_other_threads(site: Site) -> None:
    client = Client(site)
    body = new_gid()
    asked, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with client.coord.begin("sync") as g:
            client.write_both(g, body)
            wire = g._runtime.wire
            call = wire.call

            def late(name: str, *more: Any, **names: Any) -> Any:
                asked.set()
                assert go_on.wait(20)
                return call(name, *more, **names)

            wire.call = late  # type: ignore[method-assign]

    with ThreadPoolExecutor() as threads:
        working = threads.submit(work)
        assert asked.wait(20)
        runtime = client.coord._runtime()
        closing = threads.submit(client.coord.close)
        eventually(lambda: runtime.closed)
        go_on.set()
        working.result(20)
        closing.result(20)
    assert site.counts(body) == (1, 1)
    client.close()


def test_an_interrupt_while_it_prepares_undoes_all_and_comes_out(
    client: Client, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = new_gid()
    prepare = Branch.prepare

    def interrupted(branch: Branch, until: float) -> None:
        if branch.number == "2":
            raise KeyboardInterrupt
        prepare(branch, until)

    monkeypatch.setattr(Branch, "prepare", interrupted)
    with pytest.raises(KeyboardInterrupt), client.coord.begin("sync", timeout=600) as g:
        client.write_both(g, body)
    eventually(lambda: not site.prepared(g.tx_id))
    assert site.counts(body) == (0, 0)
    assert client.idle()


def test_a_branch_that_another_thread_is_opening_at_the_end_stays_that_threads(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its connection would go back to the pool while that thread is still at it."""
    opened, over = threading.Event(), threading.Event()
    open_branch = Runtime.open_branch

    def slowly(self: Runtime, *more: Any) -> None:
        open_branch(self, *more)
        opened.set()
        assert over.wait(20)

    monkeypatch.setattr(Runtime, "open_branch", slowly)
    with ThreadPoolExecutor() as threads:
        with (  # noqa: PT012 - what raises is the end
            pytest.raises(Aborted, match="about to begin"),
            client.coord.begin("sync") as g,
        ):
            working = threads.submit(client.write, g, client.accounts, "late")
            assert opened.wait(20)
        assert not client.idle()
        over.set()
        with pytest.raises(NoTransaction):
            working.result(20)
    assert client.idle()


def test_connections_that_died_in_their_pool_cost_no_transaction(client: Client, site: Site) -> None:
    body = new_gid()
    own = [client.accounts.connect() for _ in range(3)]
    for connection in own:
        connection.execute(text("SELECT 1"))
    for connection in own:
        connection.close()
    site.accounts.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name <> 'txcoord-finisher'"
    )
    with client.coord.begin("after") as g:
        client.write_both(g, body)
    assert (site.counts(body), client.idle()) == ((1, 1), True)
