"""Payments across two databases while coordinator, service and databases are killed with SIGKILL.

    python -m examples.smallbank.demo [--payments N] [--kills N] [--seed N] [--log sqlite|postgresql] …

Exit status 0 only if nothing was lost, doubled, torn or left prepared, and every client was told the truth.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import grpc
from rich.console import Console
from rich.live import Live
from rich.table import Table

from .check import Payment, Verdict, check
from .world import World, chaos

OPS = ("send_payment", "send_payment", "withdraw_savings", "withdraw_savings", "move_checking")
_FINAL = frozenset({"committed", "aborted", "refused"})


@dataclass(slots=True)
class Clients:
    """Concurrent clients of the service: each asks, and asks again with the same gid when it hears nothing."""

    world: World
    rng: random.Random
    wanted: int
    prefix: str
    payments: dict[str, Payment] = field(default_factory=dict)
    told: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    repeats: int = 0
    changed: list[str] = field(default_factory=list)
    stop_after: float = 0.0
    minimum_over: bool = False

    def going(self) -> bool:
        """Is there anything left to ask for?"""
        return self.asked < self.wanted

    async def run(self, count: int) -> None:
        """``count`` clients at once, until all payments were asked for."""
        async with grpc.aio.insecure_channel(
            self.world.service.address,
            options=[("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)],
        ) as channel:
            pay = channel.unary_unary("/Bank/Pay")
            seeds = [random.Random(self.rng.random()) for _ in range(count)]
            await asyncio.gather(*(self._client(pay, rng) for rng in seeds))

    async def _client(self, pay: grpc.aio.UnaryUnaryMultiCallable, rng: random.Random) -> None:
        while self.going():
            self.asked += 1
            gid = f"{self.prefix}-{self.asked}"
            op = rng.choice(OPS)
            source, target = rng.sample(range(1, self.world.accounts + 1), 2)
            cents = rng.choice((1, 7, 100, 2_500, 60_000))
            request = {"op": op, "gid": gid, "source": source, "target": target, "cents": cents}
            self.payments[gid] = Payment(gid, op, cents, "unknown")
            told = await self._ask(pay, request, rng)
            self.payments[gid] = Payment(gid, op, cents, told)
            self.told[told] += 1

    async def _ask(
        self, pay: grpc.aio.UnaryUnaryMultiCallable, request: dict[str, object], rng: random.Random
    ) -> str:
        told = "unknown"
        for attempt in range(60):
            try:
                reply = await pay(json.dumps(request).encode(), timeout=10)
                told = json.loads(reply)["told"]
            except grpc.aio.AioRpcError:
                told = "unknown"
            if told in _FINAL:
                if rng.random() < 0.02:
                    await self._ask_again(pay, request, told)
                return told
            self.repeats += 1
            await asyncio.sleep(min(0.05 * 2**attempt, 1.0) * rng.random())
        return told

    async def _ask_again(
        self, pay: grpc.aio.UnaryUnaryMultiCallable, request: dict[str, object], first: str
    ) -> None:
        """The same request later must get the same answer."""
        try:
            second = json.loads(await pay(json.dumps(request).encode(), timeout=10))["told"]
        except grpc.aio.AioRpcError:
            return
        same = {"refused": {"refused", "aborted"}, "aborted": {"aborted"}, "committed": {"committed"}}[first]
        if second in _FINAL and second not in same:
            self.changed.append(f"{request['gid']}: told {first}, later {second}")


async def settled(world: World, foreign: list[str], patience_s: float) -> float:
    """Wait until nothing of ours is prepared any more. Answers how long that took."""
    begun = time.monotonic()
    while time.monotonic() - begun < patience_s:
        left = 0
        for name in ("checking", "savings"):
            rows = await asyncio.to_thread(
                world.servers[name].sql,
                "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()",
            )
            left += sum(row not in foreign for row in rows.split("\n") if row)
        if not left:
            break
        await asyncio.sleep(0.2)
    return time.monotonic() - begun


async def run(args: argparse.Namespace, console: Console) -> Verdict:
    """The whole show."""
    rng = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="txcoord-demo-"))
    os.chmod(folder, 0o755)  # as root the database servers run as nobody, who has to get in
    world = World(folder, accounts=args.accounts, cents_each=100_000, log=args.log)
    console.print(
        f"[bold]txcoord demo[/]  seed [bold]{args.seed}[/]  log {args.log}  (again: --seed {args.seed})"
    )
    begun = time.monotonic()
    try:
        world.build()
        foreign = world.leave_foreign()
        console.print(
            f"two PostgreSQL servers, a coordinator and a service are up after {time.monotonic() - begun:.1f} s; "
            f"{world.money / 100:,.2f} in {2 * args.accounts} accounts"
        )
        clients = Clients(world, random.Random(rng.random()), args.payments, f"pay-{args.seed}")
        clock = time.monotonic()
        killer = asyncio.ensure_future(
            chaos(
                world, random.Random(rng.random()), args.kills, lambda: True, (args.pause[0], args.pause[1])
            )
        )
        work = asyncio.ensure_future(clients.run(args.clients))
        await _watch(console, world, clients, work, killer, clock, args)
        await work
        await killer
        busy_s = time.monotonic() - clock
        console.print("all clients have their answers; waiting until nothing of ours is prepared …")
        waited_s = await settled(world, foreign, 60)
        verdict = await _check(world, clients, foreign)
        verdict.anomalies += clients.changed
        _summary(console, world, clients, verdict, busy_s, waited_s)
        return verdict
    except BaseException:
        console.print(f"[red]logs and data are kept in {folder}")
        args.keep = True
        raise
    finally:
        world.stop()
        if not args.keep:
            for server in world.servers.values():
                server.remove()
            shutil.rmtree(folder, ignore_errors=True)


async def _watch(
    console: Console,
    world: World,
    clients: Clients,
    work: asyncio.Future[None],
    killer: asyncio.Future[None],
    clock: float,
    args: argparse.Namespace,
) -> None:
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        last = 0.0
        while not work.done() or not killer.done():
            if work.done() and not killer.done():
                # Kills are owed still: keep the clients busy until the last one.
                clients.wanted += 200
                work_more = asyncio.ensure_future(clients.run(args.clients))
                await asyncio.wait({work_more}, timeout=5)
                await work_more
            now = time.monotonic() - clock
            line = (
                f"{now:6.1f} s  asked {clients.asked:5}  committed {clients.told['committed']:5}  "
                f"aborted {clients.told['aborted']:4}  refused {clients.told['refused']:4}  "
                f"asked again {clients.repeats:4}  kills {sum(world.kills.values()):3} of {args.kills}"
                + (f"  down: {', '.join(sorted(world.down))}" if world.down else "")
            )
            if console.is_terminal:
                live.update(line)
            elif now - last >= 5:
                last = now
                console.print(line)
            await asyncio.wait({work, killer}, timeout=0.25)
            if killer.done() and killer.exception() is not None:
                raise killer.exception() or RuntimeError("the killer died")
            if work.done() and work.exception() is not None:
                raise work.exception() or RuntimeError("the clients died")


async def _check(world: World, clients: Clients, foreign: list[str]) -> Verdict:
    dsn = {name: world.servers[name].url(driver="postgresql") for name in ("checking", "savings")}
    checking, savings = [await asyncpg.connect(dsn[name]) for name in ("checking", "savings")]
    try:
        return await check(checking, savings, clients.payments, world.money, foreign)
    finally:
        await checking.close()
        await savings.close()


def _summary(
    console: Console, world: World, clients: Clients, verdict: Verdict, busy_s: float, waited_s: float
) -> None:
    table = Table(title="What became of it", show_header=False, min_width=72)
    table.add_row("money before", f"{verdict.money_before / 100:,.2f}")
    table.add_row(
        "money after",
        f"{verdict.money_after / 100:,.2f}  "
        f"(checking {verdict.checking / 100:,.2f} + savings {verdict.savings / 100:,.2f})",
    )
    table.add_row(
        "payments asked for", f"{len(clients.payments):,} in {busy_s:.0f} s, {clients.repeats:,} repeats"
    )
    table.add_row("told committed", f"{verdict.told['committed']:,}: every one is there, once, on both sides")
    table.add_row("  of them one-phase", f"{verdict.one_phase:,}")
    table.add_row("told refused (a business no)", f"{verdict.told['refused']:,}: none is there")
    table.add_row("told aborted", f"{verdict.told['aborted']:,}: none is there")
    others = verdict.told["failed"]
    if others:
        table.add_row("gave up before any commit", f"{others:,}: none is there")
    table.add_row(
        "told unknown to the end",
        f"{verdict.told['unknown']:,}: {verdict.unknown_committed} committed, "
        f"{verdict.unknown_aborted} aborted, none torn",
    )
    kills = ", ".join(f"{name} {count}" for name, count in sorted(world.kills.items()))
    table.add_row("kills survived (SIGKILL)", f"{sum(world.kills.values())}: {kills}")
    table.add_row("left prepared", f"{verdict.prepared_left} of ours (after {waited_s:.1f} s)")
    table.add_row("foreign prepared transactions", f"{verdict.foreign_left}, untouched")
    console.print(table)
    if verdict.good:
        console.print("[bold green]Nothing was lost, doubled, torn or left behind.")
    else:
        console.print(f"[bold red]{len(verdict.anomalies)} anomalies:")
        for line in verdict.anomalies[:20]:
            console.print(f"  {line}")


def main() -> int:
    """Run the demo from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--payments", type=int, default=4_000)
    parser.add_argument("--kills", type=int, default=16)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--accounts", type=int, default=500)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--log", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--pause", type=float, nargs=2, default=(0.4, 1.6), metavar=("FROM", "TO"))
    parser.add_argument("--keep", action="store_true", help="keep logs and data")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 110)
    verdict = asyncio.run(run(args, console))
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
