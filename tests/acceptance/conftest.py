"""A coordinator process over gRPC on two real PostgreSQL databases, of two majors. Tests that kill nothing share
it; the others make their own with ``new_site``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.acceptance import Client, Db, Site, client_of
from tests.support.acceptance_wire import Wire, wire_to
from tests.support.databases import Databases
from txcoord.testing.postgres import PostgresServer

NewSite = Callable[..., Site]


def new_databases(databases: Databases, *servers: PostgresServer) -> list[Db]:
    """A fresh database on each server."""
    made = [
        Db(name, server, databases(server))
        for name, server in zip(("accounts", "ledger", "third"), servers, strict=False)
    ]
    for db in made:
        db.make_table()
    return made


def _shared_site(folder: Path, servers: tuple[PostgresServer, ...], on_postgres: bool) -> Iterator[Site]:
    databases = Databases()
    log_url = databases(servers[0]) if on_postgres else None
    site = Site(folder, *new_databases(databases, *servers), log_url=log_url)
    try:
        site.start()
        yield site
    finally:
        site.stop()
        databases.drop_all()


@pytest.fixture(scope="session")
def sqlite_site(
    pg18: PostgresServer, pg17: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """The shared site: its log is on SQLite."""
    yield from _shared_site(tmp_path_factory.mktemp("site"), (pg18, pg17), on_postgres=False)


@pytest.fixture(scope="session")
def postgres_site(
    pg18: PostgresServer, pg17: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """One whose log is on PostgreSQL."""
    yield from _shared_site(tmp_path_factory.mktemp("site"), (pg18, pg17), on_postgres=True)


@pytest.fixture
def site(sqlite_site: Site) -> Site:
    """Two databases and a coordinator, which other tests use as well."""
    return sqlite_site


@pytest.fixture
async def client(site: Site) -> AsyncIterator[Client]:
    """The SDK on the site."""
    async with client_of(site) as client:
        yield client


@pytest.fixture
async def wire(site: Site) -> AsyncIterator[Wire]:
    """The site's coordinator, by raw stubs."""
    async with wire_to(site.address) as wire:
        yield wire


@pytest.fixture
def new_site(
    pg18: PostgresServer, pg17: PostgresServer, pg_database: Databases, tmp_path: Path
) -> Iterator[NewSite]:
    """``new_site(start=True, **options)`` gives a site of the test's own, whose coordinator may be killed.

    ``servers`` are those of its databases (default: the shared ones, which must not be killed).
    """
    made: list[Site] = []

    def make(
        *, start: bool = True, servers: tuple[PostgresServer, ...] = (pg18, pg17), **options: Any
    ) -> Site:
        folder = tmp_path / f"site-{len(made)}"
        folder.mkdir()
        site = Site(folder, *new_databases(pg_database, *servers), **options)
        made.append(site)
        if start:
            site.start()
        return site

    yield make
    for site in made:
        site.stop()
