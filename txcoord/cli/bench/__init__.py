"""`txcoord bench xa`: global transactions through a coordinator against a bare two-phase-commit loop.

Both use the same two throw-away servers, engines, statements and concurrent callers in one client process, and take
turns within one run, so that their ratio holds on a machine whose speed drifts. The bare loop is what a careful user
would write by hand: two prepares, two commits (on MariaDB on the session that prepared), no log, no marker.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ...testing.mariadb import MariaDBServer
from ...testing.postgres import PostgresServer
from ...testing.processes import Managed, coordinator, run_txcoord
from .calling import run as called
from .drivers import DATABASES, Drivers, WrongDrivers
from .events import run as events
from .hung import run as hung
from .match import ACCOUNTS, Row
from .notify import run as notify
from .returned import run as returned
from .shared import run as shared

__all__ = [
    "DATABASES",
    "LOGS",
    "Drivers",
    "WrongDrivers",
    "called",
    "events",
    "hung",
    "notify",
    "returned",
    "shared",
    "xa",
]

LOGS = ("sqlite", "postgresql", "mariadb")
NAMES = ("accounts", "ledger")
_ROWS = f"INSERT INTO account WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {ACCOUNTS - 1})"


def xa(
    databases: Sequence[str],
    drivers: Drivers,
    concurrency: Sequence[int],
    seconds: float,
    log: str,
    profile: Path | None,
    emit: Callable[[str], None],
) -> int:
    """Run the bench; one JSON object a line through ``emit``. Answers the number of errors."""
    folder = Path(tempfile.mkdtemp(prefix="txcoord-bench-"))
    folder.chmod(0o755)
    servers: dict[str, PostgresServer | MariaDBServer] = {}
    node: Managed | None = None
    kinds = [*zip(NAMES, databases, strict=True), *([("log", log)] if log != "sqlite" else [])]
    try:
        for name, kind in kinds:
            (folder / name).mkdir(mode=0o755)
            make = MariaDBServer if kind == "mariadb" else PostgresServer
            servers[name] = make(folder / name, die_with_parent=True)
            servers[name].start()
            if kind == "mariadb":
                servers[name].create_database("bench")
        for name in NAMES:
            _fill(servers[name])
        node = coordinator(
            folder,
            resources={name: _url(servers[name]) for name in NAMES},
            log_url=_url(servers["log"]) if log != "sqlite" else None,
            settings={"LOG_LEVEL": "ERROR"},
            env={"TXCOORD_PROFILE": str(profile)} if profile else None,
        )
        run_txcoord("migrate", env=node.env, cwd=folder)
        run_txcoord("resource", "check", "--fix", env=node.env, cwd=folder)
        node.start()
        urls = [_url(servers[name], drivers.of(kind)) for name, kind in zip(NAMES, databases, strict=True)]
        errors = 0
        for callers in concurrency:
            for row in _compare(urls, drivers, node.address, callers, seconds):
                errors += row["errors"]
                facts = {"log": log, "databases": ",".join(databases), "drivers": drivers.shown(databases)}
                emit(json.dumps({**row, **facts}))
        return errors
    finally:
        if node is not None:
            node.stop()
        for server in servers.values():
            server.remove()
        shutil.rmtree(folder, ignore_errors=True)


def _compare(urls: Sequence[str], drivers: Drivers, address: str, callers: int, seconds: float) -> list[Row]:
    if drivers.threads:
        from . import threads

        return threads.compare(urls, NAMES, address, callers, seconds)
    from . import loop

    return asyncio.run(loop.compare(urls, NAMES, address, callers, seconds))


def _fill(server: PostgresServer | MariaDBServer) -> None:
    table = "CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL)"
    if isinstance(server, MariaDBServer):
        server.sql(f"{table}; SET max_recursive_iterations = {ACCOUNTS}; {_ROWS} SELECT i, 0 FROM n", "bench")
    else:
        server.sql(f"{table} WITH (fillfactor = 50); {_ROWS} SELECT i, 0 FROM n; VACUUM ANALYZE account")


def _url(server: PostgresServer | MariaDBServer, driver: str = "") -> str:
    """For the coordinator, or for a driver of SQLAlchemy's."""
    if isinstance(server, MariaDBServer):
        return server.url("bench", f"mysql+{driver or 'asyncmy'}")
    return server.url(driver=f"postgresql+{driver or 'asyncpg'}")
