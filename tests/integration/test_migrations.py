"""Migrations: from nothing to the tables that the code expects, once, whoever else tries at the same time."""

from __future__ import annotations

import asyncio
import itertools
import re
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, NullPool, create_engine, event, text
from sqlalchemy.ext.asyncio import create_async_engine

import txcoord.adapters.sql
from tests.support.databases import Databases, database_of
from tests.support.logs import WINDOWS, Place, active, put, xa
from txcoord.adapters.sql import schema, tables
from txcoord.adapters.sql.log import SqlLog
from txcoord.adapters.sql.migrate import _run, current_revision, migrate, upgrade
from txcoord.adapters.sql.store import parse_url
from txcoord.core.model import Branch, BranchState, Kind
from txcoord.ports import LogUnavailable, SchemaMismatch
from txcoord.testing.mariadb import MariaDBServer
from txcoord_client.protocol.xid import is_log_id

Run = Callable[[str, Callable[[Connection], Any]], Any]


@pytest.fixture(params=["sqlite", "pg18", "pg17", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path: Path, new_database: Databases) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/log.db"
    return new_database(request.getfixturevalue(request.param))


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

    assert await run(url, _differences) == []


def _differences(conn: Connection) -> Any:
    on_mariadb = conn.dialect.name == tables.MARIADB

    def compared(item: Any, name: str | None, type_: str, *_: Any) -> bool:
        # MariaDB has columns of its own instead of partial indexes: see below.
        return not (on_mariadb and type_ in ("column", "index") and name in _MARIADB | _PARTIAL)

    options = {"version_table": schema.VERSION_TABLE, "compare_type": True, "include_object": compared}
    return compare_metadata(MigrationContext.configure(conn, opts=options), tables.metadata)


_PARTIAL = {index.name for table in (tables.tx, tables.branch) for index in table.indexes if not index.unique}
_MARIADB = {"flush_id", "part", "due_us", "attention", "txcoord_tx_due", "txcoord_tx_attention"}


async def test_the_conditions_of_the_indexes_are_those_of_the_code(url: str) -> None:
    await migrate(url)
    if url.startswith("mysql"):
        await _computed_columns(url)
        return
    source = (
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
        if url.startswith("sqlite")
        else "SELECT indexname, indexdef FROM pg_indexes WHERE tablename LIKE 'txcoord_%'"
    )
    rows = await run(url, lambda c: c.execute(text(source)).all())
    found = {name: _words(sql.split("WHERE")[1]) for name, sql in rows if "WHERE" in sql}
    dialect = "sqlite" if url.startswith("sqlite") else "postgresql"
    indexes = [*tables.tx.indexes, *tables.branch.indexes]
    wanted = {i.name: _words(str(i.dialect_options[dialect]["where"])) for i in indexes}
    assert found == wanted


async def _computed_columns(url: str) -> None:
    """What MariaDB has instead: each part of the rows is found by its number."""
    values = {
        "reason": "''", "labels": "''", "headers": "''", "result": "''", "namespace": "''", "name": "''", "state": "''",
        "owner": "''", "one_phase_resource": "''", "created_us": "0", "decided_us": "0", "version": "1", "epoch": "1",
        "flush_id": "0", "deadline_us": "11", "lease_until_us": "22", "ended_us": "0", "decision": "NULL",
        "at_rest": "0", "detail_pruned": "0", "parked": "0", "heuristic": "0",
    }  # fmt: skip
    decided = {"decision": "'commit'"}
    cases: list[tuple[dict[str, str], tables.Part | None]] = [
        ({}, tables.UNDECIDED),
        (decided, tables.CARRIED_OUT),
        ({"state": "'running'"}, tables.CARRIED_OUT),
        ({**decided, "at_rest": "1"}, None),
        ({**decided, "ended_us": "33"}, tables.WITH_DETAIL),
        ({**decided, "ended_us": "33", "detail_pruned": "1"}, tables.BARE),
    ]
    due = {"deadline_us": 11, "lease_until_us": 22, "ended_us": 33}
    for number, (special, part) in enumerate(cases):
        row = {**values, **special, "tx_id": f"X'{number:032x}'"}
        insert = f"INSERT INTO txcoord_tx ({', '.join(row)}) VALUES ({', '.join(row.values())})"
        await run(url, lambda c, insert=insert: c.execute(text(insert)))
        for other in (tables.UNDECIDED, tables.CARRIED_OUT, tables.WITH_DETAIL, tables.BARE):
            for condition in (other.condition, other.mariadb):
                sql = f"SELECT due_us FROM txcoord_tx WHERE tx_id = X'{number:032x}' AND {condition}"
                rows = await run(url, lambda c, sql=sql: c.execute(text(sql)).scalars().all())
                assert rows == ([due[other.due]] if other is part else []), (number, condition)
    for parked, heuristic in ((0, 0), (2, 0), (0, 1), (7, 1)):
        sql = f"UPDATE txcoord_tx SET parked = {parked}, heuristic = {heuristic}"
        await run(url, lambda c, sql=sql: c.execute(text(sql)))
        for part in (tables.PARKED, tables.HEURISTIC):
            counts = [
                await run(
                    url, lambda c, w=w: c.execute(text(f"SELECT COUNT(*) FROM txcoord_tx WHERE {w}")).scalar()
                )
                for w in (part.condition, part.mariadb)
            ]
            assert counts[0] == counts[1]


def _words(condition: str) -> str:
    return re.sub(r"[()\s]|::text", "", condition)


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
    monkeypatch.setattr(schema, "REVISIONS", (schema.HEAD, "9998"))
    monkeypatch.setattr(schema, "HEAD", "9998")
    with pytest.raises(SchemaMismatch, match=r"older schema .* run `txcoord migrate`"):
        await SqlLog(url, windows=WINDOWS).open()


async def test_what_was_written_before_there_were_participants(url: str) -> None:
    def first(conn: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
        script = ScriptDirectory.from_config(config)
        with EnvironmentContext(
            config, script, fn=lambda r, _: script._upgrade_revs("0001", r)
        ) as environment:
            environment.configure(
                connection=conn, version_table=schema.VERSION_TABLE, transactional_ddl=False
            )
            environment.run_migrations()
        tx_id = (
            "X'00000000000000000000000000000007'"
            if conn.dialect.name == tables.MARIADB
            else ("'00000000000000000000000000000007'")
        )
        empty = "''" if conn.dialect.name == "postgresql" else "X''"
        flush = {"flush_id": "0"} if conn.dialect.name == tables.MARIADB else {}
        row = {"tx_id": tx_id, "namespace": "'shop'", "name": "''", "state": "'active'", "reason": "''",
               "created_us": "1", "decided_us": "0", "deadline_us": "2", "ended_us": "0", "version": "1",
               "epoch": "0", "owner": "''", "lease_until_us": "0", "one_phase_resource": "''", "labels": "''",
               "headers": "''", "result": empty, "parked": "0", "heuristic": "false", "at_rest": "false",
               "detail_pruned": "false", **flush}  # fmt: skip
        branch = {"tx_id": tx_id, "id": "'1'", "position": "0", "kind": "'xa'", "state": "'ready'",
                  "resource": "'accounts'", "xid": "'x'", "attempts": "0", "next_attempt_us": "0",
                  "reason": "''", "heuristic": "false", "payload": empty, "result": empty}  # fmt: skip
        for table, values in (("txcoord_tx", row), ("txcoord_branch", branch)):
            conn.execute(
                text(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join(values.values())})")
            )

    await run(url, first)
    assert await migrate(url) == ("0001", schema.HEAD)
    log = SqlLog(url, windows=WINDOWS)
    await log.open()
    (tx,) = await log.overdue(10)
    assert tx.branches == (Branch("1", Kind.XA, BranchState.READY, "accounts", "x"),)
    await log.close()


async def test_beside_the_tables_of_others(url: str) -> None:
    """The log's database may be shared with an application that uses Alembic itself."""

    def others(conn: Connection) -> None:
        conn.execute(text("CREATE TABLE alembic_version (version_num varchar(32))"))
        conn.execute(text("INSERT INTO alembic_version VALUES ('theirs')"))

    await run(url, others)
    assert await migrate(url) == (None, schema.HEAD)
    theirs = await run(url, lambda c: c.execute(text("SELECT version_num FROM alembic_version")).scalar())
    assert theirs == "theirs"


class _Dies(Exception):
    """The migrating process is killed."""


def _dying(at: int, die: Callable[[], None]) -> Callable[[Connection], Any]:
    """A migration in which something happens before its statement number `at`."""
    count = itertools.count(1)

    def before(*_: Any) -> None:
        if next(count) == at:
            die()

    def work(conn: Connection) -> Any:
        event.listen(conn, "before_cursor_execute", before)
        return upgrade(conn)

    return work


@pytest.mark.timeout(180)
@pytest.mark.parametrize("dies", ["process", "server"])
async def test_a_migration_on_mariadb_that_dies_anywhere(
    mariadb_server: Callable[..., MariaDBServer], dies: str
) -> None:
    """There each statement that makes something is a transaction of its own: it is run again as a whole."""
    server = mariadb_server()

    def die() -> None:
        if dies == "process":
            raise _Dies
        server.kill9()

    for at in itertools.count(1):
        database = f"m{at}"
        server.create_database(database)
        url, died = server.url(database), False
        try:
            await _run(parse_url(url), _dying(at, die))
        except (_Dies, LogUnavailable):
            died = True
            server.start()
        assert (await migrate(url))[1] == schema.HEAD
        assert await run(url, _differences) == []
        assert len(await run(url, lambda c: c.execute(tables.log_identity.select()).all())) == 1
        if not died:
            assert at > 15  # it has as many statements
            return


async def test_on_a_mariadb_database_with_another_character_set(
    mariadb: MariaDBServer, new_database: Databases
) -> None:
    url = new_database(mariadb)
    mariadb.sql(f"ALTER DATABASE {database_of(url)} CHARACTER SET latin1 COLLATE latin1_general_ci")
    await migrate(url)
    place = Place(url)
    log = await place.open()
    now = await log.now_us()
    txs = [
        active(now, xa(), gid=gid, name="zwei \u4e8c \U0001f600")
        for gid in ("a", "A", "a ", "\xe4", "\u4e8c")
    ]
    await put(log, *txs)  # each is another gid
    assert await log.read([t.tx_id for t in txs]) == {t.tx_id: t for t in txs}
    assert await log.read_gid("shop", "A") == txs[1]
    await place.close()


async def test_nobody_there() -> None:
    await _nobody_there("postgresql://u:secret@127.0.0.1:1/x")
    await _nobody_there("mariadb://u:secret@127.0.0.1:1/x")


async def _nobody_there(url: str) -> None:
    for attempt in (migrate, current_revision):
        with pytest.raises(LogUnavailable) as caught:
            await attempt(url)
        assert "secret" not in str(caught.value)


def test_the_list_of_revisions_is_alembics() -> None:
    folder = Path(txcoord.adapters.sql.__file__).parent / "migrations"
    revisions = [r.revision for r in ScriptDirectory(str(folder)).walk_revisions()]
    assert tuple(reversed(revisions)) == schema.REVISIONS
