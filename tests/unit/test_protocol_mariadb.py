"""What is said to MariaDB and MySQL, and what they answer."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txcoord_client.protocol import identifiers as ids
from txcoord_client.protocol import mariadb as my
from txcoord_client.protocol import marker
from txcoord_client.protocol.xid import Xid, new_log_id

TX = "018bcfe56800765183171ff4a6a3a450"
X = Xid("0123456789", 5, TX, "1", 77)
NASTY = st.text(max_size=40).filter(lambda t: "'" in t or ";" in t or "\\" in t or not t.isalnum())
xids = st.builds(
    Xid,
    st.builds(new_log_id, st.integers(0, 2**50 - 1)),
    st.integers(0, 2**59),
    st.builds(lambda n: f"{n:032x}", st.integers(0, 2**128 - 1)),
    st.sampled_from(["1", "3.1", "12.4.7"]),
    st.just(0) | st.integers(1, 2**64 - 1),
)


def test_a_branch_by_its_statements() -> None:
    name = f"'{X.gtrid}', '1@77', 1954046769"
    assert my.xa_start(str(X)) == f"XA START {name}"
    assert my.xa_end(str(X)) == f"XA END {name}"
    assert my.xa_prepare(str(X)) == f"XA PREPARE {name}"
    assert my.xa_commit(str(X)) == f"XA COMMIT {name}"
    assert my.xa_commit_one_phase(str(X)) == f"XA COMMIT {name} ONE PHASE"
    assert my.xa_rollback(str(X)) == f"XA ROLLBACK {name}"
    assert my.FORMAT_ID.to_bytes(4, "big") == b"txc1"
    assert my.FORMAT_ID < 2**31, "MariaDB's limit"


@given(NASTY)
def test_no_text_from_outside_gets_into_a_statement(text: str) -> None:
    for build in (
        lambda: my.xa_start(text),
        lambda: my.xa_commit(text),
        lambda: my.xa_rollback(text),
        lambda: my.set_identity(text),
        lambda: my.insert_marker(text, "1", "xa", 1),
        lambda: my.insert_marker(TX, "1", text, 1),
        lambda: my.read_marker(text, "1", "xa"),
        lambda: my.read_markers([(text, "1")], "xa"),
        lambda: my.probe(text, "1", "one", 1),
    ):
        with pytest.raises(ValueError, match=r"not a|32 hex"):
            build()
    if not ids.is_branch(text):
        with pytest.raises(ValueError, match="branch"):
            my.read_marker(TX, text, "xa")


@given(st.text(min_size=1, max_size=20))
def test_a_schema_is_quoted(schema: str) -> None:
    quoted = "`" + schema.replace("`", "``") + "`"
    for statement in (
        *my.ddl(schema),
        my.read_identity(schema),
        my.set_identity("0" * 32, schema),
        my.read_marker(TX, "1", "xa", schema),
        my.read_markers([(TX, "1")], "xa", schema),
        my.insert_marker(TX, "1", "xa", 1, schema=schema),
        my.delete_old_markers(5, 1, schema),
        *my.missing_rights(schema).values(),
    ):
        assert quoted + "." in statement


def test_the_inserting_statement_carries_the_limit() -> None:
    text = my.insert_marker(TX, "1", marker.XA, 77)
    assert text.endswith("<= 77")
    assert "NULL" not in text, "a session that is not strict turns it into 0"
    assert text.count("SYSDATE(6)") == 2, "NOW() would be the statement's start, or what SET timestamp says"
    assert text.count("time_zone = '+00:00'") == 2, "once for each server"


def test_a_tombstone_and_a_one_phase_marker_meet_on_one_key() -> None:
    *before, tombstone, commit = my.probe(TX, marker.ONE_BRANCH, marker.ONE, 9)
    key = f"X'{TX}', '0', 'one', "
    assert key + str(marker.TOMBSTONE) in tombstone
    assert key + str(marker.DONE) in my.insert_marker(TX, marker.ONE_BRANCH, marker.ONE, 9)
    assert "innodb_lock_wait_timeout = 1" in before[-1]
    assert commit == "COMMIT"


@given(st.integers(-(2**40), 2**60), st.integers(1, 1000))
def test_pruning_never_reaches_a_younger_tx_id(cutoff_us: int, limit: int) -> None:
    statement = my.delete_old_markers(cutoff_us, limit)
    bound = re.search("tx_id < X'([0-9a-f]{32})'", statement)
    assert bound is not None
    if 0 <= cutoff_us < 2**48 * 1000:
        assert ids.new_tx_id(cutoff_us + 1000, lambda k: 0) >= bound[1]
    assert f"created_us < {cutoff_us}" in statement


# ---- XA RECOVER ----


def _as_mysql(gtrid: bytes, bqual: bytes) -> str:
    return "0x" + (gtrid + bqual).hex().upper()


def _as_mariadb(gtrid: bytes, bqual: bytes) -> str:
    def quoted(part: bytes) -> str:
        return f"'{part.decode()}'" if part.isalnum() else f"X'{part.hex()}'"

    return f"{quoted(gtrid)},{quoted(bqual)},{my.FORMAT_ID}"


@given(xids)
def test_what_is_listed_comes_back(x: Xid) -> None:
    g, b = x.gtrid.encode(), x.bqual.encode()
    for data in (_as_mysql(g, b), _as_mariadb(g, b), f"'{x.gtrid}','{x.bqual}',1954046769"):
        assert my.recovered([(my.FORMAT_ID, len(g), len(b), data)]) == [x]
        assert my.recovered([(str(my.FORMAT_ID), str(len(g)), str(len(b)), data.encode())]) == [x]
        assert my.recovered([(my.FORMAT_ID - 1, len(g), len(b), data)]) == [], "somebody else's format"
        assert my.recovered([(my.FORMAT_ID, len(g) - 2, len(b) + 2, data)]) == []


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_foreign_branches_are_passed_by(gtrid: bytes, bqual: bytes) -> None:
    for data in (_as_mysql(gtrid, bqual), _as_mariadb(gtrid, bqual)):
        assert my.recovered([(my.FORMAT_ID, len(gtrid), len(bqual), data)]) == []
    assert my.recovered([(my.FORMAT_ID, 1, 1, "0xzz"), (my.FORMAT_ID, 0, 0, None)]) == []


# ---- who and what ----


@pytest.mark.parametrize(
    ("version", "comment", "wanted"),
    [
        ("10.11.19-MariaDB-0+deb12u1", "Debian 12", my.Flavour.MARIADB),
        ("11.8.9-MariaDB-log", "mariadb.org binary distribution", my.Flavour.MARIADB),
        ("9.7.4-2", "(Debian)", my.Flavour.MYSQL),
        ("8.0.36", "MySQL Community Server - GPL", my.Flavour.MYSQL),
        ("8.0.36-28", "Percona Server (GPL), Release 28", my.Flavour.MYSQL),
        ("8.0.11-TiDB-v7.5.0", "TiDB Server (Apache License 2.0)", None),
        ("8.0.30-Vitess", "", None),
        ("", "", None),
    ],
)
def test_the_server_says_what_it_is(version: str, comment: str, wanted: my.Flavour | None) -> None:
    assert my.flavour(version, comment) is wanted


def test_versions() -> None:
    assert my.version_tuple("10.11.19-MariaDB") == (10, 11, 19)
    assert my.version_tuple("8.0.30") >= (8, 0, 30)
    assert my.version_tuple("unknown") == ()


@pytest.mark.parametrize("bad", [0, -1])
def test_only_a_session_can_be_ended(bad: int) -> None:
    assert my.kill(77) == "KILL CONNECTION 77"
    for build in (my.kill, my.find_session):
        with pytest.raises(ValueError, match="connection id"):
            build(bad)


@pytest.mark.parametrize(
    ("errno", "wanted"),
    [
        (None, my.Reply.UNREACHABLE),
        (2006, my.Reply.UNREACHABLE),
        (2013, my.Reply.UNREACHABLE),
        (1158, my.Reply.UNREACHABLE),
        (1927, my.Reply.UNREACHABLE),
        (1401, my.Reply.UNREACHABLE),
        (3197, my.Reply.UNREACHABLE),
        (1397, my.Reply.UNKNOWN_XID),
        (1399, my.Reply.GUARD),
        (1400, my.Reply.NOT_IDLE),
        (1402, my.Reply.ROLLED_BACK),
        (1213, my.Reply.ROLLED_BACK),
        (1613, my.Reply.ROLLED_BACK),
        (1614, my.Reply.ROLLED_BACK),
        (1440, my.Reply.DUPLICATE_XID),
        (1062, my.Reply.DUPLICATE),
        (1205, my.Reply.LOCK_TIMEOUT),
        (3572, my.Reply.LOCK_TIMEOUT),
        (1094, my.Reply.NO_SESSION),
        (1095, my.Reply.REFUSED),
        (1142, my.Reply.REFUSED),
        (1146, my.Reply.NO_TABLE),
        (1064, my.Reply.OTHER),
    ],
)
def test_what_replies_mean(errno: int | None, wanted: my.Reply) -> None:
    assert my.meaning(errno) is wanted


@given(st.integers(0, 70_000))
def test_only_nota_says_that_the_xid_is_unknown(errno: int) -> None:
    assert (my.meaning(errno) is my.Reply.UNKNOWN_XID) is (errno == 1397)


# ---- limbo ----

_START_US = 1_700_000_000_000_000


def _listed(began_us: int, session: int) -> tuple[int, int, int, str]:
    x = Xid("0123456789", 5, f"{began_us // 1000:012x}".ljust(32, "0"), "1", session)
    return (my.FORMAT_ID, len(x.gtrid), len(x.bqual), f"'{x.gtrid}','{x.bqual}',{my.FORMAT_ID}")


FOREIGN = (1, 1, 1, "'a','b',1")
BEFORE = _listed(_START_US - 5_000_000, 8)
"""Prepared by session 8 of the server's life before, and so by nobody's of now."""
NOW = _listed(_START_US + 5_000_000, 8)


@pytest.mark.parametrize(
    ("rows", "holders", "limbo"),
    [
        ([], [], 0),
        ([], [0], 1),
        ([FOREIGN, BEFORE], [0, 0], 0),
        ([FOREIGN, BEFORE], [0, 0, 0], 1),
        ([NOW], [8], 0),
        ([NOW], [8, 0], 1),
        ([NOW], [0], 0),
        ([BEFORE, NOW], [0, 8], 0),
        ([BEFORE, NOW], [0, 8, 0], 1),
        ([BEFORE], [0, 8], 0),
        ([FOREIGN], [9], 0),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else str(len(value)),
)
def test_limbo_is_what_innodb_holds_and_nobody_can_name(
    rows: list[tuple[int, int, int, str]], holders: list[int], limbo: int
) -> None:
    assert my.limbo(rows, holders, _START_US) == limbo
