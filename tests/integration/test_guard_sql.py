"""The guard of a branch, by its SQL alone: what PostgreSQL does behind a service's back does not get through.

``finish_branch`` is what an SDK has to do with the protocol's message: send it, and look at the tag. Take the
RELEASE out of :func:`pg.prepare`, or the tag out of here, and these tests fail.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from tests.support.databases import Databases
from tests.support.resource import WINDOWS, Resource, new_xid
from tests.support.resource import session as session_of
from txcoord.testing.postgres import PostgresServer
from txcoord_client.protocol import marker
from txcoord_client.protocol import postgresql as pg
from txcoord_client.protocol.xid import Xid


class NotPrepared(Exception):
    """The branch said no."""

    def __init__(self, meaning: pg.Reply | str) -> None:
        super().__init__(meaning)
        self.meaning = meaning


@pytest.fixture
async def db(pg: PostgresServer, pg_database: Databases) -> AsyncIterator[Resource]:
    resource = Resource(pg_database(pg))
    await resource.make()
    yield resource
    await resource.finisher.close()


@pytest.fixture
async def conn(db: Resource) -> AsyncIterator[asyncpg.Connection]:
    """The branch's connection, its work begun."""
    async with session_of(db.url) as conn:
        await conn.execute(f"BEGIN; {pg.START_GUARD}")
        await conn.execute("INSERT INTO work VALUES (1)")
        yield conn


async def finish_branch(conn: asyncpg.Connection, message: str, wanted: str) -> None:
    """Send the branch's last message. Raises NotPrepared."""
    try:
        tag = await conn.execute(message)
    except asyncpg.PostgresError as error:
        raise NotPrepared(pg.meaning_of_prepare(error.sqlstate)) from error
    if tag != wanted:
        raise NotPrepared(f"tag {tag}")


def prepare(x: Xid) -> str:
    return pg.prepare(x.tx_id, x.branch, str(x), WINDOWS.marker_until(x.deadline_us))


def one_phase(x: Xid) -> str:
    return pg.commit_one_phase(x.tx_id, WINDOWS.marker_until(x.deadline_us))


def bare_prepare(x: Xid) -> str:
    """PREPARE without guard and marker: how most clients send it."""
    return f"PREPARE TRANSACTION '{x}'"


Ending = Callable[[Xid], str]
BOTH = pytest.mark.parametrize(
    ("message", "wanted"),
    [
        pytest.param(prepare, pg.PREPARED_TAG, id="prepare"),
        pytest.param(one_phase, pg.COMMITTED_TAG, id="one-phase"),
    ],
)


@BOTH
async def test_a_branch_that_is_well_goes_through(
    db: Resource, conn: asyncpg.Connection, message: Ending, wanted: str
) -> None:
    x = new_xid()
    await finish_branch(conn, message(x), wanted)
    if wanted == pg.PREPARED_TAG:
        assert await db.prepared() == [str(x)]
        assert (await db.finisher.finish(str(x), True)).finished.name == "DONE"
        assert await db.marker(x) == marker.DONE
    else:
        assert await db.marker(x, marker.ONE) == marker.DONE
    assert await db.work() == [1]


async def fail_quietly(conn: asyncpg.Connection) -> None:
    """The application's error, swallowed by the application: the transaction is dead."""
    with pytest.raises(asyncpg.UniqueViolationError):
        await conn.execute("INSERT INTO work VALUES (1)")


async def test_postgresql_rolls_back_silently(db: Resource, conn: asyncpg.Connection) -> None:
    """The trap itself: PREPARE in a failed transaction is no error. Only the tag tells."""
    await fail_quietly(conn)
    x = new_xid()
    assert await conn.execute(bare_prepare(x)) == "ROLLBACK"
    assert await db.prepared() == []


async def test_the_tag_is_looked_at(db: Resource, conn: asyncpg.Connection) -> None:
    """The tag alone catches it, also where no statement before it fails."""
    await fail_quietly(conn)
    with pytest.raises(NotPrepared, match="tag ROLLBACK"):
        await finish_branch(conn, bare_prepare(new_xid()), pg.PREPARED_TAG)
    assert await db.prepared() == []


@BOTH
async def test_a_failed_transaction_is_caught(
    db: Resource, conn: asyncpg.Connection, message: Ending, wanted: str
) -> None:
    await fail_quietly(conn)
    x = new_xid()
    with pytest.raises(NotPrepared) as caught:
        await finish_branch(conn, message(x), wanted)
    assert caught.value.meaning is pg.Reply.GUARD
    await _nothing_is_there(db, x)


async def stray_commit(conn: asyncpg.Connection) -> None:
    await conn.execute("COMMIT")


async def stray_commit_and_begin(conn: asyncpg.Connection) -> None:
    """As an "autocommit off" layer does it: the next statement is in a new transaction."""
    await conn.execute("COMMIT; BEGIN; INSERT INTO work VALUES (2)")


async def stray_rollback(conn: asyncpg.Connection) -> None:
    await conn.execute("ROLLBACK")


async def stray_rollback_and_begin(conn: asyncpg.Connection) -> None:
    await conn.execute("ROLLBACK; BEGIN; INSERT INTO work VALUES (2)")


async def stray_release(conn: asyncpg.Connection) -> None:
    await conn.execute("COMMIT AND CHAIN")


