"""Back-off: full jitter, a floor and a cap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txcoord.core.backoff import Backoff

draws = st.floats(0, 1, exclude_max=True)
policies = st.builds(
    Backoff,
    first_us=st.integers(1, 10**7),
    factor=st.floats(1, 10),
    cap_us=st.integers(10**5, 10**9),
    floor_us=st.integers(0, 10**5),
)


@given(policies, st.integers(1, 10**6), draws)
def test_between_floor_and_cap_however_often_it_failed(policy: Backoff, attempt: int, draw: float) -> None:
    assert policy.floor_us <= policy.delay_us(attempt, draw) <= max(policy.cap_us, policy.floor_us)


@given(policies, st.integers(1, 1000), draws)
def test_more_failures_never_wait_less_for_the_same_draw(policy: Backoff, attempt: int, draw: float) -> None:
    assert policy.delay_us(attempt, draw) <= policy.delay_us(attempt + 1, draw)


@given(st.integers(1, 60), draws)
def test_the_defaults(attempt: int, draw: float) -> None:
    ceiling = min(500_000 * 2 ** (attempt - 1), 60_000_000)
    assert Backoff().delay_us(attempt, draw) == max(20_000, int(ceiling * draw))


def test_attempts_count_from_one() -> None:
    with pytest.raises(ValueError, match="from 1"):
        Backoff().delay_us(0, 0.5)
