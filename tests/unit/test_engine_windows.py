"""The windows on the real engine: what the model has found."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.virtual import eventually, run
from txcoord.core.machine import expired
from txcoord.core.model import Change, DecidedBy, Decision, WriteResult

from .engine_support import a_shop

DAY_S = 86_400.0


def test_a_fence_that_stalls_beyond_w_is_no_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by tests/model/XaCommit.tla: meanwhile a commit's row may have come, ended and been deleted."""

    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx(deadline_s=10)
            shop.prepared(tx)
            write = node.log.write

            async def stand_still(change: Change) -> WriteResult:
                monkeypatch.setattr(node.log, "write", write)
                await asyncio.sleep(shop.storage.windows.retention_us / 1e6)
                return await write(change)

            monkeypatch.setattr(node.log, "write", stand_still)
            await asyncio.sleep(20)
            await node.recovery.scan(shop.a)
            row = shop.storage.row(tx.tx_id)
            assert row.decided_by is DecidedBy.SCANNER
            assert expired(row, shop.storage.windows)
            await eventually(lambda: not shop.a.prepared)

    run(main())


@pytest.mark.parametrize("done", [False, True])
def test_a_deadline_whose_database_was_away_until_w_ends_all_the_same(done: bool) -> None:
    """Found by tests/model/OnePhase.tla: its tombstone was refused for lateness, for ever."""

    async def main() -> None:
        async with a_shop() as shop:
            node = shop.node()
            tx = shop.tx(gid="order-1", one_phase="a", deadline_s=2)
            await node.begin(tx)
            if done:
                assert shop.a.commit_one_phase(tx.tx_id, tx.deadline_us)
            await asyncio.sleep(46 * DAY_S)
            await node.recovery.sweep_deadlines()
            await eventually(lambda: shop.storage.row(tx.tx_id).ended)
            assert shop.storage.row(tx.tx_id).decision is (Decision.COMMIT if done else Decision.ABORT)

    run(main())
