"""What a participant is asked, run side by side; how it is asked is in ``_serving_grpc`` and ``_serving_http``.

``sync/_serving.py`` says the same for threads.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, MutableMapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from ._answers import Answer, Call
from ._pb import participant_pb2 as pb
from .errors import Rejected
from .protocol import reasons

Begin = Callable[[pb.ExecuteRequest, str], MutableMapping["asyncio.Future[Answer]", pb.BranchAction]]
"""Begins all actions of a request, which came with this authorization."""


_MOST_BYTES = 3 * 1024 * 1024
"""Of one message: who asks takes 4 MiB, as gRPC's clients do."""


class Participant(Protocol):
    """What is served."""

    name: str
    concurrency: int
    _operations: Any
    _tokens: tuple[str, ...]

    def under_way(self, call: Call) -> Answer | None: ...

    async def execute(self, call: Call) -> Answer: ...

    async def query_back(self, tx_id: str, branch: str, identity: str) -> pb.QueryBackAnswer: ...


class Named(Protocol):
    """One who may be asked."""

    name: str
    _tokens: tuple[str, ...]


Asked = TypeVar("Asked", bound=Named)


class _Cancelled(Exception):
    """The operation was cancelled, and not by whoever asked for it."""


class _Answered:
    """Answers on their way out: while a message is being sent, the next one fills."""

    def __init__(self) -> None:
        self._there: list[tuple[pb.BranchAction, asyncio.Future[Answer]]] = []
        self._waiting: asyncio.Future[None] | None = None

    def put(self, action: pb.BranchAction, task: asyncio.Future[Answer]) -> None:
        """It is answered."""
        self._there.append((action, task))
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def take(self) -> list[tuple[pb.BranchAction, asyncio.Future[Answer]]]:
        """All that are there, waiting for the first."""
        while not self._there:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
        there, self._there = self._there, []
        return there


class Runner:
    """Runs actions of several participants, of each so many at a time as it has room for."""

    def __init__(self, participants: Sequence[Participant]) -> None:
        self._participants = tuple(participants)
        self._room = {p.name: asyncio.Semaphore(p.concurrency) for p in participants}

    def begin(
        self, request: pb.ExecuteRequest, authorization: str
    ) -> dict[asyncio.Future[Answer], pb.BranchAction]:
        """Begin all that is asked."""
        return {
            asyncio.ensure_future(self._one(Call.from_pb(request, action), authorization)): action
            for action in request.actions
            if action.context < len(request.contexts)
        }

    async def query_back(self, request: pb.QueryBackRequest, authorization: str) -> pb.QueryBackResponse:
        """What became of local transactions. It takes no place of an operation: those may hang."""
        response = pb.QueryBackResponse()
        for item in request.items:
            asked, why = answerer_of(self._participants, item.participant, authorization)
            if asked is not None:
                response.answers.append(await asked.query_back(item.tx_id, item.branch, item.identity))
            else:
                response.answers.add(tx_id=item.tx_id, branch=item.branch, message=why)
        return response

    async def _one(self, call: Call, authorization: str) -> Answer:
        # What is declared after it was mounted counts too.
        participant = next((p for p in self._participants if call.operation in p._operations), None)
        if participant is None:
            return nobody(call)
        if not permitted(participant._tokens, authorization):
            return stranger(participant.name)
        later = participant.under_way(call)
        if later is not None:
            return later
        async with self._room[participant.name]:
            return await participant.execute(call)


def answerer_of(participants: Sequence[Asked], name: str, authorization: str) -> tuple[Asked | None, str]:
    """Whose database it is, or why that cannot be said: the wrong one would say that nothing has committed."""
    found = [p for p in participants if p.name == name] if name else list(participants)
    if len(found) != 1:
        there = ", ".join(sorted(p.name for p in participants))
        return None, f"which participant is asked? {name!r} is not one of {there}"
    if not permitted(found[0]._tokens, authorization):
        return None, f"{reasons.UNAUTHENTICATED}: {found[0].name} is only asked with one of its bearer tokens"
    return found[0], ""


def nobody(call: Call) -> Answer:
    """Nobody here does that."""
    return Answer.failed(
        Rejected(f"there is no operation {call.operation!r} here", reason=reasons.UNKNOWN_OPERATION)
    )


def permitted(tokens: tuple[str, ...], authorization: str) -> bool:
    """Does the caller have one of a participant's tokens? One without tokens does not ask."""
    scheme, _, given = authorization.partition(" ")
    wanted = [hmac.compare_digest(given.strip().encode(), token.encode()) for token in tokens]
    return not tokens or (scheme.lower() == "bearer" and any(wanted))


def stranger(name: str) -> Answer:
    """To whoever has none."""
    return Answer.failed(
        Rejected(f"{name} is only called with one of its bearer tokens", reason=reasons.UNAUTHENTICATED)
    )


async def answers(
    begin: Begin, request: pb.ExecuteRequest, authorization: str
) -> AsyncGenerator[tuple[pb.ExecuteResponse, bool], None]:
    """Run what is asked; each answer as soon as it is there, and whether it is the last."""
    answered = _Answered()
    left = begin(request, authorization)
    for task, action in left.items():
        task.add_done_callback(partial(answered.put, action))
    try:
        while left:
            done = []
            for action, task in await answered.take():
                del left[task]
                # One that has cancelled itself is no reason to leave the others without an answer.
                done.append((Answer.failed(_Cancelled()) if task.cancelled() else task.result(), action))
            for response, more in responses_of(request, done):
                yield response, not (left or more)
    finally:
        # Nobody waits any more. What runs is rolled back, or asked for again.
        for task in list(left):
            task.cancel()


def responses_of(
    request: pb.ExecuteRequest, done: Iterable[tuple[Answer, pb.BranchAction]]
) -> Iterator[tuple[pb.ExecuteResponse, bool]]:
    """What was answered, in messages that are small enough, and whether there is another one."""
    response, size = pb.ExecuteResponse(), 0
    for answer, action in done:
        said = answer.to_pb(request.contexts[action.context].tx_id, action)
        more = said.ByteSize() + 16
        if response.answers and size + more > _MOST_BYTES:
            yield response, True
            response, size = pb.ExecuteResponse(), 0
        response.answers.append(said)
        size += more
    yield response, False
