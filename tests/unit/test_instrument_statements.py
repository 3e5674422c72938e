"""What a statement means to a unit."""

from __future__ import annotations

import pytest

from txcoord_client._instrument.statements import facts, renamed

READS = [
    "SELECT 1",
    "  select * from note where body in ('a', 'b')",
    "/* who */ SELECT count(*) FROM note",
    "-- who\nSELECT max(n), coalesce(min(n), 0) FROM (SELECT 1 AS n) AS x",
    "(SELECT 1) UNION (SELECT 2)",
    "SHOW transaction_isolation",
    "VALUES (1)",
    "SELECT CAST('1' AS VARCHAR(20))",
]
WORK = [
    "INSERT INTO note VALUES (1)",
    "WITH x AS (INSERT INTO note VALUES (1) RETURNING 1) SELECT * FROM x",
    "SELECT note_it(1)",
    'SELECT "note it"(1)',
    "SELECT s.note_it(1)",
    "SELECT nextval('s')",
    "SELECT * FROM note FOR UPDATE",
    "SELECT * FROM note FOR NO KEY UPDATE",
    "SELECT * FROM note LOCK IN SHARE MODE",
    "SELECT 1 INTO made",
    "CALL note_it(1)",
    "DO $$ BEGIN COMMIT; END $$",
    "EXPLAIN ANALYZE DELETE FROM note",
    "SELECT 1; DELETE FROM note",
    "PREPARE x AS SELECT 1",
    "",
    "SET LOCAL lock_timeout = 1",
    "SET transaction_timeout = 1",
    "ROLLBACK TO SAVEPOINT x",
]
ENDS = [
    "COMMIT",
    "commit;",
    "  /* a */ -- b\n COMMIT WORK",
    "END",
    "ROLLBACK",
    "ROLLBACK WORK",
    "ABORT",
    "BEGIN",
    "START TRANSACTION READ ONLY",
    "PREPARE TRANSACTION 'x'",
    "COMMIT PREPARED 'x'",
    "SELECT 1; COMMIT",
    "SELECT ';', $a$ ; $a$; -- ; \n COMMIT",
    "; COMMIT",
]
MODES = [
    "SET TRANSACTION READ ONLY",
    "SET LOCAL TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
]


@pytest.mark.parametrize("statement", READS)
def test_what_only_reads(statement: str) -> None:
    for family in ("postgresql", "mysql"):
        assert facts(statement, family).reads
        assert not facts(statement, family).refused


@pytest.mark.parametrize("statement", WORK)
def test_what_may_write(statement: str) -> None:
    assert not facts(statement, "postgresql").reads
    assert not facts(statement, "postgresql").refused


@pytest.mark.parametrize("statement", ENDS)
def test_what_ends_a_transaction(statement: str) -> None:
    assert facts(statement, "postgresql").reason == "GUARD"


@pytest.mark.parametrize("statement", MODES)
def test_what_changes_the_mode(statement: str) -> None:
    assert facts(statement, "postgresql").reason == "NOT_SUPPORTED"
    assert facts(statement, "mysql").reason == "NOT_SUPPORTED"


@pytest.mark.parametrize(
    "statement",
    ["SELECT '; COMMIT'", 'SELECT "; COMMIT"', "SELECT $x$; COMMIT$x$", "SELECT 1 /* ; COMMIT */"],
)
def test_what_only_looks_like_an_end(statement: str) -> None:
    assert not facts(statement, "postgresql").refused


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE x (n int)", "drop table x", "ALTER TABLE x ADD y int", "TRUNCATE x", "LOCK TABLES x READ"],
)
def test_what_ends_a_transaction_on_mariadb(statement: str) -> None:
    assert facts(statement, "mysql").reason == "NOT_SUPPORTED"
    assert not facts(statement, "postgresql").refused
    assert not facts("CREATE TEMPORARY TABLE x (n int)", "mysql").refused


@pytest.mark.parametrize(
    "statement", ["SET autocommit=1", "SET @@autocommit = 0", "SET SESSION autocommit = 1", "XA END 'x'"]
)
def test_what_mariadb_has_besides(statement: str) -> None:
    assert facts(statement, "mysql").refused


def test_savepoints_have_the_units_own_names() -> None:
    assert renamed("SAVEPOINT sa_savepoint_1", "_u2") == "SAVEPOINT sa_savepoint_1_u2"
    assert renamed('RELEASE SAVEPOINT "a"', "_u2") == 'RELEASE SAVEPOINT "a_u2"'
    assert renamed("rollback to `a`", "_u2") == "rollback to `a_u2`"
    assert renamed("SELECT 1", "_u2") == "SELECT 1"
    assert facts("ROLLBACK TO SAVEPOINT a", "mysql").name == "a"


def test_long_statements_are_read_too() -> None:
    """In a time that grows with their length, not with its square: an application may well send a megabyte."""
    assert facts("SELECT '" + "x" * 1_000_000 + "'; COMMIT", "postgresql").refused
    assert facts("SAVEPOINT a" + " " * 1_000_000 + "!", "postgresql").savepoint == "SAVEPOINT"
    for call in ("nextval ('a')", "1nextval('a')", "\u00e9nextval('a')", "x.now$('a')"):
        assert not facts(f"SELECT {call}", "postgresql").reads
