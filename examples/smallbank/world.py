"""The processes of the demo: two database servers, a coordinator, a service; and who kills them."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import Managed, coordinator, free_port, run_txcoord

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = """
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0));
CREATE TABLE journal (gid text NOT NULL, delta bigint NOT NULL);
"""


@dataclass(slots=True)
class World:
    """Everything that runs, and can be killed."""

    folder: Path
    accounts: int
    cents_each: int
    log: str = "sqlite"
    settings: Mapping[str, str] = field(default_factory=dict)
    servers: dict[str, PostgresServer] = field(default_factory=dict)
    coordinator: Managed = field(init=False)
    service: Managed = field(init=False)
    kills: Counter[str] = field(default_factory=Counter)
    down: set[str] = field(default_factory=set)
    told: Callable[[str], None] = print

    def build(self) -> None:
        """Start everything, with money in the accounts."""
        names = ["checking", "savings"] + (["log"] if self.log == "postgresql" else [])
        for name in names:
            folder = self.folder / f"pg-{name}"
            folder.mkdir(mode=0o755)
            server = PostgresServer(folder, die_with_parent=True)
            server.start()
            self.servers[name] = server
        for name in ("checking", "savings"):
            self.servers[name].sql(SCHEMA)
            self.servers[name].sql(
                f"INSERT INTO account SELECT i, {self.cents_each} FROM generate_series(1, {self.accounts}) i"
            )
        urls = {name: self.servers[name].url() for name in ("checking", "savings")}
        log_url = self.servers["log"].url() if self.log == "postgresql" else None
        self.coordinator = coordinator(
            self.folder,
            resources=urls,
            log_url=log_url,
            settings={
                "RECOVERY__SCAN_INTERVAL": "2s",
                "RECOVERY__GRACE": "2s",
                "LOG_LEVEL": "WARNING",
                **self.settings,
            },
        )
        env = self.coordinator.env
        run_txcoord("migrate", env=env, cwd=self.folder)
        run_txcoord("resource", "check", "--fix", env=env, cwd=self.folder)
        self.coordinator.start()
        port = free_port()
        self.service = Managed(
            "service",
            [
                sys.executable, "-m", "examples.smallbank.service", str(port),
                self.coordinator.address, urls["checking"], urls["savings"],
            ],
            log=self.folder / "service.log",
            address=f"127.0.0.1:{port}",
            cwd=ROOT,
        )  # fmt: skip
        self.service.start()

    @property
    def money(self) -> int:
        """How many cents there are, on both sides together."""
        return 2 * self.accounts * self.cents_each

    def leave_foreign(self) -> list[str]:
        """Prepare transactions that are none of ours; they must survive everything."""
        for name in ("checking", "savings"):
            self.servers[name].sql(
                f"BEGIN; CREATE TABLE foreign_{name} (i int); PREPARE TRANSACTION 'foreign-{name}'"
            )
        # What another txcoord log has prepared here is just as foreign.
        other = "txc1.vvvvvvvvvv.0.00000000000070008000000000000000.1"
        self.servers["checking"].sql(f"BEGIN; CREATE TABLE other_log (i int); PREPARE TRANSACTION '{other}'")
        return ["foreign-checking", "foreign-savings", other]

    def kill(self, victim: str) -> None:
        """SIGKILL it."""
        self.kills[victim] += 1
        self.down.add(victim)
        if victim in self.servers:
            self.servers[victim].kill9()
        else:
            getattr(self, victim).kill9()

    def revive(self, victim: str) -> None:
        """Start it again, and wait until it answers."""
        if victim in self.servers:
            self.servers[victim].start()
        else:
            getattr(self, victim).start()
        self.down.discard(victim)

    def stop(self) -> None:
        """End everything."""
        for managed in (getattr(self, "service", None), getattr(self, "coordinator", None)):
            if managed is not None:
                managed.stop()
        for server in self.servers.values():
            server.stop()


async def chaos(
    world: World, rng: random.Random, kills: int, going: Callable[[], bool], pause_s: tuple[float, float]
) -> None:
    """Kill ``kills`` times, at random moments, one at a time or two together; each comes back soon."""
    victims = ["coordinator", "service", "checking", "savings"]
    for number in range(kills):
        await asyncio.sleep(rng.uniform(*pause_s))
        if not going():
            return
        # Each victim has its turn; the order and the moments are the seed's.
        if number % len(victims) == 0:
            rng.shuffle(victims)
        chosen = [victims[number % len(victims)]]
        for victim in chosen:
            await asyncio.to_thread(world.kill, victim)
        await asyncio.sleep(rng.uniform(0.0, 0.6))
        for victim in chosen:
            await asyncio.to_thread(world.revive, victim)


def elapsed(since: float) -> str:
    """Seconds since then, for people."""
    return f"{time.monotonic() - since:5.1f} s"
