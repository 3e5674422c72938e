"""Contract of the log: what can be read, in which order, and what opening it checks."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.support.logs import (
    WINDOWS,
    LogContract,
    Place,
    S,
    aborted,
    active,
    amend,
    committing,
    end,
    get,
    insert,
    new_id,
    operate,
    put,
    written,
    xa,
)
from txcoord.adapters.sql.log import SqlLog
from txcoord.core.model import (
    Branch,
    BranchState,
    Change,
    ChangeKind,
    HistoryEntry,
    Kind,
    Tx,
    TxState,
    Written,
)
from txcoord.ports import Query
from txcoord_client.protocol.xid import is_log_id

B = BranchState


class TestReading(LogContract):
    async def test_those_that_exist(self, log: SqlLog) -> None:
        now = await log.now_us()
        txs = [active(now, xa("1"), xa("2")) for _ in range(3)]
        await put(log, *txs)
        ids = [t.tx_id for t in txs]
        assert await log.read([*ids, *ids, new_id()]) == {t.tx_id: t for t in txs}
        assert await log.read([]) == {}

    async def test_news(self, log: SqlLog) -> None:
        now = await log.now_us()
        on_its_way, decided, parked = active(now, xa()), committing(now), committing(now, xa(state=B.PARKED))
        ended = committing(now, state=TxState.COMMITTED, ended_us=now)
        every = [on_its_way, decided, parked, ended]
        await put(log, *every)
        ids = [*(t.tx_id for t in every), new_id(), "no tx id"]
        news = await log.news(ids, ids)
        assert set(news[0]) == {decided.tx_id, parked.tx_id, ended.tx_id}
        assert set(news[1]) == {parked.tx_id, ended.tx_id}
        assert [set(part) for part in await log.news([], ids[:2])] == [set(), set()]
        many = [new_id() for _ in range(12_000)]
        assert [set(part) for part in await log.news([*many, decided.tx_id], many)] == [
            {decided.tx_id},
            set(),
        ]

    async def test_reads_of_many_callers_become_one(self, log: SqlLog) -> None:
        now = await log.now_us()
        txs = [active(now, xa()) for _ in range(20)]
        await put(log, *txs)
        store: Any = log.store
        real, count = store.reading, 0

        async def reading(work: Any) -> Any:
            nonlocal count
            count += 1
            return await real(work)

        store.reading = reading
        asked = [[t.tx_id] for t in txs] + [["no tx id"], [txs[0].tx_id, new_id()]]
        found = await asyncio.gather(*(log.read(ids) for ids in asked))
        assert found == [{t.tx_id: t} for t in txs] + [{}, {txs[0].tx_id: txs[0]}]
        assert count == 1

    async def test_a_row_and_its_branches_belong_together(self, place: Place, log: SqlLog) -> None:
        """Whoever reads while others write sees a version with the branches of that version."""
        other = await place.open()
        tx = active(await log.now_us(), xa(reason="1"))
        await put(log, tx)

        async def write() -> None:
            at = tx
            for version in range(2, 60):
                new = replace(at, version=version, branches=(xa(reason=str(version)),))
                assert await written(log, amend(at, new, *new.branches)) == [Written.OK]
                at = new

        writing = asyncio.create_task(write())
        while not writing.done():
            seen = await get(other, tx.tx_id)
            assert seen.branches[0].reason == str(seen.version)
        await writing

    async def test_more_than_a_statement_holds(self, log: SqlLog) -> None:
        now = await log.now_us()
        txs = [active(now, xa()) for _ in range(1203)]
        await put(log, *txs)
        assert await log.read([t.tx_id for t in txs]) == {t.tx_id: t for t in txs}

    async def test_many_branches_keep_their_order(self, log: SqlLog) -> None:
        tx = active(await log.now_us(), *(xa(str(n)) for n in range(50, 0, -1)))
        await put(log, tx)
        assert await get(log, tx.tx_id) == tx

    async def test_history_and_audits_are_in_order(self, log: SqlLog) -> None:
        now = await log.now_us()
        tx = committing(now)
        await put(log, tx)
        same_moment = [HistoryEntry(now, f"step.{n}", "1", "n1", "why") for n in range(5)]
        earlier = HistoryEntry(now - 1, "before")
        for entries in (same_moment[:2], same_moment[2:], [earlier]):
            change = Change(ChangeKind.PROGRESS, tx, expected_epoch=1, history=tuple(entries))
            assert await written(log, change) == [Written.OK]
        assert await log.history(tx.tx_id) == [earlier, *same_moment]
        first = operate(tx, "ann")
        second = operate(replace(first.tx, decided_us=first.tx.decided_us + 1), "bob")
        assert await written(log, first, second) == [Written.OK] * 2
        assert [a.actor for a in await log.audits(tx.tx_id)] == ["ann", "bob"]
        assert await log.history(new_id()) == []

    async def test_reopening_keeps_everything(self, place: Place) -> None:
        log = await place.open()
        now = await log.now_us()
        tx = committing(now, xa(state=B.FINISHING), gid="g", labels={"a": "b"})
        change = operate(tx)
        await put(log, tx)
        assert await written(log, change) == [Written.OK]
        await log.close()
        identity = place.identities[-1]
        again = await place.open()
        assert await get(again, tx.tx_id) == change.tx
        assert await again.audits(tx.tx_id) == [change.audit]
        assert place.identities[-1] == identity
        assert is_log_id(identity.log_id)
        assert (identity.incarnation, identity.earlier_log_ids) == (1, ())

    async def test_what_was_answered_survives_abandoning(self, place: Place) -> None:
        log = await place.open(tick_s=3600)
        now = await log.now_us()
        tx = committing(now)
        await put(log, tx)
        log.write_lazily(end(tx))
        log.abandon()
        again = await place.open()
        assert await get(again, tx.tx_id) == tx


class TestOverdue(LogContract):
    async def test_undecided_ones_oldest_first(self, log: SqlLog) -> None:
        now = await log.now_us()
        late = [active(now, xa(), deadline_us=now - n * S) for n in (3, 9, 6)]
        await put(log, *late, active(now), committing(now, deadline_us=now - S), aborted(now, deadline_us=1))
        oldest_first = [late[1], late[2], late[0]]
        assert await log.overdue(10) == oldest_first
        assert await log.overdue(2) == oldest_first[:2]


class TestQuery(LogContract):
    @pytest.fixture
    async def rows(self, log: SqlLog) -> dict[str, Tx]:
        now = await log.now_us()
        parked = xa(state=B.PARKED, resource="ledger", reason="GONE: not there", heuristic=True)
        rows = {
            "open": active(now, xa(), created_us=100),
            "bank": active(now, xa(), namespace="bank", created_us=200),
            "aborted": aborted(now, reason="DEADLINE", created_us=300, name="refund"),
            "parked": committing(now, xa("1", B.FINISHING), replace(parked, id="2"), created_us=400),
            "stuck": committing(now, parked, created_us=500),
            "message": committing(
                now,
                Branch("1", Kind.MESSAGE, B.FINISHING, "mail"),
                state=TxState.COMMITTED,
                ended_us=now,
                created_us=600,
            ),
        }
        await put(log, *rows.values())
        return rows

    @pytest.mark.parametrize(
        ("query", "names"),
        [
            (Query(), ["message", "stuck", "parked", "aborted", "bank", "open"]),
            (Query(namespace="bank"), ["bank"]),
            (Query(states=(TxState.ACTIVE,)), ["bank", "open"]),
            (Query(states=(TxState.ABORTED, TxState.COMMITTED)), ["message", "aborted"]),
            (Query(parked=True), ["stuck", "parked"]),
            (Query(parked=False, namespace="shop"), ["message", "aborted", "open"]),
            (Query(heuristic=True), ["stuck", "parked"]),
            (Query(heuristic=False, states=(TxState.COMMITTING,)), []),
            (Query(resource="ledger"), ["stuck", "parked"]),
            (Query(resource="mail"), ["message"]),
            (Query(reason="GONE"), ["stuck", "parked"]),
            (Query(reason="GON"), []),
            (Query(reason="DEADLINE"), ["aborted"]),
            (Query(reason="%"), []),
            (Query(name="refund"), ["aborted"]),
            (Query(created_before_us=300), ["bank", "open"]),
            (Query(created_after_us=300, created_before_us=600), ["stuck", "parked"]),
            (Query(limit=2), ["message", "stuck"]),
        ],
    )
    async def test_filters(self, log: SqlLog, rows: dict[str, Tx], query: Query, names: list[str]) -> None:
        assert await log.query(query) == [rows[name] for name in names]

    async def test_pages(self, log: SqlLog, rows: dict[str, Tx]) -> None:
        seen: list[Tx] = []
        while page := await log.query(Query(limit=4, after_tx_id=seen[-1].tx_id if seen else None)):
            seen += page
        assert seen == list(reversed(rows.values()))


class TestResources(LogContract):
    async def test_the_first_identity_is_remembered(self, log: SqlLog) -> None:
        assert await log.resource_identity("accounts") is None
        assert await log.remember_resource("accounts", "one") == "one"
        assert await log.remember_resource("accounts", "two") == "one"
        assert await log.resource_identity("accounts") == "one"
        assert await log.remember_resource("accounts", "two", replace=True) == "two"
        assert await log.resource_identity("accounts") == "two"


async def test_a_log_in_memory() -> None:
    log = SqlLog("sqlite+aiosqlite:///:memory:", windows=WINDOWS)
    identity = await log.open()
    assert is_log_id(identity.log_id)
    tx = active(await log.now_us(), xa())
    assert (await log.write(insert(tx))).written is Written.OK
    assert await get(log, tx.tx_id) == tx
    await log.close()
