"""Makes the log's tables, and brings them up to date. Many processes may try at once."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, NullPool, create_engine, event, insert, select, text
from sqlalchemy.exc import SQLAlchemyError

from txcoord_client.protocol.xid import new_log_id

from ...ports import LogUnavailable, SchemaMismatch
from . import schema, tables
from .sqlite import path_of
from .store import T, Work, parse_url, shown

_LOCK = 0x7478636F6F7264  # "txcoord": the advisory lock of migrations
_PATIENCE_S = 60.0


async def migrate(url: str) -> tuple[str | None, str]:
    """Bring the log at ``url`` up to date, making it if there is none; its revision before and after.

    Raises SchemaMismatch for a log that a newer version has written, LogUnavailable.
    """
    return await _run(parse_url(url), upgrade)


async def current_revision(url: str) -> str | None:
    """The revision of the log at ``url``; None: there is no log."""
    parsed = parse_url(url)
    path = path_of(parsed) if parsed.get_backend_name() == "sqlite" else None
    if path is not None and not path.exists():
        return None
    return await _run(parsed, schema.revision)


def upgrade(conn: Connection) -> tuple[str | None, str]:
    """Under a lock, and within one SQL transaction where the database can do that. On MariaDB each statement of a
    migration can be repeated instead."""
    if conn.dialect.name == "postgresql":
        conn.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    before = schema.revision(conn)
    if before is not None and before not in schema.REVISIONS:
        schema.check(conn)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    script = ScriptDirectory.from_config(config)

    def steps(revision: Any, _: Any) -> Any:
        return script._upgrade_revs("head", revision)

    with EnvironmentContext(config, script, fn=steps) as environment:
        environment.configure(connection=conn, version_table=schema.VERSION_TABLE, transactional_ddl=False)
        environment.run_migrations()
    if conn.execute(select(tables.log_identity.c.id)).scalar_one_or_none() is None:
        log_id = new_log_id(secrets.randbits(50))
        conn.execute(
            insert(tables.log_identity).values(id=1, log_id=log_id, incarnation=1, earlier_log_ids="")
        )
    return before, schema.HEAD


async def _run(url: URL, work: Work[T]) -> T:
    try:
        if url.get_backend_name() == "sqlite":
            return await asyncio.to_thread(_on_sqlite, url, work)
        if url.get_backend_name() == "mysql":
            return await _on_mariadb(url, work)
        return await _on_postgresql(url, work)
    except SchemaMismatch:
        raise
    except (OSError, TimeoutError, SQLAlchemyError) as error:
        raise LogUnavailable(f"{shown(url)}: {type(error).__name__}: {error}") from error


def _on_sqlite(url: URL, work: Work[T]) -> T:
    path = path_of(url)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        url, poolclass=NullPool, connect_args={"isolation_level": None, "timeout": _PATIENCE_S}
    )
    event.listen(engine, "begin", lambda conn: conn.exec_driver_sql("BEGIN EXCLUSIVE"))
    try:
        with engine.begin() as conn:
            return work(conn)
    finally:
        engine.dispose()


async def _on_postgresql(url: URL, work: Work[T]) -> T:
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url, poolclass=NullPool, connect_args={"timeout": 10.0})
    try:
        async with engine.begin() as conn:
            return await conn.run_sync(work)
    finally:
        await engine.dispose()


async def _on_mariadb(url: URL, work: Work[T]) -> T:
    from asyncmy import errors
    from sqlalchemy.ext.asyncio import create_async_engine

    from . import mariadb_server

    options = mariadb_server.options_of(url)

    async def connected() -> Any:
        conn = await mariadb_server.connect(options, _PATIENCE_S, "READ COMMITTED")
        try:
            await mariadb_server.examine(conn, shown(url))
            await mariadb_server.lock_migrations(conn, _PATIENCE_S)
            # It warns that names of primary keys are not kept, and the driver would log that.
            await mariadb_server.ask(conn, "SET SESSION max_error_count = 0")
        except BaseException:
            conn.close()
            raise
        return conn

    engine = create_async_engine(url, poolclass=NullPool, async_creator=connected)
    try:
        async with engine.begin() as conn:
            return await conn.run_sync(work)
    except errors.Error as error:
        raise LogUnavailable(f"{shown(url)}: {type(error).__name__}: {error}") from error
    finally:
        await engine.dispose()
