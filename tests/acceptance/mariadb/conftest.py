"""A site whose second database is MariaDB or MySQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.acceptance.conftest import new_databases
from tests.support.acceptance import Client, Site, client_of
from tests.support.acceptance_mariadb import AnyServer, MariaDb
from tests.support.databases import Databases
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer


def site_on(folder: Any, pg: PostgresServer, server: AnyServer, databases: Databases, **options: Any) -> Site:
    [accounts] = new_databases(databases, pg)
    ledger = MariaDb("ledger", server, databases(server, "mysql+asyncmy"))
    ledger.make_table()
    site = Site(folder, accounts, ledger, valves=False, **options)
    site.prepare()
    return site


@pytest.fixture(scope="package", params=["mariadb", "mysql"])
def shared(
    request: pytest.FixtureRequest, pg18: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A site that the tests of this file share."""
    server: AnyServer = request.getfixturevalue(request.param)
    databases = Databases()
    # The log is on MariaDB as well, where that can be.
    log_url = databases(server) if isinstance(server, MariaDBServer) else None
    site = site_on(tmp_path_factory.mktemp("mortal"), pg18, server, databases, log_url=log_url)
    try:
        yield site
    finally:
        site.stop()
        databases.drop_all()


@pytest.fixture
def mortal(shared: Site) -> Iterator[Site]:
    """It, with a coordinator that is killed, and started again: in a thread, with which it would die."""
    yield shared
    shared.coordinator.kill9()


@pytest.fixture
def site(shared: Site) -> Site:
    """It, with a coordinator that lives."""
    if not shared.coordinator.running or shared.coordinator.env.get("TXCOORD_FAILPOINTS"):
        shared.restart()
    return shared


@pytest.fixture
async def client(site: Site) -> AsyncIterator[Client]:
    async with client_of(site) as client:
        yield client
