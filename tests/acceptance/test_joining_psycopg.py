"""Plain psycopg scripts and pools, unchanged, inside a global transaction."""

# ruff: noqa: PT012 - what raises is the end of a whole transaction

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from tests.support.acceptance import Site, new_gid
from tests.support.acceptance_sync import SyncClient, soon, sync_client
from txcoord_client.sync import Aborted, NoTransaction, OverlappingUnits, Rejected, ResourceMismatch

INSERT = "INSERT INTO note (body) VALUES (%s)"


class Script:
    """A script that knows nothing of global transactions."""

    def __init__(self, client: SyncClient, site: Site, connect: Callable[..., Any]) -> None:
        self.client, self.site, self.coord = client, site, client.coord
        self.connect = connect
        """Gives a context manager that gives a connection, and commits."""
        self.body = new_gid()

    def add(self, body: str) -> None:
        with self.connect() as conn:
            conn.execute(INSERT, (body,))

    def notes(self) -> list[str]:
        rows = self.site.accounts.sql(f"SELECT body FROM note WHERE body LIKE '{self.body}%' ORDER BY body")
        return rows.split()


@pytest.fixture(params=["function", "module", "pool"])
def script(site: Site, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    dsn = site.accounts.dsn
    monkeypatch.setattr(psycopg, "connect", psycopg.connect)  # put back in the end
    with sync_client(site) as client:
        if request.param == "pool":
            with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=3, open=True) as pool:
                assert client.coord.instrument(pool, resource="accounts") is pool
                yield Script(client, site, pool.connection)
                soon(lambda: pool.get_stats()["pool_available"] == pool.get_stats()["pool_size"])
        elif request.param == "module":
            client.coord.instrument(psycopg, resource="accounts")
            yield Script(client, site, lambda **options: psycopg.connect(dsn, **options))
        else:
            connect = client.coord.instrument(psycopg.connect, resource="accounts")
            yield Script(client, site, lambda **options: connect(dsn, **options))
    assert site.prepared() == []


def test_a_plain_script(script: Script) -> None:
    with script.coord.begin("t") as g:
        with script.connect() as conn, conn.cursor() as cur:
            cur.execute(INSERT, (f"{script.body}-1",))
            cur.executemany(INSERT, [(f"{script.body}-2",), (f"{script.body}-3",)])
            assert cur.rowcount == 2
            conn.commit()
            cur.execute(INSERT, (f"{script.body}-4",))
            conn.rollback()
            cur.execute(
                sql.SQL("INSERT INTO {} VALUES (%s)").format(sql.Identifier("note")), (f"{script.body}-5",)
            )
            with cur.copy("COPY note (body) FROM STDIN") as copy:
                copy.write_row((f"{script.body}-6",))
            rows = cur.execute("SELECT body FROM note WHERE body = %s", (f"{script.body}-6",)).fetchall()
            assert rows == [(f"{script.body}-6",)]
        script.add(f"{script.body}-7")
        assert script.notes() == []
        assert len(g._branches) == 1
    assert script.notes() == [f"{script.body}-{n}" for n in (1, 2, 3, 5, 6, 7)]


def test_an_exception_undoes_all(script: Script) -> None:
    with pytest.raises(ZeroDivisionError), script.coord.begin("t"):
        script.add(script.body)
        raise ZeroDivisionError
    assert script.notes() == []


def test_a_caught_exception_undoes_its_unit(script: Script) -> None:
    with script.coord.begin("t"):
        script.add(f"{script.body}-1")
        with pytest.raises(psycopg.errors.DivisionByZero), script.connect() as conn:
            conn.execute(INSERT, (f"{script.body}-2",))
            conn.execute("SELECT 1/0")
        script.add(f"{script.body}-3")
    assert script.notes() == [f"{script.body}-1", f"{script.body}-3"]


def test_blocks(script: Script) -> None:
    with script.coord.begin("t"), script.connect() as conn:
        with conn.transaction():
            conn.execute(INSERT, (f"{script.body}-1",))
            with pytest.raises(ZeroDivisionError), conn.transaction():
                conn.execute(INSERT, (f"{script.body}-2",))
                raise ZeroDivisionError
            with conn.transaction() as block:
                conn.execute(INSERT, (f"{script.body}-3",))
                raise psycopg.Rollback(block)
            with conn.transaction(force_rollback=True):
                conn.execute(INSERT, (f"{script.body}-4",))
            with conn.transaction("named"):
                conn.execute(INSERT, (f"{script.body}-5",))
            with pytest.raises(psycopg.ProgrammingError):
                conn.commit()
        with pytest.raises(ZeroDivisionError), conn.transaction():
            conn.execute(INSERT, (f"{script.body}-6",))
            raise ZeroDivisionError
    assert script.notes() == [f"{script.body}-1", f"{script.body}-5"]


