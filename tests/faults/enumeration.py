"""Runs a scenario once for each of many crashes, and checks what each has left."""

from __future__ import annotations

import asyncio
import gc
import os
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import and_

import pytest

from tests.faults import (  # noqa: F401 - their scenarios
    hanging,
    scenarios_kinds,
    scenarios_messages,
    scenarios_sdk,
    services,
)
from tests.faults.place import LATE, NAMES, Connections, Place, Run, TooSlow, kind_of
from tests.faults.points import MARIADB, Hit, Points, hits_of, points_of, text_of
from tests.faults.scenarios import SCENARIOS, Scenario
from txcoord.adapters.embedded import end
from txcoord.core.errors import Refused
from txcoord.core.events import Begin, Commit, Rollback
from txcoord.core.model import Decision, Tx, TxState
from txcoord.engine.live import WaitLevel

_TRIES = 3
"""Where tasks race, a point that was counted may be passed by."""
_COUNTS = 3
"""What is common to so many runs is counted. (Under load a step may be tried once more.)"""
_QUIET_S = 15.0
_HANGS_S = float(os.environ.get("TXCOORD_HANGS_S", "60"))
"""A run that takes longer hangs, and what is there is told."""
_PAUSE_S = 0.02

Job = tuple[Scenario, tuple[Hit, ...]]


class Places:
    """Logs to take turns on, all with the same two databases."""

    def __init__(
        self,
        databases: dict[str, str],
        identities: dict[str, str],
        foreign: dict[str, list[str]],
        *,
        log: str = "sqlite",
    ) -> None:
        self.databases = databases
        self.identities = identities
        self.foreign = foreign
        self.log = log
        self.logs: list[str] = []

    @property
    def kinds(self) -> list[str]:
        """The kinds of its databases."""
        return [kind_of(self.databases[name]) for name in NAMES]

    @property
    def mixed(self) -> bool:
        """Is one of the databases a MariaDB?"""
        return MARIADB in self.kinds

    @property
    def points(self) -> frozenset[str]:
        """Every point that exists here."""
        return points_of(self.kinds)

    @property
    def scenarios(self) -> list[Scenario]:
        """Those that make sense here."""
        return [s for s in SCENARIOS.values() if not s.needs or s.needs in self.kinds]

    def command(self, scenario: Scenario, crash: Sequence[Hit]) -> str:
        """What runs it again."""
        databases = "mixed" if self.mixed else "postgresql"
        return (
            f"./scripts/crash-points run --log {self.log} --databases {databases}"
            f" --scenario {scenario.name} --point {text_of(crash) or 'none'}"
        )

    async def run(
        self, jobs: Sequence[Job], done: Callable[[Job, Run | Exception], None] | None = None
    ) -> list[Run]:
        """One run for each, side by side as far as there are logs. ``done`` hears of each, also of those that fail;
        without it the first failure is raised."""
        free = asyncio.Queue[Place]()
        connections = Connections()
        for url in self.logs:
            free.put_nowait(Place(url, self.databases, self.identities, self.foreign, connections))

        async def one(job: Job) -> Run | None:
            scenario, crash = job
            place = await free.get()
            try:
                for _ in range(_TRIES):
                    run = await checked(scenario, place, crash)
                    if not run.points.unfired:
                        break
            except Exception as error:
                error.add_note(f"again: {self.command(scenario, crash)}")
                if done is None:
                    raise
                done(job, error)
                return None
            finally:
                free.put_nowait(place)
            if done is not None:
                done(job, run)
            return run

        try:
            return [run for run in await asyncio.gather(*(one(job) for job in jobs)) if run is not None]
        finally:
            await connections.close()
            # Who died while it connected has left sockets open: they go here, and not in some other test.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()

    async def count(
        self,
        jobs: Sequence[Job],
        done: Callable[[Job, Run | Exception], None] | None = None,
        *,
        times: int = _COUNTS,
    ) -> dict[Job, list[Hit]]:
        """The hits that are reached after the crashes of each job: what is common to some runs."""
        runs: dict[Job, list[Run]] = {job: [] for job in jobs}

        def ran(job: Job, run: Run | Exception) -> None:
            if isinstance(run, Exception):
                if done is None:
                    raise run
                done(job, run)
            elif not run.points.unfired:
                runs[job].append(run)

        await self.run([job for job in jobs for _ in range(times)], ran)
        return {
            job: hits_of(reduce(and_, (run.reached[-1] for run in found)))
            for job, found in runs.items()
            if found
        }


