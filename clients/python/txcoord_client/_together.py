"""Tries for one participant: what is asked for in the same moment travels in one call, and is answered one by one.

Only of the asynchronous SDK: in threads each try is a call of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from ._pb import common_pb2 as c
from ._pb import participant_pb2 as pb

_TURNS = 3
"""Turns of the loop before a call leaves: what is ready in them travels along."""
_MOST = 200
_MOST_BYTES = 3 * 1024 * 1024
"""Of one message: gRPC servers take 4 MiB unless they are told otherwise."""


class Asked:
    """One action, and whoever waits for its answer until ``until``, by the loop's clock."""

    __slots__ = ("alone", "call", "future", "key", "request", "size", "until")

    def __init__(self, request: pb.ExecuteRequest, until: float, *, alone: bool = False) -> None:
        self.request = request
        self.until = until
        self.alone = alone
        """Nothing else travels with it; once it has left: nothing else did."""
        self.key = (request.contexts[0].tx_id, request.actions[0].branch)
        self.size = request.ByteSize()
        self.call: _Call | None = None
        self.future: asyncio.Future[c.BranchAnswer | None] = asyncio.get_running_loop().create_future()

    def settle(self, answer: c.BranchAnswer | None) -> None:
        """It is answered; None: it is not, and will not be."""
        if not self.future.done():
            self.future.set_result(answer)


class Together:
    """What is asked of one participant. ``stub`` is that of its service, ``shown`` the metadata of each call."""

    def __init__(self, stub: Any, shown: list[tuple[str, str]] | None = None) -> None:
        self._execute = partial(stub.Execute, metadata=shown)
        self._waiting: list[Asked] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def ask(self, asked: Asked) -> c.BranchAnswer | None:
        """The answer; None when none came, or not in time. Raises AioRpcError."""
        loop = asyncio.get_running_loop()
        self._waiting.append(asked)
        if len(self._waiting) == 1:
            loop.call_soon(self._turn, _TURNS)
        timer = loop.call_at(asked.until, asked.settle, None)
        try:
            return await asked.future
        finally:
            timer.cancel()
            if asked.call is not None:
                asked.call.left_by(asked)

    def _turn(self, more: int) -> None:
        loop = asyncio.get_running_loop()
        if more:
            loop.call_soon(self._turn, more - 1)
            return
        waiting, self._waiting = self._waiting, []
        for batch in _batches([asked for asked in waiting if not asked.future.done()]):
            task = loop.create_task(_Call(batch).run(self._execute), name="txcoord.tries")
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)


def _batches(waiting: list[Asked]) -> Iterator[list[Asked]]:
    """What travels in one message each: of one branch one call, for answers name no more than their branch."""
    filling: dict[tuple[str, str], tuple[dict[tuple[str, str], Asked], int]] = {}
    for asked in waiting:
        if asked.alone:
            yield [asked]
            continue
        key = asked.request.namespace, asked.request.log_id
        batch, size = filling.get(key, ({}, 0))
        if batch and (len(batch) == _MOST or size + asked.size > _MOST_BYTES or asked.key in batch):
            yield list(batch.values())
            batch, size = {}, 0
        batch[asked.key] = asked
        filling[key] = batch, size + asked.size
    for batch, _ in filling.values():
        yield list(batch.values())


class _Call:
    """One call on its way."""

    def __init__(self, batch: list[Asked]) -> None:
        self._open = {asked.key: asked for asked in batch}
        self._call: Any = None
        for asked in batch:
            asked.call = self
            asked.alone = len(batch) == 1

    def left_by(self, asked: Asked) -> None:
        """Its caller waits no more. When nobody does, what still runs there is ended: it is rolled back."""
        if self._open.pop(asked.key, None) is not None and not self._open and self._call is not None:
            self._call.cancel()

    async def run(self, execute: Callable[..., Any]) -> None:
        """Send it, and hand the answers out."""
        if not self._open:
            return
        left = max(asked.until for asked in self._open.values()) - asyncio.get_running_loop().time()
        self._call = execute(_message(list(self._open.values())), timeout=max(left, 0.001))
        try:
            async for response in self._call:
                for answer in response.answers:
                    asked = self._open.pop((answer.tx_id, answer.branch), None)
                    if asked is not None:
                        asked.settle(answer)
        except Exception as error:
            for asked in self._open.values():
                if not asked.future.done():
                    asked.future.set_exception(error)
        finally:
            for asked in self._open.values():
                asked.settle(None)
            self._open.clear()
            self._call.cancel()


def _message(batch: list[Asked]) -> pb.ExecuteRequest:
    first = batch[0].request
    if len(batch) == 1:
        return first
    message = pb.ExecuteRequest(namespace=first.namespace, log_id=first.log_id)
    contexts: dict[str, int] = {}
    for asked in batch:
        context, action = asked.request.contexts[0], asked.request.actions[0]
        index = contexts.setdefault(context.tx_id, len(contexts))
        if index == len(message.contexts):
            message.contexts.append(context)
        message.actions.append(action)
        message.actions[-1].context = index
    return message