def test_autocommit(script: Script) -> None:
    """Each statement is a unit of its own; a failed one undoes nothing else."""
    with script.coord.begin("t"), script.connect() as conn:
        conn.autocommit = True
        assert conn.autocommit
        conn.execute(INSERT, (f"{script.body}-1",))
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("SELECT 1/0")
        conn.execute(INSERT, (f"{script.body}-2",))
        with pytest.raises(ZeroDivisionError), conn.transaction():
            conn.execute(INSERT, (f"{script.body}-3",))
            conn.execute(INSERT, (f"{script.body}-4",))
            raise ZeroDivisionError
        with conn.transaction():
            conn.execute(INSERT, (f"{script.body}-5",))
            conn.execute(INSERT, (f"{script.body}-6",))
        conn.rollback()
    assert script.notes() == [f"{script.body}-{n}" for n in (1, 2, 5, 6)]


def test_row_factories_are_each_ones_own(script: Script) -> None:
    with script.coord.begin("t"), script.connect() as conn:
        conn.row_factory = dict_row
        assert conn.execute("SELECT 1 AS one").fetchone() == {"one": 1}
        assert conn.cursor(row_factory=psycopg.rows.tuple_row).execute("SELECT 1").fetchone() == (1,)
        with script.connect() as other:
            assert other.execute("SELECT 1").fetchone() == (1,)
        named = conn.cursor("mine")
        named.execute("SELECT generate_series(1, 3) AS n")
        assert [row["n"] for row in named] == [1, 2, 3]
        named.close()


def test_what_is_refused(script: Script) -> None:
    with script.coord.begin("t"):
        with script.connect() as conn:
            for statement in ("COMMIT", b"ROLLBACK", sql.SQL("BEGIN")):
                with pytest.raises(Rejected):
                    conn.execute(statement)
            for attribute, value in (("isolation_level", 3), ("read_only", True)):
                with pytest.raises(Rejected):
                    setattr(conn, attribute, value)
            with pytest.raises(Rejected):
                conn.tpc_begin("x")
            with pytest.raises(Rejected):
                conn.cursor("held", withhold=True)
            with pytest.raises(Rejected):
                conn.pipeline()
        script.add(script.body)
    assert script.notes() == [script.body]


def test_overlapping(script: Script) -> None:
    with (
        pytest.raises((Aborted, OverlappingUnits)) as caught,
        script.coord.begin("t"),
        script.connect() as older,
    ):
        older.execute(INSERT, (f"{script.body}-1",))
        with script.connect() as younger:
            younger.execute(INSERT, (f"{script.body}-2",))
            older.commit()
    assert caught.value.reason == "OVERLAPPING_UNITS"
    assert script.notes() == []


def test_a_connection_that_outlives_it_is_dead(script: Script) -> None:
    with script.coord.begin("t"):
        block = script.connect()
        conn = block.__enter__()
        conn.execute(INSERT, (script.body,))
        conn.commit()
    with pytest.raises(NoTransaction):
        conn.execute(INSERT, (f"{script.body}-2",))
    block.__exit__(None, None, None)
    assert script.notes() == [script.body]


@pytest.mark.parametrize("autocommit", [False, True])
def test_outside(script: Script, autocommit: bool) -> None:
    def add(body: str) -> None:
        with script.connect() as conn:
            conn.autocommit = autocommit
            try:
                assert conn.execute("SELECT 1").fetchone() == (1,)
                conn.execute(INSERT, (body,))
            finally:
                conn.rollback() if not autocommit and conn.info.transaction_status == 3 else None
                if autocommit:
                    conn.autocommit = False

    for _ in range(2):
        with pytest.raises(NoTransaction):
            add(script.body)
    with script.coord.outside():
        add(script.body)
    with pytest.raises(NoTransaction):
        add(f"{script.body}-2")
    with script.coord.begin("t"):
        script.add(f"{script.body}-3")
    assert script.notes() == [script.body, f"{script.body}-3"]


def test_another_database_is_refused(site: Site) -> None:
    with sync_client(site) as client:
        connect = client.coord.instrument(psycopg.connect, resource="accounts")
        with pytest.raises(ResourceMismatch), client.coord.begin("t"):
            connect(site.ledger.dsn)
        with pytest.raises(ResourceMismatch), client.coord.begin("t"):
            connect(site.accounts.dsn).close()
            connect(site.ledger.dsn)
