"""The outbox: what a change announces is written with it, and stays until it is published."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.logs import (
    WINDOWS,
    S,
    active,
    committing,
    decide,
    end,
    get,
    insert,
    lose_replies,
    new_id,
    shared_place,
    sqlite_place,
)
from txcoord.adapters.sql.log import SqlLog
from txcoord.adapters.sql.outbox import SqlOutbox
from txcoord.core.model import (
    Announcement,
    Branch,
    BranchState,
    Change,
    Decision,
    Kind,
    Topic,
    TxState,
    Written,
)
from txcoord.outgoing import Outbox, Outgoing
from txcoord.ports import Log
from txcoord.testing.memory_beside import MemoryOutbox
from txcoord.testing.memory_log import MemoryLog, Storage

MANY = 100


def now_us() -> int:
    return time.time_ns() // 1000


@dataclass
class Both:
    log: Log
    outbox: Outbox


@pytest.fixture(params=["memory", "sqlite", "pg18", "pg17", "mariadb"])
async def both(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Both]:
    if request.param == "memory":
        storage = Storage(now_us, WINDOWS)
        yield Both(MemoryLog(storage), MemoryOutbox(storage))
        return
    if request.param == "sqlite":
        place = await sqlite_place(tmp_path)
    else:
        place = await shared_place(request.getfixturevalue(request.param))
    log = await place.open()
    yield Both(log, SqlOutbox(log))
    await place.close()


def says(change: Change, *places: tuple[int, int], what: str = "transaction.decided") -> Change:
    told = tuple(
        Announcement(
            epoch,
            seq,
            what,
            "1",
            change.tx.decided_us + seq,
            Topic.EVENTS | Topic.DEAD_LETTERS,
            '{"a":"é ∑ \'\\\\ 😀"}',
        )
        for epoch, seq in places
    )
    return replace(change, announcements=told)


def order(found: list[Outgoing]) -> list[tuple[str, int, int]]:
    return [out.key for out in found]


async def test_what_is_announced_comes_with_its_change_and_as_it_was(both: Both) -> None:
    tx = committing(now_us())
    change = says(insert(tx), (1, 0), (1, 3))
    assert (await both.log.write(change)).written is Written.OK
    found = await both.outbox.take([], MANY)
    assert [out.announcement for out in found] == list(change.announcements)
    assert {out.tx_id for out in found} == {tx.tx_id}


async def test_what_conflicts_announces_nothing(both: Both) -> None:
    tx = active(now_us())
    await both.log.write(insert(tx))
    first, second = decide(tx, Decision.COMMIT), decide(tx, Decision.ABORT)
    late = says(insert(active(now_us())), (1, 0))
    results = await asyncio.gather(
        both.log.write(says(first, (1, 0))),
        both.log.write(says(second, (1, 0), what="never")),
        both.log.write(replace(late, not_after_us=1)),
        both.log.write(says(insert(replace(active(now_us()), tx_id=tx.tx_id)), (1, 7))),
    )
    assert sorted(r.written for r in results) == [
        Written.CONFLICT,
        Written.CONFLICT,
        Written.OK,
        Written.TOO_LATE,
    ]
    assert [out.announcement.what for out in await both.outbox.take([], MANY)] == ["transaction.decided"]


async def test_each_transaction_is_in_order_and_what_is_published_goes(both: Both) -> None:
    one, two = committing(now_us()), committing(now_us())
    for tx in (two, one):
        await both.log.write(says(insert(tx), (1, 0)))
        await both.log.write(says(end(tx, forced=True), (1, 10_003), (2, 9_999)))
    found = order(await both.outbox.take([], MANY))
    assert found == [(tx.tx_id, e, s) for tx in (one, two) for e, s in ((1, 0), (1, 10_003), (2, 9_999))]
    assert order(await both.outbox.take([], 4)) == found[:4]
    # Taken, and not published: the next one takes it again.
    assert order(await both.outbox.take(found[:2], MANY)) == found[2:]
    assert order(await both.outbox.take([found[0], found[4]], MANY)) == [*found[2:4], found[5]]
    assert await both.outbox.take(found, 0) == []
    assert await both.outbox.take([], MANY) == []


async def test_one_that_is_held_holds_its_own_transaction_only(both: Both) -> None:
    one, two = committing(now_us()), committing(now_us())
    for tx in (one, two):
        await both.log.write(says(insert(tx), (1, 0), (1, 1)))
    every = order(await both.outbox.take([], MANY))
    await both.outbox.hold([one.tx_id], 3600 * S)
    await both.outbox.hold([one.tx_id], 3600 * S)
    assert (await both.log.figures()).held == 1
    assert order(await both.outbox.take([], MANY)) == every[2:]
    await both.outbox.hold([one.tx_id], 0)
    assert order(await both.outbox.take(every[2:], MANY)) == every[:2]
    assert await both.outbox.take(every, MANY) == []
    figures = await both.log.figures()
    assert (figures.held, figures.outbox, figures.oldest_event_us) == (0, 0, 0)


async def test_a_lazy_change_brings_its_own_and_figures_say_what_waits(both: Both) -> None:
    tx = committing(now_us())
    await both.log.write(says(insert(tx), (1, 0)))
    both.log.write_lazily(says(end(tx), (2, 9_999), what="transaction.committed"))
    await both.log.settle()
    figures = await both.log.figures()
    assert (figures.outbox, figures.oldest_event_us) == (2, tx.decided_us)
    assert [out.announcement.what for out in await both.outbox.take([], MANY)] == [
        "transaction.decided",
        "transaction.committed",
    ]


async def test_what_is_only_to_be_delivered_still_is_not_in_doubt(both: Both) -> None:
    told = Branch("1", Kind.NOTIFY, BranchState.FINISHING, "http://shop")
    open_, over = committing(now_us()), committing(now_us() - S, told, state=TxState.COMMITTED)
    parked = replace(over, tx_id=new_id(), branches=(replace(told, state=BranchState.PARKED),))
    for tx in (open_, over, parked):
        await both.log.write(insert(tx))
    figures = await both.log.figures()
    assert (figures.phase_two, figures.oldest_decided_us) == (1, open_.decided_us)
    assert (figures.delivering, figures.parked, figures.parked_deliveries) == (1, 1, 1)


async def test_many_at_once(both: Both) -> None:
    txs = [committing(now_us()) for _ in range(1_200)]
    await asyncio.gather(*(both.log.write(says(insert(tx), (1, 0))) for tx in txs))
    seen: list[tuple[str, int, int]] = []
    part: list[tuple[str, int, int]] = []
    while True:
        part = order(await both.outbox.take(part, 700))
        if not part:
            break
        seen += part
    assert seen == [(tx.tx_id, 1, 0) for tx in txs]


async def test_a_reply_that_is_lost_announces_once(both: Both) -> None:
    if not isinstance(both.log, SqlLog):
        return  # The one in memory does not look again by itself.
    tx = committing(now_us())
    await both.log.write(says(insert(tx), (1, 0)))
    lose_replies(both.log, 1)
    change: Change = says(end(tx, soon=True), (2, 9_999))
    assert (await both.log.write(change)).written is Written.OK
    assert (await get(both.log, tx.tx_id)).ended
    assert len(await both.outbox.take([], MANY)) == 2
