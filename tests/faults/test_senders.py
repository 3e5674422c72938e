"""``scripts/senders`` in short: each way once, with a death that leaves it open what became of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.outage_check import Found
from tests.faults.sender import Job, Point, Way
from tests.faults.senders import NAMES, Plan, check, drawn, run, started
from tests.support.databases import Databases
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer

DEATHS = {
    Way.LOCAL: Point.BEFORE_SUBMIT,
    Way.ATTACH: Point.BEFORE_COMMIT,
    Way.LOCAL_ANSWERED: Point.BEFORE_SUBMIT,
    Way.ATTACH_ANSWERED: Point.BEFORE_COMMIT,
    Way.HTTP: Point.SUBMIT_LOST,
    Way.HTTP_ANSWERED: Point.BEFORE_SUBMIT,
}


async def test_delivered_exactly_when_committed(
    pg18: PostgresServer, mariadb: MariaDBServer, tmp_path: Path
) -> None:
    plans = [
        Plan(Job(i, f"short-{i}", way, NAMES[i % 2], point, 0.0, False, timeout_s=3), 0.0 if i == 5 else None)
        for i, (way, point) in enumerate(DEATHS.items())
    ]
    databases = Databases()
    urls = {
        "accounts": databases(pg18),
        "ledger": databases(mariadb, "mysql+asyncmy"),
        "log": databases(pg18),
    }
    place = started(tmp_path, {"accounts": pg18, "ledger": mariadb, "log": pg18}, urls)
    try:
        found = await run(place, plans)
        assert found.wrong == []
        # And it would be seen if it were not so.
        place.servers["accounts"].sql(
            "INSERT INTO got VALUES ('short-1')", urls["accounts"].rpartition("/")[2]
        )
        planted = Found()
        check(plans, place, planted)
        [wrong] = planted.wrong
        assert wrong.startswith("committed 0 times, delivered 1 times")
    finally:
        place.node.kill9()
        databases.drop_all()


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_drawn(seed: int) -> None:
    plans = drawn(300, seed)
    assert plans == drawn(300, seed)
    assert {(p.job.way, p.job.database) for p in plans} == {(way, name) for way in Way for name in NAMES}
    assert {p.job.point for p in plans} == set(Point)
    assert 20 < sum(p.kill_s is not None for p in plans) < 80
