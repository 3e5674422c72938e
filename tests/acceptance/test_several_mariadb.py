"""Caller and called service use different coordinators on one log. The service's database is MariaDB, so its session
waits for the decision at a coordinator that neither makes it nor carries it out."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.acceptance.conftest import new_databases
from tests.support.acceptance import QUICK, Site, client_of, eventually, new_gid
from tests.support.acceptance_calls import Pair
from tests.support.acceptance_mariadb import MariaDb, maria
from tests.support.databases import Databases
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import coordinator


@pytest.fixture(scope="module")
def site(
    pg18: PostgresServer, mariadb: MariaDBServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    databases = Databases()
    [accounts] = new_databases(databases, pg18)
    ledger = MariaDb("ledger", mariadb, databases(mariadb, "mysql+asyncmy"))
    ledger.make_table()
    folder = tmp_path_factory.mktemp("several")
    site = Site(folder, accounts, ledger, valves=False, log_url=databases(pg18), name="n1")
    try:
        site.start()
        yield site
    finally:
        site.stop()
        databases.drop_all()


@pytest.fixture(scope="module")
def elsewhere(site: Site) -> Iterator[Site]:
    """The same site by another coordinator."""
    other = copy.copy(site)
    other.coordinator = coordinator(
        site.folder,
        resources={db.name: db.url for db in site.databases},
        log_url=site.coordinator.env["TXCOORD_LOG__URL"],
        settings=QUICK,
        name="n2",
    )
    other.coordinator.start()
    yield other
    other.coordinator.stop()


@pytest.fixture
async def pair(site: Site, elsewhere: Site) -> AsyncIterator[Pair]:
    async with client_of(site) as caller, client_of(elsewhere) as callee:
        pair = Pair(caller, callee)
        async with pair.stack:
            yield pair


@pytest.mark.parametrize("committed", [True, False])
async def test_a_session_hears_the_decision_at_another_coordinator(
    site: Site, pair: Pair, committed: bool
) -> None:
    async def handler(request: bytes, context: Any) -> bytes:
        await pair.write(request.decode())
        return b"said"

    call = await pair.serve(handler)
    body = new_gid()
    kills = maria(site).status("Com_kill")
    try:
        async with pair.caller.coord.begin("order") as g:
            await pair.caller.write(g, pair.caller.accounts, body)
            assert await call(body.encode()) == b"said"
            assert len(site.ledger.prepared(g.tx_id)) == 1
            if not committed:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert not committed
    await eventually(lambda: not site.prepared(g.tx_id), within=40)
    await eventually(lambda: pair.callee.ledger.pool.checkedout() == 0)  # type: ignore[attr-defined]
    assert site.counts(body) == ((1, 1) if committed else (0, 0))
    assert maria(site).status("Com_kill") == kills, "nobody had to be killed"
