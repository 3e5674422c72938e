"""What a participant is asked, run side by side in threads; see ``_serving`` above."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

from .._answers import Answer, Call
from .._pb import participant_pb2 as pb
from .._serving import answerer_of, nobody, permitted, responses_of, stranger


class Participant(Protocol):
    """What is served."""

    name: str
    concurrency: int
    _operations: Any
    _tokens: tuple[str, ...]

    def under_way(self, call: Call) -> Answer | None: ...

    def execute(self, call: Call) -> Answer: ...

    def query_back(self, tx_id: str, branch: str, identity: str) -> pb.QueryBackAnswer: ...


class Runner:
    """Runs actions of several participants, in threads of each one's own."""

    def __init__(self, participants: Sequence[Participant]) -> None:
        self._participants = tuple(participants)
        self._threads = {
            p.name: ThreadPoolExecutor(p.concurrency, thread_name_prefix=f"txcoord.{p.name}")
            for p in participants
        }

    def begin(self, request: pb.ExecuteRequest, authorization: str) -> dict[Future[Answer], pb.BranchAction]:
        """Begin all that is asked."""
        return {
            self._start(Call.from_pb(request, action), authorization): action
            for action in request.actions
            if action.context < len(request.contexts)
        }

    def begin_in_loop(
        self, request: pb.ExecuteRequest, authorization: str
    ) -> dict[asyncio.Future[Answer], pb.BranchAction]:
        """The same for an event loop that waits for it."""
        return {
            asyncio.wrap_future(future): action
            for future, action in self.begin(request, authorization).items()
        }

    def query_back(self, request: pb.QueryBackRequest, authorization: str) -> pb.QueryBackResponse:
        """What became of local transactions, in the caller's thread: those of operations may hang."""
        response = pb.QueryBackResponse()
        for item in request.items:
            asked, why = answerer_of(self._participants, item.participant, authorization)
            if asked is not None:
                response.answers.append(asked.query_back(item.tx_id, item.branch, item.identity))
            else:
                response.answers.add(tx_id=item.tx_id, branch=item.branch, message=why)
        return response

    async def query_back_in_loop(
        self, request: pb.QueryBackRequest, authorization: str
    ) -> pb.QueryBackResponse:
        """The same for an event loop that waits for it."""
        return await asyncio.to_thread(self.query_back, request, authorization)

    def _start(self, call: Call, authorization: str) -> Future[Answer]:
        # What is declared after it was mounted counts too.
        participant = next((p for p in self._participants if call.operation in p._operations), None)
        if participant is None:
            return _told(nobody(call))
        if not permitted(participant._tokens, authorization):
            return _told(stranger(participant.name))
        later = participant.under_way(call)
        if later is not None:
            return _told(later)
        return self._threads[participant.name].submit(participant.execute, call)


def _told(answer: Answer) -> Future[Answer]:
    future: Future[Answer] = Future()
    future.set_result(answer)
    return future


def answers(
    runner: Runner, request: pb.ExecuteRequest, authorization: str
) -> Generator[tuple[pb.ExecuteResponse, bool], None, None]:
    """Run what is asked; each answer as soon as it is there, and whether it is the last."""
    left = runner.begin(request, authorization)
    try:
        while left:
            done, _ = wait(left, return_when=FIRST_COMPLETED)
            said = [(future.result(), left.pop(future)) for future in done]
            for response, more in responses_of(request, said):
                yield response, not (left or more)
    finally:
        # Nobody waits any more: what has not begun does not begin.
        for future in left:
            future.cancel()
