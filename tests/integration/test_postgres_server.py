"""The throw-away PostgreSQL servers that everything else is tested on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from tests.support.databases import PG17, PG18, Databases, database_of, new_server, prepared
from txcoord.testing.postgres import PostgresError, PostgresServer

PREPARE = "CREATE TABLE t(i int); BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'kept'"


@pytest.mark.parametrize(("flavour", "major"), [(PG18, "18"), (PG17, "17")])
def test_a_prepared_transaction_outlives_kill_9(
    pg_server: Callable[..., PostgresServer], flavour: str, major: str
) -> None:
    server = pg_server(flavour)
    assert server.sql("SHOW server_version").startswith(major)
    server.create_database("one")
    server.sql(PREPARE, "one")
    port, pid = server.port, server.pid
    server.kill9()
    assert not server.running
    with pytest.raises(PostgresError):
        server.sql("SELECT 1")
    server.start()
    assert (server.port, server.running) == (port, True)
    assert server.pid != pid
    assert prepared(server) == ["kept"]
    server.restart()
    assert prepared(server) == ["kept"]
    assert server.port == port
    server.drop_database("one")
    assert prepared(server) == []


def test_kill_9_ends_busy_backends_too(pg_server: Callable[..., PostgresServer]) -> None:
    server = pg_server()
    command = ["psql", "-X", "-c", "SELECT count(*) FROM generate_series(1, 1000000000000)"]
    command[0] = str(server.bin_dir / "psql")
    client = subprocess.Popen(
        [*command, server.url(driver="postgresql")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    busy = "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
    while not (backend := server.sql(busy)):
        time.sleep(0.01)
    server.kill9()
    assert client.wait(10) != 0
    # Gone, or a zombie that waits for whoever adopted it.
    stat = Path(f"/proc/{backend}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"
    server.start()
    assert server.sql("SELECT 1") == "1"


def test_a_second_start_finds_the_cluster_and_the_port_again(
    pg_server: Callable[..., PostgresServer],
) -> None:
    first = pg_server()
    first.create_database("one")
    first.stop()
    with PostgresServer(first.data_dir, flavour=PG18, die_with_parent=True) as second:
        assert second.port == first.port
        assert second.sql("SELECT count(*) FROM pg_database WHERE datname = 'one'") == "1"
        with pytest.raises(PostgresError, match="another process runs the server"):
            first.start()


def test_a_server_ends_with_its_owner(pg_server: Callable[..., PostgresServer]) -> None:
    """An owner that is killed takes a server along when asked to; otherwise the next start ends it."""
    server = new_server()
    program = (
        "import os, pathlib, sys; from txcoord.testing.postgres import PostgresServer\n"
        "s = PostgresServer(pathlib.Path(sys.argv[1]), die_with_parent=sys.argv[2] == 'True')\n"
        "s.start(); print(s.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    try:
        for die_with_parent in (True, False):
            command = [sys.executable, "-c", program, str(server.data_dir), str(die_with_parent)]
            pid = int(subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout)
            if die_with_parent:
                deadline = time.monotonic() + 20
                while _alive(pid):
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
            else:
                assert _alive(pid)
        server.start()
        assert not _alive(pid)
        assert server.sql("SELECT 1") == "1"
    finally:
        server.remove()
    assert not server.data_dir.exists()


def test_settings_reach_the_server(pg_server: Callable[..., PostgresServer]) -> None:
    server = pg_server(settings={"max_prepared_transactions": "7", "work_mem": "5MB"})
    assert server.sql("SHOW max_prepared_transactions; SHOW work_mem; SHOW fsync") == "7\n5MB\non"


def test_a_refusal_says_what_and_why() -> None:
    with pytest.raises(PostgresError, match="install"):
        PostgresServer.find("no_such_wheel")
    with pytest.raises(PostgresError, match="no postgres"):
        PostgresServer.find("/var")


def test_a_server_that_cannot_start_shows_its_log() -> None:
    server = new_server(settings={"max_connections": "none"})
    try:
        with pytest.raises(PostgresError, match="max_connections"):
            server.start()
        assert not server.running
    finally:
        server.remove()


async def test_each_test_has_databases_of_its_own(pg: PostgresServer, pg_database: Databases) -> None:
    one, two = pg_database(pg, driver="postgresql"), pg_database(pg, driver="postgresql")
    assert one != two
    connection = await asyncpg.connect(one)
    try:
        await connection.execute("CREATE TABLE t(i int)")
        async with connection.transaction():
            await connection.execute("INSERT INTO t VALUES (1)")
        assert pg.sql("SELECT i FROM t", database_of(one)) == "1"
        with pytest.raises(PostgresError, match="does not exist"):
            pg.sql("SELECT i FROM t", database_of(two))
        await connection.execute("BEGIN; INSERT INTO t VALUES (2); PREPARE TRANSACTION 'mine'")
        assert (prepared(pg, one), prepared(pg, two)) == (["mine"], [])
    finally:
        await connection.close()


def _alive(pid: int) -> bool:
    try:
        return os.path.exists(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return False
