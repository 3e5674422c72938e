"""Breakers and buckets, without time of their own."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txcoord.core.breaker import BREAKER_NEXT, Breaker, Health, Sign, means_away, not_asked
from txcoord.core.room import Bucket

B, S = Breaker, Sign
SECOND = 1_000_000
ENOUGH = 3


@pytest.mark.parametrize(("state", "sign"), list(product(Breaker, Sign)))
def test_the_table(state: Breaker, sign: Sign) -> None:
    """Only failures of several branches open it, only a probe makes it half open, an answer always closes it."""
    after = BREAKER_NEXT.get((state, sign), state)
    if sign is S.ANSWERED:
        assert after is B.CLOSED
    elif (state, sign) == (B.CLOSED, S.DEAD) or (state, sign) == (B.HALF_OPEN, S.PROBE_FAILED):
        assert after is B.OPEN
    elif (state, sign) == (B.OPEN, S.FORGOTTEN):
        assert after is B.CLOSED
    elif (state, sign) == (B.OPEN, S.PROBED):
        assert after is B.HALF_OPEN
    else:
        assert after is state


def key(number: int) -> tuple[str, str]:
    return f"tx{number}", "1"


def test_what_says_that_nobody_is_there() -> None:
    for code in ("UNAVAILABLE", "TIMED_OUT", "HTTP_503", "SQLSTATE_57P03", "SQLSTATE_08006", "SQL_2013"):
        assert means_away(code)
        assert means_away(f"{code}: and more")
        assert not not_asked(code)
    for code in ("HTTP_500", "HTTP_404", "UNIMPLEMENTED", "BAD_REQUEST", "SQLSTATE_40001", "CREDENTIALS", ""):
        assert not means_away(f"{code}: UNAVAILABLE: nobody")
    assert not_asked("CREDENTIALS: no such file")


def test_one_branch_that_fails_does_not_open_it_however_often() -> None:
    health = Health()
    for now in range(100):
        assert not health.failed(key(1), "FAILED", now, ENOUGH)
    assert not health.is_open


def test_branches_that_fail_beside_one_that_does_well_do_not_open_it() -> None:
    health = Health()
    for now in range(100):
        health.failed(key(now % 2), "FAILED", now, ENOUGH)
        health.failed(key(now), "FAILED", now, ENOUGH)
        health.answered(now)
    assert not health.is_open


def opened() -> Health:
    health = Health()
    news = [health.failed(key(n), f"UNAVAILABLE: {n}", 10 + n, ENOUGH) for n in range(ENOUGH)]
    assert news == [False] * (ENOUGH - 1) + [True]
    assert health.since_us == 10 + ENOUGH - 1
    assert health.last_error == "UNAVAILABLE: 2"
    return health


def test_a_probe_that_answers_closes_it_and_one_that_fails_does_not() -> None:
    health = opened()
    assert health.may_probe(20)
    health.probed(key(7), 60, 20)
    assert not health.may_probe(30)
    assert not health.failed(key(8), "late", 31, ENOUGH)  # A call that was made before.
    assert health.breaker is B.HALF_OPEN
    health.failed(key(7), "dead still", 32, ENOUGH)
    assert health.breaker is B.OPEN
    health.probed(key(8), 60, 33)
    assert health.answered(34)
    assert health.breaker is B.CLOSED
    assert not health.answered(35)
    # What failed before counts no more.
    assert not health.failed(key(1), "x", 36, ENOUGH)


def test_what_others_say_no_more_was_heard_or_seen() -> None:
    seen = opened()
    assert not seen.found_dead("x", 20)
    assert seen.forgotten(21)
    assert seen.is_open
    heard = Health()
    assert heard.found_dead("x", 20)
    assert heard.forgotten(21)
    assert not heard.is_open
    assert heard.answered(22)
    assert not heard.answered(23)
    heard.found_dead("x", 24)
    heard.probed(key(1), 30, 25)
    assert not heard.forgotten(26)
    assert not heard.failed(key(1), "UNAVAILABLE", 27, ENOUGH)
    assert heard.forgotten(28)
    assert heard.is_open


def test_a_probe_of_which_nothing_is_heard_or_that_is_not_made_makes_way() -> None:
    health = opened()
    health.probed(key(7), 60, 20)
    assert not health.may_probe(59)
    assert health.may_probe(60)
    health.probed(key(8), 100, 61)
    health.dropped(key(7), 62)
    assert not health.may_probe(63)
    health.dropped(key(8), 64)
    assert health.may_probe(65)


signs = st.lists(st.tuples(st.sampled_from(["ok", "bad", "probe", "dropped"]), st.integers(0, 5)))


@given(signs)
def test_it_is_open_only_after_enough_different_branches_and_never_for_ever(
    told: list[tuple[str, int]],
) -> None:
    health, since = Health(), set()
    for now, (what, number) in enumerate(told):
        was_open = health.is_open
        if what == "ok":
            health.answered(now)
            since = set()
            assert not health.is_open
        elif what == "bad":
            health.failed(key(number), "x", now, ENOUGH)
            since.add(number)
            assert was_open or health.is_open is (len(since) >= ENOUGH)
        elif what == "probe" and health.may_probe(now):
            health.probed(key(number), now + 3, now)
        elif what == "dropped":
            health.dropped(key(number), now)
    if health.is_open:
        # Whatever has happened, a probe may be made soon, and one answer is enough.
        assert health.may_probe(len(told) + 3)
        assert health.answered(len(told) + 4)
    assert not health.is_open


@given(
    rate=st.floats(0.01, 5_000),
    asked=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 3 * SECOND)), max_size=60),
)
def test_a_bucket_never_gives_more_than_its_rate_and_what_it_saves(
    rate: float, asked: list[tuple[int, int]]
) -> None:
    bucket, now, given_, start = Bucket(), 5 * SECOND, 0, 5 * SECOND
    for wanted, pause in asked:
        now += pause
        taken, again_us = bucket.take(wanted, rate, now)
        assert 0 <= taken <= wanted
        given_ += taken
        assert given_ <= max(1.0, rate / 10) + (now - start) * rate / SECOND + 1e-3
        if taken < wanted:
            assert again_us > 0
            # So long is enough, and it is no longer than one takes to come.
            assert again_us <= SECOND / rate + 2
            now += again_us
            more, _ = bucket.take(1, rate, now)
            assert more == 1
            given_ += 1
