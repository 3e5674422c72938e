"""The finisher of MariaDB and MySQL against the real things: no OK is believed, no foreign branch is touched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import asyncmy
import pymysql
import pytest

from tests.support.databases import Databases
from tests.support.maria_resource import MariaResource, now_us
from tests.support.resource import IDENTITY, new_xid
from txcoord.core.model import Windows
from txcoord.ports import Finished, Probed, ResourceTrouble
from txcoord.testing.mariadb import MariaDBServer, MySQLServer
from txcoord_client.protocol import mariadb as my
from txcoord_client.protocol import marker


@pytest.fixture(params=["mariadb", "mysql"])
async def db(request: pytest.FixtureRequest, new_database: Databases) -> AsyncIterator[MariaResource]:
    server: MariaDBServer | MySQLServer = request.getfixturevalue(request.param)
    resource = MariaResource(server, new_database(server))
    await resource.make()
    yield resource
    await resource.close()
    assert resource.listed() == [], "nothing is left prepared"


@pytest.fixture
async def maria(mariadb: MariaDBServer, new_database: Databases) -> AsyncIterator[MariaResource]:
    resource = MariaResource(mariadb, new_database(mariadb))
    await resource.make()
    yield resource
    await resource.close()


async def until_done(db: MariaResource, xid: str, commit: bool) -> None:
    async with asyncio.timeout(20):
        while (result := await db.finisher.finish(xid, commit)).finished is not Finished.DONE:
            assert (result.finished, result.reason.split(":")[0]) == (Finished.RETRY, "BUSY"), result


async def retried(db: MariaResource, xid: str, commit: bool) -> None:
    """After a restart: the connections of before it are dead."""
    async with asyncio.timeout(20):
        while (result := await db.finisher.finish(xid, commit)).finished is not Finished.DONE:
            assert result.finished is Finished.RETRY


# ---- what both do ----


async def test_commit_and_rollback(db: MariaResource) -> None:
    kept, undone = await db.left(1), await db.left(2)
    assert db.work() == []
    assert (await db.finisher.finish(str(kept), True)).finished is Finished.DONE
    assert (await db.finisher.finish(str(undone), False)).finished is Finished.DONE
    assert db.work() == [1]
    assert (db.marker(kept), db.marker(undone)) == (marker.DONE, None)
    assert db.finisher.engine == ("mariadb" if db.mariadb else "mysql")


async def test_a_branch_named_as_on_mariadb_is_finished_on_mysql_too(
    mysql: MySQLServer, new_database: Databases
) -> None:
    """While the coordinator has not reached it, it cannot tell which of the two it is."""
    db = MariaResource(mysql, new_database(mysql))
    assert db.finisher.engine == "mariadb"
    await db.make()
    db.mariadb = True
    holder = db.branch(1)
    assert holder.x.connection_id
    db.mariadb = False
    assert (await db.finisher.finish(str(holder.x), True)).finished is Finished.DONE
    assert db.work() == [1]
    await db.close()


async def test_both_may_be_repeated_and_raced(db: MariaResource) -> None:
    kept, undone = await db.left(1), await db.left(2)
    results = await asyncio.gather(
        *(db.finisher.finish(str(kept), True) for _ in range(10)),
        *(db.finisher.finish(str(undone), False) for _ in range(10)),
    )
    assert {r.finished for r in results} <= {Finished.DONE, Finished.RETRY}
    assert {r.reason.split(":")[0] for r in results if r.finished is Finished.RETRY} <= {"BUSY"}
    await until_done(db, str(kept), True)
    await until_done(db, str(undone), False)
    assert db.work() == [1]


async def test_gone_without_a_marker_is_heuristic_and_fenced(db: MariaResource) -> None:
    """Someone has rolled it back by hand, though commit was decided."""
    x = await db.left()
    db.sql(my.xa_rollback(str(x)))
    for _ in range(2):
        result = await db.finisher.finish(str(x), True)
        assert result.finished is Finished.HEURISTIC
        assert result.reason.startswith("HEURISTIC")
    assert db.marker(x) == marker.TOMBSTONE


async def test_committed_though_abort_was_decided_is_heuristic(db: MariaResource) -> None:
    x = await db.left()
    db.sql(my.xa_commit(str(x)))
    result = await db.finisher.finish(str(x), False)
    assert result.finished is Finished.HEURISTIC
    assert db.work() == [1]


async def test_gone_for_too_long_is_for_a_person(mariadb: MariaDBServer, new_database: Databases) -> None:
    db = MariaResource(mariadb, new_database(mariadb), windows=Windows(1, 2))
    await db.make()
    x = new_xid(deadline_s=-10)
    result = await db.finisher.finish(str(x), True)
    assert result.finished is Finished.HEURISTIC
    assert "too long ago" in result.reason
    await db.close()


async def test_only_ours_are_listed_and_a_foreign_one_is_left_alone(db: MariaResource) -> None:
    x = await db.left()
    foreign = "X'ff00fe', X'01', 7"
    alike = f"'{x.gtrid}', '2', 7"
    conns = []
    for name in (foreign, alike):
        conn = db.session()
        conns.append(conn)
        with conn.cursor() as cursor:
            for verb in ("START", "END", "PREPARE"):
                cursor.execute(f"XA {verb} {name}")
    assert [p.xid for p in await db.finisher.list_prepared([x.log_id])] == [str(x)]
    assert await db.finisher.list_prepared(["0000000000"]) == []
    assert (await db.finisher.finish(str(x), False)).finished is Finished.DONE
    assert len(db.listed()) == 2
    for name, conn in zip((foreign, alike), conns, strict=True):
        with conn.cursor() as cursor:
            cursor.execute(f"XA ROLLBACK {name}")
        conn.close()


async def test_one_phase_is_asked_by_tombstone(db: MariaResource) -> None:
    committed, never, late = new_xid(), new_xid(), new_xid()
    db.sql(my.insert_marker(committed.tx_id, marker.ONE_BRANCH, marker.ONE, now_us() + 10**7))
    assert await db.finisher.probe_one_phase(committed.tx_id, now_us() + 10**7) is Probed.COMMITTED
    for _ in range(2):
        assert await db.finisher.probe_one_phase(never.tx_id, now_us() + 10**7) is Probed.NEVER
    assert await db.finisher.probe_one_phase(late.tx_id, now_us() - 1) is Probed.TOO_LATE
    open_ = new_xid()
    conn = db.session()
    with conn.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(my.insert_marker(open_.tx_id, marker.ONE_BRANCH, marker.ONE, now_us() + 10**7))
        assert await db.finisher.probe_one_phase(open_.tx_id, now_us() + 10**7) is Probed.OPEN
        cursor.execute("COMMIT")
    conn.close()
    assert await db.finisher.probe_one_phase(open_.tx_id, now_us() + 10**7) is Probed.COMMITTED


@pytest.mark.parametrize(
    "setting",
    [
        "sql_mode = ''",
        "sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES'",
        "time_zone = '+05:30'",
        "time_zone = '-11:00'",
        "timestamp = 1000000000",
        "timestamp = 2000000000",
        "sql_select_limit = 0",
    ],
)
async def test_a_marker_keeps_its_limit_in_any_session(db: MariaResource, setting: str) -> None:
    conn = db.session()
    with conn.cursor() as cursor:
        cursor.execute(f"SET SESSION {setting}")
        in_time, late = new_xid(), new_xid()
        now = now_us()
        assert cursor.execute(my.insert_marker(late.tx_id, "1", marker.XA, now - 1)) == 0
        assert cursor.execute(my.insert_marker(in_time.tx_id, "1", marker.XA, now + 5_000_000)) == 1
    conn.close()
    made = int(db.sql(f"SELECT created_us FROM txcoord_marker WHERE tx_id = X'{in_time.tx_id}'"))
    assert now - 100_000 <= made <= now_us() + 100_000
    assert db.marker(late) is None


async def test_an_old_marker_goes_and_a_young_one_stays(db: MariaResource) -> None:
    for _ in range(3):
        assert await db.finisher.probe_one_phase(new_xid().tx_id, now_us() + 10**7) is Probed.NEVER
    # A participant's own are its own: it may be another coordinator's, and still hold something.
    db.sql("INSERT INTO txcoord_marker SELECT tx_id, '1', 'try', state, NULL, created_us FROM txcoord_marker")
    assert await db.finisher.prune_markers(now_us() - 60_000_000, 10) == 0
    assert await db.finisher.prune_markers(now_us() + 60_000_000, 2) == 2
    assert await db.finisher.prune_markers(now_us() + 60_000_000, 2) == 1


async def test_another_database_than_before_is_refused(db: MariaResource) -> None:
    wrong = db.another(expected_identity="f" * 32)
    with pytest.raises(ResourceTrouble) as trouble:
        await wrong.list_prepared([])
    assert trouble.value.reason == "RESOURCE_MISMATCH"
    result = await wrong.finish(str(new_xid()), True)
    assert (result.finished, result.reason.split(":")[0]) == (Finished.RETRY, "RESOURCE_MISMATCH")
    await wrong.close()
    assert await db.finisher.identity() == IDENTITY


async def test_what_cannot_be_reached_is_tried_again(db: MariaResource) -> None:
    nobody = db.another(user="nobody_at_all")
    with pytest.raises(ResourceTrouble) as trouble:
        await nobody.identity()
    assert trouble.value.reason == "RESOURCE_CREDENTIALS"
    db.sql("RENAME TABLE txcoord_identity TO elsewhere")
    fresh = db.another()
    with pytest.raises(ResourceTrouble) as trouble:
        await fresh.identity()
    assert trouble.value.reason == "RESOURCE_NOT_PREPARED"
    await fresh.close()


async def test_a_connection_that_breaks_at_once_is_tried_again(
    db: MariaResource, monkeypatch: pytest.MonkeyPatch
) -> None:
    xid = await db.left(1)
    connect = asyncmy.connect

    async def broken(**options: object) -> None:
        monkeypatch.setattr(asyncmy, "connect", connect)
        raise RuntimeError("Transport does not expose socket instance")  # Seen when the server was killed.

    monkeypatch.setattr(asyncmy, "connect", broken)
    fresh = db.another()
    assert (await fresh.finish(str(xid), True)).finished is Finished.RETRY
    assert (await fresh.finish(str(xid), True)).finished is Finished.DONE
    await fresh.close()


async def test_a_cancelled_statement_costs_its_session_only(db: MariaResource) -> None:
    x = await db.left()
    for delay in (0.0, 0.001, 0.003, 0.1, 0.11):
        task = asyncio.ensure_future(db.finisher.finish(str(x), True))
        await asyncio.wait({task}, timeout=delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await until_done(db, str(x), True)
    assert db.work() == [1]


async def test_rights_are_named(db: MariaResource) -> None:
    host = "127.0.0.1"
    user = f"reader{db.database}"
    db.sql(f"CREATE USER {user}@'{host}'")
    try:
        db.sql(f"GRANT SELECT, DELETE ON {db.database}.* TO {user}@'{host}'")
        reader = db.another(user=user)
        assert await db.finisher.missing_rights() == []
        assert await reader.missing_rights() == ["INSERT"]
        if not db.mariadb:
            x = await db.left()
            with pytest.raises(ResourceTrouble) as trouble:
                await reader.list_prepared([])
            assert trouble.value.reason == "NOT_PERMITTED"
            assert (await reader.finish(str(x), False)).finished is Finished.DONE, "that needs no right"
        await reader.close()
        settings = await db.finisher.settings()
        assert settings["engine"] == db.finisher.engine
        assert settings["server_version"].startswith(db.server.version[:4])
    finally:
        db.sql(f"DROP USER {user}@'{host}'")


# ---- MariaDB: the session that prepared ----


async def test_many_coordinators_end_sessions_of_one_server_at_once(maria: MariaResource) -> None:
    """InnoDB shows who holds what as it was when it was last left alone for a moment: they take turns."""
    holders = [maria.branch(value) for value in range(16)]
    finishers = [maria.another() for _ in holders]

    async def finished(number: int) -> None:
        finisher, xid = finishers[number], str(holders[number].x)
        # Out of step, so that somebody always reads.
        await asyncio.sleep(0.05 * number)
        while (result := await finisher.finish(xid, True)).finished is not Finished.DONE:
            assert (result.finished, result.reason.split(":")[0]) == (Finished.RETRY, "BUSY"), result

    async with asyncio.timeout(30):
        await asyncio.gather(*(finished(number) for number in range(len(holders))))
    assert maria.work() == list(range(16))
    for finisher in finishers:
        await finisher.close()


async def test_a_session_that_lives_is_ended_and_its_branch_finished(maria: MariaResource) -> None:
    for value, commit in ((1, True), (2, False)):
        holder = maria.branch(value)
        began = asyncio.get_running_loop().time()
        assert (await maria.finisher.finish(str(holder.x), commit)).finished is Finished.DONE
        assert asyncio.get_running_loop().time() - began > 0.1, "the guard's wait"
        with pytest.raises(pymysql.MySQLError):
            holder.sql("SELECT 1")
        assert maria.marker(holder.x) == (marker.DONE if commit else None)
        assert maria.work() == [1]
    assert maria.listed() == []


async def test_its_own_session_finishes_it(maria: MariaResource) -> None:
    kept, undone = maria.branch(1), maria.branch(2)
    for holder, commit in ((kept, True), (undone, False)):
        assert not await maria.finisher.has_ended(str(holder.x), commit)
        holder.sql((my.xa_commit if commit else my.xa_rollback)(str(holder.x)))
        assert await maria.finisher.has_ended(str(holder.x), commit)
        assert (await maria.finisher.finish(str(holder.x), commit)).finished is Finished.DONE
        assert holder.sql("SELECT 1") == ((1,),), "nobody has ended it"
    assert maria.work() == [1]


async def test_a_session_that_only_has_the_same_number_is_left_alone(maria: MariaResource) -> None:
    """Numbers of sessions begin anew when the server starts; the branch is older."""
    innocent = maria.session()
    holder = maria.branch()
    x = holder.x
    renamed = x.__class__(x.log_id, x.deadline_us, x.tx_id, x.branch, innocent.thread_id())
    holder.sql(my.xa_rollback(str(x)))
    for statement in (
        my.xa_start(str(renamed)),
        my.insert_marker(x.tx_id, x.branch, marker.XA, now_us() + 10**8),
        my.xa_end(str(renamed)),
        my.xa_prepare(str(renamed)),
    ):
        holder.sql(statement)
    # As long as its real session lives it cannot be finished, and nobody is ended on suspicion.
    result = await maria.finisher.finish(str(renamed), True)
    assert (result.finished, result.reason.split(":")[0]) == (Finished.RETRY, "BUSY")
    with innocent.cursor() as cursor:
        cursor.execute("SELECT 1")
    holder.close()
    await maria.gone(x)
    await until_done(maria, str(renamed), True)
    with innocent.cursor() as cursor:
        cursor.execute("SELECT 1")
    innocent.close()


async def test_a_branch_that_is_still_at_work_is_not_ended(maria: MariaResource) -> None:
    """Its transaction was aborted; its PREPARE comes later, or never."""
    conn = maria.session()
    x = new_xid()
    x = x.__class__(x.log_id, x.deadline_us, x.tx_id, x.branch, conn.thread_id())
    with conn.cursor() as cursor:
        cursor.execute(my.xa_start(str(x)))
        cursor.execute("INSERT INTO work VALUES (7)")
        assert (await maria.finisher.finish(str(x), False)).finished is Finished.DONE
        cursor.execute("SELECT 1")
        cursor.execute(my.xa_end(str(x)))
        cursor.execute(my.xa_rollback(str(x)))
    conn.close()


async def test_without_the_right_to_end_it_it_says_so(maria: MariaResource) -> None:
    user = f"u{maria.database}"
    maria.sql(f"CREATE USER {user}@'127.0.0.1'")
    maria.sql(f"GRANT SELECT, INSERT, DELETE ON {maria.database}.* TO {user}@'127.0.0.1'")
    poor = maria.another(user=user)
    try:
        holder = maria.branch()
        result = await poor.finish(str(holder.x), True)
        assert (result.finished, result.reason.split(":")[0]) == (Finished.RETRY, "BUSY")
        assert "GRANT PROCESS, CONNECTION ADMIN" in result.reason
        assert await poor.in_limbo() == 0
        maria.sql(f"GRANT PROCESS ON *.* TO {user}@'127.0.0.1'")
        await poor.close()
        poor = maria.another(user=user)
        result = await poor.finish(str(holder.x), True)
        assert (result.finished, result.reason.split(":")[0]) == (Finished.RETRY, "NOT_PERMITTED")
        assert holder.sql("SELECT 1") == ((1,),)
        maria.sql(f"GRANT CONNECTION ADMIN ON *.* TO {user}@'127.0.0.1'")
        await poor.close()
        poor = maria.another(user=user)
        assert (await poor.finish(str(holder.x), True)).finished is Finished.DONE
    finally:
        await poor.close()
        maria.sql(f"DROP USER {user}@'127.0.0.1'")


async def test_its_own_user_ends_it_without_any_right_more(maria: MariaResource) -> None:
    """The service and the coordinator log in as one user: it sees its own sessions, and may end them."""
    user = f"s{maria.database}"
    maria.sql(f"CREATE USER {user}@'127.0.0.1'")
    maria.sql(f"GRANT SELECT, INSERT, DELETE ON {maria.database}.* TO {user}@'127.0.0.1'")
    same = maria.another(user=user)
    try:
        before = maria.session
        maria.session = lambda: maria.server.connect(maria.database, user=user)  # type: ignore[method-assign]
        old = maria.branch(1, begun_us=now_us() - 86_400_000_000)
        young = maria.branch(2, begun_us=now_us() + 120_000_000)
        maria.session = before  # type: ignore[method-assign]
        result = await same.finish(str(old.x), True)
        assert result.reason.startswith("BUSY"), "perhaps it only has the same number"
        assert old.sql("SELECT 1") == ((1,),)
        assert (await same.finish(str(young.x), True)).finished is Finished.DONE
        old.sql(my.xa_rollback(str(old.x)))
    finally:
        await same.close()
        maria.sql(f"DROP USER {user}@'127.0.0.1'")


# ---- MariaDB: limbo ----


@pytest.mark.parametrize("commit", [True, False])
async def test_the_guard_keeps_a_branch_out_of_limbo(
    mariadb_server: Callable[..., MariaDBServer], new_database: Databases, commit: bool
) -> None:
    """A session on its way out: detached for XA, and InnoDB does not know it yet. A pool's reset keeps it so.

    Take the guard out (``guard_s=0``), and XA COMMIT is answered OK while nothing is committed and nobody can name the
    branch any more: the second half shows it, and that it is seen, said and finished after a restart.
    """
    server = mariadb_server()
    db = MariaResource(server, new_database(server))
    await db.make()
    guarded = db.branch(1)
    guarded.reset()
    assert (await db.finisher.finish(str(guarded.x), commit)).finished is Finished.DONE
    assert db.work() == ([1] if commit else [])
    assert await db.finisher.in_limbo() == 0

    lost = db.branch(2)
    lost.reset()
    unguarded = db.another(guard_s=0)
    for _ in range(2):
        result = await unguarded.finish(str(lost.x), commit)
        assert result.finished is Finished.RETRY
        assert result.reason.startswith("IN_LIMBO")
        assert db.listed() == []
        assert 2 not in db.work()
    lost.close()
    server.sql(my.READ_HOLDERS)
    async with asyncio.timeout(40):
        while await db.finisher.in_limbo() != 1:  # noqa: ASYNC110 - it counts what is older than ten seconds
            await asyncio.sleep(0.5)
    server.kill9()
    server.start()
    assert len(db.listed()) == 1, "it is back"
    await retried(db, str(lost.x), commit)
    assert (2 in db.work()) is commit
    assert await db.finisher.in_limbo() == 0
    await unguarded.close()
    await db.close()


async def test_after_a_restart_any_session_finishes(
    mariadb_server: Callable[..., MariaDBServer], new_database: Databases
) -> None:
    server = mariadb_server()
    db = MariaResource(server, new_database(server))
    await db.make()
    kept, undone = db.branch(1), db.branch(2)
    server.kill9()
    server.start()
    # Sessions of now may have the numbers of before.
    others = [db.session() for _ in range(20)]
    for holder, commit in ((kept, True), (undone, False)):
        await retried(db, str(holder.x), commit)
    assert db.work() == [1]
    for conn in others:
        with conn.cursor() as cursor:
            cursor.execute("SELECT 1")
        conn.close()
    await db.close()
