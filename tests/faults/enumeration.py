"""Runs a scenario once for each of many crashes, and checks what each has left."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Sequence

import pytest

from tests.faults.crashing import Hit, Points
from tests.faults.scenarios import LATE, NAMES, Connections, Place, Run, Scenario, TooSlow
from txcoord.core.errors import Refused
from txcoord.core.events import Begin, Commit
from txcoord.core.model import Decision
from txcoord.engine.live import WaitLevel
from txcoord_client.protocol import postgresql as pg

_TRIES = 3
"""Where tasks race, a point that was counted may be passed by."""
_QUIET_S = 15.0


class Places:
    """Logs to take turns on, all with the same two databases."""

    def __init__(self, databases: dict[str, str], foreign: dict[str, list[str]]) -> None:
        self.databases = databases
        self.foreign = foreign
        self.logs: list[str] = []

    async def enumerate(self, scenario: Scenario, crashes: Sequence[Sequence[Hit]]) -> list[Run]:
        """One run for each of ``crashes``."""
        return await self.run([(scenario, crash) for crash in crashes])

    async def run(self, jobs: Sequence[tuple[Scenario, Sequence[Hit]]]) -> list[Run]:
        """One run for each, side by side as far as there are logs."""
        free = asyncio.Queue[Place]()
        connections = Connections()
        for url in self.logs:
            free.put_nowait(Place(url, self.databases, self.foreign, connections))

        async def one(scenario: Scenario, crash: Sequence[Hit]) -> Run:
            place = await free.get()
            try:
                for _ in range(_TRIES):
                    run = await checked(scenario, place, crash)
                    if not run.points.unfired:
                        break
                return run
            except Exception as error:
                error.add_note(f"{scenario.__name__} with crashes at {list(crash)}")
                raise
            finally:
                free.put_nowait(place)

        try:
            return await asyncio.gather(*(one(*job) for job in jobs))
        finally:
            connections.close()
            # Who died while it connected has left sockets open: they go here, and not in some other test.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()


async def checked(scenario: Scenario, place: Place, crash: Sequence[Hit]) -> Run:
    """Run it, see to it that it comes to rest, and check; again with more time if the machine was too slow."""
    for scale in (1.0, 2.0, 4.0, 8.0):
        run = Run(place, Points(*crash), scale)
        try:
            expected = await scenario(run)
            run.reached = [counter.copy() for counter in run.points.hits]
            await come_to_rest(run)
            await _check(run, expected)
            return run
        except (TooSlow, *LATE):
            await come_to_rest(run)
        finally:
            if run.process is not None:
                await run.process.bury()
    raise AssertionError("the machine is too slow for this")


async def come_to_rest(run: Run) -> None:
    """Recovery goes on until nothing of this log is prepared any more."""

    async def quiet() -> None:
        while True:
            await run.sweep()
            await run.scan()
            await run.recover(lambda p: p.log.settle())
            if not await _prepared(run):
                return

    await asyncio.wait_for(quiet(), _QUIET_S * run.scale)


async def _prepared(run: Run) -> list[str]:
    found = []
    for url in run.place.databases.values():
        async with run.place.connections.on(url) as db:
            found += [row[0] for row in await db.fetch(pg.list_prepared(run.place.log_id))]
    return found


async def _check(run: Run, expected: Decision) -> None:
    """All or nothing; what was told is so; it stays so in the coordinator's next life; nothing foreign is touched."""
    committed = expected is Decision.COMMIT
    assert set(run.told) <= {expected}, run.told
    for name in NAMES:
        async with run.place.connections.on(run.place.databases[name]) as db:
            count = await db.fetchval("SELECT count(*) FROM work WHERE gid = $1", run.gid)
            wanted = committed and name in run.involved and not (run.torn_by_hand and name == "b")
            assert count == wanted, (name, count)
            left = [row[0] for row in await db.fetch("SELECT gid FROM pg_prepared_xacts")]
            assert set(run.place.foreign[name]) <= set(left)
    assert run.process is not None
    assert run.last is not None
    run.process.die()
    tx = run.last
    row = await run.ask(lambda c: c.get(tx.tx_id))
    assert row is not None
    row = await run.ask(lambda c: c.wait(row, WaitLevel.COMMITTED, _QUIET_S))
    assert (row.decision, row.ended) == (expected, True), row
    if not tx.gid:
        assert (await run.ask(lambda c: c.commit(Commit(tx)))).decision is expected
        return
    again = run.tx()
    with pytest.raises(Refused) as refused:
        await run.ask(lambda c: c.begin(Begin(again)))
    assert refused.value.refusal.reason == ("ALREADY_COMMITTED" if committed else "ALREADY_ABORTED")
