"""Tiers and records of the queue on Kafka, and its watermarks: pure."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txcoord.adapters.kafka.partitions import Partition
from txcoord.adapters.kafka.records import Poison, decode, encode
from txcoord.adapters.kafka.tiers import Tiers
from txcoord.ports import Due

S = 1_000_000
TIERS = Tiers("p", [S, 2 * S, 4 * S, 300 * S, 3600 * S])


@pytest.mark.parametrize(
    ("delay_s", "topic"),
    [
        (0, None),
        (0.79, None),
        (0.8, "p.retry.1s"),
        (1, "p.retry.1s"),
        (1.5, "p.retry.1s"),
        (1.6, "p.retry.2s"),
        (3, "p.retry.2s"),
        (239, "p.retry.4s"),
        (240, "p.retry.5m"),
        (3600, "p.retry.1h"),
        (100_000, "p.retry.1h"),
    ],
)
def test_the_next_tier_if_it_is_little_longer_else_a_shorter_one(delay_s: float, topic: str | None) -> None:
    assert TIERS.choose(int(delay_s * S)) == topic


@given(st.integers(0, 20_000 * S))
def test_tiers_one_after_the_other_are_never_early_and_little_late(delay_us: int) -> None:
    waited, hops = 0, 0
    while (topic := TIERS.choose(delay_us - waited)) is not None:
        waited += TIERS.delay_us[topic]
        hops += 1
        if waited >= delay_us:
            break
    # What is left over is waited for in the process, to the moment.
    assert delay_us - waited < S
    assert waited <= delay_us * 1.25
    assert hops < 100


def test_a_record_says_what_was_put() -> None:
    due = Due("0" * 32, 7, 123, "ns", "grpc://stock:1", "1.2", 3)
    assert decode(encode(due)) == due


def test_what_a_later_version_adds_is_passed_by() -> None:
    due = Due("a", 1, 2)
    assert decode(json.dumps({**json.loads(encode(due)), "more": [1]}).encode()) == due


@given(st.binary() | st.none())
def test_any_bytes_are_a_record_or_poison(value: bytes | None) -> None:
    with pytest.raises(Poison):
        decode(value)


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"v": True},
        {"tx_id": ""},
        {"tx_id": "x" * 65},
        {"epoch": "1"},
        {"epoch": -1},
        {"due_us": 2**63},
    ],
)
def test_what_is_not_as_it_must_be_is_poison(change: dict[str, object]) -> None:
    with pytest.raises(Poison):
        decode(json.dumps({**json.loads(encode(Due("a", 1, 2))), **change}).encode())


@given(st.permutations(range(12)))
def test_the_mark_is_the_first_that_is_not_consumed(order: list[int]) -> None:
    part = Partition(None, 1)
    assert part.mark == -1
    offsets = [5 + n + n // 4 for n in range(12)]  # with holes, as transactions leave them
    for offset in offsets:
        part.read(offset)
    left = set(offsets)
    for n in order:
        assert part.mark == min(left)
        left.remove(offsets[n])
        part.consumed(offsets[n])
    assert part.mark == part.position == offsets[-1] + 1