@BOTH
@pytest.mark.parametrize(
    "stray", [stray_commit, stray_commit_and_begin, stray_rollback, stray_rollback_and_begin, stray_release]
)
async def test_an_end_inside_the_branch_is_caught(
    db: Resource,
    conn: asyncpg.Connection,
    stray: Callable[[asyncpg.Connection], Awaitable[None]],
    message: Ending,
    wanted: str,
) -> None:
    """What was committed stays, and cannot be helped; but no vote, and no marker, says that the branch did it."""
    await stray(conn)
    x = new_xid()
    with pytest.raises(NotPrepared) as caught:
        await finish_branch(conn, message(x), wanted)
    assert caught.value.meaning is pg.Reply.GUARD
    await _nothing_is_there(db, x)


async def test_savepoints_of_the_service_are_its_own(db: Resource, conn: asyncpg.Connection) -> None:
    await conn.execute("SAVEPOINT mine; INSERT INTO work VALUES (2); ROLLBACK TO mine")
    await conn.execute("SAVEPOINT mine; INSERT INTO work VALUES (3); RELEASE mine; SAVEPOINT left_open")
    x = new_xid()
    await finish_branch(conn, prepare(x), pg.PREPARED_TAG)
    await db.finisher.finish(str(x), True)
    assert await db.work() == [1, 3]


@pytest.mark.parametrize(
    ("statement", "meaning"),
    [
        ("CREATE TEMP TABLE t (i int)", pg.Reply.NOT_POSSIBLE),
        ("LISTEN news", pg.Reply.NOT_POSSIBLE),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", pg.Reply.NOT_POSSIBLE),
    ],
)
async def test_what_cannot_be_prepared_says_no(
    db: Resource, conn: asyncpg.Connection, statement: str, meaning: pg.Reply
) -> None:
    await conn.execute(statement)
    x = new_xid()
    with pytest.raises(NotPrepared) as caught:
        await finish_branch(conn, prepare(x), pg.PREPARED_TAG)
    assert caught.value.meaning is meaning
    await _nothing_is_there(db, x)


async def test_a_tombstone_stops_a_late_prepare(db: Resource, conn: asyncpg.Connection) -> None:
    x = new_xid()
    assert (await db.finisher.finish(str(x), True)).finished.name == "HEURISTIC"
    with pytest.raises(NotPrepared) as caught:
        await finish_branch(conn, prepare(x), pg.PREPARED_TAG)
    assert caught.value.meaning is pg.Reply.DUPLICATE
    assert (await db.work(), await db.prepared()) == ([], [])


@BOTH
async def test_a_stalled_branch_is_refused_by_the_servers_own_clock(
    db: Resource, conn: asyncpg.Connection, message: Ending, wanted: str
) -> None:
    """The transaction began in time; `now()` would still say so."""
    x = new_xid(deadline_s=-WINDOWS.grace_us / 1e6 + 0.05)
    await conn.execute("SELECT pg_sleep(0.1)")
    with pytest.raises(NotPrepared) as caught:
        await finish_branch(conn, message(x), wanted)
    assert caught.value.meaning is pg.Reply.TOO_LATE
    await _nothing_is_there(db, x)


async def test_prepare_disabled_and_full_are_told_apart(
    pg_server: Callable[..., PostgresServer], pg_database: Databases
) -> None:
    for slots, meaning in (("0", pg.Reply.PREPARE_DISABLED), ("1", pg.Reply.PREPARE_FULL)):
        db = Resource(pg_database(pg_server(settings={"max_prepared_transactions": slots})))
        await db.make()
        for _ in range(int(slots)):
            await db.prepare(new_xid(), 5)
        async with session_of(db.url) as conn:
            await conn.execute(f"BEGIN; {pg.START_GUARD}; INSERT INTO work VALUES (1)")
            with pytest.raises(NotPrepared) as caught:
                await finish_branch(conn, prepare(new_xid()), pg.PREPARED_TAG)
        assert caught.value.meaning is meaning
        await db.finisher.close()


async def test_read_only_is_seen_and_a_row_lock_is_none(db: Resource) -> None:
    await db.sql("INSERT INTO work VALUES (7)")
    async with session_of(db.url) as conn:
        await conn.execute(f"BEGIN; {pg.START_GUARD}")
        await conn.fetch("SELECT * FROM work")
        assert await conn.fetchval(pg.IS_READ_ONLY) is True
        await conn.fetch("SELECT * FROM work FOR UPDATE")
        assert await conn.fetchval(pg.IS_READ_ONLY) is False


async def test_an_outcome_that_hangs_on_a_local_commit_is_flushed(db: Resource) -> None:
    async with session_of(db.url) as conn:
        await conn.execute("SET synchronous_commit = off")
        await conn.execute(f"BEGIN; {pg.START_GUARD}; INSERT INTO work VALUES (1)")
        message = one_phase(new_xid()).removesuffix("; COMMIT")
        await conn.execute(message)
        assert await conn.fetchval("SHOW synchronous_commit") == "on"
        await conn.execute("ROLLBACK; SET synchronous_commit = remote_write; BEGIN; SAVEPOINT txc")
        await conn.execute(message)
        assert await conn.fetchval("SHOW synchronous_commit") == "remote_write", "flushed as well: left alone"


async def _nothing_is_there(db: Resource, x: Xid) -> None:
    assert await db.prepared() == []
    assert await db.marker(x) is None
    assert await db.marker(x, marker.ONE) is None
