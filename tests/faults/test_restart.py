"""A coordinator that comes back takes up what it had."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.faults.crashing import Died, Points
from tests.faults.enumeration import Places, come_to_rest
from tests.faults.place import Connections, Place, Run
from tests.faults.servers import LOGS, with_logs
from txcoord.core.events import Commit
from txcoord.core.model import TAKEN, Tx
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer

_MANY = 40


@pytest.mark.timeout(300)
@pytest.mark.parametrize("log", LOGS)
async def test_its_own_rows_are_taken_back_once(
    log: str, postgresql_only: Places, pg18: PostgresServer, mariadb: MariaDBServer
) -> None:
    """Some have ended, and only the record of it is not written yet. Claiming them again and again would outrun
    that record for ever."""
    async with with_logs(postgresql_only, log, lambda: pg18, lambda: mariadb) as places:
        await _taken_back_once(places)


async def _taken_back_once(places: Places) -> None:
    connections = Connections()
    place = Place(places.logs[0], places.databases, places.identities, places.foreign, connections)
    run = Run(place, Points(("coordinator.commit:after", _MANY)))
    process = await run.up()
    decided: list[Tx] = []
    try:
        while not process.dead.is_set():
            tx = run.tx(gid=None)
            branches = (await run.work(tx, "1", "a"), await run.work(tx, "2", "b"))
            decided.append(tx)
            try:
                await process.call(process.coordinator.commit(Commit(replace(tx, branches=branches))))
            except Died:
                break
        await come_to_rest(run)
        rows = await run.ask(lambda c: c.log.read([tx.tx_id for tx in decided]))
    finally:
        assert run.process is not None
        await run.process.bury()
        await connections.close()
    assert len(decided) == _MANY
    assert all(row.ended for row in rows.values())
    # The decision, one claim, the end. (Some have ended before: without a claim.)
    assert {row.epoch for row in rows.values()} in ({2 + TAKEN}, {2, 2 + TAKEN})
