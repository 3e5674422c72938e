"""`txcoord bench returned`: a participant that is well, alone, beside one that is dead with a backlog, and beside the
same one when it is back and its backlog is drained.

One coordinator. The backlog are confirms of a participant at whose address nobody listens; then somebody does.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

import grpc

from txcoord_client import Coordinator
from txcoord_client._pb import admin_pb2, admin_pb2_grpc
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client._pb import coordinator_pb2_grpc as rpc
from txcoord_client.protocol import identifiers

from .calling import NAMES, Calling, folder, free_ports, started_coordinator, started_participants
from .loop import Once, measure
from .match import Row, Sample, Turn

ALONE: Final = "alone"
DEAD: Final = "beside-dead"
BACK: Final = "beside-drain"
_BRANCHES = 10
"""Of a transaction of the backlog."""
_AT_ONCE = 32
_SLICE_S = 2.0


def run(backlog: int, callers: int, seconds: float, log: str, emit: Callable[[str], None]) -> int:
    """Run the bench; one JSON object a line through ``emit``. Answers the number of errors."""
    with folder() as place, ExitStack() as stack:
        node = started_coordinator(place, log, None, stack)
        ports = free_ports([*NAMES, "dead"])
        dead_port = ports.pop("dead")
        started_participants(place, ports, stack)
        target = f"grpc://127.0.0.1:{dead_port}"
        at = {name: f"grpc://127.0.0.1:{port}" for name, port in ports.items()}

        async def compare() -> int:
            async with Coordinator(node.address, participants=at) as coord, _Desk(node.address) as desk:
                once = Calling(coord).tcc
                await measure(once, callers, Turn(ALONE, 1.0, Sample(), 0))  # connections, caches, code
                alone = await _measured(ALONE, once, callers, seconds)
                await desk.fill(target, backlog)
                await desk.until_down(target)
                dead = await _measured(DEAD, once, callers, seconds)
                dead["backlog"] = await desk.waiting(target)
                began = time.monotonic()
                # Beside the loop: starting a process waits for it.
                await asyncio.to_thread(
                    started_participants, place, {"dead": dead_port}, stack, "participant-that-was-dead"
                )
                back = await _until_drained(once, callers, desk, target, began)
                rows = [alone, dead, back]
                for row in rows:
                    known = row["p99_ms"] and alone["p99_ms"]
                    row["ratio"] = round(row["p99_ms"] / alone["p99_ms"], 3) if known else None
                    emit(json.dumps({**row, "log": log}))
                return sum(row["errors"] for row in rows)

        return asyncio.run(compare())


async def _measured(kind: str, once: Once, callers: int, seconds: float) -> Row:
    sample = Sample()
    await measure(once, callers, Turn(kind, seconds, sample, 0))
    return sample.row(kind, callers)


async def _until_drained(once: Once, callers: int, desk: _Desk, target: str, began: float) -> Row:
    sample, slices = Sample(), 0
    while await desk.open():
        slices += 1
        await measure(once, callers, Turn(BACK, _SLICE_S, sample, slices * 1_000_003))
    row = sample.row(BACK, callers)
    row["drained_s"] = round(time.monotonic() - began, 1)
    row["drained"] = len(desk.made) * _BRANCHES
    return row


class _Desk:
    """What is asked without the SDK."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stub: Any = rpc.CoordinatorServiceStub(self._channel)
        self._admin: Any = admin_pb2_grpc.AdminServiceStub(self._channel)
        self.made: list[str] = []
        self._open: list[str] = []

    async def __aenter__(self) -> _Desk:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close(None)

    async def fill(self, target: str, backlog: int) -> None:
        """Commit transactions whose branches only that target can confirm."""
        width = asyncio.Semaphore(_AT_ONCE)

        async def one() -> None:
            async with width:
                self.made.append(await self._commit(target))

        await asyncio.gather(*(one() for _ in range(backlog // _BRANCHES)))
        self._open = list(self.made)

    async def _commit(self, target: str) -> str:
        now_us = time.time_ns() // 1_000
        who: dict[str, Any] = {
            "tx_id": identifiers.new_tx_id(now_us, secrets.randbits),
            "deadline_us": now_us + 300_000_000,
        }
        branches, votes = [], []
        for number in range(1, _BRANCHES + 1):
            branch = c.Branch(id=str(number), kind=c.KIND_TCC)
            branch.action.target, branch.action.operation = target, "dead.Reserve"
            branch.action.payload = b"{}"
            branches.append(branch)
            votes.append(c.Branch(id=str(number), kind=c.KIND_TCC, vote=c.VOTE_PREPARED))
        await self._stub.Enlist(pb.EnlistRequest(branches=branches, **who), timeout=30)
        await self._stub.Commit(
            pb.CommitRequest(branches=votes, begun=True, wait=c.WAIT_LEVEL_DECIDED, **who), timeout=30
        )
        return str(who["tx_id"])

    async def _target(self, name: str) -> admin_pb2.Target:
        answer = await self._admin.ListTargets(admin_pb2.ListTargetsRequest(), timeout=30)
        return next((t for t in answer.targets if t.name == name), admin_pb2.Target())

    async def until_down(self, target: str) -> None:
        """Until it is known to be dead."""
        while (await self._target(target)).state != admin_pb2.TARGET_STATE_PROBING:  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    async def waiting(self, target: str) -> int:
        """How many branches wait for it."""
        return (await self._target(target)).backlog

    async def open(self) -> bool:
        """Has any transaction of the backlog not ended?"""
        while self._open:
            asked = pb.GetRequest(tx_id=self._open[-1])
            found = await self._stub.Get(asked, timeout=30)
            if found.transaction.outcome.state != c.STATE_COMMITTED:
                return True
            self._open.pop()
        return False
