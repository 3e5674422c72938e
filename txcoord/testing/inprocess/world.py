"""The fixture ``txcoord``: what a test says to its coordinator, and what it asks."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import txcoord_client
import txcoord_client.sync
from txcoord_client._answers import Answer
from txcoord_client.errors import Refused

from ...core.model import Tx
from . import patches, story
from .calls import OPS, Called, Fault, Pattern, failed
from .house import PLACES, Crash, House
from .loop import start_on
from .services import Stub

Time = str | float | timedelta
ADDRESS = "in-process:7070"
_A_WEEK = "7d"


class Txcoord:
    """A coordinator in the process of a test.

    The engine is the real one, its log is in memory, and its clock is virtual: it stands still, and jumps when somebody
    waits for something that comes later. While the fixture is there, every ``Coordinator`` of the SDK, whatever its
    address, talks to it; participants are called in process too, once the test names them (:meth:`serve`).
    """

    def __init__(self) -> None:
        self._house = House()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(patches.applied(self._house))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._house.close()

    # ---- who takes part ----

    def coordinator(self, **options: Any) -> txcoord_client.Coordinator:
        """A ``txcoord_client.Coordinator`` of this test; ``options`` are its own. One that the code under test makes
        gets here too, whatever its address."""
        return txcoord_client.Coordinator(ADDRESS, **options)

    def sync_coordinator(self, **options: Any) -> txcoord_client.sync.Coordinator:
        """A ``txcoord_client.sync.Coordinator`` of this test."""
        return txcoord_client.sync.Coordinator(ADDRESS, **options)

    def serve(self, *participants: Any) -> None:
        """These participants are called in process, by whatever address they are known. They need a ``db``, since what
        they do is done behind the barrier."""
        for participant in participants:
            if participant._source is None:
                raise ValueError(
                    f"Participant({participant.name!r}) has no db: give it one (SQLite will do), or play it by "
                    f"txcoord.stub({participant.name!r})"
                )
            self._house.services.add(participant)

    def stub(self, name: str, returns: Any = None) -> Stub:
        """Play a participant (``"coupons"``), or one operation (``"coupons.Redeem"``, or a gRPC method). It says done
        to everything; its tries and actions return ``returns``, a value, or a function of their arguments that may
        raise ``Refused`` or ``Pending``."""
        stub = Stub(name, returns)
        self._house.services.add_stub(stub)
        return stub

    def resource(self, name: str, url: str) -> None:
        """A real database, for XA branches. Before the coordinator is used first."""
        if self._house.node is not None:
            raise ValueError(f"resource {name!r}: name it before the coordinator is used")
        self._house.resources[name] = url

    # ---- what goes wrong ----

    def fail(
        self, what: str, *, times: int | None = 1, code: str = "UNAVAILABLE", lost: bool = False
    ) -> None:
        """The next ``times`` calls of ``what`` fail with ``code``; None: all.

        ``what``: ``"stock"``, ``"stock.confirm"``, ``"stock.Reserve"`` or ``"stock.Reserve.confirm"``; ``*`` stands for
        anything. Without ``lost`` nothing of it is done; with it everything is done, and the answer is lost.
        """
        self._fault(f"fail({what!r})", what, times, failed(code), lost)

    def refuse(self, what: str, reason: str = "REFUSED", *, times: int | None = 1, **facts: object) -> None:
        """The next ``times`` calls of ``what`` are refused, as by the service itself: a business no."""
        said = Answer.refused(Refused(reason, **{k: str(v) for k, v in facts.items()}))
        self._fault(f"refuse({what!r})", what, times, said, False)

    def hang(self, what: str, *, times: int | None = 1) -> None:
        """The next ``times`` calls of ``what`` are taken, and never answered: whoever waits gives up in the end."""
        self._fault(f"hang({what!r})", what, times, None, False)

    def heal(self) -> None:
        """Nothing fails, hangs or refuses any more."""
        self._house.services.faults.clear()

    def _fault(self, said: str, what: str, times: int | None, answer: Answer | None, lost: bool) -> None:
        if times is not None and times < 1:
            raise ValueError(f"{said}: times={times}; at least 1, or None for always")
        pattern = Pattern(what)
        name = pattern.operation.partition(".")[0]
        services = self._house.services
        if services.names and not any(c in name for c in "*?[/") and not services.knows(name):
            raise ValueError(
                f"{said}: there is no participant {name!r}; there are {', '.join(services.names)}"
            )
        services.faults.add(Fault(pattern, f"txcoord.{said}", times, answer, lost))

    def crash_after(self, what: str, *, times: int = 1, restart: bool = True) -> None:
        """The coordinator dies, as by SIGKILL, as soon as ``what`` is in its log: ``"begin"``, ``"enlist"``,
        ``"submit"``, ``"decision"``; or after a ``"call"`` of a participant, or the ``"finish"`` of an XA branch.

        It is started again when it is needed; not before :meth:`settle` or :meth:`restart` where ``restart`` is False.
        """
        self._crash("after", what, times, restart)

    def crash_before(self, what: str, *, times: int = 1, restart: bool = True) -> None:
        """As :meth:`crash_after`, just before that is written or done."""
        self._crash("before", what, times, restart)

    def _crash(self, when: str, what: str, times: int, restart: bool) -> None:
        places = PLACES.get(what)
        if places is None:
            raise ValueError(f"crash_{when}({what!r}): one of {', '.join(PLACES)}")
        suffix = "" if what in ("call", "finish") else "_write"
        points = frozenset(f"{place}.{when}{suffix}" for place in places)
        said = f"txcoord.crash_{when}({what!r})"
        self._house.crashes.append(Crash(said, points, times, restart))

    def crash(self, *, restart: bool = True) -> None:
        """The coordinator dies now."""

        async def kill() -> None:
            await self._house.up()
            self._house.kill("txcoord.crash()", restart=restart)

        self._house.thread.run(kill())

    def restart(self) -> None:
        """Start it again after a crash with ``restart=False``."""

        async def start() -> None:
            self._house.down = False
            await self._house.up()

        self._house.thread.run(start())

    # ---- time ----

    @property
    def now_us(self) -> int:
        """The coordinator's time: UTC microseconds, as of the start of the test, and what was let go on since."""
        return self._house.now_us()

    async def settle(self, advance: Time = _A_WEEK) -> None:
        """Let time go on until every transaction has ended or is parked, at most so far: seconds, or ``"90s"``,
        ``"5m"``, ``"1h"``, ``"7d"``. Whoever has not decided by its deadline is aborted."""
        self._house.used_here()
        await asyncio.wrap_future(start_on(self._house.loop, self._house.settle(_seconds(advance))))

    def settle_sync(self, advance: Time = _A_WEEK) -> None:
        """As :meth:`settle`, for tests without a loop."""
        self._house.thread.run(self._house.settle(_seconds(_not_in_a_loop(advance, "settle"))))

    async def advance(self, by: Time) -> None:
        """Let time go on exactly so far."""
        self._house.used_here()
        await asyncio.wrap_future(start_on(self._house.loop, self._house.advance(_seconds(by))))

    def advance_sync(self, by: Time) -> None:
        """As :meth:`advance`, for tests without a loop."""
        self._house.thread.run(self._house.advance(_seconds(_not_in_a_loop(by, "advance"))))

    # ---- what has become of it ----

    def calls(self, what: str = "*") -> list[Called]:
        """All calls of participants so far, in order; those of ``what``, as in :meth:`fail`."""
        pattern = Pattern(what)
        self._house.thread.run(self._house.loop.still(_running()))
        return [c for c in self._house.services.calls if pattern.matches(c.operation, c.op)]

    def state(self, gid: Any = None) -> str:
        """``ACTIVE``, ``RUNNING``, ``COMMITTING``, ``COMMITTED``, ``ABORTING`` or ``ABORTED``, of a gid or tx id; of
        the only transaction where none is named."""
        [tx] = self._named(gid, only=True)
        return str(tx.state).upper()

    def story(self, gid: Any = None) -> str:
        """What happened, line by line, to one transaction or to all."""
        return "\n".join(self._told(tx) for tx in self._named(gid)) or "no transaction was heard of"

    def assert_committed(self, gid: Any = None) -> None:
        """The transaction (or each one of the test) is COMMITTED: every branch is done."""
        __tracebackhide__ = True
        self._assert_state(gid, "COMMITTED")

    def assert_aborted(self, gid: Any = None, *, reason: str | None = None) -> None:
        """The transaction (or each one of the test) is ABORTED: every branch is undone; for that reason."""
        __tracebackhide__ = True
        for tx in self._assert_state(gid, "ABORTED"):
            found = tx.reason.partition(":")[0]
            if reason is not None and found != reason:
                raise _wrong(f"aborted for {found or 'no reason'}, not {reason}\n{self._told(tx)}")

    def assert_parked(self, gid: Any = None) -> None:
        """The transaction waits for a person: nothing else can bring it to its end."""
        __tracebackhide__ = True
        for tx in self._named(gid, some=True):
            if not tx.shown_parked:
                raise _wrong(f"{story.name_of(tx)} is {story.state_of(tx)}, not parked\n{self._told(tx)}")

    def assert_effects_once(self, gid: Any = None) -> None:
        """Each try, action, confirm, cancel and compensation of ended transactions took effect exactly once where it
        had to, and not at all where it had not, however often it was called."""
        __tracebackhide__ = True
        for tx in self._named(gid, some=True):
            if not tx.ended:
                raise _wrong(
                    f"{story.name_of(tx)} has not ended yet: `await txcoord.settle()` first\n{self._told(tx)}"
                )
            wrong = story.wrong_effects(tx, self._house.services.calls)
            if wrong:
                raise _wrong("\n".join([*wrong, self._told(tx)]))

    def assert_all_used(self) -> None:
        """What was asked to fail, or to crash, has come to pass at least once. The fixture asks this in the end."""
        __tracebackhide__ = True
        unused = [f.said for f in self._house.services.faults.asked if not f.used]
        unused += [c.said for c in self._house.crashes if not c.used]
        if unused:
            raise _wrong(f"never came to pass: {', '.join(unused)}\n{self.story()}")

    def _assert_state(self, gid: Any, wanted: str) -> list[Tx]:
        __tracebackhide__ = True
        found = self._named(gid, some=True)
        for tx in found:
            if str(tx.state).upper() != wanted:
                raise _wrong(f"{story.name_of(tx)} is {story.state_of(tx)}, not {wanted}\n{self._told(tx)}")
        return found

    def _named(self, gid: Any, *, some: bool = False, only: bool = False) -> list[Tx]:
        __tracebackhide__ = True
        name = gid if gid is None or isinstance(gid, str) else gid.tx_id
        rows = self._house.thread.run(self._house.rows(_running()))
        found = [tx for tx in rows if name is None or name in (tx.gid, tx.tx_id)]
        if (some or only or name is not None) and not found:
            known = ", ".join(story.name_of(tx) for tx in rows) or "none"
            raise _wrong(
                f"no transaction {name} was heard of; there are: {known}"
                if name is not None
                else "no transaction was heard of"
            )
        if only and len(found) > 1:
            raise _wrong(f"which one? There are {', '.join(story.name_of(tx) for tx in found)}")
        return found

    def _told(self, tx: Tx) -> str:
        history = self._house.thread.run(self._house.history(tx.tx_id))
        return story.told(tx, history, list(self._house.notes), self._house.now_us())


_UNITS: Mapping[str, float] = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


def _wrong(message: str) -> AssertionError:
    error = AssertionError(message)
    error.tells_the_story = True  # type: ignore[attr-defined] # for the plugin: once is enough
    return error


def _seconds(time: Time) -> float:
    if isinstance(time, timedelta):
        return time.total_seconds()
    if isinstance(time, str):
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)", time.strip())
        if found is None:
            raise ValueError(
                f"{time!r}: a time is a number of seconds, or text such as '90s', '5m', '1h', '7d'"
            )
        return float(found[1]) * _UNITS[found[2]]
    return float(time)


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _not_in_a_loop(time: Time, name: str) -> Time:
    if _running() is not None:
        raise RuntimeError(f"an event loop runs here: `await txcoord.{name}(...)`")
    return time


__all__ = ["OPS", "Txcoord"]
