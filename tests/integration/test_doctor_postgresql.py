"""Each way in which a PostgreSQL database can be unfit, made for real: what `txcoord resource check` says of it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.cli_support import Desk, resource, until
from tests.integration.doctor_support import check, desk, pooler_before, standby_of
from tests.integration.test_serve import QUICK, logged, new_node
from tests.support.databases import PG17, Databases, database_of
from txcoord.adapters.xa.checks import Expectations
from txcoord.adapters.xa.checks_postgresql import PostgresExaminer
from txcoord.adapters.xa.checks_postgresql_connect import Door
from txcoord.testing import servers
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import coordinator
from txcoord_client.protocol import reasons

__all__ = ["desk"]  # a fixture

# Servers are made, started and copied: on a busy machine that takes its time.
pytestmark = pytest.mark.timeout(300)

Make = Callable[..., PostgresServer]


def test_unsafe_settings_and_few_prepared_transactions(desk: Desk, pg_server: Make) -> None:
    unsafe = {
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
        "max_prepared_transactions": "3",
        "idle_in_transaction_session_timeout": "5s",
    }
    server = pg_server(settings=unsafe)
    check(desk, server.url(), fix=True)
    found = check(desk, server.url())
    fsync = found.one("DURABILITY", about="fsync")
    assert "lost in this one" in fsync["means"]
    # These servers get their settings on the command line, as those in containers often do.
    assert fsync["remedy"][0] == (
        "# fsync is in the command line of the server; start it with: postgres -c fsync=on ..."
    )
    assert "corrupt" in found.one("DURABILITY", "warning", "full_page_writes")["means"]
    assert "local commits" in found.one("DURABILITY", "warning", "synchronous_commit")["means"]
    assert "max_prepared_transactions is 3" in found.one("PREPARE_FEW", "warning")["fact"]
    assert "idle_in_transaction_session_timeout is 5000 ms" in found.one("IDLE_TIMEOUT", "warning")["fact"]
    assert found.shown.count("PROBLEM ") == 1
    # Filled up.
    for number in range(3):
        server.sql(f"BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'somebody {number}'")
    full = check(desk, server.url()).one("PREPARE_FULL")
    assert "3 of at most 3 prepared" in full["fact"]
    assert "SELECT gid, database, owner, prepared FROM pg_prepared_xacts ORDER BY prepared;" in full["remedy"]


def test_what_the_remedies_say_mends_it(desk: Desk, pg_server: Make) -> None:
    server = pg_server()
    check(desk, server.url(), fix=True, good=True)
    for setting in (
        "full_page_writes = off",
        "synchronous_commit = off",
        "idle_in_transaction_session_timeout = '5s'",
    ):
        server.sql(f"ALTER SYSTEM SET {setting}")
    server.restart()
    found = check(desk, server.url(), good=True)
    assert found.wrong == ["DURABILITY", "DURABILITY", "IDLE_TIMEOUT"]
    for finding in found.all:
        for line in finding["remedy"]:
            server.sql(line)
    until(lambda: check(desk, server.url(), good=True).wrong == [], "the server reads its settings again")


def test_logical_replication_is_noted(desk: Desk, pg_server: Make) -> None:
    server = pg_server(settings={"wal_level": "logical"})
    check(desk, server.url(), fix=True, good=True)
    server.sql("SELECT pg_create_logical_replication_slot('cdc', 'pgoutput')")
    server.sql("SELECT pg_create_logical_replication_slot('both', 'pgoutput', false, true)")
    found = check(desk, server.url(), good=True)
    assert found.wrong == []
    noted = [f["fact"] for f in found.all if f["reason"] == "logical_replication"]
    assert "(cdc)" in noted[0]
    assert "(both): subscribers prepare" in noted[1]


def test_a_standby_is_refused_and_its_primary_warned_of_it(
    desk: Desk, pg_server: Make, pg18: PostgresServer, pg_database: Databases, tmp_path: Path
) -> None:
    primary = pg_server()
    check(desk, primary.url(), fix=True, good=True)
    assert check(desk, primary.url(), good=True).wrong == []
    with standby_of(primary) as standby:
        found = check(desk, standby.url())
        assert found.wrong == ["RESOURCE_IN_RECOVERY"]
        assert "this server is a replica" in found.one("RESOURCE_IN_RECOVERY")["fact"]
        # A coordinator refuses it, says so once, and serves the others.
        node = coordinator(
            tmp_path / "node", resources={"orders": standby.url(), "users": pg_database(pg18)}, settings=QUICK
        )
        node.log.parent.mkdir(exist_ok=True)
        desk_of_node = Desk(tmp_path / "node", dict(node.env))
        desk_of_node.run("migrate")
        desk_of_node.run("resource", "check", "users", "--fix")
        node.start()
        states = {
            r["name"]: r["problem"]
            for r in desk_of_node.json("resource", "list", TXCOORD_ADDRESS=node.address)
        }
        assert states["orders"].startswith("RESOURCE_IN_RECOVERY: this server is a replica")
        assert states["users"] == ""
        assert node.stop() == 0
        said = [e for e in logged(node, "resource.trouble") if e["resource"] == "orders" and "duty" not in e]
        assert len(said) == 1

        # The primary: a warning that names the risk, until the standby is synchronous.
        def standbys() -> bool:
            return primary.sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "1"

        until(standbys, "the standby streams")
        warned = check(desk, primary.url(), good=True).one("ASYNCHRONOUS_STANDBYS", "warning")
        assert "1 standby of this primary may lag" in warned["fact"]
        assert "after a fail-over" in warned["means"]
        assert "committed in other databases and lost in this one" in warned["means"]
        for line in warned["remedy"]:
            primary.sql(line)
        assert check(desk, primary.url(), good=True).wrong == []


def test_standbys_get_more_prepared_transactions_first(desk: Desk, pg_server: Make) -> None:
    primary = pg_server(settings={"max_prepared_transactions": "10"})
    check(desk, primary.url(), fix=True, good=True)
    with standby_of(primary):
        until(lambda: primary.sql("SELECT count(*) FROM pg_stat_replication") == "1", "the standby streams")
        few = check(desk, primary.url(), good=True).one("PREPARE_FEW", "warning")
        assert few["remedy"][0] == "-- on each standby first, or it stops following:"


@pytest.fixture
def database(pg18: PostgresServer, pg_database: Databases, desk: Desk) -> str:
    """The URL of a database that is ready."""
    url = pg_database(pg18)
    check(desk, url, fix=True, good=True)
    return url


@pytest.fixture
def roles(pg18: PostgresServer, database: str) -> Iterator[tuple[str, str]]:
    """A role for the coordinator and one for a service, with no rights at all."""
    names = (f"coordinator_{database_of(database)}", f"service_{database_of(database)}")
    pg18.sql(f"CREATE ROLE {names[0]} LOGIN; CREATE ROLE {names[1]} LOGIN", database_of(database))
    yield names
    pg18.sql(
        f"DROP OWNED BY {names[0]}, {names[1]}; DROP ROLE {names[0]}; DROP ROLE {names[1]}",
        database_of(database),
    )


def test_what_print_grants_prints_is_what_is_missing(
    desk: Desk, pg18: PostgresServer, database: str, roles: tuple[str, str]
) -> None:
    role, service = roles
    url = database.replace("postgres@", f"{role}@")
    found = check(desk, url)
    assert found.wrong == ["NOT_PERMITTED", "NOT_PERMITTED"]
    assert "SELECT, INSERT, DELETE on txcoord_marker" in found.one("NOT_PERMITTED", about="marker")["fact"]
    assert "SELECT on txcoord_identity" in found.one("NOT_PERMITTED", about="identity")["fact"]
    printed = desk.run(
        "resource", "check", "orders", "--print-grants", "--role", service, **resource("orders", url)
    ).stdout
    assert f'GRANT "{service}" TO "{role}";' in printed
    pg18.sql(printed, database_of(database))
    assert check(desk, url, good=True).wrong == []
    # Nobody is told to grant what PostgreSQL refuses: a member of a role cannot have it for a member.
    assert (
        f'GRANT "{role}" TO "{service}";'
        not in check(desk, database.replace("postgres@", f"{service}@")).shown
    )
    # Taken away again, it is seen before anything is prepared.
    pg18.sql(f'REVOKE "{service}" FROM "{role}"', database_of(database))
    finding = check(desk, url).one("NOT_PERMITTED")
    assert f"{service!r} may write to txcoord_marker" in finding["fact"]
    assert "stay prepared and keep their locks" in finding["means"]
    # Members that may not SET ROLE cannot finish, either (PostgreSQL 16 and newer).
    pg18.sql(f'GRANT "{service}" TO "{role}" WITH SET FALSE', database_of(database))
    assert check(desk, url).wrong == ["NOT_PERMITTED"]
    pg18.sql(f'GRANT "{service}" TO "{role}" WITH SET TRUE', database_of(database))
    assert check(desk, url, good=True).wrong == []


def test_the_role_of_best_effort_sql(
    desk: Desk, pg18: PostgresServer, database: str, roles: tuple[str, str]
) -> None:
    coordinator, role = roles
    url, execute = (database.replace("postgres@", f"{name}@") for name in roles)
    settings = {**resource("orders", url), "TXCOORD_RESOURCES__orders__EXECUTE_URL": execute}
    printed = desk.run("resource", "check", "--print-grants", "--role", coordinator, **settings).stdout
    assert f'GRANT "{role}"' not in printed
    assert check(desk, database, execute=execute).wrong == ["NOT_PERMITTED", "NOT_PERMITTED"]
    pg18.sql(printed, database_of(database))
    # It writes markers, and prepares nothing: the coordinator need not finish for it.
    assert check(desk, url, execute=execute, good=True).wrong == []
    assert pg18.sql("SELECT count(*) FROM txcoord_marker", database_of(database)) == "0"
    pg18.sql(f'GRANT DELETE ON txcoord_marker TO "{role}"', database_of(database))
    beyond = check(desk, url, execute=execute, good=True).one("NOT_PERMITTED", "warning")
    assert f"{role}, the role of best-effort SQL, may DELETE" in beyond["fact"]
    away = check(desk, url, execute="postgresql://nobody@127.0.0.1:1/shop")
    assert "does not let in nobody" in away.one("RESOURCE_UNREACHABLE")["fact"]


def test_printing_looks_at_nothing_and_goes_alone(desk: Desk) -> None:
    away = resource("orders", "postgresql://finisher@127.0.0.1:1/shop")
    grants = desk.run("resource", "check", "--print-grants", **away).stdout
    assert 'GRANT SELECT, INSERT, DELETE ON public.txcoord_marker TO "finisher";' in grants
    assert 'GRANT SELECT, INSERT ON public.txcoord_marker TO "app";' in grants
    assert "best-effort" not in grants
    for scheme, wanted in (
        ("postgresql", 'GRANT INSERT ON public.txcoord_marker TO "late@shop";'),
        ("mariadb", "GRANT SELECT ON `shop`.txcoord_identity TO 'late@shop'@'%';"),
    ):
        urls = {
            **resource("orders", f"{scheme}://finisher@127.0.0.1:1/shop"),
            "TXCOORD_RESOURCES__ORDERS__EXECUTE_URL": f"{scheme}://late%40shop@127.0.0.1:1/shop",
        }
        assert wanted in desk.run("resource", "check", "--print-grants", **urls).stdout
    both = desk.run("resource", "check", "--print-sql", "--print-grants", **away).stdout
    assert both.index("CREATE TABLE") < both.index("GRANT")
    assert "not with --fix" in desk.run("resource", "check", "--print-sql", "--fix", code=2, **away).stderr
    assert "--print-grants" in desk.run("resource", "check", "--role", "x", code=2, **away).stderr


def test_a_marker_table_that_proves_nothing(desk: Desk, pg18: PostgresServer, database: str) -> None:
    pg18.sql("ALTER TABLE txcoord_marker SET UNLOGGED", database_of(database))
    unlogged = check(desk, database).one("MARKER_UNSAFE")
    assert "a crash empties it" in unlogged["means"]
    pg18.sql("\n".join(unlogged["remedy"]), database_of(database))
    pg18.sql("ALTER TABLE txcoord_marker DROP CONSTRAINT txcoord_marker_pkey", database_of(database))
    keyless = check(desk, database).one("MARKER_UNSAFE")
    assert "no unique key" in keyless["fact"]
    pg18.sql("\n".join(keyless["remedy"]), database_of(database))
    assert check(desk, database, good=True).wrong == []


def test_a_database_that_takes_no_writes(desk: Desk, pg18: PostgresServer, database: str) -> None:
    pg18.sql(f"ALTER DATABASE {database_of(database)} SET default_transaction_read_only = on")
    finding = check(desk, database).one("RESOURCE_READ_ONLY")
    pg18.sql("SET default_transaction_read_only = off;" + finding["remedy"][0], database_of(database))
    assert check(desk, database, good=True).wrong == []


def test_a_pooler_in_between(desk: Desk, pg18: PostgresServer, database: str) -> None:
    with pooler_before(pg18) as port:
        between = database.replace(f":{pg18.port}/", f":{port}/")
        warned = check(desk, between, good=True).one("POOLER_BETWEEN", "warning")
    assert "process 4711 was announced" in warned["fact"]
    assert "SET ROLE" in warned["means"]


async def test_old_prepared_transactions(pg18: PostgresServer, database: str) -> None:
    ours = "txc1.abcdefghjk.0000000000000.019ab0000000700080000000000000ab.1"
    for name in (ours, ours.replace("abcdefghjk", "zzzzzzzzzz"), "someone''s"):
        pg18.sql(f"BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION '{name}'", database_of(database))
    eyes = PostgresExaminer(Door.of(database), "orders", 5.0)
    try:
        facts = await eyes.collect()
    finally:
        await eyes.close()
    late = [
        f for f in eyes.judge(facts, Expectations("orders", ("abcdefghjk",), old_us=0)) if f.severity != "ok"
    ]
    assert [f.reason for f in late] == [reasons.PREPARED_OLD, reasons.PREPARED_OLD, reasons.PREPARED_FOREIGN]
    assert "txcoord tx show 019ab0000000700080000000000000ab" in late[0].remedy
    assert "no VACUUM removes" in late[0].means
    assert "another txcoord log" in late[1].fact
    assert "-- ROLLBACK PREPARED 'someone''s';" in late[2].remedy
    assert "txcoord never touches them" in late[2].means
    # The usual patience is longer than a moment.
    assert not [f for f in eyes.judge(facts, Expectations("orders")) if f.severity != "ok"]


def test_who_is_not_let_in(desk: Desk, pg_server: Make) -> None:
    server = pg_server()
    server.sql("CREATE ROLE finisher LOGIN PASSWORD 'right'")
    hba = server.data / "pg_hba.conf"
    trust = hba.read_text()
    hba.write_text(f"host all finisher 127.0.0.1/32 scram-sha-256\n{trust}")
    server.sql("SELECT pg_reload_conf()")
    url = f"postgresql://finisher:wrong@127.0.0.1:{server.port}/postgres"
    until(lambda: "password authentication failed" in check(desk, url).shown, "the server reads its file")
    finding = check(desk, url).one("RESOURCE_CREDENTIALS")
    assert finding["remedy"][0] == "ALTER ROLE \"finisher\" PASSWORD '...';"
    hba.write_text(f"host all finisher 127.0.0.1/32 reject\n{trust}")
    server.sql("SELECT pg_reload_conf()")
    until(lambda: "pg_hba.conf" in check(desk, url).shown, "the server reads its file")
    finding = check(desk, url).one("RESOURCE_CREDENTIALS")
    assert "hostssl  postgres  finisher  ADDRESS/32  scram-sha-256" in finding["remedy"]
    finding = check(desk, f"postgresql://postgres@127.0.0.1:{server.port}/nowhere").one(
        "RESOURCE_CREDENTIALS"
    )
    assert 'CREATE DATABASE "nowhere";' in finding["remedy"]
    server.sql("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC; CREATE ROLE other LOGIN")
    finding = check(desk, f"postgresql://other@127.0.0.1:{server.port}/postgres").one("RESOURCE_CREDENTIALS")
    assert 'GRANT CONNECT ON DATABASE "postgres" TO "other";' in finding["remedy"]


def test_tls_that_one_side_has_not(desk: Desk, pg_server: Make, pg18: PostgresServer, tmp_path: Path) -> None:
    plain = check(desk, f"postgresql://postgres@127.0.0.1:{pg18.port}/postgres?sslmode=require")
    assert "speaks no TLS" in plain.one("RESOURCE_TLS")["fact"]
    server = pg_server(PG17)
    key, certificate = server.data / "server.key", server.data / "server.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    trusted = tmp_path / "ca.pem"
    shutil.copy(certificate, trusted)
    key.chmod(0o600)
    if nobody := servers.nobody():
        shutil.chown(key, nobody.pw_uid, nobody.pw_gid)
        shutil.chown(certificate, nobody.pw_uid, nobody.pw_gid)
    server.sql("ALTER SYSTEM SET ssl = on")
    server.restart()
    url = f"postgresql://postgres@127.0.0.1:{server.port}/postgres"
    strange = check(
        desk, f"{url}?sslmode=verify-full&sslrootcert={Path(__file__).with_name('cli_support.py')}"
    )
    assert strange.wrong == ["RESOURCE_TLS"]
    check(desk, url, fix=True, good=True)
    check(desk, f"{url}?sslmode=verify-full&sslrootcert={trusted}", good=True)


def test_another_product_at_that_port(desk: Desk, mariadb: MariaDBServer) -> None:
    finding = check(desk, f"postgresql://u:hunter2@127.0.0.1:{mariadb.port}/x").one("RESOURCE_UNREACHABLE")
    assert "does not speak as PostgreSQL does" in finding["fact"]


def test_who_is_not_there(desk: Desk) -> None:
    finding = check(desk, "postgresql://u:hunter2@127.0.0.1:1/x").one("RESOURCE_UNREACHABLE")
    assert "nothing listens at 127.0.0.1:1" in finding["fact"]
    assert "psql 'postgresql://u@127.0.0.1:1/x'" in finding["remedy"]
    finding = check(desk, "postgresql://u:hunter2@no-such-host.invalid/x").one("RESOURCE_UNREACHABLE")
    assert "no machine named 'no-such-host.invalid'" in finding["fact"]


def test_a_coordinator_says_risks_once(pg_server: Make, tmp_path: Path) -> None:
    server = pg_server(settings={"full_page_writes": "off"})
    node = new_node(tmp_path, {"orders": server.url()})
    node.start()
    assert node.stop() == 0
    (said,) = logged(node, "resource.finding")
    assert (said["resource"], said["reason"], said["level"]) == ("orders", "DURABILITY", "warning")
    assert "full_page_writes is off" in str(said["finding"])
