"""Whom a row names for what became of a sender's local transaction."""

from __future__ import annotations

import pytest

from txcoord.core.answering import by_target, identity_of, participant_of, target_of


@pytest.mark.parametrize(
    ("target", "participant", "identity", "asked"),
    [
        ("grpc://orders:9000", "", "", ""),
        ("grpc://orders:9000", "orders", "", "orders"),
        ("grpc://orders:9000", "orders", "9d0f", "orders"),
        ("grpc://orders:9000", "", "9d0f", ""),
        ("orders", "", "", "orders"),
        ("orders", "", "9d0f", "orders"),
    ],
)
def test_there_and_back(target: str, participant: str, identity: str, asked: str) -> None:
    row = by_target(target, participant, identity)
    assert (target_of(row), participant_of(row), identity_of(row)) == (target, asked, identity)


def test_a_resource_is_none() -> None:
    assert (target_of("shop"), identity_of("shop")) == ("", "")
