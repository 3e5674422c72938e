"""Lanes of calls in the engine, on virtual time: who may hold whom up."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from tests.support.virtual import run
from tests.unit.test_engine_calls import a_place, tcc, tried
from txcoord.core.action import Op
from txcoord.core.model import TxState


def test_one_tenants_hung_calls_hold_no_other_tenant_up() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            for number in range(40):  # More calls than a lane has room for, each on its own.
                branch = f"9{number}"
                place.participants.held[branch, Op.CONFIRM] = asyncio.Event()
                await tried(node, replace(place.tx(), namespace="slow"), tcc(branch))
                await asyncio.sleep(0.01)
            for _ in range(20):
                done = await node.ended(
                    await tried(node, replace(place.tx(), namespace="well"), tcc("1")), timeout_s=1
                )
                assert done.state is TxState.COMMITTED
            for gate in place.participants.held.values():
                gate.set()
            await asyncio.wait_for(node.coordinator.live.drained(), 300)

    run(main())


def test_many_that_time_out_in_one_moment_hold_nobody_up() -> None:
    async def main() -> None:
        async with a_place() as place:
            node = await place.node()
            place.participants.hung.add("grpc://hung")
            waiting = await asyncio.gather(
                *(tried(node, place.tx(), tcc("1", "grpc://hung")) for _ in range(400))
            )

            def failed() -> int:
                # Those that wait for long are handed off: the log alone knows them.
                rows = [place.storage.row(tx.tx_id) for tx in waiting]
                return sum(b.attempts > 0 for row in rows for b in row.branches)

            while not failed():  # noqa: ASYNC110 - on virtual time
                await asyncio.sleep(0.001)
            done = await node.ended(await tried(node, place.tx(), tcc("1")), timeout_s=1)
            assert done.state is TxState.COMMITTED
            assert failed() < len(waiting)
            # They are told soon all the same.
            await asyncio.sleep(1)
            assert failed() == len(waiting)
            place.participants.hung.clear()
            await asyncio.wait_for(node.coordinator.live.drained(), 300)

    run(main())


def test_what_waits_for_room_where_each_is_taken_by_itself_has_not_failed() -> None:
    """Thirty for a database with three connections, of a second each: longer than the time of a call."""

    async def main() -> None:
        async with a_place() as place:
            node = await place.node(call_alone={"sql:ledger": 3})
            place.participants.latency_s = 1.0
            waiting = [await tried(node, place.tx(), tcc("1", "sql:ledger")) for _ in range(30)]
            done = [await node.ended(tx, 60) for tx in waiting]
            assert {tx.state for tx in done} == {TxState.COMMITTED}
            assert place.participants.batches == [("sql:ledger", 1)] * 30
            begun = [at for at, *_ in place.participants.calls]
            assert min(later - one for one, later in zip(begun, begun[3:], strict=False)) >= 1_000_000

    run(main())
