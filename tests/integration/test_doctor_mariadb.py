"""Each way in which a MariaDB or MySQL database can be unfit, made for real: what `txcoord resource check` says.

What cannot be had here (a MySQL group, old versions) is in tests/unit/test_checks.py.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli_support import Desk, resource, until
from tests.integration.doctor_support import check, desk
from tests.integration.test_serve import QUICK, logged
from tests.support.databases import Databases, database_of
from txcoord.testing.mariadb import MariaDBError, MariaDBServer, MySQLServer
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import coordinator
from txcoord_client.protocol import mariadb as my

__all__ = ["desk"]  # a fixture

# Servers are made and started: on a busy machine that takes its time.
pytestmark = pytest.mark.timeout(300)

Either = MariaDBServer | MySQLServer


@pytest.fixture(params=["mariadb", "mysql"])
def server(request: pytest.FixtureRequest) -> Either:
    """The shared servers, one after the other."""
    found: Either = request.getfixturevalue(request.param)
    return found


def url_of(server: Either, database: str, user: str = "root") -> str:
    """As people write it."""
    return f"mariadb://{user}@127.0.0.1:{server.port}/{database}"


@pytest.fixture
def database(server: Either, new_database: Databases, desk: Desk) -> str:
    """The name of a database that is ready."""
    name = database_of(new_database(server))
    check(desk, url_of(server, name), fix=True, good=True)
    return name


def ready(desk: Desk, server: Either, name: str = "orders") -> str:
    """The URL of a database on a server of the test's own, made ready before the server is spoilt."""
    server.create_database(name)
    url = url_of(server, name)
    check(desk, url, fix=True, good=True)
    return url


def statements(remedy: list[str]) -> str:
    """What of a remedy is SQL, also what a person has to think about first."""
    return "\n".join(line.removeprefix("-- ") for line in remedy if line.endswith(";"))


def test_fix_makes_the_tables_and_print_sql_the_same(
    desk: Desk, server: Either, new_database: Databases
) -> None:
    fixed, by_hand = (url_of(server, database_of(new_database(server))) for _ in range(2))
    assert check(desk, fixed).wrong == ["RESOURCE_NOT_PREPARED"]
    shown = desk.run("resource", "check", "--fix", **resource("orders", fixed)).stdout
    assert "fixed   tables and identity " in shown
    printed = desk.run("resource", "check", "--print-sql", **resource("users", by_hand)).stdout
    server.sql(printed)
    assert check(desk, by_hand, good=True, name="users").wrong == []
    # Again, it changes nothing, and nothing of the driver's own is said.
    again = desk.run("resource", "check", "--fix", **resource("orders", fixed))
    assert (again.stderr, "fixed" in again.stdout) == ("", False)


def test_what_print_grants_prints_is_what_is_missing(desk: Desk, server: Either, database: str) -> None:
    role, service, sql = f"c_{database}", f"s_{database}", f"q_{database}"
    server.sql(f"CREATE USER {role}@'%' IDENTIFIED BY 'secret'; CREATE USER {service}@'%', {sql}@'%'")
    try:
        server.sql(f"GRANT SELECT (identity) ON {database}.txcoord_identity TO {role}@'%'")
        url = url_of(server, database, f"{role}:secret")
        found = check(desk, url)
        assert (
            "SELECT, INSERT, DELETE on txcoord_marker" in found.one("NOT_PERMITTED", about="marker")["fact"]
        )
        if isinstance(server, MariaDBServer):
            kill = found.one("NOT_PERMITTED", about="CONNECTION ADMIN")
            assert "may not end the session of a service that hangs" in kill["means"]
            assert kill["remedy"] == [f"GRANT CONNECTION ADMIN ON *.* TO '{role}'@'%';"]
            assert "in limbo" in found.one("NOT_PERMITTED", about="PROCESS")["means"]
        else:
            lists = found.one("NOT_PERMITTED", about="XA_RECOVER_ADMIN")
            assert "cannot list what is prepared" in lists["means"]
            replica = found.one("NOT_PERMITTED", "warning", about="REPLICATION CLIENT")
            assert "whether this server is a replica" in replica["means"]
            assert "which may lag" in found.one("NOT_PERMITTED", "warning", about="PROCESS")["means"]
        printed = desk.run(
            "resource", "check", "--print-grants", "--role", service, **resource("orders", url)
        ).stdout
        assert f"TO '{service}'@'%';" in printed
        server.sql(printed)
        assert check(desk, url, good=True).wrong == []
        execute = url_of(server, database, sql)
        assert check(desk, url, execute=execute).wrong == ["RESOURCE_UNREACHABLE"]
        settings = {**resource("orders", url), "TXCOORD_RESOURCES__orders__EXECUTE_URL": execute}
        server.sql(desk.run("resource", "check", "--print-grants", "--role", service, **settings).stdout)
        assert check(desk, url, execute=execute, good=True).wrong == []
    finally:
        server.sql(f"DROP USER {role}@'%', {service}@'%', {sql}@'%'")


