"""What ``scripts/catch-up`` would find wrong. Its short form is ``tests/acceptance/test_sql_delivery.py``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.faults.catch_up_check import COUNTERS, Asked, Done, Rows, Unit, check, drawn
from tests.faults.outage_check import Found, Row

S = 1_000_000
KEPT = Asked("kept", 0, (Unit("accounts", 1, 5), Unit("ledger", 2, 7)), False, True)
UNDONE = Asked("undone", 0, (Unit("ledger", 3, 9),), True, True)


def good() -> Rows:
    none = [0] * (COUNTERS - 2)
    return Rows(
        {
            "kept": Row("a", "kept", "commit", "committed", 0),
            "undone": Row("b", "undone", "abort", "aborted", 0),
        },
        {"kept": 10 * S, "undone": 10 * S},
        Counter(),
        {"accounts": [Done("kept", "1", 11 * S)], "ledger": [Done("kept", "2", 21 * S)]},
        {"accounts": [5, 0, *none], "ledger": [0, 7, *none]},
        {"accounts": {("a", "1")}, "ledger": {("a", "2")}},
    )


def wrong(rows: Rows) -> list[str]:
    found = Found()
    check([KEPT, UNDONE], {"kept": "committed", "undone": "aborted"}, rows, "ledger", 20 * S, found)
    return found.wrong


def test_what_is_right_is_not_wrong() -> None:
    assert wrong(good()) == []


def twice(rows: Rows) -> None:
    rows.done["ledger"] *= 2


def never(rows: Rows) -> None:
    rows.done["accounts"].clear()


def of_what_was_undone(rows: Rows) -> None:
    rows.done["ledger"].append(Done("undone", "1", 22 * S))


def counted_twice(rows: Rows) -> None:
    rows.counters["ledger"][1] = 14


def unmarked(rows: Rows) -> None:
    rows.markers["accounts"].clear()


def parked(rows: Rows) -> None:
    rows.open["parked"] = 1


def other_answer(rows: Rows) -> None:
    rows.txs["undone"] = Row("b", "undone", "commit", "committed", 0)


def never_down(rows: Rows) -> None:
    rows.done["ledger"] = [Done("kept", "2", 11 * S)]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (twice, "kept unit 2 is there 2 times"),
        (never, "kept unit 1 is there 0 times"),
        (of_what_was_undone, "undone unit 1 is there 1 times"),
        (counted_twice, "counters"),
        (unmarked, "markers"),
        (parked, "'parked': 1"),
        (other_answer, "told aborted"),
        (never_down, "nothing had to catch up"),
    ],
)
def test_what_is_wrong_is_found(spoil: Callable[[Rows], None], said: str) -> None:
    rows = good()
    spoil(rows)
    assert any(said in line for line in wrong(rows)), wrong(rows)


def test_a_seed_says_what_is_asked_for() -> None:
    assert drawn(50, 10, 7) == drawn(50, 10, 7) != drawn(50, 10, 8)