@dataclass
class Report:
    """What a campaign has done."""

    runs: int = 0
    singles: dict[str, int] = field(default_factory=dict)
    """By scenario, how many single crashes were enumerated."""
    pairs: dict[str, int] = field(default_factory=dict)
    fired: set[str] = field(default_factory=set)
    passed_by: list[str] = field(default_factory=list)
    """Commands of hits that did not happen though they were counted: tasks race."""
    failures: list[tuple[str, Exception]] = field(default_factory=list)
    """The command that runs it again, and what was wrong."""


class Campaign:
    """Enumerates crashes, and runs them."""

    def __init__(
        self,
        places: Places,
        scenarios: Iterable[Scenario] = (),
        *,
        each: int = 0,
        counts: int = _COUNTS,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.places = places
        self.report = Report()
        self._scenarios = list(scenarios) or places.scenarios
        self._each = each
        self._counts = counts
        self._say = say

    async def singles(self) -> list[Job]:
        """One job for each hit of each scenario; with ``each`` only the first hit of a point, in at most so many
        scenarios."""
        counted = await self.places.count(
            [(s, ()) for s in self._scenarios], self._failed, times=self._counts
        )
        jobs = []
        for (scenario, _), hits in counted.items():
            wanted = [h for h in hits if not scenario.actors or h[0].partition(".")[0] in scenario.actors]
            jobs += [(scenario, (hit,)) for hit in wanted]
        jobs = self._thinned(jobs)
        for scenario, _ in jobs:
            self.report.singles[scenario.name] = self.report.singles.get(scenario.name, 0) + 1
        return jobs

    async def pairs(self, firsts: Sequence[Job]) -> list[Job]:
        """A second crash at each hit that is reached after the first."""
        counted = await self.places.count(firsts, self._failed)
        jobs = self._thinned([(s, (*first, hit)) for (s, first), hits in counted.items() for hit in hits])
        for scenario, _ in jobs:
            self.report.pairs[scenario.name] = self.report.pairs.get(scenario.name, 0) + 1
        return jobs

    async def run(self, jobs: Sequence[Job]) -> None:
        """Run them all."""
        before = self.report.runs

        def done(job: Job, run: Run | Exception) -> None:
            scenario, crash = job
            self.report.runs += 1
            if isinstance(run, Exception):
                self._failed(job, run)
            else:
                self.report.fired.update(point for point, _ in run.points.fired)
                if run.points.unfired:
                    self.report.passed_by.append(self.places.command(scenario, crash))
            ran = self.report.runs - before
            if self._say is not None and (ran % 200 == 0 or ran == len(jobs)):
                self._say(f"{ran:,} of {len(jobs):,} runs, {len(self.report.failures)} failed")

        await self.places.run(jobs, done)

    def _failed(self, job: Job, error: Run | Exception) -> None:
        assert isinstance(error, Exception)
        command = self.places.command(*job)
        self.report.failures.append((command, error))
        if self._say is not None:
            self._say(f"FAILED {command}\n{''.join(traceback.format_exception(error))}")

    def _thinned(self, jobs: list[Job]) -> list[Job]:
        if not self._each:
            return jobs
        taken: dict[str, int] = {}
        out = []
        for job in jobs:
            point, hit = job[1][-1]
            if hit == 1 and taken.get(point, 0) < self._each:
                taken[point] = taken.get(point, 0) + 1
                out.append(job)
        return out


# ---- one run, and what must be so afterwards ----


async def checked(scenario: Scenario, place: Place, crash: Sequence[Hit]) -> Run:
    """Run it, see to it that it comes to rest, and check; again with more time if the machine was too slow."""
    for scale in (1.0, 2.0, 4.0, 8.0):
        run = Run(place, Points(*crash), scale)
        try:
            expected = await _played(scenario, run)
            run.reached = [counter.copy() for counter in run.points.hits]
            await come_to_rest(run)
            await _check(run, expected)
            return run
        except (TooSlow, *LATE):
            await come_to_rest(run)
        finally:
            await run.bury()
    raise AssertionError("the machine is too slow for this")


async def _played(scenario: Scenario, run: Run) -> Decision:
    """Raises AssertionError, with all that may tell why, if it does not come to an end."""
    task = asyncio.ensure_future(scenario.play(run))
    try:
        await asyncio.wait({task}, timeout=_HANGS_S * run.scale)
        if not task.done():
            raise AssertionError(f"it hangs\n{await hanging.seen(run)}")
        return task.result()
    finally:
        await end((task,))


async def come_to_rest(run: Run) -> None:
    """Recovery goes on until nothing of this log is prepared any more."""

    async def quiet() -> None:
        while True:
            await run.sweep()
            await run.take_over()
            await run.scan()
            await run.recover(lambda p: p.log.settle())
            if not await run.prepared() and not await _under_way(run):
                return
            await asyncio.sleep(_PAUSE_S)

    try:
        await asyncio.wait_for(quiet(), _QUIET_S * run.scale)
    except TimeoutError:
        raise AssertionError(f"left prepared: {await run.prepared()}") from None


async def _under_way(run: Run) -> bool:
    """Is a decision still being carried out? While MariaDB is at XA COMMIT the branch is not listed any more."""
    if run.last is None:
        return False
    tx = run.last
    row = await run.ask(lambda c: c.get(tx.tx_id))
    if row is not None and row.state is TxState.RUNNING:
        return True
    return row is not None and row.decision is not None and not row.rests


async def _check(run: Run, expected: Decision) -> None:
    """All or nothing; what was told is so; it stays so in the coordinator's next life; nothing foreign is touched."""
    committed = expected is Decision.COMMIT
    assert set(run.told) <= {expected}, (run.told, expected)
    for name in NAMES:
        url = run.place.databases[name]
        [[count]] = await run.place.connections.fetch(
            url, f"SELECT count(*) FROM work WHERE gid = '{run.gid}'"
        )
        wanted = committed and name in run.involved and not (run.torn_by_hand and name == "b")
        assert count == wanted, (name, count, expected)
        assert set(run.place.foreign[name]) <= set(await _all_prepared(run, url))
    await services.check(run, committed)
    if run.last is not None:
        await _check_log(run, run.last, expected)


async def _all_prepared(run: Run, url: str) -> list[str]:
    if kind_of(url) == MARIADB:
        found = await run.place.connections.fetch(url, "XA RECOVER")
        return [my_name(row) for row in found]
    return [row[0] for row in await run.place.connections.fetch(url, "SELECT gid FROM pg_prepared_xacts")]


def my_name(row: Sequence[object]) -> str:
    """The gtrid of a row of XA RECOVER."""
    data = row[3] if isinstance(row[3], str) else bytes(row[3]).decode()  # type: ignore[arg-type]
    return data[: int(str(row[1]))]


async def _check_log(run: Run, tx: Tx, expected: Decision) -> None:
    assert run.process is not None
    run.process.die()
    row = await run.ask(lambda c: c.get(tx.tx_id))
    if row is None:
        # Presumed abort: nobody has ever had to write it down. Whoever asks now hears of it.
        assert expected is Decision.ABORT
        row = await run.ask(lambda c: c.rollback(Rollback(tx), begun=True))
    known = await run.ask(lambda c: c.wait(row, WaitLevel.COMMITTED, _QUIET_S))
    assert (known.decision, known.ended) == (expected, True), known
    if not tx.gid:
        assert (await run.ask(lambda c: c.commit(Commit(tx)))).decision is expected
        return
    again = replace(run.tx(gid=tx.gid), name=known.name)
    with pytest.raises(Refused) as refused:
        await run.ask(lambda c: c.begin(Begin(again)))
    wanted = "ALREADY_COMMITTED" if expected is Decision.COMMIT else "ALREADY_ABORTED"
    assert refused.value.refusal.reason == wanted, refused.value.refusal


__all__ = ["Campaign", "Job", "Places", "Report", "checked"]