def test_who_is_not_let_in(desk: Desk, server: Either, database: str) -> None:
    user = f"u_{database}"
    server.sql(f"CREATE USER {user}@'%' IDENTIFIED BY 'right'")
    try:
        wrong = check(desk, url_of(server, database, f"{user}:hunter2"))
        assert "Access denied for user" in wrong.one("RESOURCE_CREDENTIALS")["fact"]
        assert f"ALTER USER '{user}'@'%' IDENTIFIED BY '...';" in wrong.one("RESOURCE_CREDENTIALS")["remedy"]
        assert "hunter2" not in wrong.shown
        closed = check(desk, url_of(server, database, f"{user}:right")).one("RESOURCE_CREDENTIALS")
        assert "--print-grants" in str(closed["remedy"])
    finally:
        server.sql(f"DROP USER {user}@'%'")
    nowhere = check(desk, url_of(server, "nowhere")).one("RESOURCE_CREDENTIALS")
    assert "CREATE DATABASE `nowhere`;" in nowhere["remedy"]
    gone = check(desk, "mariadb://root@127.0.0.1:1/x").one("RESOURCE_UNREACHABLE")
    assert "nothing listens at 127.0.0.1:1" in gone["fact"]
    strange = check(desk, "mariadb://root@no-such-host.invalid/x").one("RESOURCE_UNREACHABLE")
    assert "no machine named 'no-such-host.invalid'" in strange["fact"]


def test_tls_that_the_server_has_not_or_that_is_not_trusted(
    desk: Desk, server: Either, database: str
) -> None:
    found = check(desk, f"{url_of(server, database)}?ssl=true")
    assert found.wrong == ["RESOURCE_TLS"]
    # MySQL makes itself a certificate, which nobody has signed; MariaDB 10.11 has none.
    said = "speaks no TLS" if isinstance(server, MariaDBServer) else "is not trusted"
    assert said in found.one("RESOURCE_TLS")["fact"]


def test_tables_without_transactions(desk: Desk, server: Either, database: str) -> None:
    server.sql("CREATE TABLE notes (id int) ENGINE=MyISAM", database)
    url = url_of(server, database)
    warned = check(desk, url, good=True).one("NOT_TRANSACTIONAL", "warning")
    assert "notes (MyISAM)" in warned["fact"]
    assert "stays when it is rolled back" in warned["means"]
    server.sql("ALTER TABLE txcoord_marker ENGINE=MyISAM", database)
    engine = check(desk, url).one("MARKER_UNSAFE")
    assert "txcoord_marker has the engine MyISAM" in engine["fact"]
    server.sql("ALTER TABLE txcoord_marker DROP PRIMARY KEY", database)
    keyless = check(desk, url).one("MARKER_UNSAFE", about="no unique key")
    for finding in (warned, engine, keyless):
        server.sql(statements(finding["remedy"]))
    assert check(desk, url, good=True).wrong == []


def test_a_lost_marker_table(desk: Desk, server: Either, database: str) -> None:
    server.sql("DROP TABLE txcoord_marker", database)
    found = check(desk, url_of(server, database)).one("RESOURCE_NOT_PREPARED")
    assert "no table txcoord_marker" in found["fact"]
    shown = check(desk, url_of(server, database), fix=True, good=True).shown
    assert "the marker table was gone" in shown


def test_wrong_identity(desk: Desk, server: Either, database: str, new_database: Databases) -> None:
    other = url_of(server, database_of(new_database(server)))
    shown = check(desk, other, fix=True).shown
    assert "PROBLEM RESOURCE_MISMATCH: its URL leads to the database with identity" in shown
    assert "txcoord resource check orders --replace-identity" in shown


def test_mariadb_with_unsafe_settings(desk: Desk, mariadb_server: Callable[..., MariaDBServer]) -> None:
    server = mariadb_server(
        settings={
            "log-bin": "binlog",
            "sync-binlog": "0",
            "binlog-format": "STATEMENT",
            "innodb-flush-log-at-trx-commit": "2",
            "innodb-doublewrite": "OFF",
            "default-storage-engine": "Aria",
            "wait-timeout": "10",
            "idle-write-transaction-timeout": "5",
        }
    )
    url = ready_in_spite(desk, server)
    found = check(desk, url)
    flush = found.one("DURABILITY", about="innodb_flush_log_at_trx_commit is 2")
    assert "when the machine crashes" in flush["means"]
    assert "lost in this one" in flush["means"]
    binlog = found.one("DURABILITY", about="sync_binlog is 0")
    assert "InnoDB follows the binary log" in binlog["means"]
    assert "corrupt" in found.one("DURABILITY", "warning", "innodb_doublewrite is OFF")["means"]
    statement = found.one("BINLOG_FORMAT")
    assert "binlog_format is STATEMENT" in statement["fact"]
    default = found.one("NOT_TRANSACTIONAL", "warning", "default_storage_engine is Aria")
    wait = found.one("IDLE_TIMEOUT", "warning", "wait_timeout is 10 s")
    idle = found.one("IDLE_TIMEOUT", "warning", "idle_write_transaction_timeout is 5 s")
    # As it is printed it mends it, but for what needs a restart.
    for finding in (flush, binlog, statement, default, wait, idle):
        assert (
            "# and in the server's file, below [mysqld], so that it stays after a restart:"
            in finding["remedy"]
        )
        server.sql(statements(finding["remedy"]))
    assert check(desk, url, good=True).wrong == ["DURABILITY"]


