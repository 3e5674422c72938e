"""The campaign in short: `scripts/campaign` is the long form."""

from __future__ import annotations

import pytest

from examples.smallbank.check import COMMITTED, UNKNOWN
from examples.smallbank.run import Plan, run
from examples.smallbank.show import Screen

KILLS = 8


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("log", "savings", "sync"),
    [
        ("sqlite", "postgresql", False),
        ("postgresql", "postgresql", True),
        ("mariadb", "mariadb", False),
        ("sqlite", "mariadb", True),
    ],
)
async def test_nothing_is_lost_under_kills(log: str, savings: str, sync: bool) -> None:
    plan = Plan(
        seed=4,
        log=log,
        payments=0,
        kills=KILLS,
        clients=8,
        pause_s=(0.2, 0.8),
        savings=savings,
        sync=sync,
    )
    result = await run(plan, Screen(KILLS, 5.0))
    assert result.verdict.anomalies == []
    assert result.kills.total() == KILLS
    assert result.verdict.told[COMMITTED] > 0
    assert result.verdict.told[UNKNOWN] == 0  # Whoever asks long enough is told.
