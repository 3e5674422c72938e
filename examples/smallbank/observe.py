"""What the coordinators say of transactions: asked now and then while all goes on, and of every one in the end."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc

from txcoord.testing.servers import ServerError
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client._pb import coordinator_pb2_grpc

from .check import ABORTED, COMMITTED
from .databases import Database
from .history import History
from .world import in_thread

_NAMESPACE = "default"
_OPEN = "state = ACTIVE|RUNNING|COMMITTING|ABORTING"
_OUTCOMES = {c.DECISION_COMMIT: COMMITTED, c.DECISION_ABORT: ABORTED}
_AT_ONCE = 16
_PATIENCE_S = 60.0
_SAMPLE = 300
"""So many are asked for one by one in the end, at each node."""


class Observer:
    """Asks the nodes, and writes down what they say."""

    def __init__(self, stubs: Mapping[str, Any], history: History) -> None:
        self._stubs = stubs
        self._history = history

    async def look(self, node: str, gid: str, *, last: bool = False, timeout_s: float = 3.0) -> bool:
        """What does this node say of this gid? False: it did not say anything."""
        asked = self._history.now()
        try:
            answer = await self._stubs[node].Get(
                pb.GetRequest(namespace=_NAMESPACE, gid=gid), timeout=timeout_s
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                return False
            facts = {"tx": "", "outcome": "", "ended": False, "note": "NOT_FOUND"}
        else:
            facts = _said(answer.transaction)
        self._history.add("seen", asked=asked, node=node, gid=gid, last=last, **facts)
        return True

    async def now_and_then(self, recent: deque[str], rng: random.Random, pause_s: float = 0.05) -> None:
        """Ask random nodes of random gids, until cancelled."""
        nodes = list(self._stubs)
        while True:
            await asyncio.sleep(pause_s)
            if recent:
                await self.look(rng.choice(nodes), rng.choice(recent), timeout_s=1.0)

    async def open_ones(self) -> int:
        """How many transactions have not ended; -1 where no node can tell."""
        for stub in self._stubs.values():
            try:
                answer = await stub.List(
                    pb.ListRequest(namespace=_NAMESPACE, filter=_OPEN, page_size=1000), timeout=10
                )
            except grpc.aio.AioRpcError:
                continue
            return len(answer.transactions)
        return -1

    async def last_words(self, gids: Sequence[str], rng: random.Random) -> None:
        """What every node says of every gid when all is over: in its list of all, and for those that are not in it, and
        some that are, if it is asked for that one. Raises TimeoutError where one does not answer."""
        for node in self._stubs:
            async with asyncio.timeout(_PATIENCE_S):
                listed = await self._list(node, set(gids))
            sample = {*rng.sample(gids, min(len(gids), _SAMPLE)), *(gid for gid in gids if gid not in listed)}
            busy = asyncio.Semaphore(_AT_ONCE)
            async with asyncio.TaskGroup() as group:
                for gid in sorted(sample):
                    group.create_task(self._last_word(node, gid, busy))

    async def _list(self, node: str, wanted: set[str]) -> set[str]:
        found: set[str] = set()
        page = ""
        while True:
            asked = self._history.now()
            answer = await self._stubs[node].List(
                pb.ListRequest(namespace=_NAMESPACE, page_size=1000, page_token=page), timeout=30
            )
            for tx in answer.transactions:
                if tx.gid in wanted:
                    found.add(tx.gid)
                    self._history.add("seen", asked=asked, node=node, gid=tx.gid, last=True, **_said(tx))
            page = answer.next_page_token
            if not page:
                return found

    async def _last_word(self, node: str, gid: str, busy: asyncio.Semaphore) -> None:
        async with busy, asyncio.timeout(_PATIENCE_S):
            while not await self.look(node, gid, last=True, timeout_s=10):  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.1)


def _said(tx: c.Transaction) -> dict[str, Any]:
    state = c.State.Name(tx.outcome.state).removeprefix("STATE_")
    ended = tx.outcome.state in (c.STATE_COMMITTED, c.STATE_ABORTED)
    notes = [] if ended else [state]
    if tx.outcome.parked:
        notes.append(f"{tx.outcome.parked} parked")
    if tx.outcome.heuristic:
        notes.append("heuristic")
    outcome = _OUTCOMES.get(tx.outcome.decision, "")
    return {"tx": tx.tx_id, "outcome": outcome, "ended": ended, "note": ", ".join(notes)}


async def read_now_and_then(
    banks: Mapping[str, Database], facts: deque[str], history: History, pause_s: float = 0.5
) -> None:
    """Look for payments in the databases just after their clients were told a fact, until cancelled."""
    while True:
        await asyncio.sleep(pause_s)
        if facts:
            gid = facts[-1]
            for name, bank in banks.items():
                asked = history.now()
                with contextlib.suppress(ServerError, OSError):  # it is down, or stopped
                    count = await in_thread(bank.rows_of, gid)
                    history.add("read", asked=asked, gid=gid, database=name, rows=count)


@asynccontextmanager
async def observer(nodes: Mapping[str, str], history: History) -> AsyncIterator[Observer]:
    """One who asks the nodes at these addresses."""
    async with AsyncExitStack() as stack:
        stubs = {}
        for name, address in nodes.items():
            channel = grpc.aio.insecure_channel(
                address,
                options=[("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)],
            )
            await stack.enter_async_context(channel)
            stubs[name] = coordinator_pb2_grpc.CoordinatorServiceStub(channel)
        yield Observer(stubs, history)
