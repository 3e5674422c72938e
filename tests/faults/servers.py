"""Logs and databases for crashes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from tests.faults.enumeration import Places
from tests.faults.place import NAMES
from tests.faults.services import TABLE
from txcoord.adapters.sql.migrate import migrate
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord_client.protocol import mariadb as my
from txcoord_client.protocol import postgresql as pg

LOGS = ("sqlite", "postgresql", "mariadb")
AT_ONCE = 8
"""Runs side by side, each with a log of its own: the logs are foreign to each other on the same databases."""
_FOREIGN_LOG = "vvvvvvvvvv"
_WORK = (
    "CREATE TABLE work (gid varchar(64) NOT NULL)",
    "CREATE INDEX work_gid ON work (gid)",
    TABLE,
    "CREATE INDEX done_gid ON done (gid)",
)
_CHECKED_LATE = (
    "CREATE TABLE allowed (gid varchar(64) PRIMARY KEY)",
    # What is in no other table is refused by PREPARE and COMMIT only.
    "CREATE TABLE work_checked_late (gid varchar(64) REFERENCES allowed DEFERRABLE INITIALLY DEFERRED)",
)

Postgres = Callable[[], PostgresServer]
MariaDB = Callable[[], MariaDBServer]


@contextlib.contextmanager
def databases(pg18: Postgres, mariadb: MariaDB, *, mixed: bool) -> Iterator[Places]:
    """Two databases that are resources, each with prepared transactions of somebody else; without logs."""
    places = Places({}, {}, {})
    servers: dict[str, PostgresServer | MariaDBServer] = {
        "a": pg18(),
        "b": mariadb() if mixed else pg18(),
    }
    names = {name: f"crash_{'m' if mixed else 'p'}_{name}" for name in NAMES}
    with contextlib.ExitStack() as stack:
        for number, name in enumerate(NAMES):
            server, database = servers[name], names[name]
            server.create_database(database)
            stack.callback(server.drop_database, database)
            look_alike = f"txc1.{_FOREIGN_LOG}.0.{number + 2 * mixed:012}70008{0:015}"
            places.identities[name] = identity = name * 32
            if isinstance(server, MariaDBServer):
                foreign = [f"foreign-{database}", look_alike]
                server.sql(";".join([*my.ddl(), my.set_identity(identity), *_WORK]), database)
                for gtrid in foreign:
                    _prepare_foreign(server, database, gtrid)
            else:
                foreign = [f"foreign-{database}", f"{look_alike}.1"]
                server.sql(";".join([*pg.ddl(), pg.set_identity(identity), *_WORK, *_CHECKED_LATE]), database)
                for gid in foreign:
                    server.sql(
                        f"BEGIN; INSERT INTO work VALUES ('foreign'); PREPARE TRANSACTION '{gid}'", database
                    )
            places.databases[name], places.foreign[name] = server.url(database), foreign
        yield places


def _prepare_foreign(server: MariaDBServer, database: str, gtrid: str) -> None:
    name = f"'{gtrid}','1'"
    server.sql(
        f"XA START {name}; INSERT INTO work VALUES ('foreign'); XA END {name}; XA PREPARE {name}", database
    )


@contextlib.asynccontextmanager
async def with_logs(places: Places, log: str, pg18: Postgres, mariadb: MariaDB) -> AsyncIterator[Places]:
    """The same databases, with new logs of a kind."""
    out = Places(places.databases, places.identities, places.foreign, log=log)
    names = [f"crash_log_{number}" for number in range(AT_ONCE)]
    server = {"sqlite": lambda: None, "postgresql": pg18, "mariadb": mariadb}[log]()
    # Also after a failure: whoever comes next makes them anew.
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for name in names:
            if server is None:
                out.logs.append(f"sqlite+aiosqlite:///{Path(folder)}/{name}.db")
            else:
                server.create_database(name)
                stack.callback(server.drop_database, name)
                out.logs.append(server.url(name))
            await migrate(out.logs[-1])
        yield out
