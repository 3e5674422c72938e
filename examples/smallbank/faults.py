"""Who is killed or stopped, what is wrong with the network, when, and for how long: drawn before anything starts."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .history import History
from .network import Trouble, trouble
from .world import World, in_thread

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Blow:
    """One or two victims die at once (SIGKILL), and come back."""

    victims: tuple[str, ...]
    after_s: float
    """Since those of the blow before were up again."""
    down_s: float
    again_s: float | None = None
    """So long after its start the (only) victim is killed once more: in the middle of its recovery, perhaps."""

    @property
    def kills(self) -> int:
        """How many SIGKILLs that is."""
        return len(self.victims) + (self.again_s is not None)


@dataclass(frozen=True, slots=True)
class Pause:
    """One is stopped (SIGSTOP), and goes on: before its lease is over, or after."""

    victim: str
    after_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class Jam:
    """Something is wrong with these ways for a while."""

    ways: tuple[str, ...]
    trouble: Trouble
    after_s: float
    for_s: float
    name: str
    """Of the ways, for people."""


def blows(
    rng: random.Random, kills: int, victims: Sequence[str], pause_s: tuple[float, float] = (0.3, 1.5)
) -> list[Blow]:
    """Blows with ``kills`` SIGKILLs in all; each victim has its turn, in random order."""
    turns = _turns(rng, victims)
    out: list[Blow] = []
    left = kills
    while left:
        first = next(turns)
        kind = rng.random()
        pause, down = rng.uniform(*pause_s), rng.uniform(0.0, 0.6)
        if kind < 0.15 and left > 1:
            other = rng.choice([v for v in victims if v != first])
            blow = Blow((first, other), pause, down)
        elif kind < 0.3 and left > 1:
            blow = Blow((first,), pause, down, rng.uniform(0.05, 2.0))
        else:
            blow = Blow((first,), pause, down)
        out.append(blow)
        left -= blow.kills
    return out


def disturbances(
    rng: random.Random, count: int, world: World, pause_s: tuple[float, float]
) -> list[Pause | Jam]:
    """Stops and network faults in turn (without a network only stops). Each victim has its turn to be stopped; every
    second time for longer than a lease."""
    victims, lengths = _turns(rng, world.victims), _turns(rng, ((0.1, 0.8), (1.2, 2.2)))
    out: list[Pause | Jam] = []
    while len(out) < count:
        after = rng.uniform(*pause_s)
        if world.network is None or len(out) % 2 == 0:
            out.append(Pause(next(victims), after, world.lease_s * rng.uniform(*next(lengths))))
            continue
        name, ways = _some_ways(rng, world.network.between)
        long = rng.uniform(0.2, 1.5) if rng.random() < 0.5 else rng.uniform(1.5, 6.0)
        out.append(Jam(tuple(ways), trouble(rng), after, long, name))
    return out


def _some_ways(rng: random.Random, between: Callable[..., list[str]]) -> tuple[str, list[str]]:
    """One way, or all that begin at one, or all that lead to one."""
    way = rng.choice(between())
    source, target = way.split(">")
    match rng.randrange(3):
        case 0:
            return f"from {source} to {target}", [way]
        case 1:
            return f"from {source}", between(source=source)
    return f"to {target}", between(target=target)


def _turns(rng: random.Random, all_of_them: Sequence[T]) -> Iterator[T]:
    while True:
        yield from rng.sample(list(all_of_them), len(all_of_them))


async def strike(
    world: World, planned: Sequence[Blow], history: History, told: Callable[[str], None], lanes: int = 1
) -> None:
    """Deal these blows: in each lane one after the other, when the victims of the one before are up."""
    left = deque(planned)

    async def lane() -> None:
        while left:
            await _deal(world, left.popleft(), history, told)

    async with asyncio.TaskGroup() as group:
        for _ in range(lanes):
            group.create_task(lane())


async def _deal(world: World, blow: Blow, history: History, told: Callable[[str], None]) -> None:
    await asyncio.sleep(blow.after_s)
    while world.down.intersection(blow.victims):  # noqa: ASYNC110 - another lane brings it up
        await asyncio.sleep(0.02)
    world.down.update(blow.victims)
    told(f"kill -9 {' and '.join(blow.victims)}")
    history.add("fault", what="kill", on=list(blow.victims))
    await asyncio.gather(*(in_thread(world.kill, victim) for victim in blow.victims))
    await asyncio.sleep(blow.down_s)
    if blow.again_s is not None:
        await in_thread(world.start, blow.victims[0])
        await asyncio.sleep(blow.again_s)
        told(f"kill -9 {blow.victims[0]} again, {blow.again_s:.1f} s after its start")
        history.add("fault", what="kill", on=[blow.victims[0]])
        await in_thread(world.kill, blow.victims[0])
    back = [victim for victim in world.victims if victim in blow.victims]
    for victim in back:
        await in_thread(world.start, victim)
    await asyncio.gather(*(in_thread(world.await_ready, victim) for victim in back))
    history.add("fault", what="up", on=back)


async def disturb(
    world: World, planned: Sequence[Pause | Jam], history: History, told: Callable[[str], None]
) -> None:
    """Stop processes and spoil the network, one after the other, whatever dies meanwhile. What is stopped goes on, and
    what is spoilt is mended, also where this is cancelled."""
    for fault in planned:
        await asyncio.sleep(fault.after_s)
        if isinstance(fault, Pause):
            while fault.victim in world.down:  # noqa: ASYNC110 - it is being started
                await asyncio.sleep(0.02)
            told(f"kill -STOP {fault.victim} for {fault.for_s:.1f} s")
            history.add("fault", what="stop", on=[fault.victim], s=round(fault.for_s, 2))
            await in_thread(world.stop, fault.victim)
            try:
                await asyncio.sleep(fault.for_s)
            finally:
                world.go_on(fault.victim)
                history.add("fault", what="go on", on=[fault.victim])
            continue
        network = world.network
        assert network is not None
        told(f"network {fault.name}: {fault.trouble}, for {fault.for_s:.1f} s")
        facts = {"on": list(fault.ways), "name": fault.name, "trouble": str(fault.trouble)}
        history.add("fault", what="jam", s=round(fault.for_s, 2), **facts)
        try:
            await in_thread(network.make, fault.trouble, fault.ways)
            await asyncio.sleep(fault.for_s)
        finally:
            await in_thread(network.mend, fault.trouble, fault.ways)
            history.add("fault", what="mended", **facts)
