"""`txcoord resource check`, `config show` and the like: what needs no running coordinator."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.cli_support import Desk, resource
from tests.support.databases import PG18, Databases, database_of, running_server
from txcoord import __version__
from txcoord.testing.postgres import PostgresServer


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    desk = Desk(tmp_path)
    desk.run("migrate")
    return desk


def findings(desk: Desk, name: str, *arguments: str, code: int = 0) -> dict[str, dict[str, object]]:
    """What `resource check` found about one resource, by reason."""
    (found,) = [d for d in desk.json("resource", "check", *arguments, code=code) if d["name"] == name]
    return {f["reason"]: f for f in found["findings"]}


def test_check_says_what_is_missing_and_fix_makes_it(
    desk: Desk, pg: PostgresServer, pg_database: Databases
) -> None:
    url = pg_database(pg)
    desk.env |= resource("accounts", url)
    shown = desk.run("resource", "check", code=7).stdout
    assert "PROBLEM RESOURCE_NOT_PREPARED: the database has no txcoord tables yet" in shown
    assert "txcoord resource check accounts --fix" in shown
    fixed = desk.run("resource", "check", "--fix").stdout
    assert "fixed   tables and identity " in fixed
    assert "the log remembers its identity now" in fixed
    (first,) = desk.json("resource", "check")
    assert first["good"]
    # Again, it changes nothing.
    (second,) = desk.json("resource", "check", "--fix")
    assert second["identity"] == first["identity"]


def test_a_marker_table_that_is_gone_or_closed_is_seen(
    desk: Desk, pg18: PostgresServer, pg_database: Databases
) -> None:
    url = pg_database(pg18)
    desk.env |= resource("accounts", url)
    desk.run("resource", "check", "--fix")
    pg18.sql("ALTER TABLE txcoord_marker RENAME TO lost", database_of(url))
    problem = findings(desk, "accounts", code=7)["RESOURCE_NOT_PREPARED"]
    assert "no table txcoord_marker" in str(problem["fact"])
    assert "the marker table was gone" in desk.run("resource", "check", "--fix").stdout
    desk.run("resource", "check")
    role = f"closed_{database_of(url)}"
    pg18.sql(f"CREATE ROLE {role} LOGIN; GRANT SELECT ON txcoord_identity TO {role}", database_of(url))
    try:
        desk.env |= resource("accounts", url.replace("postgres@", f"{role}@"))
        problem = findings(desk, "accounts", code=7)["NOT_PERMITTED"]
        assert problem["fact"] == "this role may not SELECT, INSERT, DELETE on txcoord_marker"
    finally:
        pg18.sql(f"DROP OWNED BY {role}; DROP ROLE {role}", database_of(url))


def test_the_sql_that_it_prints_mends_it(desk: Desk, pg18: PostgresServer, pg_database: Databases) -> None:
    url = pg_database(pg18)
    desk.env |= resource("accounts", url)
    remedy = str(findings(desk, "accounts", code=7)["RESOURCE_NOT_PREPARED"]["remedy"])
    assert "txcoord resource check accounts --print-sql" in remedy
    sql = desk.run("resource", "check", "accounts", "--print-sql").stdout
    assert sql.count("CREATE TABLE") == 2
    pg18.sql(sql, database_of(url))
    (found,) = desk.json("resource", "check")
    assert found["good"]
    assert found["identity"]


def test_prepare_disabled_is_told_with_what_mends_it(desk: Desk) -> None:
    with running_server(PG18, settings={"max_prepared_transactions": "0"}) as server:
        desk.env |= resource("accounts", server.url())
        finding = findings(desk, "accounts", "--fix", code=7)["PREPARE_DISABLED"]
    assert finding["fact"] == "max_prepared_transactions is 0 (the default)"
    assert "nothing can be prepared" in str(finding["means"])
    assert "start it with: postgres -c max_prepared_transactions=200" in str(finding["remedy"])


def test_who_cannot_log_in_or_is_not_there(desk: Desk, pg18: PostgresServer, pg_database: Databases) -> None:
    url = pg_database(pg18)
    desk.env |= resource("a", url.replace("postgres@", "stranger:hunter2@"))
    desk.env |= resource("b", "postgresql://u:hunter2@127.0.0.1:1/x")
    desk.env |= resource("c", url + "_not_there")
    done = desk.run("resource", "check", code=7)
    assert "PROBLEM RESOURCE_CREDENTIALS: cannot log in: role " in done.stdout
    assert "PROBLEM RESOURCE_UNREACHABLE: it does not answer: " in done.stdout
    assert "_not_there" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


def test_who_may_not_make_tables_or_finish_what_others_prepared(
    desk: Desk, pg18: PostgresServer, pg_database: Databases
) -> None:
    url = pg_database(pg18)
    database = database_of(url)
    role, service = f"finisher_{database}", f"service_{database}"
    pg18.sql(f"CREATE ROLE {role} LOGIN; CREATE ROLE {service} LOGIN")
    try:
        desk.env |= resource("accounts", url.replace("postgres@", f"{role}@"))
        finding = findings(desk, "accounts", "--fix", code=7)["RESOURCE_NOT_PREPARED"]
        assert "permission denied" in str(finding["fact"])
        pg18.sql(f"GRANT CREATE ON SCHEMA public TO {role}", database)
        desk.run("resource", "check", "--fix")
        pg18.sql(
            f"SET ROLE {service}; BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'txc1.somebody'",
            database,
        )
        finding = findings(desk, "accounts", code=7)["NOT_PERMITTED"]
        assert finding["remedy"] == [f'GRANT "{service}" TO "{role}";']
        pg18.sql(f"GRANT {service} TO {role}")
        desk.run("resource", "check")
    finally:
        pg18.sql("ROLLBACK PREPARED 'txc1.somebody'", database)
        pg18.sql(f"DROP OWNED BY {role}, {service}", database)
        pg18.sql(f"DROP ROLE {role}; DROP ROLE {service}")


def test_a_replaced_database_is_taken_only_on_demand(
    desk: Desk, pg18: PostgresServer, pg_database: Databases
) -> None:
    desk.env |= resource("accounts", pg_database(pg18))
    desk.run("resource", "check", "--fix")
    desk.env |= resource("accounts", pg_database(pg18))
    mismatch = findings(desk, "accounts", "--fix", code=7)["RESOURCE_MISMATCH"]
    assert "--replace-identity" in str(mismatch["fact"])
    assert "needs the resource's name" in desk.run("resource", "check", "--replace-identity", code=2).stderr
    asked = desk.run("resource", "check", "accounts", "--fix", "--replace-identity", code=2)
    assert "will not be finished. Go on? Say --yes" in asked.stderr
    desk.run("resource", "check", "accounts", "--fix", "--replace-identity", "--yes")
    desk.run("resource", "check")


def test_swapped_urls_are_never_made_right_by_force(
    desk: Desk, pg18: PostgresServer, pg_database: Databases
) -> None:
    one, two = pg_database(pg18), pg_database(pg18)
    desk.env |= {**resource("one", one), **resource("two", two)}
    desk.run("resource", "check", "--fix")
    desk.env |= {**resource("one", two), **resource("two", one)}
    for arguments in ((), ("one", "two", "--fix", "--replace-identity", "--yes")):
        shown = desk.run("resource", "check", *arguments, code=7).stdout
        assert shown.count("the URLs of 'one' and 'two' look swapped") == 1
        assert shown.count("the URLs of 'two' and 'one' look swapped") == 1
        assert "--replace-identity" not in shown


def test_without_its_log_it_still_looks(tmp_path: Path, pg18: PostgresServer, pg_database: Databases) -> None:
    desk = Desk(tmp_path, resource("accounts", pg_database(pg18)))
    done = desk.run("resource", "check", code=7)
    assert done.stderr.startswith(
        "the log cannot be asked, so identities are not compared: SCHEMA_MISMATCH: "
    )
    assert "PostgreSQL 18" in done.stdout
    # But it makes nothing of which no log would know.
    assert desk.run("resource", "check", "--fix", code=5).stdout == ""


def test_names_that_are_not_in_the_settings(desk: Desk) -> None:
    assert desk.run("resource", "check", "x", code=3).stderr == (
        "txcoord: resource 'x' is not in the settings (known: none)\n"
    )
    assert "TXCOORD_RESOURCES__<name>__URL" in desk.run("resource", "check", code=3).stderr


def test_settings_are_shown_without_passwords(desk: Desk) -> None:
    desk.env |= {
        **resource("accounts", "postgresql+asyncpg://ada:hunter2@db.example:5432/accounts"),
        "TXCOORD_RECOVERY__GRACE": "1500ms",
    }
    shown = desk.run("config", "show").stdout
    assert "hunter2" not in shown
    assert "resources.accounts.url = postgresql+asyncpg://ada:***@db.example:5432/accounts\n" in shown
    assert "recovery.grace = 1s500ms\n" in shown
    (values,) = desk.json("config", "show")
    assert values["listen"] == "127.0.0.1:7070"
    assert "TXCOORD_LOG__URL" in desk.run("config", "variables").stdout


def test_version_and_help(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert desk.run("--version").stdout == f"{__version__}\n"
    shown = desk.run("--help").stdout
    for command in ("dev", "serve", "migrate", "tx", "resource", "config", "bench"):
        assert command in shown
    assert "Exit codes:" in shown
    assert "No such command" in desk.run("nonsense", code=2).stderr
