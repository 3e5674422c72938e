"""The pure part of the protocol: identifiers, xids, and what is said to PostgreSQL."""

from __future__ import annotations

import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txcoord_client.protocol import identifiers as ids
from txcoord_client.protocol import marker, reasons
from txcoord_client.protocol import postgresql as pg
from txcoord_client.protocol.xid import Xid, decode_number, encode_number, is_log_id, new_log_id, parse

TX = "018bcfe56800765183171ff4a6a3a450"

times = st.integers(0, 2**48 * 1000 - 1)
tx_ids = st.builds(lambda n: f"{n:032x}", st.integers(0, 2**128 - 1))
log_ids = st.builds(new_log_id, st.integers(0, 2**50 - 1))
branches = st.lists(st.integers(0, 9999), min_size=1, max_size=4).map(lambda p: ".".join(map(str, p)))
connection_ids = st.just(0) | st.integers(1, 2**64 - 1)
xids = st.builds(Xid, log_ids, st.integers(0, 2**62), tx_ids, branches, connection_ids)

# ---- identifiers ----


@given(times, st.integers(0, 2**62 - 1))
def test_a_tx_id_is_a_uuid_of_version_7(now_us: int, bits: int) -> None:
    tx_id = ids.new_tx_id(now_us, lambda k: bits & (2**k - 1))
    parsed = uuid.UUID(tx_id)
    assert ids.is_tx_id(tx_id)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert parsed.int >> 80 == now_us // 1000


@given(times, times, st.integers(0, 2**62 - 1), st.integers(0, 2**62 - 1))
def test_tx_ids_are_in_order_of_their_creation(a: int, b: int, x: int, y: int) -> None:
    one, two = (ids.new_tx_id(t, lambda k, n=n: n & (2**k - 1)) for t, n in ((a, x), (b, y)))  # type: ignore[misc]
    if a // 1000 < b // 1000:
        assert one < two


@given(tx_ids)
def test_a_tx_id_that_a_person_typed(tx_id: str) -> None:
    assert ids.parse_tx_id(str(uuid.UUID(tx_id)).upper()) == tx_id


@given(st.text(max_size=60))
def test_only_what_the_rules_allow_is_an_identifier(text: str) -> None:
    assert ids.is_tx_id(text) is bool(re.fullmatch("[0-9a-f]{32}", text, re.ASCII))
    assert ids.is_gid(text) is bool(re.fullmatch("[A-Za-z0-9_-]{1,48}", text))
    assert ids.is_branch(text) is (len(text) <= 24 and bool(re.fullmatch(r"[0-9]+(\.[0-9]+)*", text)))


@pytest.mark.parametrize("bad", ["", "x" * 49, "a b", "a\n", "ä", "a'b", "a;b", "a.b"])
def test_gids(bad: str) -> None:
    assert not ids.is_gid(bad)


@pytest.mark.parametrize("bad", ["", ".", "1.", ".1", "1..2", "1\n", "-1", "1" * 25, "a", "\u0661"])
def test_branches(bad: str) -> None:
    assert not ids.is_branch(bad)
    assert ids.is_branch("3.1.22")


# ---- xid ----


@given(xids)
def test_an_xid_comes_back(x: Xid) -> None:
    if ids.is_branch(x.branch):
        assert parse(str(x)) == x
        assert str(x).startswith(x.gtrid + ".")


@given(xids)
def test_an_xid_fits_everywhere(x: Xid) -> None:
    if x.deadline_us < 2**60:
        assert len(x.gtrid) <= 64, "X/Open's gtrid"
    if ids.is_branch(x.branch):
        assert len(x.bqual) <= 64, "X/Open's bqual"
    assert len(str(x)) < 200, "PostgreSQL's gid"
    assert str(x).isascii()
    assert "'" not in str(x)


@pytest.mark.parametrize("bad", ["1@", "1@0", "1@01", "1@-1", "1@x", "@1", "1@2@3", f"1@{2**64}", "1@\u0661"])
def test_connection_ids(bad: str) -> None:
    x = Xid("0123456789", 5, TX, "1", 2**64 - 1)
    assert parse(str(x)) == x
    assert parse(f"{x.gtrid}.{bad}") is None


@given(st.text(max_size=120))
def test_anything_else_is_foreign(text: str) -> None:
    found = parse(text)
    assert found is None or str(found) == text


@given(xids, st.integers(0, 90), st.characters())
def test_one_wrong_character_makes_no_other_xid_of_ours_by_accident(x: Xid, at: int, char: str) -> None:
    text = str(x)
    at %= len(text)
    found = parse(text[:at] + char + text[at + 1 :])
    assert found is None or str(found) == text[:at] + char + text[at + 1 :], "one text for one xid"


@given(st.integers(0, 2**62), st.integers(0, 2**62))
def test_numbers(a: int, b: int) -> None:
    assert decode_number(encode_number(a)) == a
    one, two = encode_number(a).rjust(13, "0"), encode_number(b).rjust(13, "0")
    assert (one < two) is (a < b), "their order as text is their order"


@pytest.mark.parametrize("bad", ["", "A", "w", "01", "1" * 14, "1 ", "-1", "\u0661"])
def test_no_number_has_two_texts(bad: str) -> None:
    assert decode_number(bad) is None
    with pytest.raises(ValueError, match="negative"):
        encode_number(-1)


@given(st.integers(0, 2**80))
def test_log_ids(bits: int) -> None:
    assert is_log_id(new_log_id(bits))


# ---- statements ----

NASTY = st.text(max_size=40).filter(lambda t: "'" in t or ";" in t or "\\" in t or not t.isalnum())


