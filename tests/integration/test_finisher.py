"""The PostgreSQL finisher against the real thing: every reply is treated as the measurements say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import asyncpg
import pytest

from tests.support.databases import Databases
from tests.support.resource import IDENTITY, WINDOWS, Resource, new_xid, now_us, plain, session
from tests.support.virtual import eventually
from txcoord.adapters.xa.postgresql import PostgresFinisher
from txcoord.core.model import Windows
from txcoord.ports import Finished, Probed, ResourceTrouble
from txcoord.testing.postgres import PostgresServer
from txcoord_client.protocol import marker
from txcoord_client.protocol import postgresql as pg


@pytest.fixture
async def db(pg: PostgresServer, pg_database: Databases) -> AsyncIterator[Resource]:
    resource = Resource(pg_database(pg))
    await resource.make()
    yield resource
    await resource.finisher.close()


async def until(conn: asyncpg.Connection, question: str) -> None:
    """Ask until the answer is yes."""
    async with asyncio.timeout(20):
        while not await conn.fetchval(question):  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)


# ---- commit and rollback ----


async def test_commit_and_rollback(db: Resource) -> None:
    kept, undone = new_xid(), new_xid()
    await db.prepare(kept, 1)
    await db.prepare(undone, 2)
    assert await db.work() == []
    assert (await db.finisher.finish(str(kept), True)).finished is Finished.DONE
    assert (await db.finisher.finish(str(undone), False)).finished is Finished.DONE
    assert (await db.work(), await db.prepared()) == ([1], [])
    assert (await db.marker(kept), await db.marker(undone)) == (marker.DONE, None)


async def test_both_may_be_repeated_and_raced(db: Resource) -> None:
    kept, undone = new_xid(), new_xid()
    await db.prepare(kept, 1)
    await db.prepare(undone, 2)
    results = await asyncio.gather(
        *(db.finisher.finish(str(kept), True) for _ in range(20)),
        *(db.finisher.finish(str(undone), False) for _ in range(20)),
    )
    assert {r.finished for r in results} <= {Finished.DONE, Finished.RETRY}
    assert {r.reason.split(":")[0] for r in results if r.finished is Finished.RETRY} <= {"BUSY"}
    for x, commit in ((kept, True), (undone, False)):
        assert (await db.finisher.finish(str(x), commit)).finished is Finished.DONE
    assert await db.work() == [1]


async def test_gone_without_a_marker_is_heuristic_and_fenced(db: Resource) -> None:
    """Someone has rolled it back by hand, though commit was decided."""
    x = new_xid()
    await db.prepare(x)
    await db.sql(f"ROLLBACK PREPARED '{x}'")
    for _ in range(2):
        result = await db.finisher.finish(str(x), True)
        assert result.finished is Finished.HEURISTIC
        assert result.reason.startswith("HEURISTIC")
    assert await db.marker(x) == marker.TOMBSTONE
    with pytest.raises(asyncpg.UniqueViolationError):
        await db.prepare(x, 5)  # a late zombie
    assert (await db.work(), await db.prepared()) == ([], [])


async def test_committed_by_hand_against_an_abort_is_heuristic(db: Resource) -> None:
    x = new_xid()
    await db.prepare(x)
    await db.sql(f"COMMIT PREPARED '{x}'")
    for _ in range(2):
        assert (await db.finisher.finish(str(x), False)).finished is Finished.HEURISTIC
    assert await db.work() == [1]


async def test_rollback_of_what_never_arrived_is_done_for_now(db: Resource) -> None:
    """Without a tombstone: a PREPARE that still lands is listed, and the scanner's."""
    x = new_xid()
    assert (await db.finisher.finish(str(x), False)).finished is Finished.DONE
    assert await db.marker(x) is None
    await db.prepare(x)
    assert [p.xid for p in await db.finisher.list_prepared([x.log_id])] == [str(x)]
    assert (await db.finisher.finish(str(x), False)).finished is Finished.DONE


