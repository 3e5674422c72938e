"""Who is killed, when, and for how long: drawn from a seed before anything starts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .world import World, in_thread


@dataclass(frozen=True, slots=True)
class Blow:
    """One or two victims die at once, and come back."""

    victims: tuple[str, ...]
    after_s: float
    """Since everything was up the last time."""
    down_s: float
    again_s: float | None = None
    """So long after its start the (only) victim is killed once more: in the middle of its recovery, perhaps."""

    @property
    def kills(self) -> int:
        """How many SIGKILLs that is."""
        return len(self.victims) + (self.again_s is not None)


def plan(
    rng: random.Random, kills: int, victims: Sequence[str], pause_s: tuple[float, float] = (0.3, 1.5)
) -> list[Blow]:
    """Blows with ``kills`` SIGKILLs in all; each victim has its turn, in random order."""
    turns = _turns(rng, victims)
    blows: list[Blow] = []
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
        blows.append(blow)
        left -= blow.kills
    return blows


def _turns(rng: random.Random, victims: Sequence[str]) -> Iterator[str]:
    while True:
        yield from rng.sample(list(victims), len(victims))


async def strike(world: World, blows: Sequence[Blow], told: Callable[[str], None]) -> None:
    """Deal these blows, one after the other; each begins when everything is up."""
    for blow in blows:
        await asyncio.sleep(blow.after_s)
        told(f"kill -9 {' and '.join(blow.victims)}")
        await asyncio.gather(*(in_thread(world.kill, victim) for victim in blow.victims))
        await asyncio.sleep(blow.down_s)
        if blow.again_s is not None:
            await in_thread(world.start, blow.victims[0])
            await asyncio.sleep(blow.again_s)
            told(f"kill -9 {blow.victims[0]} again, {blow.again_s:.1f} s after its start")
            await in_thread(world.kill, blow.victims[0])
        back = [victim for victim in world.victims if victim in blow.victims]
        for victim in back:
            await in_thread(world.start, victim)
        await asyncio.gather(*(in_thread(world.await_ready, victim) for victim in back))