@given(NASTY)
def test_no_text_from_outside_gets_into_a_statement(text: str) -> None:
    for build in (
        lambda: pg.commit_prepared(text),
        lambda: pg.rollback_prepared(text),
        lambda: pg.list_prepared(text),
        lambda: pg.set_identity(text),
        lambda: pg.insert_marker(text, "1", "xa", 1),
        lambda: pg.insert_marker(TX, "1", text, 1),
        lambda: pg.read_marker(text, "1", "xa"),
        lambda: pg.probe(text, "1", "one", 1),
        lambda: pg.prepare(TX, "1", text, 1),
        lambda: pg.commit_one_phase(text, 1),
    ):
        with pytest.raises(ValueError, match=r"not a|32 hex"):
            build()
    if not ids.is_branch(text):
        with pytest.raises(ValueError, match="branch"):
            pg.read_marker(TX, text, "xa")


@given(st.text(min_size=1, max_size=20))
def test_a_schema_is_quoted(schema: str) -> None:
    quoted = '"' + schema.replace('"', '""') + '"'
    for statement in (
        *pg.ddl(schema),
        pg.read_identity(schema),
        pg.set_identity("0" * 32, schema),
        pg.read_marker(TX, "1", "xa", schema),
        pg.insert_marker(TX, "1", "xa", 1, schema=schema),
        pg.delete_old_markers(5, 1, schema),
    ):
        assert quoted + "." in statement


def test_the_last_message_of_a_branch() -> None:
    """In this order, in one message: see `docs/explanation/xa-postgresql.md`."""
    x = str(Xid("0123456789", 5, TX, "1"))
    parts = pg.prepare(TX, "1", x, 77).split("; ")
    assert parts[0] == "RELEASE SAVEPOINT txc"
    assert parts[1].startswith('INSERT INTO "public".txcoord_marker')
    assert parts[2] == f"PREPARE TRANSACTION '{x}'"
    one = pg.commit_one_phase(TX, 77).split("; ")
    assert (one[0], one[-1]) == ("RELEASE SAVEPOINT txc", "COMMIT")
    for text in (parts[1], one[-2]):
        assert "clock_timestamp()" in text, "now() would be the transaction's start"
        assert "<= 77" in text


def test_a_tombstone_and_a_one_phase_marker_meet_on_one_key() -> None:
    tombstone = pg.probe(TX, marker.ONE_BRANCH, marker.ONE, 9)
    committed = pg.commit_one_phase(TX, 9)
    key = f"'{TX}'::uuid, '0', 'one', "
    assert key + str(marker.TOMBSTONE) in tombstone
    assert key + str(marker.DONE) in committed
    assert "lock_timeout" in tombstone
    assert tombstone.startswith("BEGIN; ")
    assert tombstone.endswith("; COMMIT")


@given(st.integers(-(2**40), 2**60), st.integers(1, 1000))
def test_pruning_never_reaches_a_younger_tx_id(cutoff_us: int, limit: int) -> None:
    statement = pg.delete_old_markers(cutoff_us, limit)
    bound = re.search("tx_id < '([0-9a-f]{32})'", statement)
    assert bound is not None
    if 0 <= cutoff_us < 2**48 * 1000:
        younger = ids.new_tx_id(cutoff_us + 1000, lambda k: 0)
        assert younger >= bound[1]
    assert f"created_us < {cutoff_us}" in statement


@pytest.mark.parametrize(
    ("sqlstate", "wanted"),
    [
        (None, pg.Reply.UNREACHABLE),
        ("08006", pg.Reply.UNREACHABLE),
        ("57P01", pg.Reply.UNREACHABLE),
        ("57014", pg.Reply.UNREACHABLE),
        ("53300", pg.Reply.UNREACHABLE),
        ("58030", pg.Reply.UNREACHABLE),
        ("XX000", pg.Reply.UNREACHABLE),
        ("53200", pg.Reply.PREPARE_FULL),
        ("42704", pg.Reply.UNKNOWN_XID),
        ("42501", pg.Reply.REFUSED),
        ("0A000", pg.Reply.NOT_POSSIBLE),
        ("23505", pg.Reply.DUPLICATE),
        ("23502", pg.Reply.TOO_LATE),
        ("55P03", pg.Reply.LOCK_TIMEOUT),
        ("40001", pg.Reply.ROLLED_BACK),
        ("40P01", pg.Reply.ROLLED_BACK),
        ("25P01", pg.Reply.GUARD),
        ("25P02", pg.Reply.GUARD),
        ("3B001", pg.Reply.GUARD),
        ("55000", pg.Reply.BUSY),
        ("42601", pg.Reply.OTHER),
    ],
)
def test_what_replies_mean(sqlstate: str | None, wanted: pg.Reply) -> None:
    assert pg.meaning(sqlstate) is wanted
    of_prepare = pg.Reply.PREPARE_DISABLED if sqlstate == "55000" else wanted
    assert pg.meaning_of_prepare(sqlstate) is of_prepare


@given(st.text(max_size=6))
def test_every_reply_means_something_and_only_some_are_final(sqlstate: str) -> None:
    assert isinstance(pg.meaning(sqlstate), pg.Reply)
    if pg.meaning(sqlstate) is pg.Reply.UNKNOWN_XID:
        assert sqlstate == "42704"


def test_reason_codes_are_their_own_names() -> None:
    codes = {k: v for k, v in vars(reasons).items() if k.isupper() and isinstance(v, str)}
    assert all(k == v for k, v in codes.items())
    assert set(codes.values()) >= reasons.RETRYABLE_ABORTS
    assert not reasons.RETRYABLE_ABORTS & {reasons.ROLLED_BACK_BY_CLIENT, reasons.APPLICATION_ERROR}
