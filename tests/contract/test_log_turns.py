"""Contract of the log: messages of one line, one after the other."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

from tests.support.logs import LogContract, Place, S, active, new_id, put, written
from txcoord.adapters.sql.log import SqlLog
from txcoord.core.action import Action, Delivery
from txcoord.core.model import (
    Branch,
    BranchState,
    Change,
    ChangeKind,
    DecidedBy,
    Decision,
    Kind,
    Tx,
    TxState,
    Written,
)
from txcoord.core.ordering import line_of

B = BranchState


def message(number: str, key: str = "k", due_us: int = 0, **more: Any) -> Branch:
    action = Action("told", delivery=Delivery(deliver_at_us=due_us, order_key=key))
    return Branch(number, Kind.MESSAGE, more.pop("state", B.FINISHING), "warehouse", action=action, **more)


LINE = line_of("shop", message("1"))


def committed(now_us: int, *branches: Branch, **more: Any) -> Tx:
    """Its messages are on their way."""
    values = {"tx_id": new_id(), "namespace": "shop", "deadline_us": now_us + S, "created_us": now_us}
    decided = {
        "decision": Decision.COMMIT,
        "decided_by": DecidedBy.CLIENT,
        "decided_us": now_us,
        "version": 1,
    }
    how = {"state": TxState.COMMITTED, "owner": "n1", "lease_until_us": now_us + S, "epoch": 1}
    return Tx(**{**values, **decided, **how, "branches": branches or (message("1"),), **more})


async def becomes(log: SqlLog, tx: Tx, state: BranchState) -> None:
    """Of all its messages."""
    new = replace(tx, branches=tuple(replace(b, state=state) for b in tx.branches))
    change = Change(ChangeKind.PROGRESS, new, new.branches, expected_epoch=tx.epoch, forced=False)
    assert await written(log, change) == [Written.OK]


async def turn(log: SqlLog, line: str = LINE) -> tuple[str, str] | None:
    found = (await log.turns([line])).get(line)
    return (found.tx_id, found.branch) if found is not None else None


class TestTurns(LogContract):
    async def test_in_the_order_of_the_writes_each_until_it_has_ended(self, log: SqlLog) -> None:
        now = await log.now_us()
        txs = [committed(now) for _ in range(4)]
        other = committed(now, message("1", "other"))
        random.Random(7).shuffle(txs)
        assert await turn(log) is None
        for tx in [*txs, other]:
            await put(log, tx)
        assert await log.ahead([(tx.tx_id, "1") for tx in txs]) == {
            (tx.tx_id, "1"): n for n, tx in enumerate(txs)
        }
        for n, tx in enumerate(txs):
            assert await turn(log) == (tx.tx_id, "1")
            await becomes(log, tx, B.PARKED)
            assert await turn(log) == (tx.tx_id, "1")
            assert await turn(log, line_of("shop", other.branches[0])) == (other.tx_id, "1")
            await becomes(log, tx, (B.DONE, B.SKIPPED, B.RESOLVED, B.DONE)[n])
        assert await turn(log) is None
        assert await log.ahead([(txs[0].tx_id, "1"), ("no id", "1")]) == {}

    async def test_one_transaction_s_are_in_its_own_order(self, log: SqlLog) -> None:
        now = await log.now_us()
        some = [committed(now, *(message(str(n)) for n in (3, 1, 2, 10))) for _ in range(8)]
        await asyncio.gather(*(put(log, tx) for tx in some))
        seen = []
        while (found := await turn(log)) is not None:
            seen.append(found)
            (tx,) = [tx for tx in some if tx.tx_id == found[0]]
            one = replace(tx.branch(found[1]), state=B.DONE)  # type: ignore[type-var]
            change = Change(ChangeKind.PROGRESS, tx, (one,), expected_epoch=tx.epoch)
            assert await written(log, change) == [Written.OK]
        assert [branch for _, branch in seen] == ["3", "1", "2", "10"] * 8
        assert len({seen[at][0] for at in range(0, 32, 4)}) == 8

    async def test_what_may_be_committed_has_its_place_what_was_aborted_gives_it_up(
        self, log: SqlLog
    ) -> None:
        now = await log.now_us()
        local = active(now, message("1", state=B.READY), namespace="shop", one_phase_resource="accounts")
        both = active(now, message("1", state=B.READY), namespace="shop")
        after = committed(now)
        for tx in (local, both, after):
            await put(log, tx)
        assert await turn(log) == (local.tx_id, "1")
        assert await log.ahead([(both.tx_id, "1"), (after.tx_id, "1")]) == {(after.tx_id, "1"): 1}
        # It keeps its place when it is committed; the other one takes it only then.
        decided = {"decision": Decision.COMMIT, "decided_by": DecidedBy.DATABASE, "decided_us": now}
        how = {"state": TxState.COMMITTED, "owner": "n1", "epoch": 1, "version": 2}
        done = replace(local, branches=(message("1"),), **{**decided, **how})
        change = Change(ChangeKind.AMEND, done, done.branches, expected_version=local.version)
        assert await written(log, change) == [Written.OK]
        too = replace(both, branches=(message("1"),), **{**decided, **how})
        change = Change(ChangeKind.AMEND, too, (), expected_version=both.version)
        assert await written(log, change) == [Written.OK]
        assert await turn(log) == (local.tx_id, "1")
        assert await log.ahead([(too.tx_id, "1")]) == {(too.tx_id, "1"): 2}
        await becomes(log, done, B.DONE)
        assert await turn(log) == (after.tx_id, "1")
        gone = active(now, message("1", "q", state=B.READY), namespace="shop", one_phase_resource="accounts")
        await put(log, gone)
        line = line_of("shop", gone.branches[0])
        assert await turn(log, line) == (gone.tx_id, "1")
        no = {
            "state": TxState.ABORTED,
            "decision": Decision.ABORT,
            "decided_by": DecidedBy.DEADLINE,
            "version": 2,
        }
        change = Change(ChangeKind.AMEND, replace(gone, **no), (), expected_version=gone.version)
        assert await written(log, change) == [Written.OK]
        assert await turn(log, line) is None

    async def test_a_later_one_is_waited_for_only_when_it_is_due(self, log: SqlLog) -> None:
        now = await log.now_us()
        later, tx = committed(now, message("1", due_us=now + 3600 * S)), committed(now)
        await put(log, later)
        await put(log, tx)
        assert await turn(log) == (tx.tx_id, "1")
        await becomes(log, tx, B.DONE)
        assert await turn(log) is None
        await log.hasten([(later.tx_id, "1"), ("no id", "1")])
        await put(log, committed(now))
        assert await turn(log) == (later.tx_id, "1")

    async def test_many_nodes_find_the_same_turn(self, place: Place, log: SqlLog) -> None:
        now = await log.now_us()
        logs = [await place.open() for _ in range(3)]
        txs = [committed(now, message("1", "a"), message("2", "b")) for _ in range(6)]
        lines = [line_of("shop", b) for b in txs[0].branches]
        ended: list[tuple[str, str]] = []

        async def write() -> None:
            for n, tx in enumerate(txs):
                await put(logs[n % 3], tx)

        async def work(one: SqlLog) -> None:
            while len(ended) < 12:
                found = await one.turns(lines)
                for held in found.values():
                    tx = next(tx for tx in txs if tx.tx_id == held.tx_id)
                    branch = tx.branch(held.branch)
                    assert branch is not None
                    change = Change(
                        ChangeKind.PROGRESS, tx, (replace(branch, state=B.DONE),), expected_epoch=tx.epoch
                    )
                    await written(one, change)
                    if (held.tx_id, held.branch) not in ended:
                        ended.append((held.tx_id, held.branch))
                await asyncio.sleep(0)

        await asyncio.gather(write(), *(work(one) for one in logs))
        for number in ("1", "2"):
            assert [tx_id for tx_id, branch in ended if branch == number] == [tx.tx_id for tx in txs]

    async def test_many_that_have_ended_are_forgotten(self, log: SqlLog) -> None:
        now = await log.now_us()
        txs = [committed(now) for _ in range(70)]
        for tx in txs:
            await put(log, tx)
            await becomes(log, tx, B.DONE)
        assert await turn(log) is None
        assert await log.ahead([(tx.tx_id, "1") for tx in txs]) == {}