async def test_a_branch_that_is_still_at_work_is_asked_again(db: Resource) -> None:
    """Not listed, and its marker is not visible yet: no outcome may be made of that."""
    x = new_xid()
    until_us = WINDOWS.marker_until(x.deadline_us)
    async with session(db.url) as conn:
        await conn.execute("BEGIN")
        await conn.execute(pg.insert_marker(x.tx_id, x.branch, marker.XA, until_us))
        result = await db.finisher.finish(str(x), True)
        assert result.finished is Finished.RETRY
        await conn.execute(f"PREPARE TRANSACTION '{x}'")
    assert (await db.finisher.finish(str(x), True)).finished is Finished.DONE


async def test_after_its_window_nothing_is_concluded_from_absence(db: Resource) -> None:
    old = replace(new_xid(), deadline_us=now_us() - 100 * 86_400_000_000)
    result = await db.finisher.finish(str(old), True)
    assert result.finished is Finished.HEURISTIC
    assert "too long ago" in result.reason
    assert await db.marker(old) is None, "no tombstone after W"


async def test_busy_is_retried(db: Resource) -> None:
    """Another finisher holds it: its own COMMIT PREPARED waits for a synchronous standby that is not there."""
    x = new_xid()
    await db.prepare(x)

    async def write_for_ever(conn: asyncpg.Connection) -> None:
        while True:
            await conn.execute("SELECT pg_logical_emit_message(true, 'test', '')")

    def waits(pid: int) -> str:
        return f"SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = {pid}"

    async with session(db.url) as conn, session(db.url) as admin, session(db.url) as first:
        other, pid = [await c.fetchval("SELECT pg_backend_pid()") for c in (conn, first)]
        await admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        await admin.execute("SELECT pg_reload_conf()")
        try:
            await until(conn, "SELECT current_setting('synchronous_standby_names') = 'nobody'")
            # Nobody waits before the checkpointer has heard of it too, and that may have much to do.
            writing = asyncio.ensure_future(write_for_ever(first))
            await until(admin, waits(pid))
            stuck = asyncio.ensure_future(conn.execute(f"COMMIT PREPARED '{x}'"))
            await until(admin, waits(other))
            result = await db.finisher.finish(str(x), True)
            assert (result.finished, result.reason.split(":")[0]) == (Finished.RETRY, "BUSY")
            rollback = await db.finisher.finish(str(x), False)
            assert rollback.finished is Finished.RETRY
        finally:
            await admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
            await admin.execute("SELECT pg_reload_conf()")
        await stuck
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
    assert (await db.finisher.finish(str(x), True)).finished is Finished.DONE


# ---- who may ----


@pytest.fixture
async def roles(db: Resource) -> AsyncIterator[tuple[str, str]]:
    """An application's role, and a finisher's role that is no superuser."""
    suffix = db.url.rsplit("/", 1)[1]
    app, finisher = f"App {suffix}", f"fin_{suffix}"
    await db.sql(f'CREATE ROLE "{app}" LOGIN')
    await db.sql(f"CREATE ROLE {finisher} LOGIN")
    yield app, finisher
    for xid in await db.prepared():
        await db.sql(f"ROLLBACK PREPARED '{xid}'")
    for role in (app, finisher):
        await db.sql(f'DROP OWNED BY "{role}"')
        await db.sql(f'DROP ROLE "{role}"')


def finisher_as(db: Resource, user: str, **more: object) -> PostgresFinisher:
    url = db.url.replace("//postgres@", f"//{user}@")
    return PostgresFinisher("a", url, windows=WINDOWS, expected_identity=IDENTITY, **more)  # type: ignore[arg-type]


async def test_prepared_by_another_role(db: Resource, roles: tuple[str, str]) -> None:
    app, user = roles
    kept, undone = new_xid(), new_xid()
    await db.prepare(kept, 1, user=app)
    await db.prepare(undone, 2, user=app)
    finisher = finisher_as(db, user, width=1)
    try:
        result = await finisher.finish(str(kept), True)
        assert (result.finished, result.reason.split(":")[0]) == (Finished.RETRY, "REFUSED")
        assert await db.prepared() == sorted([str(kept), str(undone)])
        await db.sql(f'GRANT "{app}" TO {user}')
        assert (await finisher.finish(str(kept), True)).finished is Finished.DONE
        assert (await finisher.finish(str(undone), False)).finished is Finished.DONE
        assert await db.work() == [1]
        async with finisher._session() as conn:
            assert await conn.fetchval("SELECT current_user") == user, "the role is given back"
    finally:
        await finisher.close()


