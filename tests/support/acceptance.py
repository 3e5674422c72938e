"""What the acceptance tests are made of: two databases, a coordinator process on them, and the SDK.

The coordinator reaches its databases through valves, so that a test can hold phase two back at a statement.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.support.acceptance_valve import Valve
from tests.support.databases import database_of, prepared
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import Managed, coordinator, run_txcoord
from txcoord_client import Coordinator, Outcome, Transaction
from txcoord_client.protocol import xid as xids

QUICK: Mapping[str, str] = {
    "RECOVERY__SCAN_INTERVAL": "500ms",
    "RECOVERY__GRACE": "1s",
    "BACKOFF__FIRST": "50ms",
    "BACKOFF__CAP": "250ms",
}
"""As the defaults, only faster: a test should not wait for the sake of waiting."""
ROOT = Path(__file__).resolve().parents[2]
INSERT = "INSERT INTO note (body) VALUES (:body)"

_numbers = itertools.count(1)


def new_gid(title: str = "t") -> str:
    """A gid that no other test has."""
    return f"{title}-{next(_numbers)}-{time.time_ns() % 10**9}"


async def eventually(check: Callable[[], Any], *, within: float = 20.0, what: str = "") -> Any:
    """Wait until ``check`` (it may be async) answers something true; answer that."""
    until = time.monotonic() + within
    while True:
        value = check()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"not within {within:.0f} s: {what or inspect.getsource(check).strip()}")
        await asyncio.sleep(0.03)


@dataclass(frozen=True)
class Db:
    """One database, looked at past everybody."""

    name: str
    """As a resource."""
    server: PostgresServer
    url: str

    def sql(self, statement: str) -> str:
        return self.server.sql(statement, database_of(self.url))

    def make_table(self) -> None:
        # Without a key: what is done twice shall be there twice.
        self.sql("CREATE TABLE note (body text NOT NULL)")

    def count(self, body: str) -> int:
        """How often a note is there, for everybody to see."""
        return int(self.sql(f"SELECT count(*) FROM note WHERE body = '{body}'"))

    def prepared(self, tx_id: str = "") -> list[str]:
        """What is prepared, of one transaction or of all."""
        return [gid for gid in prepared(self.server, self.url) if tx_id in gid]

    @property
    def dsn(self) -> str:
        return self.url.replace("+asyncpg", "")


class Site:
    """Two databases and a coordinator on them."""

    def __init__(
        self,
        folder: Path,
        *databases: Db,
        log_url: str | None = None,
        settings: Mapping[str, str] | None = None,
        name: str = "coordinator",
        valves: bool = True,
    ) -> None:
        self.folder = folder
        self.databases = databases
        self.valves = {db.name: Valve(db.url) for db in databases} if valves else {}
        self.coordinator: Managed = coordinator(
            folder,
            resources={db.name: self.valves[db.name].url if valves else db.url for db in databases},
            log_url=log_url,
            settings={
                **QUICK,
                **{f"RESOURCES__{db.name}__TIMEOUT": "2s" for db in databases},
                **(settings or {}),
            },
            name=name,
        )

    @property
    def accounts(self) -> Db:
        return self.databases[0]

    @property
    def ledger(self) -> Db:
        return self.databases[1]

    @property
    def address(self) -> str:
        return self.coordinator.address

    def prepare(self) -> None:
        """What an operator does first."""
        run_txcoord("migrate", env=self.coordinator.env, cwd=self.folder)
        run_txcoord("resource", "check", "--fix", env=self.coordinator.env, cwd=self.folder)

    def start(self) -> None:
        self.prepare()
        self.coordinator.start()

    def restart(self, failpoints: str = "", *, wait_s: float = 30.0) -> None:
        """Kill it if it lives, and start it again, to be killed at these points."""
        self.coordinator.kill9()
        self.coordinator.env["TXCOORD_FAILPOINTS"] = failpoints
        self.coordinator.start(wait_s=wait_s)

    async def lives(self, *moments: str) -> None:
        """Start it again and again: each life ends at its moment, but for one more after them."""
        for moment in moments:
            await asyncio.to_thread(self.restart, moment if "=" in moment else f"{moment}=kill", wait_s=0)
            await eventually(lambda: not self.coordinator.running, within=40, what=f"it died at {moment}")
            assert self.coordinator.exit_code == -9, self.coordinator.tail()
        await asyncio.to_thread(self.restart)

    def stop(self) -> None:
        self.coordinator.stop()
        for valve in self.valves.values():
            valve.close()

    def txcoord(self, *arguments: str) -> str:
        """The command line tool, on this coordinator."""
        env = {**self.coordinator.env, "TXCOORD_ADDRESS": self.address, "TXCOORD_ACTOR": "ann"}
        return run_txcoord(*arguments, env=env, cwd=self.folder)

    def counts(self, body: str) -> tuple[int, ...]:
        """How often a note is there, in each database."""
        return tuple(db.count(body) for db in self.databases)

    def prepared(self, tx_id: str = "") -> list[str]:
        """What txcoord has prepared in either database."""
        return [gid for db in self.databases for gid in db.prepared(tx_id) if xids.parse(gid)]


class Client:
    """The SDK on a site, as a service has it."""

    def __init__(self, site: Site, *, urls: Mapping[str, str] | None = None, **options: Any) -> None:
        self.site = site
        urls = {**{db.name: db.url for db in site.databases}, **(urls or {})}
        self.engines: dict[str, AsyncEngine] = {
            name: create_async_engine(url, pool_size=10, max_overflow=0) for name, url in urls.items()
        }
        self.coord = Coordinator(site.address, resources=self.engines, **options)

    @property
    def accounts(self) -> AsyncEngine:
        return self.engines["accounts"]

    @property
    def ledger(self) -> AsyncEngine:
        return self.engines["ledger"]

    async def write(self, g: Transaction, engine: AsyncEngine, body: str) -> None:
        """One note in one database."""
        async with g.xa(engine) as db:
            await db.execute(text(INSERT), {"body": body})

    async def write_both(self, g: Transaction, body: str) -> None:
        """The same note in both databases."""
        await self.write(g, self.accounts, body)
        await self.write(g, self.ledger, body)

    async def outcome(self, gid: str = "", *, tx_id: str = "") -> Outcome:
        """As the coordinator tells it."""
        found = await self.coord.get(gid, tx_id=tx_id)
        assert found is not None, f"{gid or tx_id} is not known"
        return found

    async def ended(self, gid: str = "", *, tx_id: str = "") -> Outcome:
        """Wait for its end."""

        async def look() -> Outcome | None:
            found = await self.coord.get(gid, tx_id=tx_id)
            return found if found is not None and found.state in ("COMMITTED", "ABORTED") else None

        found: Outcome = await eventually(look, what=f"{gid or tx_id} has ended")
        return found

    async def close(self) -> None:
        await self.coord.close()
        for engine in self.engines.values():
            await engine.dispose()


def service(site: Site, *arguments: str, port: int = 0) -> Managed:
    """A process of `tests.support.acceptance_service` on a site, not started. With a port it serves there."""
    own = ["serve", str(port)] if port else ["once", *arguments]
    databases = [f"{db.name}={db.url}" for db in site.databases]
    return Managed(
        "service",
        [sys.executable, "-m", "tests.support.acceptance_service", *own, site.address, *databases],
        log=site.folder / "service.log",
        address=f"127.0.0.1:{port}",
        cwd=ROOT,
    )


@asynccontextmanager
async def client_of(site: Site, **options: Any) -> AsyncIterator[Client]:
    """The SDK, closed in the end."""
    client = Client(site, **options)
    try:
        yield client
    finally:
        await client.close()
