"""Contract of the log: plans that run. Undecided, and carried out by a node."""

from __future__ import annotations

from dataclasses import replace

from tests.support.logs import DETAIL_US, LogContract, S, active, decide, get, put, written
from txcoord.adapters.sql.log import SqlLog
from txcoord.core.action import Action
from txcoord.core.model import (
    FOREVER_US,
    TAKEN,
    Branch,
    BranchState,
    Change,
    ChangeKind,
    Decision,
    Kind,
    Tx,
    TxState,
    Written,
)

B = BranchState
LEASE = 10 * S
STEP = Branch("1", Kind.SAGA, B.RUNNING, "grpc://ship", action=Action("pack", run_first=True))


def plan(now_us: int, *branches: Branch, **more: object) -> Tx:
    tx = active(now_us, *(branches or (STEP,)))
    return replace(tx, **{"state": TxState.RUNNING, "owner": "n1", "lease_until_us": now_us + LEASE, **more})


def progress(tx: Tx, *touched: Branch) -> Change:
    branches = {b.id: b for b in (*tx.branches, *touched)}
    new = replace(tx, branches=tuple(branches.values()))
    return Change(ChangeKind.PROGRESS, new, touched, expected_epoch=tx.epoch, forced=False)


class TestPlans(LogContract):
    async def test_its_steps_go_on(self, log: SqlLog) -> None:
        tx = plan(await log.now_us())
        await put(log, tx)
        done = replace(STEP, state=B.READY, result=b"1")
        assert await written(log, progress(tx, done)) == [Written.OK]
        assert (await get(log, tx.tx_id)).branches == (done,)

    async def test_any_step_that_is_not_written_down_may_have_begun(self, log: SqlLog) -> None:
        tx = plan(await log.now_us(), STEP, replace(STEP, id="2", state=B.OPEN))
        await put(log, tx)
        assert [b.state for b in (await get(log, tx.tx_id)).branches] == [B.RUNNING, B.RUNNING]

    async def test_it_is_taken_over_and_whoever_had_it_decides_nothing(self, log: SqlLog) -> None:
        tx = plan(await log.now_us(), lease_until_us=1)
        await put(log, tx)
        (claimed,) = await log.claim("n2", LEASE, 10)
        assert (claimed.owner, claimed.epoch, claimed.version) == ("n2", tx.epoch + TAKEN, tx.version + 1)
        old = [progress(tx, replace(STEP, state=B.READY)), decide(tx, Decision.ABORT)]
        assert await written(log, *old) == [Written.CONFLICT, Written.CONFLICT]
        assert await written(log, decide(claimed, Decision.COMMIT)) == [Written.OK]

    async def test_nothing_goes_on_once_it_is_decided(self, log: SqlLog) -> None:
        tx = plan(await log.now_us())
        await put(log, tx)
        change = decide(tx, Decision.ABORT)
        change = replace(change, tx=replace(change.tx, epoch=tx.epoch + 1))
        assert await written(log, change, progress(tx, replace(STEP, state=B.READY))) == [
            Written.OK,
            Written.CONFLICT,
        ]

    async def test_its_lease_is_kept_and_its_deadline_is_its_owners_to_see(self, log: SqlLog) -> None:
        now = await log.now_us()
        tx, late = plan(now), plan(now, deadline_us=now - 1)
        await put(log, tx, late)
        assert set(await log.renew("n1", [tx.tx_id, late.tx_id], 60 * S)) == {tx.tx_id, late.tx_id}
        assert set(await log.renew("n2", [tx.tx_id], 60 * S)) == set()
        assert await log.overdue(10) == []

    async def test_one_without_a_deadline_is_kept_as_long_as_others(self, log: SqlLog) -> None:
        now = await log.now_us()
        ended = {"state": TxState.COMMITTED, "decision": Decision.COMMIT, "decided_us": 1, "ended_us": 1}
        tx = plan(now, replace(STEP, state=B.DONE), deadline_us=FOREVER_US, **ended)
        young = replace(
            tx, tx_id=tx.tx_id[:-1] + ("0" if tx.tx_id[-1] != "0" else "1"), ended_us=now - DETAIL_US
        )
        await put(log, tx, young)
        # Both are stripped; the one that ended long ago is past its time too, the other one is not.
        assert await log.prune("n1", 100) == 3
        assert set(await log.read([tx.tx_id, young.tx_id])) == {young.tx_id}
        assert (await get(log, young.tx_id)).deadline_us == young.ended_us
