"""The participants of a test: the user's own, and those that the test plays. All are called in process."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from txcoord_client import _values
from txcoord_client._answers import Answer, Call
from txcoord_client._pb import common_pb2 as c
from txcoord_client._pb import participant_pb2 as pb
from txcoord_client._places import ParticipantAt, refuse_misspelt, said_of
from txcoord_client.errors import Pending, Refused

from ...adapters.calling import execute
from ...core.action import Answer as CoreAnswer
from ...ports import CallRequest
from ..memory_log import LOG_ID
from .calls import FIRST, Called, Faults, called
from .loop import Loop, LoopThread, start_on

T = TypeVar("T")
_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_THREADS = 8


class House(Protocol):
    """Where the coordinator is."""

    loop: Loop

    def now_us(self) -> int: ...

    def home(self) -> asyncio.AbstractEventLoop | None: ...

    def note(self, tx_id: str, text: str) -> None: ...

    def own(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]: ...


class Stub:
    """A participant that the test plays. It keeps the barrier's rules by itself."""

    def __init__(self, name: str, returns: Any = None) -> None:
        self.name = name
        self.returns = returns
        """What its tries and actions return: a value, or a function of their arguments (by name), which may raise
        ``Refused`` or ``Pending``."""
        self._rows: dict[tuple[str, str, str], bytes | None] = {}

    def execute(self, call: Call) -> Answer:
        """As a participant with a database would."""
        key = call.tx_id, call.branch, call.op
        if key in self._rows:
            found = self._rows[key]
            if found is None:
                return Answer.refused(Refused("DECIDED", f"the {call.op} came after it was undone"))
            return Answer.done(found, repeated=True)
        first = FIRST.get(call.op)
        if first is not None:
            self._rows[key] = b""
            if call.op == "confirm":
                return Answer.done()
            before = call.tx_id, call.branch, first
            acted = self._rows.setdefault(before, None) is not None
            return Answer.done(repeated=not acted)
        try:
            value = self._value(call)
        except Refused as refused:
            return Answer.refused(refused)
        except Pending as pending:
            return Answer.pending(pending)
        data = _values.encode(value) if value is not None else b""
        self._rows[key] = data
        return Answer.done(data)

    def _value(self, call: Call) -> Any:
        if not callable(self.returns):
            return self.returns
        given = _values.decode(call.payload) or {}
        given |= {name: _values.decode(result) for name, result in call.results.items()}
        wanted = inspect.signature(self.returns).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in wanted.values())
        return self.returns(**{k: v for k, v in given.items() if anything or k in wanted})


