"""The code of docs/explanation/barrier.md does what the page says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from tests.support.barrier_stores import new_call
from tests.support.databases import Databases, database_of
from tests.support.redis_server import RedisServer
from tests.support.resource import session as session_of
from tests.unit.test_docs import ROOT, blocks
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord_client import Refused, sync
from txcoord_client.protocol import barrier, reasons

ITEMS = ("CREATE TABLE item (sku varchar(9), free int)", "INSERT INTO item VALUES ('a', 5)")


@pytest.fixture
async def page() -> dict[str, Any]:
    """What the page's code defines."""
    found: dict[str, Any] = {"__name__": "page"}
    for number, code in enumerate(blocks(ROOT / "docs" / "explanation" / "barrier.md", "python"), 1):
        exec(compile(code, f"barrier.md, block {number}", "exec", dont_inherit=True), found)
    return found


@pytest.fixture
def databases() -> Iterator[Databases]:
    databases = Databases()
    yield databases
    databases.drop_all()


async def test_postgresql(page: dict[str, Any], pg18: PostgresServer, databases: Databases) -> None:
    url = databases(pg18)
    for statement in (*barrier.BY_FAMILY["postgresql"].ddl, *ITEMS):
        pg18.sql(statement, database=database_of(url))
    call, other = new_call("try"), new_call("try")
    engine = create_async_engine(url)
    for _ in range(2):
        async with AsyncSession(engine) as session:
            await page["sqlalchemy"](session, call)
        async with session_of(url) as connection:
            await page["asyncpg_or_psycopg"](connection, other)
    assert pg18.sql("SELECT free FROM item", database=database_of(url)) == "3"
    # What was kept is what the confirm gets.
    confirmed = new_call("confirm", call.tx_id)
    async with engine.begin() as db, page["stock"].guard(db, confirmed) as first:
        assert first.result() == {"sku": "a"}
    pg18.sql("UPDATE item SET free = 0", database=database_of(url))
    with pytest.raises(Refused, match="OUT_OF_STOCK"):
        async with AsyncSession(engine) as session:
            await page["sqlalchemy"](session, new_call("try"))
    await engine.dispose()


async def test_mariadb(page: dict[str, Any], mariadb: MariaDBServer, databases: Databases) -> None:
    import asyncmy
    import pymysql

    database = database_of(databases(mariadb))
    for statement in (*barrier.BY_FAMILY["mysql"].ddl, *ITEMS):
        mariadb.sql(statement, database=database)
    call, other = new_call("try"), new_call("try")
    given = {"host": "127.0.0.1", "port": mariadb.port, "user": "root"}
    for _ in range(2):
        connection = await asyncmy.connect(**given, db=database)
        await page["aiomysql_or_asyncmy"](connection, call)
        connection.close()
        with pymysql.connect(**given, database=database) as plainly:
            page["pymysql_or_sqlite3"](plainly, other)
    assert mariadb.sql("SELECT free FROM item", database=database) == "3"


def test_sqlite(page: dict[str, Any], tmp_path: Path) -> None:
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(tmp_path / "stock.db")

    sync.Participant("stock", db=connect).make_table()
    call = new_call("try")
    with contextlib.closing(connect()) as db:
        for statement in ITEMS:
            db.execute(statement)
        db.commit()
        for _ in range(2):
            page["pymysql_or_sqlite3"](db, call)
        assert db.execute("SELECT free FROM item").fetchone() == (4,)


async def test_redis(page: dict[str, Any], redis_server: RedisServer) -> None:
    client = redis.asyncio.Redis.from_url(redis_server.url)
    sku = new_call("try").tx_id
    await client.hset(f"item:{sku}", "free", 5)
    stock = page["stock_in"](client)

    def call(op: str, tx_id: str = "", n: int = 3) -> Any:
        payload = json.dumps({"sku": sku, "n": n}).encode() if op == "try" else b""
        made = new_call(op, tx_id)
        return type(made)(made.tx_id, "1", op, "stock.Reserve", payload, made.deadline_us)

    tried = call("try")
    for _ in range(2):
        assert json.loads((await stock.execute(tried)).result) == {"sku": sku, "n": 3}
    assert await client.hget(f"item:{sku}", "free") == b"2"
    assert (await stock.execute(call("try"))).reason == "OUT_OF_STOCK"
    for _ in range(2):
        assert not (await stock.execute(call("cancel", tried.tx_id))).reason
    assert await client.hget(f"item:{sku}", "free") == b"5"

    # A script that fails in its middle: nobody can tell what it did.
    page["RESERVE"] = "redis.call('HINCRBY', KEYS[1], 'free', -1) redis.call('LPOP', KEYS[1])"
    broken = call("try")
    assert (await stock.execute(broken)).reason
    for op in ("try", "cancel", "confirm"):
        assert (await stock.execute(call(op, broken.tx_id))).reason == reasons.SCRIPT_FAILED
    assert await client.hget(f"item:{sku}", "free") == b"4"
    await client.aclose()


async def test_a_redis_that_drops_keys_is_refused(redis_server: RedisServer) -> None:
    from txcoord_client import Participant

    client = redis.asyncio.Redis.from_url(redis_server.url)
    stock = Participant("stock", db=client)
    stock.action(_nothing)
    call = new_call("action", operation="stock._nothing")
    await client.config_set("maxmemory", "1gb")
    await client.config_set("maxmemory-policy", "volatile-lru")
    try:
        assert (await stock.execute(call)).reason == reasons.MARKER_UNSAFE
    finally:
        await client.config_set("maxmemory-policy", "noeviction")
        await client.config_set("maxmemory", "0")
    assert not (await stock.execute(call)).reason
    await client.aclose()


async def _nothing(db: Any, **given: Any) -> None:
    await asyncio.sleep(0)
