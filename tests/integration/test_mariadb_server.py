"""The throw-away MariaDB and MySQL servers keep what they prepared, and end with their owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import require_mysql
from tests.support.databases import Databases, database_of, new_folder, new_mariadb, new_mysql, running
from txcoord.testing import servers
from txcoord.testing.mariadb import MariaDBError, MariaDBServer, MySQLServer
from txcoord.testing.servers import await_end

KINDS = pytest.mark.parametrize("kind", ["mariadb", "mysql"])


def make(kind: str) -> MariaDBServer | MySQLServer:
    if kind == "mysql":
        require_mysql()
        return new_mysql()
    return new_mariadb()


@KINDS
def test_a_prepared_branch_outlives_kill_9_and_a_stop(kind: str) -> None:
    with running(make(kind)) as server:
        port = server.port
        server.create_database("shop")
        server.sql(
            "CREATE TABLE t (i INT PRIMARY KEY); XA START 'a', 'b', 7; INSERT INTO t VALUES (1); "
            "XA END 'a', 'b', 7; XA PREPARE 'a', 'b', 7",
            "shop",
        )
        server.kill9()
        assert not server.running
        server.start()
        assert server.prepared() == [(7, b"a", b"b")]
        server.restart()
        assert server.port == port
        server.sql("XA COMMIT 'a', 'b', 7")
        assert server.sql("SELECT i, NULL FROM t; SELECT 'x'", "shop") == "1|\nx"


@KINDS
def test_a_database_goes_with_what_holds_it(kind: str, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(kind)
    databases = Databases()
    name = database_of(databases(server))
    server.sql("CREATE TABLE t (i INT PRIMARY KEY); INSERT INTO t VALUES (1)", name)
    with server.connect(name, autocommit=False) as open_one, open_one.cursor() as cursor:
        cursor.execute("SELECT i FROM t FOR UPDATE")
        databases.drop_all()
    databases = Databases()
    name = database_of(databases(server))
    server.sql(
        "CREATE TABLE t (i INT PRIMARY KEY); XA START 'held'; INSERT INTO t VALUES (1); XA END 'held'; "
        "XA PREPARE 'held'",
        name,
    )
    databases.drop_all()
    assert server.prepared() == []


@KINDS
def test_an_error_has_the_number(kind: str, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(kind)
    with pytest.raises(MariaDBError) as caught:
        server.sql("SELECT * FROM nowhere")
    assert caught.value.code == 1146


@KINDS
def test_where_nobody_cannot_get_at_the_programs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below /root they are copied; anyone else runs them where they are."""
    monkeypatch.setattr("txcoord.testing.mariadb.open_to_all", lambda path: False)
    with running(make(kind)) as server:
        assert server.sql("SELECT 1") == "1"
        copied = server.root.is_relative_to(servers.shared_folder(server.product))
        assert copied == (os.geteuid() == 0)


def test_it_ends_when_its_owner_is_killed() -> None:
    folder = new_folder("maria")
    code = (
        "import pathlib, sys, time; from txcoord.testing.mariadb import MariaDBServer\n"
        "server = MariaDBServer(pathlib.Path(sys.argv[1]), die_with_parent=True); server.start()\n"
        "print(server.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert await_end([pid], 30)
    server = MariaDBServer(folder)
    with running(server):
        assert server.sql("SELECT 1") == "1"


def test_a_port_that_is_taken_meanwhile(mariadb: MariaDBServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was free when it was chosen: the new server takes another, and is not mistaken for the one there."""
    late = new_mariadb()
    late._port = mariadb.port
    looked = iter([True])
    real = servers.bindable
    monkeypatch.setattr(servers, "bindable", lambda port: next(looked, False) or real(port))
    with running(late):
        assert late.port != mariadb.port
        assert late.sql("SELECT @@pid_file") == str(late.data / "server.pid")


def test_what_to_do_without_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TXCOORD_MARIADB", str(tmp_path))
    with pytest.raises(MariaDBError, match="run scripts/test once"):
        MariaDBServer.find()
