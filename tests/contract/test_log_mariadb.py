"""Contract of the log on MariaDB: connections that break, statements that are in each other's way, servers that
cannot be a log."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from tests.support.databases import Databases, database_of
from tests.support.log_proxy import Proxy
from tests.support.logs import (
    WINDOWS,
    Place,
    S,
    active,
    committing,
    decide,
    end,
    get,
    insert,
    lazily,
    operate,
    put,
    shared_place,
    until_waiting,
    written,
    xa,
)
from txcoord.adapters.sql import mariadb_server
from txcoord.adapters.sql.log import SqlLog
from txcoord.adapters.sql.migrate import migrate
from txcoord.core.model import BranchState, Decision, TxState, Written
from txcoord.ports import LogUnavailable
from txcoord.testing.mariadb import MariaDBServer, MySQLServer

OK = Written.OK
Servers = Callable[..., MariaDBServer]


@pytest.fixture
async def place(mariadb: MariaDBServer) -> AsyncIterator[Place]:
    place = await shared_place(mariadb)
    yield place
    await place.close()


async def until(so: Callable[[], bool]) -> None:
    """Until it is so."""
    while not so():  # noqa: ASYNC110 - it is somewhere else that it becomes so
        await asyncio.sleep(0.01)


def sessions(server: MariaDBServer) -> list[str]:
    """The ids of all sessions."""
    return server.sql("SELECT ID FROM information_schema.PROCESSLIST").split()


async def _flusher(log: SqlLog) -> Any:
    """The connection for flushes."""
    store: Any = log.store
    return await store._hot()


class Blocker:
    """A session of someone else, who can lock rows and tables."""

    def __init__(self, server: MariaDBServer, database: str) -> None:
        self._server = server
        self._conn = server.connect(database, autocommit=False)

    def run(self, sql: str) -> None:
        with self._conn.cursor() as cursor:
            cursor.execute(sql)

    def lock(self) -> None:
        self.run("LOCK TABLES txcoord_tx WRITE")

    def let_go(self) -> None:
        self.run("UNLOCK TABLES")
        self._conn.rollback()

    async def until_blocking(self) -> list[str]:
        """Until a session of the log waits for a lock; its id."""
        waiting = (
            "SELECT ID FROM information_schema.PROCESSLIST WHERE STATE LIKE 'Waiting for table%lock'"
            " UNION SELECT trx_mysql_thread_id FROM information_schema.INNODB_TRX WHERE trx_state = 'LOCK WAIT'"
        )
        ids: list[str] = []
        while not ids:
            # INNODB_TRX is not made anew while it is asked for more often than every 0.1 s.
            await asyncio.sleep(0.12)
            ids = self._server.sql(waiting).split()
        return ids

    def close(self) -> None:
        self._conn.close()


@pytest.fixture
def blocker(mariadb: MariaDBServer, place: Place) -> Iterator[Blocker]:
    blocker = Blocker(mariadb, database_of(place.url))
    yield blocker
    blocker.close()


@asynccontextmanager
async def proxied(place: Place) -> AsyncIterator[tuple[Proxy, SqlLog]]:
    async with Proxy(place.url) as proxy:
        log = await place.open(proxy.url)
        yield proxy, log
        await log.close()


class TestBrokenConnections:
    async def test_after_the_commit(self, place: Place) -> None:
        async with proxied(place) as (proxy, log):
            tx = committing(await log.now_us(), name="the-marked-one")
            proxy.lose_reply(b"the-marked-one")
            assert await written(log, insert(tx)) == [OK]
            assert proxy.broke.is_set()
            proxy.broke.clear()
            proxy.lose_reply(b"the-operator")
            assert await written(log, operate(tx, "the-operator")) == [OK]
            assert proxy.broke.is_set()
            assert len(await log.audits(tx.tx_id)) == 1

    async def test_what_was_sent_cannot_land_later(
        self, mariadb: MariaDBServer, place: Place, blocker: Blocker
    ) -> None:
        """The node's side is gone while its statement waits for a lock: the session is ended before the change
        is written again, and so it is there once."""
        async with proxied(place) as (proxy, log):
            tx = active(await log.now_us(), xa(), name="the-marked-one")
            session = str((await _flusher(log)).thread_id())
            blocker.lock()
            proxy.lose_connection(b"the-marked-one")
            writing = asyncio.create_task(log.write(insert(tx)))
            await proxy.broke.wait()
            # The next one ends it, and then waits itself.
            await until(lambda: session not in sessions(mariadb))
            assert await blocker.until_blocking() != [session]
            blocker.let_go()
            assert (await writing).written is OK
            assert await get(log, tx.tx_id) == tx

    async def test_a_session_ended_by_the_server(
        self, mariadb: MariaDBServer, place: Place, blocker: Blocker
    ) -> None:
        log = await place.open()
        tx = active(await log.now_us(), xa())
        blocker.lock()
        writing = asyncio.create_task(log.write(insert(tx)))
        (session,) = await blocker.until_blocking()
        mariadb.sql(f"KILL {session}")
        await until(lambda: session not in sessions(mariadb))
        blocker.let_go()
        assert (await writing).written is OK
        assert await get(log, tx.tx_id) == tx

    async def test_idle_connections_that_were_ended(self, mariadb: MariaDBServer, place: Place) -> None:
        log = await place.open()
        now = await log.now_us()
        mariadb.end_sessions(database_of(place.url))
        assert await log.now_us() >= now
        assert await written(log, insert(active(now))) == [OK]
        mariadb.end_sessions(database_of(place.url))
        assert await log.claim("n1", S, 1) == []


class TestInEachOthersWay:
    async def test_a_deadlock_is_tried_again(self, place: Place, blocker: Blocker) -> None:
        log = await place.open()
        now = await log.now_us()
        low, high, *others = (committing(now) for _ in range(40))
        await put(log, low, high, *others)
        # Who has changed less is the one to be ended: the log's session.
        update = "UPDATE txcoord_tx SET lease_until_us = lease_until_us + 1 WHERE tx_id {}"
        blocker.run(update.format(f"NOT IN (X'{low.tx_id}')"))
        writing = asyncio.create_task(
            asyncio.wait([asyncio.create_task(log.write(end(t))) for t in (low, high)])
        )
        await blocker.until_blocking()
        # Closes the circle.
        await asyncio.to_thread(blocker.run, update.format(f"= X'{low.tx_id}'"))
        blocker.let_go()
        done, _ = await writing
        assert {task.result().written for task in done} == {OK}

    async def test_a_claim_in_a_deadlock_is_tried_again(self, place: Place) -> None:
        log = await place.open()
        store: Any = log.store
        tries = 0

        def work(conn: Any) -> int:
            nonlocal tries
            tries += 1
            if tries < 3:
                raise mariadb_server.errors.OperationalError(1213, "Deadlock found")
            return tries

        assert await store.changing(work) == 3

    async def test_a_statement_that_takes_too_long(self, place: Place, blocker: Blocker) -> None:
        log = await place.open(statement_timeout_s=0.2)
        tx = active(await log.now_us())
        blocker.lock()
        with pytest.raises(LogUnavailable, match="max_statement_time"):
            await log.write(insert(tx))
        blocker.let_go()
        assert await log.read([tx.tx_id]) == {}
        assert await written(log, insert(tx)) == [OK]

    async def test_what_failed_half_way_is_rolled_back(self, place: Place, blocker: Blocker) -> None:
        """The row is in, its branch is not: nothing of it may be committed with the next flush."""
        log = await place.open(statement_timeout_s=0.2)
        now = await log.now_us()
        tx, other = active(now, xa()), active(now, xa())
        blocker.run("LOCK TABLES txcoord_branch WRITE")
        with pytest.raises(LogUnavailable):
            await log.write(insert(tx))
        blocker.let_go()
        assert await written(log, insert(other)) == [OK]
        assert await log.read([tx.tx_id, other.tx_id]) == {other.tx_id: other}

    async def test_many_nodes_at_once(self, place: Place) -> None:
        """On the same rows, in both directions."""
        logs = [await place.open() for _ in range(4)]
        now = await logs[0].now_us()
        txs = [active(now, xa(state=BranchState.READY), gid=f"g{n}") for n in range(60)]

        async def insert_all(number: int) -> list[Written]:
            mine = txs if number % 2 else list(reversed(txs))
            return [r.written for r in await asyncio.gather(*(logs[number].write(insert(t)) for t in mine))]

        results = await asyncio.gather(*(insert_all(n) for n in range(4)))
        assert sum(r.count(OK) for r in results) == 60

        async def decide_all(number: int) -> dict[str, Written]:
            d = (Decision.COMMIT, Decision.ABORT)[number % 2]
            out = await asyncio.gather(*(logs[number].write(decide(t, d)) for t in txs))
            return {t.tx_id: r.written for t, r in zip(txs, out, strict=True)}

        decided = await asyncio.gather(*(decide_all(n) for n in range(4)))
        for tx in txs:
            assert sorted(d[tx.tx_id] for d in decided) == [Written.CONFLICT] * 3 + [OK]


async def test_a_flush_goes_by_the_key_however_the_table_has_grown(place: Place) -> None:
    log = await place.open()
    now = await log.now_us()
    await put(log, *(active(now, xa()) for _ in range(3000)))

    async def rows_read() -> int:
        rows = await mariadb_server.ask(await _flusher(log), "SHOW SESSION STATUS LIKE 'Handler_read%'")
        return sum(int(value) for name, value in rows if "tmp" not in name.lower())

    last = active(now, xa(state=BranchState.READY))
    commit = decide(last, Decision.COMMIT)
    before = await rows_read()
    assert await written(log, insert(last), commit, end(commit.tx)) == [OK] * 3
    assert await rows_read() - before < 200


async def test_a_flush_costs_one_statement_for_each_kind(place: Place) -> None:
    log = await place.open()
    now = await log.now_us()

    async def counts() -> dict[str, int]:
        rows = await mariadb_server.ask(
            await _flusher(log),
            "SHOW SESSION STATUS WHERE Variable_name IN"
            " ('Com_insert_select', 'Com_update_multi', 'Com_select', 'Com_commit')",
        )
        return {name: int(value) for name, value in rows}

    before = await counts()
    txs = [active(now, xa("1"), xa("2")) for _ in range(50)]
    flushed = log.forced_flushes
    await put(log, *txs)
    assert log.forced_flushes - flushed == 1
    after = await counts()
    assert {name: after[name] - before[name] for name in after} == {
        "Com_insert_select": 2,  # rows and branches
        "Com_update_multi": 0,
        "Com_select": 2,  # what was written, and the clock
        "Com_commit": 1,
    }


async def test_what_is_too_large_for_a_message_fails_alone(
    mariadb_server: Servers,
) -> None:
    server = mariadb_server(settings={"max-allowed-packet": "1M"})
    await migrate(server.url())
    place = Place(server.url())
    log = await place.open()
    now = await log.now_us()
    txs = [active(now, xa(), labels={"a": "x" * 300_000}) for _ in range(8)]
    await put(log, *txs)  # together they are too large
    with pytest.raises(ValueError, match="max_allowed_packet"):
        await log.write(insert(active(now, labels={"a": "x" * 1_100_000})))
    assert await log.read([t.tx_id for t in txs]) == {t.tx_id: t for t in txs}
    await place.close()


class TestDownAndBack:
    async def test_killed_and_started(self, mariadb_server: Servers) -> None:
        server = mariadb_server()
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
        assert await written(log, insert(lost)) == [OK]
        assert (await lazy).written is OK
        assert await get(log, kept.tx_id) == kept
        assert (await get(log, running.tx_id)).state is TxState.COMMITTED
        await place.close()

    async def test_closing_while_it_is_down(self, mariadb_server: Servers) -> None:
        server = mariadb_server()
        await migrate(server.url())
        log = await Place(server.url(), server).open(tick_s=3600)
        running = committing(await log.now_us())
        await put(log, running)
        log.write_lazily(end(running))
        server.kill9()
        await log.close()
        with pytest.raises(LogUnavailable):
            await log.open()

    async def test_a_server_that_hangs(self, mariadb_server: Servers) -> None:
        """It takes the connection and never answers: the driver would wait for ever."""
        server = mariadb_server()
        await migrate(server.url())
        place = Place(server.url(), server)
        log = await place.open(statement_timeout_s=0.1)
        now = await log.now_us()
        with _stopped(server.pid):
            for call in (lambda: log.write(insert(active(now))), log.now_us):
                with pytest.raises(LogUnavailable, match="TimeoutError"):
                    await call()
        assert await written(log, insert(active(now))) == [OK]
        await place.close()

    async def test_who_waits_when_it_is_abandoned_is_told(self, place: Place) -> None:
        log = await place.open()
        writing = asyncio.create_task(log.write(insert(active(await log.now_us()))))
        await until_waiting(log, 1)
        log.abandon()
        with pytest.raises(LogUnavailable):
            await writing


class TestWhatCannotBeALog:
    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"read-only": "ON"}, "is a replica"),
            ({"wsrep-on": "ON", "binlog-format": "ROW"}, "Galera"),
            (
                {"log-bin": "binlog", "server-id": "1", "binlog-format": "STATEMENT"},
                "binlog_format = STATEMENT",
            ),
        ],
    )
    async def test_settings(self, mariadb_server: Servers, settings: dict[str, str], says: str) -> None:
        server = mariadb_server(settings=settings)
        for attempt in (SqlLog(server.url(), windows=WINDOWS).open, lambda: migrate(server.url())):
            with pytest.raises(LogUnavailable, match=says):
                await attempt()

    async def test_a_replica(self, mariadb_server: Servers) -> None:
        primary = mariadb_server(settings={"log-bin": "binlog", "server-id": "1", "binlog-format": "ROW"})
        replica = mariadb_server(settings={"server-id": "2"})
        await migrate(replica.url())
        replica.sql(
            f"CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {primary.port}, MASTER_USER = 'root';"
            "START SLAVE"
        )
        running = "SHOW GLOBAL STATUS LIKE 'Slaves_running'"
        await until(lambda: replica.sql(running) == "Slaves_running|1")
        with pytest.raises(LogUnavailable, match="is a replica"):
            await SqlLog(replica.url(), windows=WINDOWS).open()

    async def test_a_primary_that_becomes_read_only(self, mariadb_server: Servers) -> None:
        server = mariadb_server()
        await migrate(server.url())
        server.sql(
            "CREATE USER txcoord@127.0.0.1 IDENTIFIED BY 'secret'; GRANT ALL ON mysql.* TO txcoord@127.0.0.1"
        )
        place = Place(server.url().replace("root@", "txcoord:secret@"), server)
        log = await place.open()
        now = await log.now_us()
        server.sql("SET GLOBAL read_only = 1")
        for says in ("read-only", "is a replica"):
            with pytest.raises(LogUnavailable, match=says):
                await log.write(insert(active(now)))
        server.sql("SET GLOBAL read_only = 0")
        assert await written(log, insert(active(now))) == [OK]
        await place.close()

    async def test_mysql(self, mysql: MySQLServer, new_database: Databases) -> None:
        url = new_database(mysql)
        for attempt in (SqlLog(url, windows=WINDOWS).open, lambda: migrate(url)):
            with pytest.raises(LogUnavailable, match="this is MySQL"):
                await attempt()

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"innodb-flush-log-at-trx-commit": "2"}, "innodb_flush_log_at_trx_commit"),
            ({"log-bin": "binlog", "server-id": "1", "binlog-format": "ROW"}, "sync_binlog"),
            ({"innodb-doublewrite": "OFF"}, "innodb_doublewrite"),
        ],
    )
    async def test_unsafe_settings_are_a_warning(
        self,
        mariadb_server: Servers,
        capfd: pytest.CaptureFixture[str],
        settings: dict[str, str],
        named: str,
    ) -> None:
        server = mariadb_server(settings=settings)
        await migrate(server.url())
        log = SqlLog(server.url(), windows=WINDOWS)
        await log.open()
        await log.close()
        out = capfd.readouterr()
        assert "log.unsafe" in out.out + out.err
        assert named in out.out + out.err


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