async def test_wrong_credentials_and_missing_databases_say_so(db: Resource) -> None:
    for url in (
        db.url.replace("//postgres@", "//nobody_here@"),
        db.url.rsplit("/", 1)[0] + "/no_such_database",
    ):
        finisher = PostgresFinisher("a", url, windows=WINDOWS, expected_identity=IDENTITY)
        with pytest.raises(ResourceTrouble) as trouble:
            await finisher.identity()
        assert trouble.value.reason == "RESOURCE_CREDENTIALS"
        result = await finisher.finish(str(new_xid()), True)
        assert (result.finished, result.reason.split(":")[0]) == (Finished.RETRY, "RESOURCE_CREDENTIALS")


async def test_a_database_without_tables_is_not_prepared(pg: PostgresServer, pg_database: Databases) -> None:
    finisher = PostgresFinisher("a", pg_database(pg), windows=WINDOWS)
    try:
        for ask in (finisher.identity(), finisher.probe_one_phase(new_xid().tx_id, now_us() * 2)):
            with pytest.raises(ResourceTrouble) as trouble:
                await ask
            assert trouble.value.reason == "RESOURCE_NOT_PREPARED"
        result = await finisher.finish(str(new_xid()), True)
        assert (result.finished, result.reason.split(":")[0]) == (Finished.RETRY, "RESOURCE_NOT_PREPARED")
    finally:
        await finisher.close()


async def test_nothing_is_done_in_the_wrong_database(
    db: Resource, pg: PostgresServer, pg_database: Databases
) -> None:
    """Also over a connection that was opened only to ask who it is: swapped URLs would judge what is not there."""
    x = new_xid()
    await db.prepare(x)
    other = Resource(pg_database(pg))
    assert await other.finisher.prepare_database("f" * 32) == "f" * 32
    try:
        assert await other.finisher.identity() == "f" * 32  # leaves its connection behind
        result = await other.finisher.finish(str(x), True)
        assert (result.finished, result.reason.split(":")[0]) == (Finished.RETRY, "RESOURCE_MISMATCH")
        for ask in (
            other.finisher.list_prepared([x.log_id]),
            other.finisher.probe_one_phase(x.tx_id, now_us() * 2),
            other.finisher.prune_markers(now_us(), 10),
        ):
            with pytest.raises(ResourceTrouble, match="another database"):
                await ask
        assert await other.marker(x) is None
        assert await other.finisher.prepare_database("e" * 32) == "f" * 32, "an identity is for ever"
        other.finisher.expected_identity = "f" * 32
        assert await other.finisher.list_prepared([x.log_id]) == []
    finally:
        await other.finisher.close()


# ---- whose they are ----


async def test_only_our_own_are_listed(db: Resource, pg: PostgresServer, pg_database: Databases) -> None:
    ours, second, beside = new_xid(), new_xid(log_id="vvvvvvvvvv"), Resource(pg_database(pg))
    await beside.make()
    await db.prepare(ours, 1)
    await db.prepare(second, 2)
    await beside.prepare(new_xid(), 1)
    for number, foreign in enumerate(("someone", "txc1.0123456789", "TXC1.0123456789.x", "txc1_0123456789_")):
        await db.sql(f"BEGIN; INSERT INTO work VALUES ({10 + number}); PREPARE TRANSACTION '{foreign}'")
    listed = await db.finisher.list_prepared([ours.log_id])
    assert [p.xid for p in listed] == [str(ours)]
    assert listed[0].owner == "postgres"
    assert abs(listed[0].prepared_us - now_us()) < 60_000_000
    both = await db.finisher.list_prepared([ours.log_id, second.log_id])
    assert {p.xid for p in both} == {str(ours), str(second)}
    assert len(await db.prepared()) == 6
    await beside.finisher.close()


