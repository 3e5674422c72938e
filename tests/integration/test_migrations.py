"""Migrations: from nothing to the tables that the code expects, once, whoever else tries at the same time."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

import txcoord.adapters.sql
from tests.support.databases import Databases
from tests.support.logs import WINDOWS
from txcoord.adapters.sql import schema, tables
from txcoord.adapters.sql.log import SqlLog
from txcoord.adapters.sql.migrate import current_revision, migrate
from txcoord.ports import LogUnavailable, SchemaMismatch
from txcoord_client.protocol.xid import is_log_id

Run = Callable[[str, Callable[[Connection], Any]], Any]


@pytest.fixture(params=["sqlite", "pg18", "pg17"])
def url(request: pytest.FixtureRequest, tmp_path: Path, pg_database: Databases) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/log.db"
    return pg_database(request.getfixturevalue(request.param))


async def run(url: str, work: Callable[[Connection], Any]) -> Any:
    """Run `work` on a connection of the test's own."""
    if url.startswith("sqlite"):
        with create_engine(url.replace("+aiosqlite", ""), poolclass=NullPool).begin() as conn:
            return work(conn)
    async with _engine(url) as engine, engine.begin() as conn:
        return await conn.run_sync(work)


@asynccontextmanager
async def _engine(url: str) -> AsyncIterator[Any]:
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        yield engine
    finally:
        await engine.dispose()


async def test_from_nothing(url: str) -> None:
    assert await current_revision(url) is None
    assert await migrate(url) == (None, schema.HEAD)
    assert await current_revision(url) == schema.HEAD
    log = SqlLog(url, windows=WINDOWS)
    identity = await log.open()
    await log.close()
    assert is_log_id(identity.log_id)
    # Once more changes nothing, and least of all the log's id.
    assert await migrate(url) == (schema.HEAD, schema.HEAD)
    assert await log.open() == identity
    await log.close()


async def test_the_tables_are_those_of_the_code(url: str) -> None:
    await migrate(url)

    def differences(conn: Connection) -> Any:
        options = {"version_table": schema.VERSION_TABLE, "compare_type": True}
        return compare_metadata(MigrationContext.configure(conn, opts=options), tables.metadata)

    assert await run(url, differences) == []


async def test_the_conditions_of_the_indexes_are_those_of_the_code(url: str) -> None:
    await migrate(url)
    source = (
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        if url.startswith("sqlite")
        else "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'txcoord_tx'"
    )
    rows = await run(url, lambda c: c.execute(text(source)).all())
    found = {name: _words(sql.split("WHERE")[1]) for name, sql in rows if "WHERE" in sql}
    dialect = "sqlite" if url.startswith("sqlite") else "postgresql"
    wanted = {i.name: _words(str(i.dialect_options[dialect]["where"])) for i in tables.tx.indexes}
    assert found == wanted


def _words(condition: str) -> str:
    return re.sub(r"[()\s]", "", condition)


async def test_other_logs_have_other_ids(tmp_path: Path) -> None:
    ids = set()
    for name in ("a", "b"):
        url = f"sqlite:///{tmp_path}/{name}/log.db"  # folders are made
        await migrate(url)
        log = SqlLog(url, windows=WINDOWS)
        ids.add((await log.open()).log_id)
        await log.close()
    assert len(ids) == 2


async def test_four_processes_at_once(url: str) -> None:
    code = (
        "import asyncio, sys; from txcoord.adapters.sql.migrate import migrate;"
        "sys.stdin.read(1); print(*asyncio.run(migrate(sys.argv[1])))"
    )
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, url, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        for _ in range(4)
    ]
    outs = await asyncio.gather(*(p.communicate(b"\n") for p in processes))
    assert [p.returncode for p in processes] == [0] * 4
    said = sorted(out.decode().strip() for out, _ in outs)
    assert said == [f"{schema.HEAD} {schema.HEAD}"] * 3 + [f"None {schema.HEAD}"]
    rows = await run(url, lambda c: c.execute(tables.log_identity.select()).all())
    assert len(rows) == 1


async def test_many_open_a_new_log_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    await migrate(url)
    logs = [SqlLog(url, windows=WINDOWS) for _ in range(8)]
    assert len(set(await asyncio.gather(*(log.open() for log in logs)))) == 1
    await asyncio.gather(*(log.close() for log in logs))


async def test_no_log_there(url: str) -> None:
    if url.startswith("sqlite"):
        with pytest.raises(SchemaMismatch, match="txcoord migrate"):
            await SqlLog(url, windows=WINDOWS).open()
        assert not list(Path(url.split("///")[1]).parent.iterdir()), "opening made a file"
        await run(url, lambda c: c.execute(text("CREATE TABLE someone_elses (id integer)")))
    with pytest.raises(SchemaMismatch, match="txcoord migrate") as caught:
        await SqlLog(url, windows=WINDOWS).open()
    assert (caught.value.found, caught.value.wanted) == (None, schema.HEAD)


async def test_a_newer_log(url: str) -> None:
    await migrate(url)
    await run(url, lambda c: c.execute(text(f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'")))
    for attempt in (SqlLog(url, windows=WINDOWS).open, lambda: migrate(url)):
        with pytest.raises(SchemaMismatch, match=r"this log was written by a newer txcoord: .*9999"):
            await attempt()
    assert await current_revision(url) == "9999"


async def test_an_older_log(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await migrate(url)
    monkeypatch.setattr(schema, "REVISIONS", (schema.HEAD, "0002"))
    monkeypatch.setattr(schema, "HEAD", "0002")
    with pytest.raises(SchemaMismatch, match=r"older schema .* run `txcoord migrate`"):
        await SqlLog(url, windows=WINDOWS).open()


async def test_beside_the_tables_of_others(url: str) -> None:
    """The log's database may be shared with an application that uses Alembic itself."""

    def others(conn: Connection) -> None:
        conn.execute(text("CREATE TABLE alembic_version (version_num varchar(32))"))
        conn.execute(text("INSERT INTO alembic_version VALUES ('theirs')"))

    await run(url, others)
    assert await migrate(url) == (None, schema.HEAD)
    theirs = await run(url, lambda c: c.execute(text("SELECT version_num FROM alembic_version")).scalar())
    assert theirs == "theirs"


async def test_nobody_there() -> None:
    url = "postgresql://u:secret@127.0.0.1:1/x"
    for attempt in (migrate, current_revision):
        with pytest.raises(LogUnavailable) as caught:
            await attempt(url)
        assert "secret" not in str(caught.value)


def test_the_list_of_revisions_is_alembics() -> None:
    folder = Path(txcoord.adapters.sql.__file__).parent / "migrations"
    revisions = [r.revision for r in ScriptDirectory(str(folder)).walk_revisions()]
    assert tuple(reversed(revisions)) == schema.REVISIONS
