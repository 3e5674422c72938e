"""The processes of the demo: two database servers, a coordinator, a service, and the log's own server if it has one."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import Managed, coordinator, free_port
from txcoord_client.protocol import postgresql as pg

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
DATABASES = ("checking", "savings")
SCHEMA = """
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0));
CREATE TABLE journal (gid text NOT NULL, account int NOT NULL, delta bigint NOT NULL);
"""


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
        accounts: int = 500,
        cents_each: int = 100_000,
        settings: Mapping[str, str] | None = None,
        keep: bool = False,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="txcoord-smallbank-"))
        self.folder.chmod(0o755)  # As root the servers run as nobody, who has to get in.
        self.log = log
        self.accounts = accounts
        self.cents_each = cents_each
        self.keep = keep
        """Keep logs and data in the end."""
        self.servers: dict[str, PostgresServer] = {}
        self.kills: Counter[str] = Counter()
        self.down: set[str] = set()
        self.foreign: list[str] = []
        """Prepared transactions that are none of ours; they must survive everything."""
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
        for name in (*DATABASES, *(["log"] if self.log == "postgresql" else [])):
            folder = self.folder / f"pg-{name}"
            folder.mkdir(mode=0o755)
            self.servers[name] = PostgresServer(folder, die_with_parent=True)
        starts = [asyncio.ensure_future(in_thread(s.start)) for s in self.servers.values()]
        try:
            await asyncio.sleep(0)
            self._describe()
            from txcoord.adapters.sql.migrate import migrate  # costs a second, while the servers start
        finally:
            await asyncio.wait(starts)
        for start in starts:
            start.result()
        await asyncio.gather(migrate(self._log_url), *(self._fill(name) for name in DATABASES))
        await asyncio.gather(*(in_thread(process.start) for process in self._processes.values()))

    def _describe(self) -> None:
        urls = {name: self.servers[name].url() for name in DATABASES}
        self._log_url = (
            self.servers["log"].url()
            if self.log == "postgresql"
            else f"sqlite+aiosqlite:///{self.folder}/coordinator.db"
        )
        self.coordinator = coordinator(
            self.folder, resources=urls, log_url=self._log_url, settings=self._settings
        )
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
        self._processes = {"service": self.service, "coordinator": self.coordinator}

    async def _fill(self, name: str) -> None:
        """Money, txcoord's tables, and prepared transactions of somebody else."""
        rows = f"INSERT INTO account SELECT i, {self.cents_each} FROM generate_series(1, {self.accounts}) i;"
        # As `txcoord resource check --fix` does it.
        resource = "; ".join([*pg.ddl(), pg.set_identity(os.urandom(16).hex())])
        await in_thread(self.servers[name].sql, f"{SCHEMA}{rows}{resource}")
        # What another txcoord log has prepared here is just as foreign as what anybody else has.
        foreign = [f"foreign-{name}", f"txc1.vvvvvvvvvv.0.{0:012}70008{0:015}.{DATABASES.index(name) + 1}"]
        for number, gid in enumerate(foreign):
            table = f"CREATE TABLE foreign_{number} (i int)"
            await in_thread(self.servers[name].sql, f"BEGIN; {table}; PREPARE TRANSACTION '{gid}'")
        self.foreign += foreign

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
        """Wait until nothing of ours is prepared any more. Answers how long that took."""
        begun = time.monotonic()
        until = begun + patience_s
        while await in_thread(self.prepared) and time.monotonic() < until:  # noqa: ASYNC110 - databases tell nobody
            await asyncio.sleep(0.1)
        return time.monotonic() - begun

    def prepared(self) -> list[str]:
        """What of ours is prepared now."""
        rows = [self.servers[name].sql("SELECT gid FROM pg_prepared_xacts") for name in DATABASES]
        return [gid for some in rows for gid in some.split("\n") if gid and gid not in self.foreign]

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
