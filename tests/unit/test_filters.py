"""The filter of List."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txcoord.api.grpc import filters
from txcoord.core.errors import Refused
from txcoord.core.model import TxState
from txcoord.ports import Query

NOW = 10**15


def parse(text: str) -> Query:
    return filters.parse(text, namespace="shop", now_us=NOW)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", {}),
        ("  ", {}),
        ("parked", {"parked": True}),
        ("heuristic AND parked", {"parked": True, "heuristic": True}),
        ("state = COMMITTING", {"states": (TxState.COMMITTING,)}),
        ("state=committing|aborting", {"states": (TxState.COMMITTING, TxState.ABORTING)}),
        ("age > 10m", {"created_before_us": NOW - 600_000_000}),
        (
            "age < 1h AND age > 500ms",
            {"created_after_us": NOW - 3_600_000_000, "created_before_us": NOW - 500_000},
        ),
        ('resource = "orders-db"', {"resource": "orders-db"}),
        ("branch.target = a", {"resource": "a"}),
        ("reason = DEADLINE and name = checkout", {"reason": "DEADLINE", "name": "checkout"}),
        ('name = "two words"', {"name": "two words"}),
        ('name = ""', {"name": ""}),
    ],
)
def test_what_is_known(text: str, wanted: dict[str, object]) -> None:
    got = parse(text)
    assert got == Query(namespace="shop", **wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "colour = red", "state", "state > ACTIVE", "state = NOWHERE", "age = 5m", "age > soon", "age > -5m",
        "parked = true", "parked OR heuristic", "reason", "AND", "parked AND", "name = a b", 'name = "open',
        "NOT parked", "parked; DROP TABLE txcoord_tx",
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused(text: str) -> None:
    with pytest.raises(Refused) as refused:
        parse(text)
    assert refused.value.refusal.reason == "BAD_REQUEST"
    assert refused.value.refusal.definite


@given(st.text(max_size=100))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(Refused):
        assert isinstance(parse(text), Query)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "state": st.lists(st.sampled_from([s.name for s in TxState]), min_size=1, max_size=3),
            "name": st.from_regex(r"\A[a-z0-9 ._-]{1,20}\Z"),
            "parked": st.just(True),
        },
    )
)
def test_what_is_written_by_the_rules_is_read_as_meant(parts: dict[str, object]) -> None:
    terms = []
    if "state" in parts:
        terms.append(f"state = {'|'.join(parts['state'])}")  # type: ignore[arg-type]
    if "name" in parts:
        terms.append(f'name = "{parts["name"]}"')
    if "parked" in parts:
        terms.append("parked")
    if " and " in str(parts.get("name", "")):
        return  # A quoted AND is not told from the one that joins.
    got = parse(" AND ".join(terms))
    assert got.parked is parts.get("parked")
    assert got.name == parts.get("name")
    assert [s.name for s in got.states] == parts.get("state", [])


def test_a_quoted_and_does_not_split_a_term() -> None:
    query = parse('name = "buy AND sell" AND parked')
    assert (query.name, query.parked) == ("buy AND sell", True)
    with pytest.raises(Refused):
        parse("age > 99999999999999999999d")
