"""Instances of participants: what stays known, and for how long."""

from __future__ import annotations

import pytest

from txcoord.core import instances as module
from txcoord.core.instances import Instance, Instances

S = 1_000_000
HOUR = 3_600 * S


def one(number: int, participant: str = "stock") -> Instance:
    return Instance("default", participant, f"i{number}", f"grpc://10.0.0.{number}:1")


def names(known: Instances) -> set[str]:
    return {instance.instance for instance, _ in known}


def test_what_was_not_heard_for_long_is_forgotten_the_last_one_later() -> None:
    known = Instances()
    for number in (1, 2):
        assert known.heard(one(number), 10 * S + number)
    known.forget(60 * S)
    assert names(known) == {"i1", "i2"}
    known.forget(80 * S)
    assert names(known) == {"i2"}
    assert len(known.places("default", "stock", 80 * S)) == 1
    known.forget(23 * HOUR)
    assert known.is_known("stock")
    known.forget(25 * HOUR)
    assert not known.is_known("stock")
    assert len(known) == 0


def test_who_has_left_does_not_come_back_by_the_word_of_others() -> None:
    known = Instances()
    known.heard(one(1), 10 * S)
    known.left(one(1).key, 20 * S)
    known.told(one(1), 30 * S)
    known.keep(5 * S, 40 * S)
    assert known.places("default", "stock", 5 * S) == ()
    assert known.is_known("stock"), "branches that name it wait for the next one"
    known.forget(19 * S)
    assert known.is_known("stock")
    known.heard(one(1), 12 * S)
    assert len(known.places("default", "stock", 5 * S)) == 1


def test_no_more_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    known = Instances()
    assert known.heard(one(1), S)
    assert known.heard(one(2), S)
    assert not known.heard(one(3), S)
    assert known.heard(one(2), 2 * S), "those that are known stay so"
    assert not known.heard(Instance("default", "coupons", "x", "nowhere"), S)
