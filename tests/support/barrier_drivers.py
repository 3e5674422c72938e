"""The drivers on which the barrier works, each as a store: an async context manager that gives one."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from tests.support.barrier_stores import RedisStore, Store, SyncStore, dbapi
from tests.support.redis_server import RedisServer


class Place:
    """The databases of a test: one of each kind, empty but for its two tables."""

    def __init__(
        self, pg: str, my: str, lite: Path, redis: RedisServer, sql: dict[str, Callable[[str], str]]
    ):
        self.pg, self.my, self.lite, self.redis = pg, my, lite, redis
        self.sql = sql
        """By family, a statement as root."""

    @property
    def dsn(self) -> str:
        """Of the PostgreSQL, for drivers."""
        return self.pg.replace("postgresql+asyncpg://", "postgresql://")

    @property
    def my_arguments(self) -> dict[str, Any]:
        """Of the MariaDB, for drivers."""
        parts = urlsplit(self.my)
        return {"host": parts.hostname, "port": parts.port, "user": "root", "db": parts.path[1:]}


Maker = Callable[[Place], AbstractAsyncContextManager[Store]]
MAKERS: dict[str, Maker] = {}


def _store(maker: Callable[[Place], AsyncIterator[Store]]) -> Maker:
    made = asynccontextmanager(maker)
    MAKERS[maker.__name__.strip("_")] = made
    return made


def _sqlalchemy_run(db: Any, statement: str) -> Any:
    return db.execute(text(statement))


def _execute_run(db: Any, statement: str) -> Any:
    return db.execute(statement)


async def _cursor_run(db: Any, statement: str) -> None:
    async with db.cursor() as cursor:
        await cursor.execute(statement)


def _dbapi_run(db: Any, statement: str) -> None:
    with contextlib.closing(db.cursor()) as cursor:
        cursor.execute(statement)


def _commit_each(connection: Any, _: Any) -> None:
    """Autocommit behind SQLAlchemy's back."""
    if callable(getattr(connection, "autocommit", None)):
        connection.autocommit(True)
    elif hasattr(connection, "autocommit"):
        connection.autocommit = True
    else:
        connection.isolation_level = None


# ---- asynchronous ----


async def _sqlalchemy(url: str, sql: Callable[[str], str], family: str) -> AsyncIterator[Store]:
    engine = create_async_engine(url)
    store = Store(engine, run=_sqlalchemy_run, sql=sql)
    store.family = family

    @asynccontextmanager
    async def session() -> AsyncIterator[Any]:
        async with AsyncSession(engine) as session, session.begin():
            yield session

    store.opened = session
    by_itself = engine.execution_options(isolation_level="AUTOCOMMIT")
    behind = create_async_engine(url)
    event.listen(behind.sync_engine, "connect", _commit_each)
    store.autocommits = [by_itself.connect, behind.connect]
    yield store
    await engine.dispose()
    await behind.dispose()


@_store
async def sqlalchemy_asyncpg(place: Place) -> AsyncIterator[Store]:
    async for store in _sqlalchemy(place.pg, place.sql["postgresql"], "postgresql"):
        yield store


@_store
async def sqlalchemy_asyncmy(place: Place) -> AsyncIterator[Store]:
    async for store in _sqlalchemy(place.my, place.sql["mysql"], "mysql"):
        yield store


@_store
async def sqlalchemy_aiosqlite(place: Place) -> AsyncIterator[Store]:
    async for store in _sqlalchemy(f"sqlite+aiosqlite:///{place.lite}", place.sql["sqlite"], "sqlite"):
        yield store


@_store
async def asyncpg_pool(place: Place) -> AsyncIterator[Store]:
    import asyncpg

    async with asyncpg.create_pool(place.dsn, min_size=0, max_size=5) as pool:
        store = Store(pool, run=_execute_run, sql=place.sql["postgresql"])

        @asynccontextmanager
        async def opened() -> AsyncIterator[Any]:
            async with pool.acquire() as connection, connection.transaction():
                yield connection

        store.opened = opened
        store.autocommits = [pool.acquire]
        yield store


@_store
async def psycopg_pool(place: Place) -> AsyncIterator[Store]:
    import psycopg
    from psycopg_pool import AsyncConnectionPool

    async with AsyncConnectionPool(place.dsn, min_size=0, max_size=5, open=False) as pool:
        store = Store(pool, run=_execute_run, sql=place.sql["postgresql"])
        store.opened = pool.connection

        @asynccontextmanager
        async def by_itself() -> AsyncIterator[Any]:
            async with await psycopg.AsyncConnection.connect(place.dsn, autocommit=True) as connection:
                yield connection

        store.autocommits = [by_itself]
        yield store


@_store
async def asyncpg_connect(place: Place) -> AsyncIterator[Store]:
    import asyncpg

    async for store in _asyncpg_like(place, lambda: asyncpg.connect(place.dsn)):
        yield store


async def _asyncpg_like(place: Place, connect: Callable[[], Any]) -> AsyncIterator[Store]:
    store = Store(connect, run=_execute_run, sql=place.sql["postgresql"])

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        connection = await connect()
        try:
            async with connection.transaction():
                yield connection
        finally:
            await connection.close()

    store.opened = opened
    yield store


