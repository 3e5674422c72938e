"""One run: a world, its clients, its blows, and the check in the end."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from typing import Any

from .chaos import plan, strike
from .check import Verdict, check
from .clients import Clients
from .show import Screen
from .world import World, in_thread

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to do. All that is drawn comes from the seed."""

    seed: int
    log: str
    payments: int
    """At least so many."""
    kills: int
    clients: int
    accounts: int = 500
    pause_s: tuple[float, float] = (0.3, 1.5)
    keep: bool = False
    savings: str = "postgresql"
    """The second database: postgresql or mariadb."""
    sync: bool = False
    """A service of threads, on the synchronous SDK."""

    @property
    def options(self) -> str:
        """The options of the command line that make the same run again, but for the numbers."""
        return (
            ("--mariadb " if self.savings == "mariadb" else "")
            + ("--sync " if self.sync else "")
            + f"--log {self.log} --seed {self.seed}"
        )


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it."""

    clients: Clients
    verdict: Verdict
    kills: Counter[str]
    start_s: float
    busy_s: float
    settled_s: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """What of a world can be chosen, besides its log."""
    parser.add_argument("--mariadb", action="store_true", help="the second database is on MariaDB")
    parser.add_argument(
        "--sync", action="store_true", help="the service uses threads, and the synchronous SDK"
    )


async def run(wanted: Plan, screen: Screen) -> Result:
    """The whole of it. Evidence is kept when something is wrong."""
    rng = random.Random(wanted.seed)
    begun = time.monotonic()
    world = World(
        log=wanted.log,
        savings=wanted.savings,
        sync=wanted.sync,
        accounts=wanted.accounts,
        keep=wanted.keep,
    )
    async with world:
        start_s = time.monotonic() - begun
        screen.say(
            f"{_servers(world)}, a coordinator and a service{' of threads' if wanted.sync else ''} are up after "
            f"{start_s:.1f} s; "
            f"{world.money / 100:,.2f} in {2 * wanted.accounts:,} accounts"
        )
        clients = Clients(world.service.address, wanted.accounts, rng.random(), f"pay-{wanted.seed}")
        try:
            busy_s = await _work(wanted, world, clients, rng, screen)
            settled_s = await world.settled()
            verdict = await verdict_of(world, clients)
        except asyncio.CancelledError:
            raise
        except BaseException:
            _keep(world, clients, screen)
            raise
        if not verdict.good:
            _keep(world, clients, screen)
        return Result(clients, verdict, world.kills, start_s, busy_s, settled_s)


async def _work(wanted: Plan, world: World, clients: Clients, rng: random.Random, screen: Screen) -> float:
    blows = plan(rng, wanted.kills, world.victims, wanted.pause_s)
    begun = screen.begun = time.monotonic()
    with screen:
        killer = asyncio.ensure_future(strike(world, blows, screen.event))
        work = asyncio.ensure_future(
            clients.run(wanted.clients, lambda: len(clients.payments) < wanted.payments or not killer.done())
        )
        try:
            while not (work.done() and killer.done()):
                screen.progress(clients, world)
                await asyncio.wait({work, killer}, timeout=0.2)
                for task in (killer, work):
                    if task.done():
                        task.result()
        finally:
            for task in (killer, work):
                task.cancel()
            await asyncio.gather(killer, work, return_exceptions=True)
        screen.progress(clients, world)
    return time.monotonic() - begun


async def verdict_of(world: World, clients: Clients) -> Verdict:
    """What the checker says, and the coordinator's own alarms."""
    verdict = await in_thread(check, list(world.banks.values()), clients.payments, world.cents_each)
    verdict.anomalies += [f"the coordinator's alarm: {line[:300]}" for line in world.alarms()[:5]]
    return verdict


def _servers(world: World) -> str:
    products = Counter(server.product for server in world.servers.values())
    return " and ".join(f"{count} {name} server{'s' * (count > 1)}" for name, count in products.items())


def _keep(world: World, clients: Clients, screen: Screen) -> None:
    world.keep = True
    history = world.folder / "payments.jsonl"
    with history.open("w") as out:
        out.writelines(json.dumps(asdict(payment)) + "\n" for payment in clients.payments.values())
    screen.say(f"[red]logs, data and {history.name} are kept in {world.folder}")


def main_loop(work: Coroutine[Any, Any, int]) -> int:
    """Run it to its exit status. SIGINT and SIGTERM end it, and nothing is left running."""

    async def guarded() -> int:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            print("interrupted: stopped everything", flush=True)
            return INTERRUPTED

    return asyncio.run(guarded())