def ready_in_spite(desk: Desk, server: Either) -> str:
    """Make a database ready on a server whose settings are wrong: --fix makes tables, and goes on complaining."""
    server.create_database("orders")
    url = url_of(server, "orders")
    shown = check(desk, url, fix=True).shown
    assert "fixed   tables and identity" in shown
    return url


def test_a_replica_of_mariadb_is_refused_and_its_primary_warned_of_it(
    desk: Desk,
    mariadb_server: Callable[..., MariaDBServer],
    pg18: PostgresServer,
    pg_database: Databases,
    tmp_path: Path,
) -> None:
    primary = mariadb_server(settings={"log-bin": "binlog", "sync-binlog": "1", "server-id": "1"})
    replica = mariadb_server(settings={"server-id": "2"})
    primary.sql("CREATE USER copy@'%' IDENTIFIED BY 'c'; GRANT REPLICATION SLAVE ON *.* TO copy@'%'")
    url = ready(desk, primary)
    replica.sql(
        f"CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT={primary.port}, MASTER_USER='copy',"
        " MASTER_PASSWORD='c', MASTER_USE_GTID=slave_pos; START SLAVE"
    )
    until(lambda: has_database(replica, "orders"), "the replica follows")
    found = check(desk, url_of(replica, "orders"))
    assert found.wrong == ["RESOURCE_IN_RECOVERY"]
    assert f"replica of 127.0.0.1:{primary.port}" in found.one("RESOURCE_IN_RECOVERY")["fact"]
    # Whoever may not see the replication's state is told by the server's figures.
    replica.sql("CREATE USER plain@'%' IDENTIFIED BY 'x'; GRANT SELECT ON orders.* TO plain@'%'")
    hidden = check(desk, url_of(replica, "orders", "plain:x")).one("RESOURCE_IN_RECOVERY")
    assert "replica of another server" in hidden["fact"]
    # The primary: two risks, each named.
    found = check(desk, url, good=True)
    lag = found.one("ASYNCHRONOUS_STANDBYS", "warning")
    assert "1 replica of this primary may lag behind it: replication is asynchronous" in lag["fact"]
    assert "after a fail-over" in lag["means"]
    assert "MDEV-32020" in found.one("REPLICA_APPLIES_PREPARED", "warning")["means"]
    # A coordinator refuses the replica, once, and serves the others.
    folder = tmp_path / "node"
    folder.mkdir()
    urls = {"orders": url_of(replica, "orders"), "users": pg_database(pg18)}
    node = coordinator(folder, resources=urls, settings=QUICK)
    there = Desk(folder, dict(node.env))
    there.run("migrate")
    there.run("resource", "check", "users", "--fix")
    node.start()
    states = {r["name"]: r["problem"] for r in there.json("resource", "list", TXCOORD_ADDRESS=node.address)}
    assert states["orders"].startswith("RESOURCE_IN_RECOVERY: this server is a replica of")
    assert states["users"] == ""
    assert node.stop() == 0
    said = [e for e in logged(node, "resource.trouble") if e["resource"] == "orders" and "duty" not in e]
    assert len(said) == 1
    # Promoted, as the remedy says, it is a database like others.
    promote = found_remedy(desk, replica)
    replica.sql(promote)
    replica.sql("DELETE FROM txcoord_identity", "orders")
    assert check(desk, url_of(replica, "orders")).wrong == ["RESOURCE_NOT_PREPARED"]


def found_remedy(desk: Desk, replica: Either) -> str:
    remedy = check(desk, url_of(replica, "orders")).one("RESOURCE_IN_RECOVERY")["remedy"]
    return statements(remedy)


def has_database(server: Either, name: str) -> bool:
    with suppress(MariaDBError):
        return server.sql("SELECT COUNT(*) FROM txcoord_identity", name) == "1"
    return False


