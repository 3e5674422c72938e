"""Long polls: until any of many transactions has got somewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client.protocol import identifiers, reasons

from ...core.errors import Refusal, Refused
from ...core.machine import expired
from ...core.model import Tx
from ...engine.coordinator import Coordinator
from ...engine.live import WaitLevel, reached
from . import mapping, status
from .mapping import Limits, bad

LEVEL = {
    c.WAIT_LEVEL_UNSPECIFIED: WaitLevel.COMMITTED,
    c.WAIT_LEVEL_ACCEPTED: WaitLevel.ACCEPTED,
    c.WAIT_LEVEL_DECIDED: WaitLevel.DECIDED,
    c.WAIT_LEVEL_COMMITTED: WaitLevel.COMMITTED,
    c.WAIT_LEVEL_DELIVERED: WaitLevel.DELIVERED,
}
_LOOK_S = 0.05
"""Whoever waits for less is told what the log says now, however long that takes."""


class Waits:
    """Those of one node. ``find`` gives a transaction of a namespace by its tx id or gid."""

    def __init__(
        self,
        coordinator: Coordinator,
        limits: Limits,
        find: Callable[[str, str, str], Awaitable[Tx | None]],
    ) -> None:
        self._c = coordinator
        self._limits = limits
        self._find = find
        self._leaving: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def leave(self) -> None:
        """This node is leaving: open waits end without an answer."""
        if not self._leaving.done():
            self._leaving.set_result(None)

    async def wait(self, request: pb.WaitRequest, namespace: str, most_s: float) -> pb.WaitResponse:
        """Wait until any of many has got there."""
        if len(request.items) > self._limits.operations:
            raise bad(reasons.TOO_LARGE, f"at most {self._limits.operations} transactions in one wait")
        limit_s = min(request.wait_us, self._limits.wait_max_us) / 1e6
        if most_s:
            limit_s = min(limit_s, most_s)
        response = pb.WaitResponse()
        waiting: dict[asyncio.Task[Tx | None], tuple[int, pb.WaitItem]] = {}
        for index, item in enumerate(request.items):
            if item.expected:
                if not identifiers.is_tx_id(item.tx_id):
                    raise bad(reasons.BAD_TX_ID, "what is expected is named by its tx_id")
                expect = self._c.waiting.expect(item.tx_id, LEVEL[item.level], limit_s)
                waiting[asyncio.ensure_future(expect)] = (index, item)
                continue
            tx = await self._find(namespace, item.tx_id, item.gid)
            if tx is None:
                refused = status.to_pb(not_found(item.tx_id or item.gid).refusal)
                response.results.append(pb.WaitResult(index=index, status=refused))
            elif reached(tx, LEVEL[item.level]):
                response.results.append(self._wait_result(index, item, tx))
            else:
                task = asyncio.ensure_future(self._waiting(tx, LEVEL[item.level], limit_s))
                waiting[task] = (index, item)
        try:
            if limit_s < _LOOK_S:
                looks = [task for task, (_, item) in waiting.items() if item.expected]
                await asyncio.gather(*looks, return_exceptions=True)
            elif waiting and not response.results:
                await self._first(waiting, namespace, limit_s)
            for task, (index, item) in waiting.items():
                found = self._got_there(task, item, namespace)
                if found is not None:
                    response.results.append(self._wait_result(index, item, found))
        finally:
            for task in waiting:
                task.cancel()
        return response

    async def _waiting(self, tx: Tx, level: WaitLevel, limit_s: float) -> Tx | None:
        return await self._c.wait(tx, level, limit_s)

    async def _first(
        self, waiting: dict[asyncio.Task[Tx | None], tuple[int, pb.WaitItem]], namespace: str, limit_s: float
    ) -> None:
        """Until one has got there, or the time is over. One that has only given up does not end it."""
        until = self._c.clock.monotonic() + limit_s
        left = set(waiting)
        while left and not self._leaving.done():
            ends: set[asyncio.Future[Any]] = {*left, self._leaving}
            await asyncio.wait(
                ends,
                timeout=max(0.0, until - self._c.clock.monotonic()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            done = {task for task in left if task.done()}
            if not done or any(self._got_there(t, waiting[t][1], namespace) is not None for t in done):
                return
            left -= done

    def _got_there(self, task: asyncio.Task[Tx | None], item: pb.WaitItem, namespace: str) -> Tx | None:
        if not task.done() or task.cancelled() or task.exception() is not None:
            return None
        tx = task.result()
        if tx is None or tx.namespace not in ("", namespace) or not reached(tx, LEVEL[item.level]):
            return None
        return None if expired(tx, self._c.settings.windows) else tx

    def _wait_result(self, index: int, item: pb.WaitItem, tx: Tx) -> pb.WaitResult:
        return pb.WaitResult(
            index=index, outcome=mapping.outcome(tx, named=True, all_branches=item.all_branches)
        )


def not_found(name: str) -> Refused:
    """There is none of that name."""
    return Refused(
        Refusal(
            "NOT_FOUND",
            reasons.NOT_FOUND,
            f"no transaction {name[:80]!r} here. That is no outcome: to settle it, ask for its abort",
            True,
        )
    )
