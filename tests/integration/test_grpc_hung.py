"""Twenty participants that hang beside one that is well, over real gRPC. Counted, not timed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import grpc

from tests.support.node import Node, new_tx
from txcoord.adapters.calling.any_ import AnyCaller
from txcoord.adapters.embedded.clock import SystemClock
from txcoord.core.action import Action, Retry
from txcoord.core.events import Submit
from txcoord.core.model import Branch, BranchState, Kind, TxState, Windows
from txcoord.testing.memory_log import Storage
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import participant_pb2 as pb
from txcoord_client._pb import participant_pb2_grpc

HUNG = 20
PLANS = 30
"""For each that hangs: more than a lane has room for."""


class Service(participant_pb2_grpc.ParticipantServiceServicer):
    """Done at once, or never."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.taken: list[tuple[str, int]] = []
        self._hangs = hangs

    async def Execute(self, request: pb.ExecuteRequest, context: Any) -> AsyncIterator[pb.ExecuteResponse]:
        for action in request.actions:
            tx_id = request.contexts[action.context].tx_id
            self.taken.append((tx_id, action.op))
            if self._hangs:
                continue
            answer = c.BranchAnswer(tx_id=tx_id, branch=action.branch, op=action.op, kind=c.ANSWER_KIND_DONE)
            yield pb.ExecuteResponse(answers=[answer])
        if self._hangs:
            await asyncio.Event().wait()


async def served(service: Service, stack: AsyncExitStack) -> str:
    server = grpc.aio.server()
    participant_pb2_grpc.add_ParticipantServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stack.push_async_callback(server.stop, None)
    return f"grpc://127.0.0.1:{port}"


async def deaf(stack: AsyncExitStack) -> str:
    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            pass
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    stack.callback(server.close)
    return f"grpc://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_one_that_is_well_is_called_as_if_twenty_that_hang_were_not_there() -> None:
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        well = Service()
        at = await served(well, stack)
        # Half of those that hang accept the connection, and say nothing at all.
        hung = [await served(Service(hangs=True), stack) for _ in range(HUNG // 2)]
        hung += [await deaf(stack) for _ in range(HUNG // 2)]
        caller = AnyCaller(node="n1")
        stack.push_async_callback(caller.close)
        node = Node(Storage(clock.now_us, Windows()), {}, clock, name="n1", caller=caller)
        stack.push_async_callback(node.stop)

        async def plan(target: str) -> Any:
            # So long that nothing has timed out when this test ends.
            action = Action("a.act", run_first=True, retry=Retry(call_timeout_us=600_000_000))
            branches = tuple(
                Branch(n, Kind.SAGA, BranchState.OPEN, target, action=action) for n in ("1", "2")
            )
            tx = new_tx(clock, deadline_s=3600)
            return await node.coordinator.submit(Submit(replace(tx, branches=branches)))

        waiting = [await plan(target) for _ in range(PLANS) for target in hung]
        for _ in range(50):
            done = await node.ended(await plan(at))
            assert done.state is TxState.COMMITTED
        assert sorted(op for _, op in well.taken) == [c.BRANCH_OP_ACTION] * 100
        for tx in waiting:
            now = await node.coordinator.get(tx.tx_id)
            assert now is not None
            assert (now.state, [b.attempts for b in now.branches]) == (TxState.RUNNING, [0, 0])