def test_a_node_of_galera_is_refused(desk: Desk, mariadb_server: Callable[..., MariaDBServer]) -> None:
    """wsrep_on without a provider: a cluster of none. A real node says the same, and refuses XA with 1235."""
    server = mariadb_server(settings={"wsrep-on": "ON", "wsrep-cluster-name": "shop", "binlog-format": "ROW"})
    server.create_database("orders")
    found = check(desk, url_of(server, "orders"))
    assert found.wrong == ["GALERA"]
    assert "node of the Galera cluster 'shop'" in found.one("GALERA")["fact"]
    # --fix makes nothing on it.
    check(desk, url_of(server, "orders"), fix=True)
    assert server.sql("SHOW TABLES", "orders") == ""


def test_a_server_that_is_read_only(desk: Desk, mariadb_server: Callable[..., MariaDBServer]) -> None:
    server = mariadb_server()
    url = ready(desk, server)
    server.sql("SET GLOBAL read_only = ON")
    finding = check(desk, url).one("RESOURCE_READ_ONLY")
    assert "such a server is a replica" in finding["means"]
    server.sql(statements(finding["remedy"]))
    assert check(desk, url, good=True).wrong == []


def test_a_branch_in_limbo(desk: Desk, mariadb_server: Callable[..., MariaDBServer]) -> None:
    """MariaDB answers XA COMMIT with OK while the session that prepared is being reset, and InnoDB stays prepared."""
    server = mariadb_server()
    url = ready(desk, server)
    server.sql("CREATE TABLE t (id int PRIMARY KEY) ENGINE=InnoDB", "orders")

    with server.connect("orders") as other, other.cursor() as finisher:

        def lose_one(number: int) -> bool:
            name = f"'limbo{number}', 'b', 7"
            with server.connect("orders") as holder, holder.cursor() as cursor:
                for statement in (f"XA START {name}", f"INSERT INTO t VALUES ({number})", f"XA END {name}"):
                    cursor.execute(statement)
                cursor.execute(f"XA PREPARE {name}")
                reset(holder)
                finisher.execute(f"XA COMMIT {name}")  # OK, whatever becomes of it
            return server.sql(f"SELECT COUNT(*) FROM t WHERE id = {number}", "orders") == "0"

        assert any(lose_one(number) for number in range(20)), "no branch was lost in 20 tries"
    assert server.prepared() == []

    def seen() -> bool:
        with suppress(AssertionError):  # nothing is wrong yet
            return "IN_LIMBO" in check(desk, url).wrong
        return False

    # Only old ones are told: a young one may just be on its way out. And InnoDB makes that table anew only when nobody
    # has read it for 0.1 s: who asks more often is shown for ever what was there first.
    until(seen, "it is old enough", every_s=2 * my.HOLDERS_FRESH_S)
    finding = check(desk, url).one("IN_LIMBO")
    assert "prepared in InnoDB, and not in XA RECOVER" in finding["fact"]
    assert "restart the server" in str(finding["remedy"])
    server.restart()
    assert check(desk, url, good=True).wrong == []


def reset(connection: Any) -> None:
    """COM_RESET_CONNECTION, as pools send it."""
    connection._execute_command(0x1F, b"")
    connection._read_ok_packet()


@pytest.fixture
def own_mysql(mysql_server: Callable[..., MySQLServer]) -> MySQLServer:
    return mysql_server()


def test_mysql_that_keeps_branches_to_their_session_or_follows_another(
    desk: Desk, own_mysql: MySQLServer
) -> None:
    url = ready(desk, own_mysql)
    assert check(desk, url, good=True).wrong == []
    own_mysql.sql("SET GLOBAL xa_detach_on_prepare = OFF")
    finding = check(desk, url).one("XA_DETACH_OFF")
    assert "only the session that prepared a branch may finish it" in finding["means"]
    own_mysql.sql(statements(finding["remedy"]))
    own_mysql.sql("SET GLOBAL innodb_flush_log_at_trx_commit = 0")
    finding = check(desk, url).one("DURABILITY")
    assert "when the server or its machine crashes" in finding["means"]
    own_mysql.sql(statements(finding["remedy"]))
    own_mysql.sql("SET GLOBAL super_read_only = ON")
    assert check(desk, url).wrong == ["RESOURCE_READ_ONLY"]
    own_mysql.sql("SET GLOBAL super_read_only = OFF, GLOBAL read_only = OFF")
    own_mysql.sql(
        "CHANGE REPLICATION SOURCE TO SOURCE_HOST='127.0.0.1', SOURCE_PORT=1, SOURCE_USER='x'; START REPLICA"
    )
    finding = check(desk, url).one("RESOURCE_IN_RECOVERY")
    assert "a replica of 127.0.0.1:1" in finding["fact"]
    own_mysql.sql(statements(finding["remedy"]))
    assert check(desk, url, good=True).wrong == []
