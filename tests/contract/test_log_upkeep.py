"""Contract of the log: take-over of rows in phase two, leases, and what retention lets go."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.support.logs import (
    DETAIL_US,
    WINDOWS,
    LogContract,
    Place,
    S,
    aborted,
    active,
    committing,
    end,
    get,
    operate,
    put,
    written,
    xa,
)
from txcoord.adapters.sql.log import SqlLog
from txcoord.core.model import FOREVER_US, TAKEN, Branch, BranchState, DecidedBy, Kind, Tx, TxState, Written

B = BranchState
LEASE = 10 * S


class TestClaim(LogContract):
    async def test_what_nobody_carries_out(self, log: SqlLog) -> None:
        now = await log.now_us()
        free = [committing(now, lease_until_us=now - n * S) for n in (1, 3, 2)]
        stuck = committing(now, xa(state=B.PARKED), lease_until_us=0)
        half_stuck = committing(now, xa("1", B.PARKED), xa("2", B.FINISHING), lease_until_us=now - 4 * S)
        aborting = committing(now, xa(state=B.UNDOING), state=TxState.ABORTING, lease_until_us=now - 5 * S)
        ended = committing(now, state=TxState.COMMITTED, ended_us=now, lease_until_us=0)
        await put(log, *free, stuck, half_stuck, aborting, ended, active(now), committing(now))
        claimed = await log.claim("n2", LEASE, 100)
        lapsed_first = [aborting, half_stuck, free[1], free[2], free[0]]
        assert [t.tx_id for t in claimed] == [t.tx_id for t in lapsed_first]
        for tx, was in zip(claimed, lapsed_first, strict=True):
            assert tx == replace(was, owner="n2", epoch=was.epoch + TAKEN, lease_until_us=tx.lease_until_us)
            assert tx.lease_until_us >= now + LEASE
            assert await get(log, tx.tx_id) == tx
        assert await log.claim("n3", LEASE, 100) == []

    async def test_at_most_so_many(self, log: SqlLog) -> None:
        now = await log.now_us()
        await put(log, *(committing(now, lease_until_us=0) for _ in range(5)))
        counts = [len(await log.claim("n2", LEASE, 2)) for _ in range(4)]
        assert counts == [2, 2, 1, 0]

    async def test_a_slower_writer_is_fenced(self, log: SqlLog) -> None:
        tx = committing(await log.now_us(), lease_until_us=0)
        await put(log, tx)
        (claimed,) = await log.claim("n2", LEASE, 10)
        assert await written(log, end(tx), end(claimed)) == [Written.CONFLICT, Written.OK]

    async def test_own_rows_after_a_restart(self, log: SqlLog) -> None:
        now = await log.now_us()
        mine = [committing(now) for _ in range(3)]
        await put(log, *mine, committing(now, owner="n2"))
        assert await log.claim("n1", LEASE, 10) == []
        seen = [t for _ in range(2) for t in await log.claim("n1", 60 * S, 2, all_of_owner=True)]
        assert {t.tx_id for t in seen} == {t.tx_id for t in mine}

    async def test_two_at_once_take_disjoint_rows(self, place: Place, log: SqlLog) -> None:
        now = await log.now_us()
        await put(log, *(committing(now, lease_until_us=0) for _ in range(40)))
        logs = [await place.open() for _ in range(3)]
        taken: dict[str, str] = {}

        async def take(number: int) -> None:
            while rows := await logs[number].claim(f"n{number}", LEASE, 3):
                for tx in rows:
                    assert tx.tx_id not in taken
                    assert tx.epoch == 1 + TAKEN
                    taken[tx.tx_id] = tx.owner

        await asyncio.gather(*(take(n) for n in range(3)))
        while rows := await log.claim("n9", LEASE, 50):  # what all three passed by at once
            taken |= {tx.tx_id: tx.owner for tx in rows}
        found = await log.read(list(taken))
        assert len(taken) == 40
        assert {tx_id: tx.owner for tx_id, tx in found.items()} == taken

    async def test_renew(self, log: SqlLog) -> None:
        now = await log.now_us()
        mine, lapsed, others = (committing(now, owner=o, lease_until_us=0) for o in ("n1", "n1", "n2"))
        ended = committing(now, state=TxState.COMMITTED, ended_us=now, lease_until_us=5)
        await put(log, mine, lapsed, others, ended)
        assert set(await log.renew("n1", [mine.tx_id, others.tx_id, ended.tx_id], LEASE)) == {mine.tx_id}
        assert not await log.renew("n1", [], LEASE)
        claimed = await log.claim("n3", LEASE, 10)
        assert {t.tx_id for t in claimed} == {lapsed.tx_id, others.tx_id}
        renewed = await get(log, mine.tx_id)
        assert renewed == replace(mine, lease_until_us=renewed.lease_until_us)
        assert renewed.lease_until_us >= now + LEASE
        assert (await get(log, ended.tx_id)).lease_until_us == 5


class TestCallbacks(LogContract):
    async def test_what_has_ended_is_carried_out_while_somebody_is_to_be_told(self, log: SqlLog) -> None:
        now = await log.now_us()

        def one(state: BranchState, **more: int) -> Tx:
            asked = Branch("c:shop", Kind.CALLBACK, state, "grpc://shop:1")
            done = xa(state=B.DONE)
            return committing(now, done, asked, state=TxState.COMMITTED, lease_until_us=now - S, **more)

        due, told, parked = one(B.FINISHING), one(B.DONE, ended_us=now), one(B.PARKED)
        await put(log, due, told, parked)
        assert [tx.tx_id for tx in await log.claim("n2", LEASE, 10)] == [due.tx_id]
        assert await log.renew("n2", [due.tx_id, told.tx_id, parked.tx_id], LEASE) == {due.tx_id}
        _, ended = await log.news([], [due.tx_id, told.tx_id, parked.tx_id])
        assert set(ended) == {due.tx_id, told.tx_id, parked.tx_id}


class TestPrune(LogContract):
    @pytest.fixture
    async def now(self, log: SqlLog) -> int:
        return await log.now_us()

    async def _prune(self, log: SqlLog) -> list[int]:
        """Until there is nothing left to do."""
        counts = [await log.prune("n1", 100)]
        while counts[-1]:
            counts.append(await log.prune("n1", 100))
        return counts[:-1]

    async def test_detail_goes_first_and_the_audit_stays(self, log: SqlLog, now: int) -> None:
        tx = committing(now, gid="g", labels={"a": "b"})
        await put(log, tx)
        change = operate(tx)
        ended = end(change.tx, forced=True)
        ended = replace(ended, tx=replace(ended.tx, ended_us=now - DETAIL_US - S))
        assert await written(log, change, ended) == [Written.OK] * 2
        assert await self._prune(log) == [1]
        stripped = await get(log, tx.tx_id)
        assert stripped == replace(ended.tx, branches=(), detail_pruned=True)
        assert await log.history(tx.tx_id) == []
        assert await log.audits(tx.tx_id) == [change.audit]
        assert await log.read_gid("shop", "g") == stripped

    async def test_not_before_its_time(self, log: SqlLog, now: int) -> None:
        young = committing(now, state=TxState.COMMITTED, ended_us=now)
        await put(log, young)
        assert await self._prune(log) == []

    @pytest.mark.parametrize("age_us", [DETAIL_US + S, 1000 * S])
    async def test_what_is_not_finished_stays_whole(self, log: SqlLog, now: int, age_us: int) -> None:
        old: dict[str, int] = {"created_us": now - age_us, "deadline_us": now - age_us}

        def delivery(state: BranchState) -> Tx:
            branch = Branch("1", Kind.MESSAGE, state, "mail")
            return committing(now, branch, state=TxState.COMMITTED, ended_us=now - age_us, **old)

        kept = [
            active(now, xa(), **old),
            committing(now, **old),
            committing(now, xa(state=B.PARKED), **old),
            delivery(B.FINISHING),
            delivery(B.PARKED),
        ]
        await put(log, *kept)
        assert await self._prune(log) == []
        assert await log.read([t.tx_id for t in kept]) == {t.tx_id: t for t in kept}

    async def test_the_bare_row_goes_only_after_p(self, log: SqlLog, now: int) -> None:
        p_us = WINDOWS.keep_until(0)
        ended_us = now - p_us - S
        before_p = aborted(now, deadline_us=now - p_us + 60 * S, ended_us=ended_us)
        after_p = aborted(now, deadline_us=now - p_us - S, ended_us=ended_us)
        delivered = committing(
            now,
            Branch("1", Kind.MESSAGE, B.DONE, "mail"),
            state=TxState.COMMITTED,
            deadline_us=now - p_us - S,
            ended_us=ended_us,
        )
        await put(log, before_p, after_p, delivered)
        assert sum(await self._prune(log)) == 3 + 2
        found = await log.read([before_p.tx_id, after_p.tx_id, delivered.tx_id])
        assert found == {before_p.tx_id: replace(before_p, detail_pruned=True)}

    async def test_what_ended_long_after_its_deadline_is_kept_from_its_end_on(
        self, log: SqlLog, now: int
    ) -> None:
        """Its gid must not be forgotten with its detail. A fence is told by its deadline, which stays."""
        long_ago, ended_us = now - WINDOWS.keep_until(0) - S, now - DETAIL_US - S
        by_hand = aborted(now, deadline_us=long_ago, ended_us=ended_us)
        endless = aborted(now, deadline_us=FOREVER_US, ended_us=ended_us)
        fence = aborted(now, deadline_us=long_ago, ended_us=ended_us, decided_by=DecidedBy.SCANNER)
        await put(log, by_hand, endless, fence)
        assert sum(await self._prune(log)) == 3 + 1
        kept = await log.read([tx.tx_id for tx in (by_hand, endless, fence)])
        assert {i: tx.deadline_us for i, tx in kept.items()} == {
            by_hand.tx_id: ended_us,
            endless.tx_id: ended_us,
        }

    async def test_small_batches(self, log: SqlLog, now: int) -> None:
        await put(log, *(aborted(now, ended_us=1, deadline_us=1) for _ in range(5)))
        counts = [await log.prune("n1", 2) for _ in range(7)]
        assert max(counts) == 2
        assert sum(counts) == 10

    async def test_two_at_once(self, place: Place, log: SqlLog, now: int) -> None:
        txs = [aborted(now, ended_us=1, deadline_us=1, branches=(xa(state=B.UNDONE),)) for _ in range(30)]
        await put(log, *txs)
        other = await place.open()
        await asyncio.gather(*(each.prune("n", 7) for each in (log, other) for _ in range(4)))
        await self._prune(log)
        assert await log.read([t.tx_id for t in txs]) == {}
