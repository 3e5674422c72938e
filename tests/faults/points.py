"""Every point where something can go wrong, in one registry: what no scenario of a run has reached is seen.

A *step* changes something durable, or is a call that does. A *point* is a step and what goes wrong there:

- ``before``: the process dies, and nothing has happened;
- ``after``: it has happened, then the process dies before it knows;
- ``lost``: it has happened, and the process lives on and is told that the connection broke.

The process that dies is the one that takes the step: by its first word the client (or the service that it calls), or
the coordinator with its finishers, its scanner and its log.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from txcoord.engine import failpoints

T = TypeVar("T")
BEFORE, AFTER, LOST = "before", "after", "lost"
ALL = (BEFORE, AFTER, LOST)
MARIADB = "mariadb"


@dataclass(frozen=True, slots=True)
class Step:
    """Something durable that is done."""

    name: str
    """``actor.what``."""
    modes: tuple[str, ...] = ALL
    only: str = ""
    """The one kind of database on which it exists; empty: it exists on all."""

    @property
    def points(self) -> tuple[str, ...]:
        """The points of it, as ``actor.what:mode``."""
        return tuple(f"{self.name}:{mode}" for mode in self.modes)


_STEPS = [
    # What the SDK asks a coordinator.
    Step("client.begin"),
    Step("client.commit"),
    Step("client.rollback"),
    Step("client.report"),
    Step("client.enlist"),
    Step("client.submit"),
    Step("client.prepare_message"),
    Step("client.submit_message"),
    # The COMMIT of a local transaction that its service answers for.
    Step("client.commit_local"),
    # What it does in its databases.
    Step("client.prepare"),
    Step("client.commit_one_phase"),
    Step("client.finish_commit", only=MARIADB),
    Step("client.finish_rollback", only=MARIADB),
    # A call to another service, which takes part.
    Step("client.call"),
    # A coordinator asks what became of a local transaction.
    Step("coordinator.ask_back", modes=(BEFORE, LOST)),
    # The try of a participant, and what a participant makes durable.
    Step("client.try"),
    Step("participant.commit"),
    # What a coordinator does in a database.
    Step("finisher.commit"),
    Step("finisher.rollback"),
    Step("finisher.tombstone"),
    Step("finisher.kill", only=MARIADB),
    # What it writes into its log.
    Step("log.flush"),
    Step("log.change"),
]
_ACTOR = {
    "finish_late": "scanner.finish_late",
    "orphan": "scanner.fence",
    "scan": "scanner.judge",
    "takeover": "scanner.take_over",
}
"""Failpoints of the engine that are not of the coordinator's commands."""


def _of_engine(name: str) -> tuple[str, str]:
    stem, _, when = name.partition(".")
    return _ACTOR.get(stem, f"coordinator.{stem}"), when.partition("_")[0]


_ELSEWHERE = ("replay.",)
"""Where a node dies in tests of its own: an operator's job, see tests/acceptance/test_replay.py."""
ENGINE: Mapping[str, tuple[str, str]] = {
    name: _of_engine(name) for name in sorted(failpoints.NAMES) if not name.startswith(_ELSEWHERE)
}
"""The step and the mode of each failpoint of the engine. A new one is here by itself."""


def _engine_steps() -> Iterable[Step]:
    modes: dict[str, set[str]] = {}
    for step, mode in ENGINE.values():
        # Where a step has happened, its reply can be lost as well.
        modes.setdefault(step, set()).update((AFTER, LOST) if mode == AFTER else (mode,))
    return (Step(name, tuple(m for m in ALL if m in found)) for name, found in modes.items())


STEPS: Mapping[str, Step] = {step.name: step for step in (*_STEPS, *_engine_steps())}


def points_of(databases: Iterable[str]) -> frozenset[str]:
    """Every point that exists on these kinds of databases."""
    kinds = set(databases)
    return frozenset(p for s in STEPS.values() if not s.only or s.only in kinds for p in s.points)


OF_PARTICIPANTS = frozenset(
    p
    for name, s in STEPS.items()
    if name.startswith("participant.")
    or name.partition(".")[2] in ("enlist", "submit", "try", "decide", "hand_off", "due", "order")
    or name in ("coordinator.call", "coordinator.ask_back")
    or name in ("client.prepare_message", "client.submit_message", "client.commit_local")
    for p in s.points
)
"""Where only TCC, sagas and messages come to, or mostly."""
Hit = tuple[str, int]
"""A point, and which time it is reached."""


def hits_of(counted: Mapping[str, int]) -> list[Hit]:
    """Every hit of every point."""
    return [(point, hit) for point, count in counted.items() for hit in range(1, count + 1)]


def text_of(crashes: Iterable[Hit]) -> str:
    """``client.prepare:lost@2,finisher.commit:before@1``"""
    return ",".join(f"{point}@{hit}" for point, hit in crashes)


def parse(text: str) -> tuple[Hit, ...]:
    """The hits that a text names. Raises ValueError."""
    out = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        point, _, hit = item.partition("@")
        step, _, mode = point.partition(":")
        if step not in STEPS or mode not in STEPS[step].modes:
            raise ValueError(f"no point is called {point!r}")
        out.append((point, int(hit or 1)))
    return tuple(out)


class Mortal(Protocol):
    """A process: of a client or of a coordinator."""

    dead: asyncio.Event
    buried: bool
    """Is what is left of it being ended?"""

    def die(self) -> None: ...


class Points:
    """Counts what is reached. At a crash it kills, or loses the reply; then it counts anew for the next one."""

    def __init__(self, *crashes: Hit) -> None:
        self.hits: list[Counter[str]] = [Counter()]
        """Before the first crash, between it and the second, …"""
        self.fired: list[Hit] = []
        self._crashes = list(crashes)

    @property
    def unfired(self) -> list[Hit]:
        """The crashes that did not happen."""
        return self._crashes

    def fired_at(self, actor: str) -> bool:
        """Has something gone wrong at this actor?"""
        return any(point.startswith(f"{actor}.") for point, _ in self.fired)

    @staticmethod
    async def alive(process: Mortal) -> None:
        """A dead process does nothing more; its tasks stand still until they are ended."""
        if process.buried:
            raise asyncio.CancelledError
        if process.dead.is_set():
            await asyncio.get_running_loop().create_future()

    async def reach(self, point: str, process: Mortal) -> None:
        """Die here, if it is time."""
        await self.alive(process)
        if self._now(point):
            process.die()
            await self.alive(process)

    def loses(self, step: str) -> bool:
        """Is the reply of this step lost now?"""
        return self._now(f"{step}:{LOST}")

    async def around(
        self, step: str, process: Mortal, do: Callable[[], Awaitable[T]], lost: Callable[[], Exception]
    ) -> T:
        """Do it, with its three points. What raises has not happened."""
        await self.reach(f"{step}:{BEFORE}", process)
        out = await do()
        await self.reach(f"{step}:{AFTER}", process)
        if self.loses(step):
            raise lost()
        return out

    def _now(self, point: str) -> bool:
        hits = self.hits[-1]
        hits[point] += 1
        if not self._crashes or self._crashes[0] != (point, hits[point]):
            return False
        self.fired.append(self._crashes.pop(0))
        self.hits.append(Counter())
        return True
