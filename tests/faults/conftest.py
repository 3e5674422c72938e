"""Logs and databases for crashes."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.faults.enumeration import Places
from tests.faults.scenarios import NAMES
from txcoord.adapters.sql.migrate import migrate
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord_client.protocol import postgresql as pg

_AT_ONCE = 6
"""Runs side by side, each with a log of its own: the logs are foreign to each other on the same databases."""


@pytest.fixture(autouse=True, scope="package")
def _quiet() -> Iterator[None]:
    """Crashes are loud: what the coordinator logs about them would cost more time than they do."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@pytest.fixture(scope="module")
def databases(pg18: PostgresServer) -> Iterator[dict[str, tuple[str, list[str]]]]:
    """Two databases that are resources, each with prepared transactions of somebody else."""
    made = {}
    for number, name in enumerate(NAMES):
        database = f"crash_{name}"
        pg18.create_database(database)
        pg18.sql(";".join([*pg.ddl(), "CREATE TABLE work (gid text NOT NULL)"]), database)
        foreign = [f"crash-foreign-{name}", f"txc1.vvvvvvvvvv.0.{number:012}70008{0:015}.1"]
        for gid in foreign:
            pg18.sql(f"BEGIN; INSERT INTO work VALUES ('foreign'); PREPARE TRANSACTION '{gid}'", database)
        made[name] = (pg18.url(database), foreign)
    yield made
    for name in NAMES:
        pg18.drop_database(f"crash_{name}")


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "mariadb"])
def places(request: pytest.FixtureRequest, databases: dict[str, tuple[str, list[str]]]) -> Iterator[Places]:
    out = Places({n: url for n, (url, _) in databases.items()}, {n: f for n, (_, f) in databases.items()})
    names = [f"crash_log_{number}" for number in range(_AT_ONCE)]
    server: PostgresServer | MariaDBServer | None = None
    if request.param != "sqlite":
        server = request.getfixturevalue({"postgresql": "pg18", "mariadb": "mariadb"}[request.param])
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            if server is None:
                out.logs.append(f"sqlite+aiosqlite:///{Path(folder)}/{name}.db")
            else:
                server.create_database(name)
                out.logs.append(server.url(name))
            asyncio.run(migrate(out.logs[-1]))
        yield out
        for name in names:
            if server is not None:
                server.drop_database(name)
