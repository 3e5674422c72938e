"""Contract of the log: replies that are lost, databases that go and come back, and what cannot be a log."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

from tests.support.databases import PG17, PG18, Databases
from tests.support.log_proxy import Proxy
from tests.support.logs import (
    WINDOWS,
    LogContract,
    Place,
    S,
    active,
    amend,
    committing,
    decide,
    end,
    get,
    insert,
    lazily,
    lose_replies,
    operate,
    put,
    shared_place,
    sqlite_place,
    until_waiting,
    written,
    xa,
)
from txcoord.adapters.sql.log import SqlLog
from txcoord.adapters.sql.migrate import migrate
from txcoord.core.model import (
    BranchState,
    Change,
    ChangeKind,
    Decision,
    HistoryEntry,
    TxState,
    Written,
)
from txcoord.ports import LogUnavailable
from txcoord.testing.postgres import PostgresServer

OK, CONFLICT = Written.OK, Written.CONFLICT


class TestLostReply(LogContract):
    async def test_what_was_written_is_ok(self, log: SqlLog) -> None:
        now = await log.now_us()
        open_, voted = active(now), active(now, xa(state=BranchState.READY))
        running, parked = committing(now), committing(now)
        await put(log, open_, voted, running, parked)
        changes = [
            insert(active(now, xa(), gid="g")),
            amend(open_, replace(open_, branches=(xa(),)), xa()),
            decide(voted, Decision.COMMIT),
            end(running),
            operate(parked),
        ]
        lose_replies(log)
        results = await asyncio.gather(*(log.write(c) for c in changes))
        assert [r.written for r in results] == [OK] * 5
        assert len(await log.audits(parked.tx_id)) == 1
        assert len(await log.history(parked.tx_id)) == 1

    async def test_what_was_refused_stays_refused(self, log: SqlLog) -> None:
        now = await log.now_us()
        tx = active(now, xa(state=BranchState.READY))
        await put(log, tx)
        commit, abort = decide(tx, Decision.COMMIT), decide(tx, Decision.ABORT)
        assert await written(log, abort) == [OK]
        late = active(now)
        lose_replies(log)
        results = await asyncio.gather(log.write(commit), log.write(insert(late, not_after_us=now)))
        assert [r.written for r in results] == [CONFLICT, Written.TOO_LATE]

    async def test_again_and_again(self, log: SqlLog) -> None:
        now = await log.now_us()
        tx = active(now)
        lose_replies(log, 2)
        assert await written(log, insert(tx)) == [OK]
        # Progress that leaves its row as it is: only its history tells it.
        running = committing(now)
        await put(log, running)
        entry = HistoryEntry(now, "branch.finished_late")
        change = Change(ChangeKind.PROGRESS, running, expected_epoch=1, history=(entry,))
        lose_replies(log, 2)
        assert await written(log, change) == [OK]
        assert await log.history(running.tx_id) == [entry]

    async def test_an_end_that_raises_the_epoch(self, log: SqlLog) -> None:
        tx = committing(await log.now_us())
        await put(log, tx)
        ended = end(tx, forced=True)
        ended = replace(ended, tx=replace(ended.tx, epoch=2))
        lose_replies(log)
        assert await written(log, ended, ended) == [OK, CONFLICT]

    async def test_unknown_is_said_and_remembered(self, place: Place) -> None:
        log = await place.open(tick_s=3600)
        now = await log.now_us()
        tx, running = active(now), committing(now)
        await put(log, running)
        operated = lazily(log, operate(running))
        come_back = lose_replies(log, then_away=True)
        with pytest.raises(LogUnavailable):
            await log.write(insert(tx))
        assert not operated.done()
        come_back()
        # The lazy one is looked for before it is written again.
        await log.settle()
        assert operated.result().written is OK
        assert (await get(log, running.tx_id)).epoch == 2


@asynccontextmanager
async def proxied(place: Place) -> AsyncIterator[tuple[Proxy, SqlLog]]:
    async with Proxy(place.url) as proxy:
        log = await place.open(proxy.url)
        yield proxy, log
        await log.close()


@pytest.fixture
async def pg_place(pg: PostgresServer) -> AsyncIterator[Place]:
    place = await shared_place(pg)
    yield place
    await place.close()


@pytest.fixture
async def blocker(pg_place: Place) -> AsyncIterator[asyncpg.Connection]:
    """A session of someone else, who can lock tables."""
    conn = await asyncpg.connect(pg_place.url.replace("+asyncpg", ""))
    yield conn
    await conn.close()


class TestBrokenConnections:
    """Real ones, on PostgreSQL."""

    async def test_after_the_commit(self, pg_place: Place) -> None:
        async with proxied(pg_place) as (proxy, log):
            tx = committing(await log.now_us(), name="the-marked-one")
            proxy.lose_reply(b"the-marked-one")
            assert await written(log, insert(tx)) == [OK]
            assert proxy.broke.is_set()
            proxy.lose_reply(b"the-operator")
            assert await written(log, operate(tx, "the-operator")) == [OK]
            assert len(await log.audits(tx.tx_id)) == 1

    async def test_what_was_sent_cannot_land_later(
        self, pg_place: Place, blocker: asyncpg.Connection
    ) -> None:
        """The node's side is gone while its statement waits for a lock: the session is ended before the change
        is written again, and so it is there once."""
        async with proxied(pg_place) as (proxy, log):
            now = await log.now_us()
            tx = active(now, xa(), name="the-marked-one")
            await put(log, active(now, xa()))  # the statement is prepared, which takes a lock too
            lock = blocker.transaction()
            await lock.start()
            await blocker.execute("LOCK TABLE txcoord_tx IN EXCLUSIVE MODE")
            proxy.lose_connection(b"the-marked-one")
            writing = asyncio.create_task(log.write(insert(tx)))
            await proxy.broke.wait()
            await _until_waiting_for_lock(blocker)
            await lock.rollback()
            assert (await writing).written is OK
            assert await get(log, tx.tx_id) == tx

    async def test_a_session_ended_by_the_server(self, pg_place: Place, blocker: asyncpg.Connection) -> None:
        log = await pg_place.open()
        tx = active(await log.now_us(), xa())
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE txcoord_tx IN EXCLUSIVE MODE")
            writing = asyncio.create_task(log.write(insert(tx)))
            await _until_waiting_for_lock(blocker)
            await blocker.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
        assert (await writing).written is OK
        assert await get(log, tx.tx_id) == tx

    async def test_idle_connections_that_were_ended(
        self, pg_place: Place, blocker: asyncpg.Connection
    ) -> None:
        log = await pg_place.open()
        now = await log.now_us()
        await blocker.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        assert await log.now_us() >= now
        assert await written(log, insert(active(now))) == [OK]
        assert await log.claim("n1", S, 1) == []

    async def test_a_deadlock_is_tried_again(self, pg_place: Place, blocker: asyncpg.Connection) -> None:
        log = await pg_place.open()
        now = await log.now_us()
        low, high = committing(now), committing(now)
        await put(log, low, high)
        await blocker.execute("SET deadlock_timeout = '1h'")  # the log's session is the one to be ended
        lock = blocker.transaction()
        await lock.start()
        update = "UPDATE txcoord_tx SET lease_until_us = lease_until_us WHERE tx_id = $1"
        await blocker.execute(update, high.tx_id)
        writing = asyncio.create_task(
            asyncio.wait([asyncio.create_task(log.write(end(t))) for t in (low, high)])
        )
        await _until_waiting_for_lock(blocker)
        await blocker.execute(update, low.tx_id)  # closes the circle
        await lock.rollback()
        done, _ = await writing
        assert {task.result().written for task in done} == {OK}

    async def test_changes_beside_the_flush_in_a_deadlock_are_tried_again(
        self, pg_place: Place, blocker: asyncpg.Connection
    ) -> None:
        log = await pg_place.open()
        await blocker.execute("SET deadlock_timeout = '1h'")  # the log's session is the one to be ended
        lock = blocker.transaction()
        await lock.start()
        take, waiting = (
            "SELECT pg_advisory_xact_lock({})",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted",
        )
        await blocker.execute(take.format(2))
        tries: list[asyncio.Task[str]] = []
        begun = asyncio.Event()

        def work(conn: Connection, _: int) -> None:
            conn.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
            conn.execute(text(take.format(1)))
            tries.append(asyncio.create_task(blocker.execute(take.format(1))))
            begun.set()
            while len(tries) == 1 and not conn.execute(text(waiting)).scalar_one():
                pass
            conn.execute(text(take.format(2)))  # closes the circle

        changing = asyncio.create_task(log.upkeep(work))
        await begun.wait()
        await tries[0]
        await lock.rollback()
        await changing
        assert len(tries) == 2
        await tries[1]

    async def test_a_statement_that_takes_too_long(
        self, pg_place: Place, blocker: asyncpg.Connection
    ) -> None:
        log = await pg_place.open(statement_timeout_s=0.2)
        tx = active(await log.now_us())
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE txcoord_tx IN EXCLUSIVE MODE")
            with pytest.raises(LogUnavailable, match="statement timeout"):
                await log.write(insert(tx))
        assert await log.read([tx.tx_id]) == {}
        assert await written(log, insert(tx)) == [OK]


async def test_a_flush_goes_by_the_key_however_the_table_has_grown(
    pg_place: Place, blocker: asyncpg.Connection
) -> None:
    """Plans are kept; one that was made for an empty table reads all of it."""
    log = await pg_place.open()
    now = await log.now_us()
    tx = active(now, xa(state=BranchState.READY))
    commit = decide(tx, Decision.COMMIT)
    assert await written(log, insert(tx), commit, end(commit.tx)) == [OK] * 3
    await put(log, *(active(now) for _ in range(3000)))
    session = log.store._flusher  # type: ignore[attr-defined]

    async def rows_read() -> int:
        await session.execute("SELECT pg_stat_force_next_flush()")
        read = await session.fetchval(
            "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_user_tables WHERE relname = 'txcoord_tx'"
        )
        return int(read)

    last = active(now, xa(state=BranchState.READY))
    commit = decide(last, Decision.COMMIT)
    before = await rows_read()
    assert await written(log, insert(last), commit, end(commit.tx)) == [OK] * 3
    assert await rows_read() - before < 50


async def _until_waiting_for_lock(conn: asyncpg.Connection) -> None:
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype IN ('relation', 'transactionid')"
    while not await conn.fetchval(waiting):
        pass


class TestDownAndBack:
    @pytest.mark.parametrize("flavour", [PG18, PG17])
    async def test_postgresql(self, pg_server: Callable[..., PostgresServer], flavour: str) -> None:
        server = pg_server(flavour)
        await migrate(server.url())
        place = Place(server.url(), server)
        log = await place.open()
        now = await log.now_us()
        kept, running = active(now, xa()), committing(now)
        await put(log, kept, running)
        server.kill9()
        lazy = lazily(log, end(running))
        lost = active(now)
        for call in (
            lambda: log.write(insert(lost)),
            lambda: log.read([kept.tx_id]),
            lambda: log.claim("n1", S, 1),
            log.now_us,
            log.settle,
        ):
            with pytest.raises(LogUnavailable):
                await call()
        server.start()
        with capture_logs() as said:
            assert await written(log, insert(lost)) == [OK]
            assert (await lazy).written is OK
            assert await get(log, kept.tx_id) == kept
        assert [entry["event"] for entry in said if entry["event"].startswith("log.")] == ["log.back"]
        assert (await get(log, running.tx_id)).state is TxState.COMMITTED
        await place.close()

    async def test_closing_while_it_is_down(self, pg_server: Callable[..., PostgresServer]) -> None:
        server = pg_server()
        await migrate(server.url())
        log = await Place(server.url(), server).open(tick_s=3600)
        running = committing(await log.now_us())
        await put(log, running)
        log.write_lazily(end(running))
        server.kill9()
        await log.close()
        with pytest.raises(LogUnavailable):
            await log.open()

    async def test_sqlite(self, tmp_path: Path) -> None:
        place = await sqlite_place(tmp_path)
        log = await place.open(statement_timeout_s=0.05)
        now = await log.now_us()
        running = committing(now)
        await put(log, running)
        other = sqlite3.connect(tmp_path / "log.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        lazy = lazily(log, end(running))
        with pytest.raises(LogUnavailable, match="locked"):
            await log.write(insert(active(now)))
        other.execute("ROLLBACK")
        other.close()
        assert await written(log, insert(active(now))) == [OK]
        assert (await lazy).written is OK
        await place.close()

    async def test_closed_and_abandoned(self, tmp_path: Path) -> None:
        place = await sqlite_place(tmp_path)
        now = 1
        for stop in ("close", "abandon"):
            log = await place.open()
            if stop == "close":
                await log.close()
            else:
                log.abandon()
            with pytest.raises(LogUnavailable):
                await log.write(insert(active(now)))
            with pytest.raises(LogUnavailable):
                await log.read(["0" * 32])
            log.write_lazily(end(committing(now)))
        await place.close()

    async def test_who_waits_when_it_is_abandoned_is_told(self, tmp_path: Path) -> None:
        place = await sqlite_place(tmp_path)
        log = await place.open()
        writing = asyncio.create_task(log.write(insert(active(1))))
        await until_waiting(log, 1)
        log.abandon()
        with pytest.raises(LogUnavailable):
            await writing
        await place.close()


class TestWhatCannotBeALog:
    async def test_nobody_there(self) -> None:
        log = SqlLog("postgresql://u:secret@127.0.0.1:1/x", windows=WINDOWS)
        with pytest.raises(LogUnavailable) as caught:
            await log.open()
        assert "secret" not in str(caught.value)

    def test_another_database(self) -> None:
        with pytest.raises(ValueError, match="oracle"):
            SqlLog("oracle://u@h/x", windows=WINDOWS)

    async def test_a_replica(self, pg_server: Callable[..., PostgresServer], tmp_path: Path) -> None:
        server = pg_server()
        await migrate(server.url())
        server.stop()
        (server.home / "data" / "standby.signal").touch()
        server.start()
        with pytest.raises(LogUnavailable, match="is a replica"):
            await SqlLog(server.url(), windows=WINDOWS).open()

    async def test_fsync_off_is_a_warning(
        self, pg_server: Callable[..., PostgresServer], capfd: pytest.CaptureFixture[str]
    ) -> None:
        server = pg_server(settings={"fsync": "off"})
        await migrate(server.url())
        log = SqlLog(server.url(), windows=WINDOWS)
        await log.open()
        await log.close()
        out = capfd.readouterr()
        assert "log.unsafe" in out.out + out.err

    async def test_synchronous_commit_off_is_overruled(
        self, pg18: PostgresServer, pg_database: Databases
    ) -> None:
        url = pg_database(pg18)
        name = url.rsplit("/", 1)[1]
        pg18.sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
        await migrate(url)
        place = Place(url)
        log = await place.open()
        await put(log, active(await log.now_us()))
        flusher = log.store._flusher  # type: ignore[attr-defined]
        assert await flusher.fetchval("SHOW synchronous_commit") == "on"
        await place.close()