# ---- one-phase ----


async def test_the_probe_tells_committed_from_never(db: Resource) -> None:
    committed, never = new_xid(), new_xid()
    await db.commit_one_phase(committed)
    until_us = WINDOWS.abort_until(committed.deadline_us)
    for _ in range(2):
        assert await db.finisher.probe_one_phase(committed.tx_id, until_us) is Probed.COMMITTED
        assert await db.finisher.probe_one_phase(never.tx_id, until_us) is Probed.NEVER
    with pytest.raises(asyncpg.UniqueViolationError):
        await db.commit_one_phase(never, 2)
    assert await db.work() == [1]


@pytest.mark.parametrize("ends", ["COMMIT", "ROLLBACK"])
async def test_the_probe_waits_for_an_open_local_commit(db: Resource, ends: str) -> None:
    x = new_xid()
    until_us = WINDOWS.abort_until(x.deadline_us)
    async with session(db.url) as conn:
        await conn.execute("BEGIN; INSERT INTO work VALUES (1)")
        await conn.execute(
            pg.insert_marker(x.tx_id, marker.ONE_BRANCH, marker.ONE, WINDOWS.marker_until(x.deadline_us))
        )
        assert await db.finisher.probe_one_phase(x.tx_id, until_us) is Probed.OPEN
        await conn.execute(ends)
    wanted = Probed.COMMITTED if ends == "COMMIT" else Probed.NEVER
    assert await db.finisher.probe_one_phase(x.tx_id, until_us) is wanted


async def test_after_w_the_probe_writes_nothing(db: Resource) -> None:
    x = new_xid()
    assert await db.finisher.probe_one_phase(x.tx_id, now_us() - 1) is Probed.TOO_LATE
    assert await db.marker(x, marker.ONE) is None
    late = replace(x, deadline_us=now_us() - WINDOWS.grace_us - 1_000_000)
    with pytest.raises(asyncpg.NotNullViolationError):
        await db.commit_one_phase(late)
    with pytest.raises(asyncpg.NotNullViolationError):
        await db.prepare(late)
    assert (await db.work(), await db.prepared()) == ([], [])


async def test_a_probe_never_meets_a_prepared_branch_of_the_same_transaction(db: Resource) -> None:
    x = new_xid("0")
    await db.prepare(x)
    assert await db.finisher.probe_one_phase(x.tx_id, WINDOWS.abort_until(x.deadline_us)) is Probed.NEVER
    assert (await db.finisher.finish(str(x), True)).finished is Finished.DONE


# ---- trouble ----


async def test_killed_in_between_and_back(
    pg_server: Callable[..., PostgresServer], pg_database: Databases
) -> None:
    server = pg_server()
    db = Resource(pg_database(server), timeout_s=2.0)
    await db.make()
    xids = [new_xid() for _ in range(10)]
    for number, x in enumerate(xids):
        await db.prepare(x, number)
    done = await asyncio.gather(*(db.finisher.finish(str(x), True) for x in xids[:8]))
    assert {r.finished for r in done} == {Finished.DONE}
    assert len(db.finisher._idle) > 1
    server.kill9()
    for x in xids:
        result = await db.finisher.finish(str(x), True)
        assert (result.finished, result.reason.split(":")[0]) == (Finished.RETRY, "RESOURCE_UNREACHABLE")
    with pytest.raises(ResourceTrouble, match="a"):
        await db.finisher.list_prepared([xids[0].log_id])
    server.start()
    # At once, and not one attempt for each connection that has died.
    for x in xids:
        assert (await db.finisher.finish(str(x), True)).finished is Finished.DONE
    assert await db.work() == list(range(10))
    await db.finisher.close()


