"""Fixtures for all tests. The servers start when a test first asks for one, and are never skipped: a machine
that cannot run them fails the test. Only MySQL, which not every machine can get, is skipped: NOT TESTED."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.support import forge
from tests.support.databases import (
    PG17,
    PG18,
    Databases,
    new_mariadb,
    new_mysql,
    new_server,
    running,
    running_server,
)
from tests.support.kafka_server import KafkaServer
from tests.support.redis_server import RedisServer, valkey
from txcoord.testing.mariadb import MariaDBError, MariaDBServer, MySQLServer
from txcoord.testing.postgres import PostgresServer

settings.register_profile("txcoord", deadline=None)  # the machine may be busy: time proves nothing
settings.load_profile("txcoord")
forge.install()


try:
    import structlog
except ModuleNotFoundError:  # the SDK's own environment has none of what only a coordinator needs
    structlog = None  # type: ignore[assignment]
else:
    _configure = structlog.configure

    def _configure_uncached(**how: Any) -> None:
        # A logger that keeps what it was first used with would hide from all later tests what it says.
        _configure(**{**how, "cache_logger_on_first_use": False})

    structlog.configure = _configure_uncached


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A command that is run within the process of a test configures the logs: the next test has them as before."""
    before, root = structlog and structlog.get_config(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    if structlog and before and structlog.get_config() != before:
        structlog.configure(**before)
    if root.handlers != handlers:
        root.handlers[:] = handlers
        root.setLevel(level)


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


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDBServer]:
    """A MariaDB that all tests share."""
    with running(new_mariadb()) as server:
        yield server


@pytest.fixture(scope="session")
def mysql() -> Iterator[MySQLServer]:
    """A MySQL that all tests share; the tests of it are skipped where there is none."""
    require_mysql()
    with running(new_mysql()) as server:
        yield server


def require_mysql() -> None:
    """Skip the test where MySQL cannot be had."""
    try:
        MySQLServer.find()
    except MariaDBError as error:
        pytest.skip(f"NOT TESTED: MySQL ({error})")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A Redis that all tests share."""
    with RedisServer.running() as server:
        yield server


@pytest.fixture(scope="session")
def kafka_of_session() -> Iterator[KafkaServer]:
    """For `kafka`."""
    server = KafkaServer()
    try:
        yield server
    finally:
        server.remove()


@pytest.fixture
def kafka(kafka_of_session: KafkaServer) -> KafkaServer:
    """A Kafka that all tests of a process share: use a prefix of your own. It may be stopped and killed: it is started
    again for the next test."""
    kafka_of_session.start()
    return kafka_of_session


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[RedisServer]:
    """A Valkey that all tests share."""
    with RedisServer.running(valkey()) as server:
        yield server


@pytest.fixture(scope="session", params=["redis_server", "valkey_server"])
def any_redis(request: pytest.FixtureRequest) -> RedisServer:
    """A Redis, then a Valkey: the test runs once on each."""
    server: RedisServer = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis that the test may kill."""
    with RedisServer.running() as server:
        yield server


@pytest.fixture
def pg_database() -> Iterator[Databases]:
    """`pg_database(server, driver="postgresql+asyncpg")` gives the URL of a new, empty database."""
    databases = Databases()
    yield databases
    databases.drop_all()


@pytest.fixture
def new_database() -> Iterator[Databases]:
    """`new_database(server)` gives the URL of a new, empty database on a server of any kind."""
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


@pytest.fixture
def mariadb_server() -> Iterator[Callable[..., MariaDBServer]]:
    """`mariadb_server(settings=...)` gives a started MariaDB of the test's own, free to be killed."""
    servers: list[MariaDBServer] = []

    def make(**options: dict[str, str] | None) -> MariaDBServer:
        server = new_mariadb(**options)
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.remove()


@pytest.fixture
def mysql_server() -> Iterator[Callable[..., MySQLServer]]:
    """`mysql_server(settings=...)` gives a started MySQL of the test's own, free to be killed."""
    servers: list[MySQLServer] = []
    require_mysql()

    def make(**options: dict[str, str] | None) -> MySQLServer:
        server = new_mysql(**options)
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.remove()
