"""The barrier, on each driver: what comes twice, too late, or in the wrong order acts once, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.acceptance.test_joining_django import configured
from tests.support.barrier_drivers import MAKERS, Place
from tests.support.barrier_stores import MAKE_NOTE, RedisStore, Store, new_call, now_us, tx_id_at
from tests.support.databases import Databases, database_of
from tests.support.redis_server import RedisServer
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord_client import Refused, Rejected
from txcoord_client._answers import Answer
from txcoord_client._pb import common_pb2 as c
from txcoord_client.protocol import mariadb as my
from txcoord_client.protocol import postgresql as pg
from txcoord_client.protocol import reasons

DAY_US = 86_400_000_000
DONE, REFUSED, PENDING, FAILED = (
    c.ANSWER_KIND_DONE,
    c.ANSWER_KIND_REFUSED,
    c.ANSWER_KIND_PENDING,
    c.ANSWER_KIND_FAILED,
)


@pytest.fixture(scope="module")
def place(
    pg18: PostgresServer,
    mariadb: MariaDBServer,
    redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    configured()
    databases = Databases()
    pg_url, my_url = databases(pg18), databases(mariadb)
    lite = tmp_path_factory.mktemp("lite") / "stock.db"

    def lite_sql(statement: str) -> str:
        with contextlib.closing(sqlite3.connect(lite, timeout=30)) as db:
            rows = db.execute(statement).fetchall()
            db.commit()
        return "\n".join("|".join(map(str, row)) for row in rows)

    sql = {
        "postgresql": lambda statement: pg18.sql(statement, database=database_of(pg_url)),
        "mysql": lambda statement: mariadb.sql(statement, database=database_of(my_url)),
        "sqlite": lite_sql,
    }
    for family, ddl in (("postgresql", pg.ddl()), ("mysql", my.ddl())):
        for statement in (*ddl[:1], MAKE_NOTE):
            sql[family](statement)
    lite_sql(MAKE_NOTE)
    yield Place(pg_url, my_url, lite, redis_server, sql)
    databases.drop_all()


@pytest.fixture(params=sorted(MAKERS))
async def store(place: Place, request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    async with MAKERS[request.param](place) as store:
        if store.family == "sqlite":
            if store.asynchronous:
                await store.participant.make_table()
            else:
                await asyncio.to_thread(store.participant.make_table)
        yield store


def said(answer: Answer) -> tuple[int, str]:
    return answer.kind, answer.reason


async def hanging(store: Store, task: asyncio.Task[Answer]) -> None:
    """The call has written its row and hangs."""
    while not store.script.reached.is_set():
        assert not task.done(), task.result()
        await asyncio.sleep(0.002)


async def waiting(store: Store, task: asyncio.Task[Answer]) -> None:
    """The other call waits for it; SQLite does not tell."""
    while store.family != "sqlite" and not await asyncio.to_thread(store.waiting):
        assert not task.done(), task.result()
        await asyncio.sleep(0.01)


async def test_once(store: Store) -> None:
    tried = new_call("try")
    first = await store.execute(tried)
    assert (first.kind, first.repeated) == (DONE, False)
    again = await store.execute(tried)
    assert (again.kind, again.repeated, again.result) == (DONE, True, first.result)
    # What the try returned is handed to its confirm.
    confirmed = new_call("confirm", tried.tx_id)
    assert not (await store.execute(confirmed)).repeated
    assert (await store.execute(confirmed)).repeated
    assert store.notes(tried.tx_id) == ["confirm", "try"]
    assert store.markers(tried.tx_id) == ["confirm", "try"]


async def test_cancelled_once(store: Store) -> None:
    tried = new_call("try")
    await store.execute(tried)
    cancelled = new_call("cancel", tried.tx_id)
    assert [(await store.execute(cancelled)).kind for _ in range(2)] == [DONE, DONE]
    assert store.notes(tried.tx_id) == ["cancel", "try"]
    # The try, should it come once more, is known: it was done, and does nothing.
    assert (await store.execute(tried)).repeated
    assert store.notes(tried.tx_id) == ["cancel", "try"]


async def test_compensated_once(store: Store) -> None:
    done = new_call("action", operation="stock.pack", deadline_s=0)
    await store.execute(done)
    undone = new_call("compensate", done.tx_id, operation="stock.pack")
    assert [(await store.execute(undone)).kind for _ in range(2)] == [DONE, DONE]
    assert store.notes(done.tx_id) == ["action", "compensate"]


@pytest.mark.parametrize(
    ("first", "undo", "operation"), [("try", "cancel", "Reserve"), ("action", "compensate", "pack")]
)
async def test_empty_then_late(store: Store, first: str, undo: str, operation: str) -> None:
    undone = new_call(undo, operation=f"stock.{operation}")
    assert (await store.execute(undone)).kind == DONE
    assert (await store.execute(undone)).kind == DONE
    late = new_call(first, undone.tx_id, operation=f"stock.{operation}")
    assert said(await store.execute(late)) == (REFUSED, reasons.DECIDED)
    assert store.notes(undone.tx_id) == []


async def test_after_its_deadline_a_try_is_refused(store: Store) -> None:
    tried = new_call("try", deadline_s=-1)
    assert said(await store.execute(tried)) == (REFUSED, reasons.DEADLINE)
    assert store.markers(tried.tx_id) == []
    # What ends it may come at any time.
    assert (await store.execute(new_call("cancel", tried.tx_id, deadline_s=-1))).kind == DONE
    done = new_call("try")
    await store.execute(done)
    assert (await store.execute(new_call("confirm", done.tx_id, deadline_s=-1))).kind == DONE


async def test_what_is_rolled_back_leaves_no_marker(store: Store) -> None:
    tried = new_call("try")
    store.script.refuses = True
    assert said(await store.execute(tried)) == (REFUSED, "OUT_OF_STOCK")
    store.script.refuses, store.script.breaks = False, True
    assert (await store.execute(tried)).kind == FAILED
    assert (store.markers(tried.tx_id), store.notes(tried.tx_id)) == ([], [])
    store.script.breaks = False
    assert not (await store.execute(tried)).repeated
    store.script.breaks = True
    confirmed = new_call("confirm", tried.tx_id)
    assert (await store.execute(confirmed)).kind == FAILED
    store.script.breaks = False
    assert not (await store.execute(confirmed)).repeated
    assert store.notes(tried.tx_id) == ["confirm", "try"]


async def test_a_confirm_without_its_try_is_no_success(store: Store) -> None:
    confirmed = new_call("confirm")
    assert said(await store.execute(confirmed)) == (FAILED, reasons.NOT_FOUND)
    assert store.markers(confirmed.tx_id) == []


@pytest.mark.parametrize("breaks", [False, True], ids=["it-commits", "it-rolls-back"])
async def test_a_cancel_waits_for_a_try_that_hangs(store: Store, breaks: bool) -> None:
    tried = new_call("try")
    store.script.hangs = True
    trying = asyncio.create_task(store.execute(tried))
    await hanging(store, trying)
    cancelling = asyncio.create_task(store.execute(new_call("cancel", tried.tx_id)))
    if store.family == "redis":
        # Nothing is open there: the cancel comes first, and the try that hung is refused.
        assert (await cancelling).kind == DONE
        store.script.go.set()
        assert said(await trying) == (REFUSED, reasons.DECIDED)
        assert store.notes(tried.tx_id) == []
        return
    await waiting(store, cancelling)
    store.script.breaks = breaks
    store.script.go.set()
    assert (await trying).kind == (FAILED if breaks else DONE)
    store.script.breaks = False
    assert (await cancelling).kind == DONE
    assert store.notes(tried.tx_id) == ([] if breaks else ["cancel", "try"])
    if breaks:
        assert said(await store.execute(tried)) == (REFUSED, reasons.DECIDED)


async def test_the_same_call_twice_at_a_time(store: Store) -> None:
    tried = new_call("try")
    store.script.hangs = True
    trying = asyncio.create_task(store.execute(tried))
    await hanging(store, trying)
    again = asyncio.create_task(store.execute(tried))
    if store.family == "redis":
        assert not (await again).repeated
    else:
        await waiting(store, again)
    store.script.go.set()
    answers = await asyncio.gather(trying, again)
    assert [answer.kind for answer in answers] == [DONE, DONE]
    assert sorted(answer.repeated for answer in answers) == [False, True]
    assert store.notes(tried.tx_id) == ["try"]


guarding = pytest.mark.parametrize(
    "store", [name for name in sorted(MAKERS) if "redis" not in name], indirect=True
)


@guarding
async def test_what_was_rolled_back_and_swallowed_is_no_success(store: Store) -> None:
    """Its COMMIT succeeds, and nothing is there."""
    ways = ["ROLLBACK", "SELECT * FROM nowhere"] if store.family == "postgresql" else ["ROLLBACK"]
    for ops, operation in (
        (("try", "confirm"), "Reserve"),
        (("action", "compensate"), "pack"),
        (("message",), "told"),
    ):
        tx_id = tx_id_at(now_us())
        for number, op in enumerate(ops, 1):
            call = new_call(op, tx_id, operation=f"stock.{operation}")
            for store.script.swallows in ways:
                assert said(await store.execute(call)) == (FAILED, reasons.SILENT_ROLLBACK), (op, ways)
            store.script.swallows = ""
            answer = await store.execute(call)
            assert (answer.kind, answer.repeated) == (DONE, False)
            assert store.notes(tx_id) == sorted(ops[:number])


# ---- in a transaction of the user's ----


@guarding
async def test_guard(store: Store) -> None:
    tried = new_call("try")
    assert await store.guarded(tried)
    again = await store.guarded(tried)
    assert not again
    assert again.result() == {"tx_id": tried.tx_id}
    confirmed = new_call("confirm", tried.tx_id)
    first = await store.guarded(confirmed)
    assert first
    assert first.result() == {"tx_id": tried.tx_id}
    assert not await store.guarded(confirmed)
    assert store.notes(tried.tx_id) == ["confirm", "try"]
    undone = new_call("cancel")
    assert not await store.guarded(undone)
    with pytest.raises(Refused) as refused:
        await store.guarded(new_call("try", undone.tx_id))
    assert refused.value.reason == reasons.DECIDED


@guarding
async def test_guard_commits_nothing(store: Store) -> None:
    tried = new_call("try")
    with pytest.raises(ZeroDivisionError):
        await store.guarded(tried, fails=True)
    assert (store.markers(tried.tx_id), store.notes(tried.tx_id)) == ([], [])


@guarding
async def test_guard_says_what_was_swallowed(store: Store) -> None:
    tried = new_call("try")
    store.script.swallows = "SELECT * FROM nowhere" if store.family == "postgresql" else "ROLLBACK"
    with pytest.raises(Rejected) as caught:
        await store.guarded(tried)
    assert caught.value.reason == reasons.SILENT_ROLLBACK
    store.script.swallows = ""
    assert await store.guarded(tried)


@guarding
async def test_guard_refuses_autocommit(store: Store) -> None:
    for by_itself in store.autocommits:
        tried = new_call("try")
        with pytest.raises(Rejected, match=r"one transaction"):
            await store.guarded(tried, by_itself)
        assert (store.markers(tried.tx_id), store.notes(tried.tx_id)) == ([], [])


# ---- what is kept, and for how long ----


def begun(days_ago: int) -> str:
    return tx_id_at(now_us() - days_ago * DAY_US)


async def test_what_nobody_can_tell_any_more_is_no_success(store: Store) -> None:
    """Markers go some day: then one that is not there proves nothing."""
    young, old = begun(80), begun(95)
    for op, operation in (("action", "pack"), ("compensate", "pack"), ("cancel", "Reserve")):
        for tx_id, wanted in ((young, (DONE, "")), (old, (FAILED, reasons.EXPIRED))):
            call = new_call(op, tx_id, operation=f"stock.{operation}", deadline_s=0)
            assert said(await store.execute(call)) == wanted, (op, tx_id)
    # Nor is it a no, though its deadline has passed as well: it may have been done in time, and pruned.
    for deadline_s in (-1, -94 * 86_400):
        call = new_call("action", old, operation="stock.pack", deadline_s=deadline_s)
        assert said(await store.execute(call)) == (FAILED, reasons.EXPIRED)
    assert store.markers(old) == []
    for_ever = store.new_participant(keep_days=0)
    call = new_call("action", old, operation="stock.pack", deadline_s=0)
    assert said(await store.execute(call, for_ever)) == (DONE, "")
    # What is there proves what it did.
    assert (await store.execute(call)).repeated
    assert not (await store.execute(new_call("compensate", old, operation="stock.pack"))).repeated
    assert store.notes(old) == ["action", "compensate"]


async def test_old_markers_are_pruned_by_age(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    if store.family == "redis":
        await _live_for_a_time(store)
        return
    for participant in ("txcoord_client", "txcoord_client.sync"):
        monkeypatch.setattr(f"{participant}.participant._PRUNED_EVERY", 1)
    ended, held, young, cancelled = begun(95), begun(95), begun(95), begun(95)
    for_ever = store.new_participant(keep_days=0)
    for tx_id in (ended, held, young):
        await store.execute(new_call("try", tx_id, deadline_s=0), for_ever)
    for op, tx_id in (("confirm", ended), ("confirm", young), ("cancel", cancelled)):
        await store.execute(new_call(op, tx_id), for_ever)
    for tx_id in (ended, held, cancelled):
        store.age(tx_id, 91)
    await store.execute(new_call("try"))
    assert (store.markers(ended), store.markers(cancelled)) == ([], [])
    assert store.markers(young) == ["confirm", "try"]
    # What it holds is still to be given back.
    assert store.markers(held) == ["try"]
    assert (await store.execute(new_call("cancel", held))).kind == DONE
    assert store.notes(held) == ["cancel", "try"]


async def _live_for_a_time(store: Store) -> None:
    """In Redis rows have a time to live, and none while they hold something."""
    assert isinstance(store, RedisStore)
    tried = new_call("try")
    await store.execute(tried)
    assert store.lives_for_s(tried.tx_id) == -1
    await store.execute(new_call("confirm", tried.tx_id))
    empty = new_call("cancel")
    await store.execute(empty)
    assert {store.lives_for_s(call.tx_id) // 86_400 for call in (tried, empty)} <= {89, 90}
    # The initiator's clock is ahead: until then a marker that is gone would be one that never was.
    action, empty = new_call("action", begun(-5), operation="stock.pack"), new_call("cancel", begun(-5))
    for call in (action, empty):
        await store.execute(call)
    assert {store.lives_for_s(call.tx_id) // 86_400 for call in (action, empty)} <= {94, 95}
