"""What was answered OK is there after a crash, of the node or of the database, at any moment."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.databases import PG17, PG18, Databases, database_of
from tests.support.logs import WINDOWS, Place, active, insert, sqlite_place, xa
from txcoord.adapters.sql.log import SqlLog
from txcoord.adapters.sql.migrate import migrate
from txcoord.core.model import Written
from txcoord.ports import LogUnavailable
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer

WRITERS = 16
ENOUGH = 300


async def write_on(log: SqlLog, answered: Callable[[str], None]) -> None:
    """Write, and tell each OK, until the log is away."""
    now = await log.now_us()

    async def one() -> None:
        while True:
            tx = active(now, xa("1"), xa("2"))
            try:
                result = await log.write(insert(tx))
            except LogUnavailable:
                return
            assert result.written is Written.OK
            answered(tx.tx_id)

    await asyncio.gather(*(one() for _ in range(WRITERS)))


async def assert_all_there(log: SqlLog, tx_ids: list[str]) -> None:
    found = await log.read(tx_ids)
    assert set(found) == set(tx_ids)
    assert {len(tx.branches) for tx in found.values()} == {2}


@pytest.mark.parametrize("flavour", [PG18, PG17, "mariadb"])
async def test_the_database_is_killed(
    pg_server: Callable[..., PostgresServer], mariadb_server: Callable[..., MariaDBServer], flavour: str
) -> None:
    server: PostgresServer | MariaDBServer
    server = mariadb_server() if flavour == "mariadb" else pg_server(flavour)
    await migrate(server.url())
    place = Place(server.url(), server)
    log = await place.open()
    answered: list[str] = []
    enough = asyncio.Event()

    def answer(tx_id: str) -> None:
        answered.append(tx_id)
        if len(answered) >= ENOUGH:
            enough.set()

    writing = asyncio.create_task(write_on(log, answer))
    await enough.wait()
    await asyncio.to_thread(server.kill9)
    await writing
    server.start()
    await assert_all_there(log, answered)
    await place.close()


async def test_the_node_is_killed(tmp_path: Path) -> None:
    place = await sqlite_place(tmp_path)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, place.url, stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    answered = [(await process.stdout.readline()).decode().strip() for _ in range(ENOUGH)]
    process.kill()
    rest = (await process.stdout.read()).decode()
    answered += rest.split("\n")[:-1]  # the last line may be half a line
    await process.wait()
    await assert_all_there(await place.open(), answered)
    await place.close()


@pytest.mark.parametrize("kind", ["pg18", "mariadb"])
async def test_another_log_at_the_same_url(
    request: pytest.FixtureRequest, new_database: Databases, kind: str
) -> None:
    """A backup was restored as a new incarnation, say: a node that ran before must not write there."""
    server = request.getfixturevalue(kind)
    url = new_database(server)
    await migrate(url)
    place = Place(url)
    log = await place.open()
    database = database_of(url)
    server.sql("UPDATE txcoord_log_identity SET incarnation = 2", database)
    if kind == "mariadb":
        server.end_sessions(database)
    else:
        server.sql(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            f" WHERE datname = '{database}' AND pid <> pg_backend_pid()"
        )
    with pytest.raises(LogUnavailable, match="another log"):
        await log.write(insert(active(1)))
    await log.close()
    assert (await log.open()).incarnation == 2
    await place.close()


async def test_a_file_that_was_replaced(tmp_path: Path) -> None:
    place = await sqlite_place(tmp_path)
    log = await place.open()
    for name in ("log.db", "log.db-wal", "log.db-shm"):
        (tmp_path / name).rename(tmp_path / f"old-{name}")
    for _ in range(2):
        with pytest.raises(LogUnavailable):
            await log.write(insert(active(1)))
        await migrate(place.url)
    await place.close()


async def _main(url: str) -> None:
    log = SqlLog(url, windows=WINDOWS)
    await log.open()
    await write_on(log, lambda tx_id: print(tx_id, flush=True))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
