"""Every point where a process may die or a reply may be lost, on real databases: the short form of
``scripts/crash-points``, which tries all of them.

First some runs count what is reached, then there is one run for each hit. In process, with the log on SQLite, on
PostgreSQL and on MariaDB.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
from pathlib import Path

import pytest

from tests.faults import enumeration, points
from tests.faults.enumeration import Campaign, Places
from tests.faults.place import Connections, Place, Run
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.faults.servers import LOGS, with_logs
from txcoord.core.model import Decision
from txcoord.engine import failpoints
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer

pytestmark = [  # Who dies while it connects leaves its sockets open.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
LEAVES_MUCH = {
    "commit_with_gid": "coordinator.commit:after",
    "rollback": "coordinator.rollback:after",
    "one_phase_whose_reply_was_lost": "coordinator.probe:after",
    "sdk_commit_with_gid": "client.commit:after",
    "sdk_called_service": "client.prepare:lost",
}
"""First crashes whose recovery has the most to do."""
_MODULES = ("tests.faults.scenarios_kinds", "tests.faults.scenarios_messages")
KINDS = [s for s in SCENARIOS.values() if s.play.__module__ in _MODULES]
"""Those of TCC, saga, mixes and messages."""
SEED = int(os.environ.get("TXCOORD_SEED", "7"))
"""Which of their points are tried."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("log", LOGS)
async def test_each_point_once(log: str, mixed: Places, pg18: PostgresServer, mariadb: MariaDBServer) -> None:
    """Each in the first scenario that comes to it, and none is left out; then again during recovery."""
    async with with_logs(mixed, log, lambda: pg18, lambda: mariadb) as places:
        campaign = Campaign(places, _xa_of(places), each=1)
        await campaign.run(await campaign.singles())
        firsts = [(SCENARIOS[name], ((point, 1),)) for name, point in LEAVES_MUCH.items()]
        await campaign.run(await campaign.pairs(firsts))
        _is_well(campaign)
        assert sorted(places.points - points.OF_PARTICIPANTS - campaign.report.fired) == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("log", LOGS)
async def test_a_tenth_of_the_points_of_tcc_and_saga(
    log: str, mixed: Places, pg18: PostgresServer, mariadb: MariaDBServer
) -> None:
    """Two hundred, a tenth of the two thousand that were to be: on each log of a third of the scenarios a fifth of the
    points, drawn by TXCOORD_SEED."""
    rng = random.Random(SEED)
    drawn = rng.sample(KINDS, len(KINDS))
    async with with_logs(mixed, log, lambda: pg18, lambda: mariadb) as places:
        campaign = Campaign(places, drawn[LOGS.index(log) :: len(LOGS)], counts=1)
        jobs = await campaign.singles()
        await campaign.run(rng.sample(jobs, math.ceil(len(jobs) / 5)))
        _is_well(campaign)


@pytest.mark.timeout(600)
async def test_each_point_of_participants_once(
    mixed: Places, pg18: PostgresServer, mariadb: MariaDBServer
) -> None:
    async with with_logs(mixed, "sqlite", lambda: pg18, lambda: mariadb) as places:
        names = (
            "mixed_commit",
            "saga_compensated",
            "tcc_confirm_later",
            "messages_of_one_key",
            "message_whose_service_forgets_to_submit",
        )
        campaign = Campaign(places, [SCENARIOS[name] for name in names], each=1)
        jobs = [job for job in await campaign.singles() if job[1][0][0] in points.OF_PARTICIPANTS]
        await campaign.run(jobs)
        _is_well(campaign)
        assert sorted(points.OF_PARTICIPANTS - campaign.report.fired) == []


def _xa_of(places: Places) -> list[Scenario]:
    return [s for s in places.scenarios if s not in KINDS]


@pytest.mark.timeout(600)
async def test_each_point_once_on_postgresql_only(
    postgresql_only: Places, pg18: PostgresServer, mariadb: MariaDBServer
) -> None:
    async with with_logs(postgresql_only, "sqlite", lambda: pg18, lambda: mariadb) as places:
        campaign = Campaign(places, _xa_of(places), each=1)
        await campaign.run(await campaign.singles())
        _is_well(campaign)
        assert sorted(places.points - points.OF_PARTICIPANTS - campaign.report.fired) == []


def _is_well(campaign: Campaign) -> None:
    report = campaign.report
    print(
        f"\nlog {campaign.places.log}: {sum(report.singles.values())} points, {sum(report.pairs.values())} pairs"
    )
    for _, error in report.failures[:1]:
        raise error
    # In a recovery phase two and the scanner race: either may leave the other nothing to do.
    assert len(report.passed_by) * 20 <= report.runs, report.passed_by


async def test_a_run_that_hangs_says_where(
    mixed: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stands_still() -> None:
        await asyncio.Event().wait()

    async def play(run: Run) -> Decision:
        await stands_still()
        return Decision.COMMIT

    connections = Connections()
    log = f"sqlite+aiosqlite:///{tmp_path}/none.db"
    place = Place(log, mixed.databases, mixed.identities, mixed.foreign, connections)
    monkeypatch.setattr(enumeration, "_HANGS_S", 0.01)
    with pytest.raises(AssertionError, match="it hangs") as told:
        await enumeration.checked(Scenario("hangs", play), place, [])
    await connections.close()
    for part in (" stands_still: await ", "waits for <Future", "no such table", *mixed.foreign["b"]):
        assert part in str(told.value), part


def test_the_engines_failpoints_are_all_points() -> None:
    assert set(points.ENGINE) == {name for name in failpoints.NAMES if not name.startswith("replay.")}
    assert {f"{step}:{mode}" for step, mode in points.ENGINE.values()} <= points.points_of(["mariadb"])


def test_a_crash_is_named_as_it_is_printed() -> None:
    crash = (("client.prepare:lost", 2), ("log.flush:before", 1))
    assert points.parse(points.text_of(crash)) == crash
    assert points.parse("client.prepare:lost") == (("client.prepare:lost", 1),)
    with pytest.raises(ValueError, match=r"client\.sleep"):
        points.parse("client.sleep:lost@1")
    with pytest.raises(ValueError, match=r"scanner\.judge:lost"):
        points.parse("scanner.judge:lost@1")