class Services:
    """Who is called. Everything but ``add`` belongs to the coordinator's loop."""

    def __init__(self, house: House) -> None:
        self.faults = Faults()
        self.calls: list[Called] = []
        self._house = house
        self._served: dict[str, Any] = {}
        """By operation."""
        self._names: dict[str, Any] = {}
        self._ready: set[int] = set()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="txcoord.participant")
        self._side: LoopThread | None = None
        self._rooms: dict[str, asyncio.Semaphore] = {}

    def add(self, participant: Any) -> None:
        """One of the user's."""
        self._names[participant.name] = participant
        for name in participant._operations:
            self._served[name] = participant

    def add_stub(self, stub: Stub) -> None:
        """One that the test plays, under a participant's name or that of one operation."""
        self._names[stub.name] = stub

    def knows(self, name: str) -> bool:
        """Is there a participant of that name?"""
        return name in self._names or any(n.startswith(f"{name}.") for n in self._names)

    @property
    def names(self) -> list[str]:
        """Of all."""
        return sorted(self._names)

    def _find(self, operation: str) -> Any:
        found = self._names.get(operation) or self._served.get(operation)
        name = operation
        while found is None and name:
            name = name.rpartition(".")[0]
            found = self._names.get(name)
        return found

    # ---- one call ----

    async def perform(self, request: pb.ExecuteRequest) -> Answer:
        """Do what the first action of a request asks for, or let it go wrong."""
        call = Call.from_pb(request, request.actions[0])
        fault = self.faults.take(call)
        if fault is not None and not fault.lost:
            if fault.answer is None:
                self._house.note(call.tx_id, f"{_title(call)}: no answer ({fault.said})")
                await asyncio.get_running_loop().create_future()
                raise AssertionError("whoever waits for it gives up")
            self._record(called(self._house.now_us(), call, fault.answer))
            return fault.answer
        # What has begun goes on, also when its caller dies.
        answer = await asyncio.shield(self._house.own(self._done(call, lost=fault is not None)))
        return answer if fault is None or fault.answer is None else fault.answer

    def _record(self, found: Called) -> None:
        self.calls.append(found)
        self._house.note(found.tx_id, str(found))

    async def _done(self, call: Call, *, lost: bool) -> Answer:
        participant = self._find(call.operation)
        if participant is None:
            answer = Answer(
                c.ANSWER_KIND_FAILED,
                reason="UNKNOWN_PARTICIPANT",
                message=f"nobody serves {call.operation} in this test: txcoord.serve(...) the participant, or "
                f"txcoord.stub({call.operation.rpartition('.')[0] or call.operation!r})",
            )
        elif isinstance(participant, Stub):
            answer = participant.execute(call)
        elif call.operation not in participant._operations:
            answer = Answer(
                c.ANSWER_KIND_FAILED,
                reason="UNKNOWN_OPERATION",
                message=f"{participant.name} has no operation {call.operation}",
            )
        elif (later := participant.under_way(call)) is not None:
            answer = later
        else:
            room = self._rooms.setdefault(participant.name, asyncio.Semaphore(participant.concurrency))
            async with room:
                answer = await self._by_user(participant, call)
        self._record(called(self._house.now_us(), call, answer, lost=lost))
        return answer

    async def _by_user(self, participant: Any, call: Call) -> Answer:
        if not asyncio.iscoroutinefunction(participant.execute):
            running = self._house.loop
            with running.holding():
                found: Answer = await running.run_in_executor(self._threads, participant.execute, call)
            return found
        loop = self._house.home()
        if loop is None:
            if self._side is None:
                self._side = LoopThread(asyncio.new_event_loop(), "txcoord.participants")
            loop = self._side.loop
        try:
            with self._house.loop.holding(loop):
                return await asyncio.wrap_future(start_on(loop, participant.execute(call)))
        except Exception as error:
            return Answer.failed(error)

    # ---- who calls ----

    async def tried(self, place: ParticipantAt, data: bytes, budget_s: float) -> c.BranchAnswer | str:
        """A call by the SDK, again where that may help; the text says why there is no answer. Raises Rejected."""
        loop = self._house.loop
        request = pb.ExecuteRequest.FromString(data)
        self._shift(request)
        action = request.actions[0]
        until, pause, why = loop.now + budget_s, _PAUSE_S, "it has not answered in time"
        with loop.somebody_waits():
            while (left := until - loop.now) > 0:
                try:
                    async with asyncio.timeout(left):
                        answer = await self.perform(request)
                except TimeoutError:
                    break
                said = answer.to_pb(request.contexts[0].tx_id, action)
                if answer.kind in (c.ANSWER_KIND_DONE, c.ANSWER_KIND_REFUSED):
                    return said
                refuse_misspelt(place, said, action.attempt)
                why = said_of(said)
                if answer.reason == "UNKNOWN_PARTICIPANT":
                    break
                await asyncio.sleep(min(max(answer.retry_after_us / 1e6, pause), max(until - loop.now, 0.0)))
                pause = min(pause * 2, _LONGEST_PAUSE_S)
                action.attempt += 1
        return why

    def _shift(self, request: pb.ExecuteRequest) -> None:
        """A participant's database has the machine's clock: its deadlines are as far away there as they are here."""
        for context in request.contexts:
            if context.deadline_us:
                context.deadline_us += time.time_ns() // 1_000 - self._house.now_us()

    async def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._side is not None:
            side, self._side = self._side, None
            await asyncio.to_thread(side.close)


class Caller:
    """``ports.Caller`` of one node."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.log_id = LOG_ID

    async def call(
        self, target: str, requests: Sequence[CallRequest], timeout_s: float
    ) -> AsyncIterator[tuple[CallRequest, CoreAnswer]]:
        """Each for itself, side by side."""
        answered: asyncio.Queue[tuple[CallRequest, CoreAnswer]] = asyncio.Queue()
        tasks = [asyncio.ensure_future(self._one(r, answered)) for r in requests]
        try:
            for _ in requests:
                yield await answered.get()
        finally:
            for task in tasks:
                task.cancel()

    async def _one(
        self, request: CallRequest, answered: asyncio.Queue[tuple[CallRequest, CoreAnswer]]
    ) -> None:
        [message] = execute.requests_of([request], node="in-process", log_id=LOG_ID)
        message = pb.ExecuteRequest.FromString(message.SerializeToString())
        self._services._shift(message)
        answer = await self._services.perform(message)
        said = answer.to_pb(request.tx.tx_id, message.actions[0])
        answered.put_nowait((request, execute.answer_of(said)))

    async def close(self) -> None:
        """Nothing is open."""


def _title(call: Call) -> str:
    return f"branch {call.branch}: {call.operation} {call.op}"
