"""The inbox: what comes twice acts once, in the receiver's own transaction; a no and a failure never look alike."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from tests.support.databases import Databases
from txcoord_client import Refused, Rejected
from txcoord_client.inbox import Inbox, Took
from txcoord_client.protocol import inbox as statements
from txcoord_client.protocol import reasons

ID = "018f3c5e-1.2/paid"


@pytest.fixture(params=["pg18", "mariadb", "sqlite"])
async def engine(
    request: pytest.FixtureRequest, new_database: Databases, tmp_path: Path
) -> AsyncIterator[AsyncEngine]:
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path}/receiver.db"
    elif request.param == "mariadb":
        url = new_database(request.getfixturevalue("mariadb"), "mysql+asyncmy")
    else:
        url = new_database(request.getfixturevalue("pg18"))
    engine = create_async_engine(url)
    async with engine.begin() as conn:
        await conn.execute(text("CREATE TABLE note (body varchar(60) NOT NULL)"))
    yield engine
    await engine.dispose()


@pytest.fixture
async def inbox(engine: AsyncEngine) -> Inbox:
    inbox = Inbox("orders", engine)
    await inbox.make_table()
    await inbox.make_table()
    return inbox


async def note(db: AsyncConnection, body: str) -> str:
    await db.execute(text("INSERT INTO note VALUES (:body)"), {"body": body})
    return body


async def notes(engine: AsyncEngine) -> list[str]:
    async with engine.connect() as conn:
        return list((await conn.execute(text("SELECT body FROM note ORDER BY body"))).scalars())


async def test_once_however_often_it_comes_and_whoever_takes_it(engine: AsyncEngine, inbox: Inbox) -> None:
    taking = inbox(note)
    assert await taking(ID, "paid") == Took(True, "", "paid")
    assert await taking(ID, body="paid") == Took(False)
    took = await asyncio.gather(*(taking("same", "raced") for _ in range(3)))
    assert sum(t.first for t in took) == 1
    # Another source has ids of its own.
    assert (await Inbox("refunds", engine).take(ID, note, "refunded")).first
    assert await notes(engine) == ["paid", "raced", "refunded"]


async def test_a_no_is_remembered_and_a_failure_is_not(engine: AsyncEngine, inbox: Inbox) -> None:
    calls: list[str] = []

    @inbox
    async def work(db: AsyncConnection, how: str) -> None:
        calls.append(how)
        await note(db, how)
        if how == "no":
            raise Refused("OUT_OF_STOCK", "there is no more")
        if how == "breaks":
            raise RuntimeError("a bug")

    first = await work(ID, "no")
    assert (first, first.status) == (Took(True, "OUT_OF_STOCK"), 409)
    assert await work(ID, "no") == Took(False, "OUT_OF_STOCK")
    assert await inbox.refused(ID) == "OUT_OF_STOCK"
    for _ in range(2):
        with pytest.raises(RuntimeError):
            await work("other", "breaks")
    mended = await work("other", "works")
    assert (mended, mended.status) == (Took(True), 204)
    assert calls == ["no", "breaks", "breaks", "works"]
    assert await notes(engine) == ["works"]
    assert await inbox.refused("other") == ""


async def test_what_was_rolled_back_and_swallowed_is_no_success(engine: AsyncEngine, inbox: Inbox) -> None:
    async def rolls_back(db: AsyncConnection) -> None:
        await note(db, "lost")
        await db.rollback()

    async def swallows(db: AsyncConnection) -> None:
        await note(db, "lost")
        with contextlib.suppress(DBAPIError):
            await db.execute(text("SELECT * FROM nowhere"))

    on_postgres = engine.dialect.name == "postgresql"
    for work in (rolls_back, swallows) if on_postgres else (rolls_back,):
        with pytest.raises(Rejected) as caught:
            await inbox.take(ID, work)
        assert caught.value.reason == reasons.SILENT_ROLLBACK
    assert (await inbox.take(ID, note, "done")).first
    assert await notes(engine) == ["done"]


async def test_what_is_said_to_be_done_is_on_disk(engine: AsyncEngine, inbox: Inbox) -> None:
    if engine.dialect.name != "postgresql":
        return
    async with engine.begin() as conn:
        name = (await conn.execute(text("SELECT current_database()"))).scalar_one()
        await conn.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = off"))
    await engine.dispose()

    async def setting(db: AsyncConnection) -> str:
        return str((await db.execute(text("SHOW synchronous_commit"))).scalar_one())

    assert (await inbox.take(ID, setting)).result == "on"
    async with engine.connect() as conn:
        assert await setting(conn) == "off"


async def test_ids_that_are_long_or_strange_are_kept_too(engine: AsyncEngine, inbox: Inbox) -> None:
    for strange in ("x" * 500, "it's", "a\\b", "größe"):
        assert (await inbox.take(strange, note, "strange")).first
        assert not (await inbox.take(strange, note, "strange")).first
    with pytest.raises(Rejected):
        await inbox.take("", note, "none")
    assert await notes(engine) == ["strange"] * 4


async def test_what_is_old_goes(engine: AsyncEngine, inbox: Inbox) -> None:
    await inbox.take("old", note, "1")
    async with engine.begin() as conn:
        await conn.execute(
            text(f"UPDATE txcoord_inbox SET created_us = created_us - {2 * statements.DAY_US}")
        )
    await inbox.take("young", note, "2")
    assert await inbox.prune(1) == 1
    assert (await inbox.take("old", note, "3")).first
    assert not (await inbox.take("young", note, "4")).first


def test_what_is_none() -> None:
    for source, db in (("a b", object()), ("orders", object())):
        with pytest.raises(Rejected):
            Inbox(source, db)

    async def nothing() -> Any: ...

    engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(Rejected, match="takes no db"):
        Inbox("orders", engine)(nothing)
