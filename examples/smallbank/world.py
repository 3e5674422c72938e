"""The processes of the demo: two database servers, a coordinator, a service, and the log's own server if it has one."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import Managed, coordinator, free_port

from .databases import Database, make

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
DATABASES = ("checking", "savings")
LOGS = ("sqlite", "postgresql", "mariadb")


async def in_thread(work: Callable[..., T], *arguments: object) -> T:
    """Run it in a thread; whoever is cancelled meanwhile leaves only when it has ended."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


class World:
    """Everything that runs, and can be killed. ``async with World(...)`` builds it, and ends it."""

    def __init__(
        self,
        *,
        log: str = "sqlite",
        savings: str = "postgresql",
        sync: bool = False,
        accounts: int = 500,
        cents_each: int = 100_000,
        settings: Mapping[str, str] | None = None,
        keep: bool = False,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="txcoord-smallbank-"))
        self.folder.chmod(0o755)  # As root the servers run as nobody, who has to get in.
        self.log = log
        self.products = dict(zip(DATABASES, ("postgresql", savings), strict=True))
        self.sync = sync
        """Is the service one of threads, on the synchronous SDK?"""
        self.accounts = accounts
        self.cents_each = cents_each
        self.keep = keep
        """Keep logs and data in the end."""
        self.banks: dict[str, Database] = {}
        self.servers: dict[str, PostgresServer | MariaDBServer] = {}
        self.kills: Counter[str] = Counter()
        self.down: set[str] = set()
        self._settings = {
            "RECOVERY__SCAN_INTERVAL": "2s",
            "RECOVERY__GRACE": "2s",
            "LOG_LEVEL": "WARNING",
            **(settings or {}),
        }
        self.coordinator: Managed
        self.service: Managed
        self._processes: dict[str, Managed] = {}

    async def __aenter__(self) -> World:
        try:
            await self._build()
        except BaseException:
            await self.close(at_once=True)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(at_once=isinstance(error, asyncio.CancelledError))

    @property
    def victims(self) -> list[str]:
        """Who can be killed, in the order in which they are to come back."""
        return [*self.servers, *self._processes]

    @property
    def money(self) -> int:
        """How many cents there are, on both sides together."""
        return 2 * self.accounts * self.cents_each

    # ---- build ----

    async def _build(self) -> None:
        for name, product in self.products.items():
            bank = self.banks[name] = make(product, name, self.folder / name)
            self.servers[name] = bank.server
        if self.log != "sqlite":
            folder = self.folder / "log"
            folder.mkdir(mode=0o755)
            kind = MariaDBServer if self.log == "mariadb" else PostgresServer
            self.servers["log"] = kind(folder, die_with_parent=True)
        starts = [asyncio.ensure_future(in_thread(s.start)) for s in self.servers.values()]
        try:
            await asyncio.sleep(0)
            self._describe()
            from txcoord.adapters.sql.migrate import migrate  # costs a second, while the servers start
        finally:
            await asyncio.wait(starts)
        for start in starts:
            start.result()
        if self.log == "mariadb":
            await in_thread(self.servers["log"].create_database, "txcoord")
        fills = [in_thread(bank.fill, self.accounts, self.cents_each) for bank in self.banks.values()]
        await asyncio.gather(migrate(self._log_url), *fills)
        await asyncio.gather(*(in_thread(process.start) for process in self._processes.values()))

    def _describe(self) -> None:
        self._log_url = self._where_the_log_is()
        self.coordinator = coordinator(
            self.folder,
            resources={name: bank.url() for name, bank in self.banks.items()},
            log_url=self._log_url,
            settings=self._settings,
        )
        port = free_port()
        self.service = Managed(
            "service",
            [
                sys.executable, "-m", f"examples.smallbank.service{'_sync' if self.sync else ''}", str(port),
                self.coordinator.address,
                *(bank.url(bank.sync_driver if self.sync else bank.driver) for bank in self.banks.values()),
            ],
            log=self.folder / "service.log",
            address=f"127.0.0.1:{port}",
            cwd=ROOT,
        )  # fmt: skip
        self._processes = {"service": self.service, "coordinator": self.coordinator}

    def _where_the_log_is(self) -> str:
        if self.log == "sqlite":
            return f"sqlite+aiosqlite:///{self.folder}/coordinator.db"
        server = self.servers["log"]
        return server.url("txcoord") if self.log == "mariadb" else server.url()

    # ---- kills ----

    def kill(self, victim: str) -> None:
        """SIGKILL it."""
        self.kills[victim] += 1
        self.down.add(victim)
        if victim in self.servers:
            self.servers[victim].kill9()
        else:
            self._processes[victim].kill9()

    def start(self, victim: str) -> None:
        """Start it again; a process may not be ready yet."""
        if victim in self.servers:
            self.servers[victim].start()
        else:
            self._processes[victim].start(wait_s=0)

    def await_ready(self, victim: str) -> None:
        """Wait until it answers."""
        if victim in self._processes:
            self._processes[victim].wait_ready()
        self.down.discard(victim)

    # ---- the end ----

    async def settled(self, patience_s: float = 60.0) -> float:
        """Wait until nothing of ours is prepared, or open, any more. Answers how long that took."""
        begun = time.monotonic()
        until = begun + patience_s
        while await in_thread(self.unfinished) and time.monotonic() < until:  # noqa: ASYNC110 - databases tell nobody
            await asyncio.sleep(0.1)
        return time.monotonic() - begun

    def unfinished(self) -> bool:
        """Is something of ours prepared now, or held in a database without a name?"""
        return bool(self.prepared()) or any(bank.unlisted() for bank in self.banks.values())

    def prepared(self) -> list[str]:
        """What of ours is prepared now."""
        return [gid for bank in self.banks.values() for gid in bank.prepared() if gid not in bank.foreign]

    def alarms(self) -> list[str]:
        """What the coordinator said that a person must see."""
        log = self.folder / "coordinator.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return [line for line in lines if '"alarm.' in line or "crashed" in line]

    async def close(self, *, at_once: bool = False) -> None:
        """End everything, and delete it unless it is to be kept."""
        for process in self._processes.values():
            await in_thread(process.kill9 if at_once else process.stop)
        for server in self.servers.values():
            if at_once:
                await in_thread(server.kill9)
            await in_thread(server.stop if self.keep else server.remove)
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)
