"""The campaign in short: `scripts/campaign` is the long form. The checker's own tests are in tests/unit."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.smallbank.check import COMMITTED, UNKNOWN, check, read
from examples.smallbank.report import write
from examples.smallbank.run import Plan, run
from examples.smallbank.show import Screen

KILLS = 5


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("log", "savings", "services"),
    [
        ("postgresql", "mariadb", ("async", "sync")),
        ("mariadb", "postgresql", ("sync", "async")),
        ("sqlite", "postgresql", ("async",)),
    ],
)
async def test_nothing_is_lost(log: str, savings: str, services: tuple[str, ...], tmp_path: Path) -> None:
    plan = Plan(
        seed=4,
        log=log,
        payments=0,
        kills=KILLS,
        clients=8,
        pause_s=(0.2, 0.8),
        savings=savings,
        services=services,
        nodes=1 if log == "sqlite" else 3,
        tills=1,
        disturbances=2,
        faulty_network=True,
        lanes=2,
        lease_s=2.0,
        history=tmp_path / "history.jsonl",
    )
    result = await run(plan, Screen(KILLS, 5.0))
    assert result.verdict.anomalies == []
    assert (result.kills.total(), result.stops, result.jams) == (KILLS, 1, 1)
    assert result.verdict.told[COMMITTED] > 0
    assert result.verdict.branches > 0
    assert result.verdict.told[UNKNOWN] == 0  # Whoever asks long enough is told.
    # What was saved says the same.
    saved = check(read(tmp_path / "history.jsonl"))
    assert (saved.anomalies, saved.payments) == ([], len(result.clients.wishes))
    page = write([tmp_path / "history.jsonl"], tmp_path / "report.html").read_text()
    assert "0 anomalies" in page
