"""Fixtures for all tests. The PostgreSQL servers start when a test first asks for one, and are never
skipped: a machine that cannot run them fails the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from tests.support.databases import PG17, PG18, Databases, new_server, running_server
from txcoord.testing.postgres import PostgresServer

settings.register_profile("txcoord", deadline=None)  # the machine may be busy: time proves nothing
settings.load_profile("txcoord")


@pytest.fixture(scope="session")
def pg18() -> Iterator[PostgresServer]:
    """A PostgreSQL 18 that all tests share."""
    with running_server(PG18) as server:
        yield server


@pytest.fixture(scope="session")
def pg17() -> Iterator[PostgresServer]:
    """A PostgreSQL 17 that all tests share."""
    with running_server(PG17) as server:
        yield server


@pytest.fixture(scope="session", params=["pg18", "pg17"])
def pg(request: pytest.FixtureRequest) -> PostgresServer:
    """Each of the shared servers: the test runs once on every major."""
    server: PostgresServer = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def pg_database() -> Iterator[Databases]:
    """`pg_database(server, driver="postgresql+asyncpg")` gives the URL of a new, empty database."""
    databases = Databases()
    yield databases
    databases.drop_all()


@pytest.fixture
def pg_server() -> Iterator[Callable[..., PostgresServer]]:
    """`pg_server(flavour, settings=...)` gives a started server of the test's own, free to be killed."""
    servers: list[PostgresServer] = []

    def make(flavour: str = PG18, **options: dict[str, str] | None) -> PostgresServer:
        server = new_server(flavour, **options)
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.remove()
