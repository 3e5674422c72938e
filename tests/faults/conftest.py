"""Logs and databases for crashes."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from tests.faults.enumeration import Places
from tests.faults.servers import databases
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    """Crashes are loud: what the coordinator logs about them would cost more time than they do."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@pytest.fixture(scope="module")
def mixed(pg18: PostgresServer, mariadb: MariaDBServer) -> Iterator[Places]:
    """A PostgreSQL and a MariaDB, without logs."""
    with databases(lambda: pg18, lambda: mariadb, mixed=True) as places:
        yield places


@pytest.fixture(scope="module")
def postgresql_only(pg18: PostgresServer, mariadb: MariaDBServer) -> Iterator[Places]:
    """Two databases of PostgreSQL, without logs."""
    with databases(lambda: pg18, lambda: mariadb, mixed=False) as places:
        yield places
