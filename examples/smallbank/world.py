"""The processes of a run: two database servers, coordinators, services, and the log's own server if it has one; with
a network in which faults can be made."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import Managed, NotReady, coordinator, free_port
from txcoord.testing.servers import ServerError, process_state

from .databases import Database, make
from .network import Network

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
        services: Sequence[str] = ("async",),
        nodes: int = 1,
        tills: int = 0,
        faulty_network: bool = False,
        lease_s: float = 10.0,
        accounts: int = 500,
        cents_each: int = 100_000,
        settings: Mapping[str, str] | None = None,
        keep: bool = False,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="txcoord-smallbank-"))
        self.folder.chmod(0o755)  # As root the servers run as nobody, who has to get in.
        self.log = log
        self.products = dict(zip(DATABASES, ("postgresql", savings), strict=True))
        self.lease_s = lease_s
        """Of rows in phase two, and of a coordinator's name."""
        self.accounts = accounts
        self.cents_each = cents_each
        self.keep = keep
        """Keep logs and data in the end."""
        self.banks: dict[str, Database] = {}
        self.servers: dict[str, PostgresServer | MariaDBServer] = {}
        self.kills: Counter[str] = Counter()
        self.down: set[str] = set()
        self.ended: list[str] = []
        """Processes that ended by themselves, and how."""
        self.nodes: dict[str, Managed] = {}
        """The coordinators."""
        self.services: dict[str, Managed] = {}
        self.network = Network(self.folder) if faulty_network else None
        self.tills: dict[str, Managed] = {}
        """Participants, for payments of TCC and saga."""
        self._till_count = tills
        self._kinds = services
        self._names = [f"coordinator-{n}" for n in range(1, nodes + 1)] if nodes > 1 else ["coordinator"]
        self._settings = {
            "RECOVERY__SCAN_INTERVAL": "2s",
            "RECOVERY__GRACE": "2s",
            "RECOVERY__LEASE": f"{lease_s:g}s",
            "LOG_LEVEL": "WARNING",
            **({"BACKOFF__CAP": "3s"} if tills else {}),
            **(settings or {}),
        }
        self._pids: dict[str, list[int]] = {}

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
    def coordinator(self) -> Managed:
        """The first one."""
        return next(iter(self.nodes.values()))

    @property
    def service(self) -> Managed:
        """The first one."""
        return next(iter(self.services.values()))

    @property
    def addresses(self) -> dict[str, str]:
        """Where the services are."""
        return {name: service.address for name, service in self.services.items()}

    @property
    def victims(self) -> list[str]:
        """Who can be killed, in the order in which they are to come back."""
        return [*self.servers, *self.tills, *self.services, *self.nodes]

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
            from txcoord.adapters.sql.migrate import migrate  # costs a second, while the servers start
        finally:
            await asyncio.wait(starts)
        for start in starts:
            start.result()
        if self.network is not None:
            await in_thread(self.network.start)
        await in_thread(self._describe)  # Not before: a server whose port was taken has gone to another one.
        if self.log == "mariadb":
            await in_thread(self.servers["log"].create_database, "txcoord")
        fills = [in_thread(bank.fill, self.accounts, self.cents_each) for bank in self.banks.values()]
        await asyncio.gather(migrate(self._log_url), *fills)
        await asyncio.gather(*(in_thread(process.start) for process in self._processes.values()))

    @property
    def _processes(self) -> dict[str, Managed]:
        return {**self.tills, **self.services, **self.nodes}

    def _describe(self) -> None:
        self._log_url = self._where_the_log_is()
        for name in self._names:
            log_url = self._log_url
            if "log" in self.servers:
                log_url = self._through(name, "log", log_url)
            self.nodes[name] = coordinator(
                self.folder,
                name=name,
                resources={db: self._through(name, db, bank.url()) for db, bank in self.banks.items()},
                log_url=log_url,
                settings=self._settings,
            )
        for number in range(1, self._till_count + 1):
            name = f"till-{number}" if self._till_count > 1 else "till"
            self.tills[name] = self._till(name, list(self.banks)[number - 1 :: self._till_count])
        tills = [
            f"grpc://{self._through('callers', till.name, till.address)}" for till in self.tills.values()
        ]
        self._at_tills = [tills[n % len(tills)] for n in range(len(self.banks))] if tills else []
        for number, kind in enumerate(self._kinds, 1):
            name = f"service-{number}" if len(self._kinds) > 1 else "service"
            self.services[name] = self._service(name, kind)

    def _till(self, name: str, databases: Sequence[str]) -> Managed:
        port = free_port()
        urls = [f"{db}={self._through(name, db, self.banks[db].url())}" for db in databases]
        return Managed(
            name,
            [sys.executable, "-m", "examples.smallbank.till", str(port), *urls],
            log=self.folder / f"{name}.log",
            address=f"127.0.0.1:{port}",
            cwd=ROOT,
        )

    def _service(self, name: str, kind: str) -> Managed:
        port = free_port()
        addresses = [self._through(name, node, process.address) for node, process in self.nodes.items()]
        urls = {
            db: bank.url(bank.sync_driver if kind == "sync" else bank.driver)
            for db, bank in self.banks.items()
        }
        return Managed(
            name,
            [
                sys.executable, "-m", f"examples.smallbank.service{'_sync' if kind == 'sync' else ''}",
                str(port), ",".join(addresses), *(self._through(name, db, url) for db, url in urls.items()),
                *self._at_tills,
            ],
            log=self.folder / f"{name}.log",
            address=f"127.0.0.1:{port}",
            cwd=ROOT,
        )  # fmt: skip

    def _through(self, source: str, target: str, address: str) -> str:
        """The address, or URL, to use where there is a network: by way of it."""
        if self.network is None:
            return address
        found = re.search(r"127\.0\.0\.1:\d+", address)
        assert found is not None, address
        return address.replace(found[0], self.network.way(source, target, found[0]))

    def _where_the_log_is(self) -> str:
        if self.log == "sqlite":
            return f"sqlite+aiosqlite:///{self.folder}/coordinator.db"
        server = self.servers["log"]
        return server.url("txcoord") if self.log == "mariadb" else server.url()

    def description(self) -> dict[str, Any]:
        """How it was before, for the checker."""
        banks = {
            name: {"accounts": self.accounts, "each": self.cents_each, "foreign": bank.foreign}
            for name, bank in self.banks.items()
        }
        return {"databases": banks, "nodes": list(self.nodes)}

    # ---- kills ----

    def kill(self, victim: str) -> None:
        """SIGKILL it."""
        self.kills[victim] += 1
        self.down.add(victim)
        self._of(victim).kill9()

    def start(self, victim: str) -> None:
        """Start it again; a process may not be ready yet."""
        if victim in self.servers:
            self.servers[victim].start()
        else:
            self._processes[victim].start(wait_s=0)

    def await_ready(self, victim: str, patience_s: float = 300.0) -> None:
        """Wait until it answers. One that ends meanwhile, for what it needs is not there, is started again, as whoever
        supervises it would do. Raises NotReady."""
        until = time.monotonic() + patience_s
        while victim in self._processes:
            process = self._processes[victim]
            try:
                process.wait_ready(until - time.monotonic())
                break
            except NotReady:
                if process.running or time.monotonic() > until:
                    raise
                why = ": ".join(process.tail(1000).strip().rpartition("\n")[2].split(": ")[:2])
                self.ended.append(f"{victim} with {process.exit_code} ({why})")
                time.sleep(0.2)
                process.start(wait_s=0)
        self.down.discard(victim)

    def stop(self, victim: str) -> None:
        """SIGSTOP it, with all its processes: it is there, and says nothing."""
        with contextlib.suppress(NotReady, ServerError, ProcessLookupError):  # it is being killed
            pid = self._of(victim).pid
            os.kill(pid, signal.SIGSTOP)  # First, so that it has no more children than there are.
            pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
            children = [child for child in pids if (state := process_state(child)) and state[1] == pid]
            self._pids[victim] = [pid, *children]
            for child in children:
                _signal(child, signal.SIGSTOP)

    def go_on(self, victim: str) -> None:
        """SIGCONT to what was stopped, as far as it lives."""
        for pid in self._pids.pop(victim, []):
            _signal(pid, signal.SIGCONT)

    def _of(self, victim: str) -> Managed | PostgresServer | MariaDBServer:
        return self.servers.get(victim) or self._processes[victim]

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

    def alarms(self) -> list[tuple[str, str]]:
        """What the coordinators said that a person must see, and who said it."""
        out = []
        for name, node in self.nodes.items():
            lines = node.log.read_text(errors="replace").splitlines() if node.log.exists() else []
            out += [(name, line) for line in lines if '"alarm.' in line or "crashed" in line]
        return out

    async def close(self, *, at_once: bool = False) -> None:
        """End everything, and delete it unless it is to be kept."""
        for process in self._processes.values():
            await in_thread(process.kill9 if at_once else process.stop)
        if self.network is not None:
            await in_thread(self.network.stop)
        for server in self.servers.values():
            if at_once:
                await in_thread(server.kill9)
            await in_thread(server.stop if self.keep else server.remove)
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
