"""Best-effort SQL on PostgreSQL and MariaDB: each once in effect, though it is no idempotent statement."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import pytest

from tests.acceptance.mariadb.conftest import site_on
from tests.support.acceptance import Site, eventually, new_gid
from tests.support.databases import Databases
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord_client import Aborted, Coordinator, Rejected, Retry

OFTEN = Retry(first=0.2, factor=1, cap=0.2, attempts=1000)
COUNT = 10
ADD = "UPDATE counter SET n = n + :by WHERE id = :id"


class Door:
    """A way to a server that can be shut."""

    def __init__(self, host: str, port: int) -> None:
        self._to = host, port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def shut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._open:
            writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._to)
        ends = {writer, back}
        self._open |= ends

        async def copy(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    to.write(data)
                    await to.drain()
            to.close()

        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(copy(reader, back), copy(there, writer))
        self._open -= ends


@pytest.fixture(scope="module")
def site(
    pg18: PostgresServer, mariadb: MariaDBServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    databases = Databases()
    site = site_on(tmp_path_factory.mktemp("sql"), pg18, mariadb, databases)
    for db in site.databases:
        db.sql("CREATE TABLE counter (id integer PRIMARY KEY, n integer NOT NULL)")
        db.sql("INSERT INTO counter VALUES (1, 0)")
    try:
        yield site
    finally:
        site.stop()
        databases.drop_all()


@pytest.fixture
async def door(site: Site) -> AsyncIterator[Door]:
    """To MariaDB."""
    parts = urlsplit(site.ledger.url)
    door = Door(parts.hostname or "127.0.0.1", parts.port or 3306)
    await door.open()
    env = site.coordinator.env
    env["TXCOORD_RESOURCES__accounts__EXECUTE_URL"] = site.accounts.url
    through = site.ledger.url.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{door.port}")
    env["TXCOORD_RESOURCES__ledger__URL"] = env["TXCOORD_RESOURCES__ledger__EXECUTE_URL"] = through
    await asyncio.to_thread(site.restart)
    yield door
    await door.shut()
    site.coordinator.kill9()  # It was started in a thread, with which it would die.


@pytest.fixture
async def coord(site: Site, door: Door) -> AsyncIterator[Coordinator]:
    async with Coordinator(site.address) as coord:
        yield coord


def counted(site: Site) -> list[int]:
    return [int(db.sql("SELECT n FROM counter WHERE id = 1")) for db in site.databases]


def logged(site: Site, what: str) -> list[str]:
    """Of the coordinator's lines those about MariaDB."""
    lines = site.coordinator.log.read_text(errors="replace").splitlines()
    return [line for line in lines if what in line and "sql:ledger" in line]


async def test_each_once_while_a_database_is_down_and_the_coordinator_is_killed(
    coord: Coordinator, site: Site, door: Door
) -> None:
    before = counted(site)
    await door.shut()
    for _ in range(COUNT):
        async with coord.begin("report", gid=new_gid("sql")) as g:
            g.sql("accounts", ADD, {"by": 1, "id": 1}, retry=OFTEN)
            g.sql("ledger", [(ADD, {"by": 2, "id": 1}), (ADD, {"by": -1, "id": 1})], retry=OFTEN)
    await eventually(lambda: counted(site)[0] == before[0] + COUNT, what="PostgreSQL has them all")
    assert counted(site)[1] == before[1]
    # That costs attempts only until it is known to be away.
    await eventually(lambda: logged(site, "breaker.open"), what="nobody calls it any more")
    await asyncio.to_thread(site.restart)
    await door.open()
    await eventually(lambda: counted(site)[1] > before[1], what="MariaDB catches up")
    await asyncio.to_thread(site.restart)

    async def done() -> bool:
        return all(d.state == "done" for d in await coord.deliveries(limit=1000))

    await eventually(done, what="all are delivered", within=60)
    assert counted(site) == [n + COUNT for n in before]
    # Which database it must be is in the log: who has not seen it yet need not fail.
    assert not logged(site, "RESOURCE_MISMATCH")


async def test_a_no_of_the_database_parks_at_once_and_nothing_of_it_stays(
    coord: Coordinator, site: Site
) -> None:
    before = counted(site)
    gid = new_gid("sql")
    async with coord.begin("report", gid=gid) as g:
        for name in ("accounts", "ledger"):
            again = "INSERT INTO counter (id, n) VALUES (:id, :n)"
            g.sql(name, [(ADD, {"by": 1, "id": 1}), (again, {"id": 1, "n": 0})])

    async def parked() -> list[tuple[int, str]]:
        listed = [d for d in await coord.deliveries(parked=True) if d.gid == gid]
        return [(d.attempts, d.reason) for d in listed] if len(listed) == 2 else []

    found = await eventually(parked, what="both are parked")
    assert [attempts for attempts, _ in found] == [0, 0]
    assert "SQLSTATE_23505" in found[0][1]
    assert "SQL_1062" in found[1][1]
    assert counted(site) == before


async def test_what_is_refused_before_anything_is_written(coord: Coordinator, site: Site) -> None:
    for name, statement, why in (
        ("nowhere", ADD, "TARGET_NOT_ALLOWED"),
        ("accounts", "DROP TABLE counter", "INSERT, UPDATE, DELETE"),
        ("accounts", "UPDATE counter SET n = 1; COMMIT", "semicolon"),
    ):
        with pytest.raises((Rejected, Aborted), match=why):
            async with coord.begin("report") as g:
                g.sql(name, statement, {"by": 1, "id": 1})
    async with Coordinator(site.address, namespace="other") as other:
        with pytest.raises(Rejected, match="TARGET_NOT_ALLOWED"):
            async with other.begin("report") as g:
                g.sql("accounts", ADD, {"by": 1, "id": 1})
