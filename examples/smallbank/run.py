"""One run: a world, its clients, its blows, and the check in the end."""

from __future__ import annotations

import argparse
import asyncio
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .check import Verdict, check
from .clients import OPS, TILL_OPS, Clients
from .faults import blows, disturb, disturbances, strike
from .history import History
from .observe import observer, read_now_and_then
from .show import Screen
from .world import ROOT, World, in_thread

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
    services: tuple[str, ...] = ("async",)
    """Of each service: async, or sync for one of threads, on the synchronous SDK."""
    nodes: int = 1
    """Coordinators on the log."""
    tills: int = 0
    """Processes of participants: with them there are payments of TCC and saga, too."""
    disturbances: int = 0
    """Stops (SIGSTOP) and, with ``faulty_network``, network faults."""
    faulty_network: bool = False
    lanes: int = 1
    """So many blows are dealt at once."""
    lease_s: float = 10.0
    history: Path | None = None
    """Where it is written to."""
    command: str = ""
    """What the user has typed."""

    @property
    def options(self) -> str:
        """The options of the command line that make the same run again, but for the numbers."""
        return (
            ("--mariadb " if self.savings == "mariadb" else "")
            + ("--sync " if "async" not in self.services else "")
            + f"--log {self.log} --seed {self.seed}"
        )


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it."""

    clients: Clients
    verdict: Verdict
    history: History
    kills: Counter[str]
    stops: int
    jams: int
    ended: list[str]
    """Processes that ended by themselves."""
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
        services=wanted.services,
        nodes=wanted.nodes,
        tills=wanted.tills,
        faulty_network=wanted.faulty_network,
        lease_s=wanted.lease_s,
        accounts=wanted.accounts,
        keep=wanted.keep,
    )
    async with world:
        start_s = time.monotonic() - begun
        screen.say(f"{_processes(world)} are up after {start_s:.1f} s; {_money(world)}")
        with History(wanted.history) as history:
            history.add("world", **world.description(), plan=_facts(wanted))
            clients = Clients(
                world.addresses,
                wanted.accounts,
                rng.random(),
                f"pay-{wanted.seed}",
                history,
                ops=(*OPS, *TILL_OPS) if wanted.tills else OPS,
            )
            try:
                busy_s = await _work(wanted, world, clients, history, rng, screen)
                settled_s = await settled(world, history)
                verdict = await verdict_of(world, clients, history)
            except asyncio.CancelledError:
                raise
            except BaseException:
                _keep(world, history, screen)
                raise
            if not verdict.good:
                _keep(world, history, screen)
        faults = Counter(record["what"] for record in history.records if record["kind"] == "fault")
        return Result(
            clients,
            verdict,
            history,
            world.kills,
            faults["stop"],
            faults["jam"],
            world.ended,
            start_s,
            busy_s,
            settled_s,
        )


async def _work(
    wanted: Plan, world: World, clients: Clients, history: History, rng: random.Random, screen: Screen
) -> float:
    hits = blows(rng, wanted.kills, world.victims, wanted.pause_s)
    others = disturbances(rng, wanted.disturbances, world, wanted.pause_s)
    begun = screen.begun = time.monotonic()
    async with observer({name: node.address for name, node in world.nodes.items()}, history) as looking:
        with screen:
            killer = asyncio.ensure_future(strike(world, hits, history, screen.event, wanted.lanes))
            pest = asyncio.ensure_future(disturb(world, others, history, screen.event))
            watch = asyncio.ensure_future(looking.now_and_then(clients.recent, random.Random(rng.random())))
            look = asyncio.ensure_future(read_now_and_then(world.banks, clients.facts, history))
            work = asyncio.ensure_future(
                clients.run(
                    wanted.clients,
                    lambda: len(clients.wishes) < wanted.payments or not (killer.done() and pest.done()),
                )
            )
            tasks = (killer, pest, watch, look, work)
            try:
                while not (work.done() and killer.done() and pest.done()):
                    screen.progress(clients, world)
                    await asyncio.wait({task for task in tasks if not task.done()}, timeout=0.2)
                    for task in tasks:
                        if task.done():
                            task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            screen.progress(clients, world)
    history.add("over")
    return time.monotonic() - begun


async def settled(world: World, history: History, patience_s: float = 90.0) -> float:
    """Wait until nothing of ours is prepared, or open, or undecided any more. Answers how long that took."""
    begun = time.monotonic()
    await world.settled(patience_s)
    async with observer({name: node.address for name, node in world.nodes.items()}, history) as looking:
        while await looking.open_ones() and time.monotonic() < begun + patience_s:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.1)
    return time.monotonic() - begun


async def verdict_of(world: World, clients: Clients, history: History) -> Verdict:
    """What the checker says, when all has settled; what nodes and databases say in the end gets into the history."""
    async with observer({name: node.address for name, node in world.nodes.items()}, history) as looking:
        await looking.last_words(list(clients.wishes), random.Random(len(clients.wishes)))
    for name, bank in world.banks.items():
        history.add("rows", database=name, **await in_thread(bank.end))
    for node, line in world.alarms():
        history.add("alarm", node=node, text=line[:300])
    return await in_thread(check, history.records)


def _facts(wanted: Plan) -> dict[str, Any]:
    return {
        "seed": wanted.seed,
        "log": wanted.log,
        "savings": wanted.savings,
        "nodes": wanted.nodes,
        "tills": wanted.tills,
        "services": list(wanted.services),
        "lease_s": wanted.lease_s,
        "kills": wanted.kills,
        "command": wanted.command,
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def typed(script: str) -> str:
    """The command line of this process, which a script of the repository has started."""
    return shlex.join([f"./scripts/{script}", *sys.argv[1:]])


def _commit() -> str:
    """Of what runs here; empty where that is not known."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said.stdout.strip()


def _processes(world: World) -> str:
    products = Counter(f"{server.product} server" for server in world.servers.values())
    products["coordinator"] = len(world.nodes)
    products["service"] = len(world.services)
    if world.tills:
        products["till"] = len(world.tills)
    return ", ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in products.items())


def _money(world: World) -> str:
    return f"{world.money / 100:,.2f} in {2 * world.accounts:,} accounts"


def _keep(world: World, history: History, screen: Screen) -> None:
    world.keep = True
    if history.file is None:
        history.save(world.folder / "history.jsonl")
    screen.say(f"[red]logs and data are kept in {world.folder}, the history is {history.file}")


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