async def test_connections_that_died_unnoticed_cost_no_attempts(db: Resource) -> None:
    xids = [new_xid() for _ in range(8)]
    for number, x in enumerate(xids):
        await db.prepare(x, number)
    await asyncio.gather(*(db.finisher.finish(str(x), True) for x in xids))
    assert len(db.finisher._idle) > 1
    await db.sql(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE application_name = 'txcoord-finisher' AND datname = current_database()"
    )
    await eventually(lambda: all(conn.is_closed() for conn, _ in db.finisher._idle), within_s=10)
    assert (await db.finisher.finish(str(xids[0]), True)).finished is Finished.DONE


async def test_a_statement_that_times_out_leaves_nothing_half_done(db: Resource) -> None:
    finisher = PostgresFinisher(
        "a", db.url, windows=WINDOWS, expected_identity=IDENTITY, timeout_s=0.3, width=1
    )
    x = new_xid()
    try:
        await finisher.identity()
        async with session(db.url) as conn:
            # The marker table is locked: whoever asks it hangs for longer than the time-out.
            await conn.execute(f"BEGIN; LOCK TABLE {marker.TABLE} IN ACCESS EXCLUSIVE MODE")
            never = new_xid()
            for _ in range(3):
                result = await finisher.finish(str(never), True)
                assert (result.finished, result.reason.split(":")[0]) == (
                    Finished.RETRY,
                    "RESOURCE_UNREACHABLE",
                )
            with pytest.raises(ResourceTrouble):
                await finisher.probe_one_phase(never.tx_id, now_us() * 2)
        await db.prepare(x)
        assert (await finisher.finish(str(x), True)).finished is Finished.DONE
        assert await finisher.probe_one_phase(never.tx_id, now_us() * 2) is Probed.NEVER
    finally:
        await finisher.close()


async def test_a_cancelled_attempt_gives_its_slot_back(db: Resource) -> None:
    finisher = PostgresFinisher("a", db.url, windows=WINDOWS, expected_identity=IDENTITY, width=1)
    x = new_xid()
    try:
        async with session(db.url) as conn:
            await conn.execute(f"BEGIN; LOCK TABLE {marker.TABLE} IN ACCESS EXCLUSIVE MODE")
            attempt = asyncio.ensure_future(finisher.finish(str(x), True))
            await until(conn, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted")
            attempt.cancel()
            with pytest.raises(asyncio.CancelledError):
                await attempt
        assert (await finisher.finish(str(x), False)).finished is Finished.DONE
    finally:
        await finisher.close()


async def test_markers_are_pruned_by_age_in_small_batches(db: Resource) -> None:
    old, new = [new_xid() for _ in range(5)], new_xid()
    for number, x in enumerate([*old, new]):
        await db.commit_one_phase(x, number)
    ids = ", ".join(f"'{x.tx_id}'" for x in old)
    day = 86_400_000_000
    await db.sql(f"UPDATE {marker.TABLE} SET created_us = created_us - {day} WHERE tx_id IN ({ids})")
    cutoff = now_us() - day // 2
    assert await db.finisher.prune_markers(cutoff, 3) == 0, "a tx id says when it was begun"
    await db.sql(
        f"UPDATE {marker.TABLE} SET tx_id = overlay(tx_id::text placing '018bcfe5-6800' from 1 for 13)::uuid"
        f" WHERE created_us < {cutoff}"
    )
    # A participant's own are its own: it may be another coordinator's, and still hold something.
    await db.sql(
        f"INSERT INTO {marker.TABLE} SELECT tx_id, '1', 'try', state, NULL, created_us FROM {marker.TABLE}"
        f" WHERE created_us < {cutoff}"
    )
    assert [await db.finisher.prune_markers(cutoff, 3) for _ in range(3)] == [3, 2, 0]
    assert await db.marker(new, marker.ONE) == marker.DONE


async def test_settings_are_read(db: Resource) -> None:
    settings = await db.finisher.settings()
    assert settings["max_prepared_transactions"] == "200"
    assert settings["in_recovery"] == "false"


def test_windows_are_the_ones_of_the_design() -> None:
    w = Windows(grace_us=5, retention_us=100)
    assert (w.marker_until(10), w.abort_until(10), w.keep_until(10)) == (15, 65, 115)
    assert plain("postgresql+asyncpg://x/y") == "postgresql://x/y"