async def _mysql_pool(place: Place, module: Any) -> AsyncIterator[Store]:
    pool = await module.create_pool(**place.my_arguments, minsize=0, maxsize=5)
    store = Store(pool, run=_cursor_run, sql=place.sql["mysql"])
    store.family = "mysql"

    @asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        async with pool.acquire() as connection:
            try:
                yield connection
                await connection.commit()
            except BaseException:
                await connection.rollback()
                raise

    @asynccontextmanager
    async def by_itself() -> AsyncIterator[Any]:
        connection = await module.connect(**place.my_arguments, autocommit=True)
        try:
            yield connection
        finally:
            connection.close()

    store.opened = opened
    store.autocommits = [by_itself]
    yield store
    pool.close()
    await pool.wait_closed()


@_store
async def aiomysql_pool(place: Place) -> AsyncIterator[Store]:
    import aiomysql

    async for store in _mysql_pool(place, aiomysql):
        yield store


@_store
async def asyncmy_pool(place: Place) -> AsyncIterator[Store]:
    import asyncmy

    async for store in _mysql_pool(place, asyncmy):
        yield store


@_store
async def redis_asyncio(place: Place) -> AsyncIterator[Store]:
    import redis.asyncio

    with place.redis.client() as looked_at:
        client = redis.asyncio.Redis.from_url(place.redis.url)
        yield RedisStore(client, looked_at, asynchronous=True)
        await client.aclose()


# ---- synchronous ----


async def _sync_sqlalchemy(url: str, sql: Callable[[str], str], family: str) -> AsyncIterator[Store]:
    engine = create_engine(url)
    store = SyncStore(sessionmaker(engine), run=_sqlalchemy_run, sql=sql)
    store.family = family
    store.opened = engine.begin
    behind = create_engine(url)
    event.listen(behind, "connect", _commit_each)
    by_itself = engine.execution_options(isolation_level="AUTOCOMMIT")
    store.autocommits = [lambda: Session(by_itself), lambda: Session(behind)]
    yield store
    engine.dispose()
    behind.dispose()


@_store
async def sync_sqlalchemy_psycopg(place: Place) -> AsyncIterator[Store]:
    url = place.pg.replace("+asyncpg", "+psycopg")
    async for store in _sync_sqlalchemy(url, place.sql["postgresql"], "postgresql"):
        yield store


@_store
async def sync_sqlalchemy_pymysql(place: Place) -> AsyncIterator[Store]:
    url = place.my.replace("+asyncmy", "+pymysql")
    async for store in _sync_sqlalchemy(url, place.sql["mysql"], "mysql"):
        yield store


@_store
async def sync_psycopg_pool(place: Place) -> AsyncIterator[Store]:
    import psycopg
    import psycopg_pool

    with psycopg_pool.ConnectionPool(place.dsn, min_size=0, max_size=5, open=True) as pool:
        store = SyncStore(pool, run=_execute_run, sql=place.sql["postgresql"])
        store.opened = pool.connection
        store.autocommits = [lambda: psycopg.connect(place.dsn, autocommit=True)]
        yield store


@_store
async def sync_pymysql(place: Place) -> AsyncIterator[Store]:
    import pymysql

    def connect(**options: Any) -> Any:
        given = place.my_arguments
        return pymysql.connect(database=given.pop("db"), **given, **options)

    store = SyncStore(connect, run=_dbapi_run, sql=place.sql["mysql"])
    store.family = "mysql"
    store.opened = lambda: dbapi(connect())
    store.autocommits = [lambda: dbapi(connect(autocommit=True))]
    yield store


@_store
async def sync_sqlite3(place: Place) -> AsyncIterator[Store]:
    def connect(**options: Any) -> Any:
        return sqlite3.connect(place.lite, timeout=30, **options)

    store = SyncStore(connect, run=_dbapi_run, sql=place.sql["sqlite"])
    store.family = "sqlite"
    store.opened = lambda: dbapi(connect())
    store.autocommits = [lambda: dbapi(connect(isolation_level=None))]
    yield store


@_store
async def sync_django(place: Place) -> AsyncIterator[Store]:
    from django.db import connections, transaction

    alias = "barrier"
    parts = urlsplit(place.dsn)
    made = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path[1:],
        "USER": parts.username,
        "HOST": parts.hostname,
        "PORT": parts.port,
    }
    connections.settings[alias] = connections.configure_settings({"default": made})["default"]

    @contextlib.contextmanager
    def by_itself() -> Any:
        with contextlib.closing(connections[alias]):
            yield alias

    @contextlib.contextmanager
    def opened() -> Any:
        with contextlib.closing(connections[alias]) as connection, transaction.atomic(using=alias):
            yield connection

    store = SyncStore(alias, run=_dbapi_run, sql=place.sql["postgresql"])
    store.opened = opened
    store.autocommits = [by_itself]
    yield store
    del connections.settings[alias]


@_store
async def sync_redis(place: Place) -> AsyncIterator[Store]:
    with place.redis.client() as client, place.redis.client(decode_responses=True) as served:
        yield RedisStore(served, client, asynchronous=False)
