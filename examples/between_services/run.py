"""Starts it all on real databases, places orders, lets some fail, and counts the money.

Exit status 0 only if every order was done in all five databases or in none, no cent was lost, and nothing is left
prepared.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import Managed, coordinator, free_port, run_txcoord

from .shop import PRICE, TOTAL, NoMoney, Shop

ROOT = Path(__file__).resolve().parents[2]
DATABASES = ("customers", *PRICE)
CUSTOMERS = 5
CENTS_EACH = 4 * TOTAL
ORDERS = 15
SCHEMA = f"""
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0));
INSERT INTO account SELECT i, 0 FROM generate_series(1, {CUSTOMERS}) i;
"""


class World:
    """A PostgreSQL server with a database for each service, a coordinator, and the services."""

    def __init__(self, folder: Path) -> None:
        self.server = PostgresServer(folder / "pg", die_with_parent=True)
        self._folder = folder
        self.services: dict[str, Managed] = {}
        self.coordinator: Managed

    def start(self) -> None:
        self.server.start()
        for name in DATABASES:
            self.server.create_database(name)
            self.server.sql(SCHEMA, name)
        self.server.sql(f"UPDATE account SET balance = {CENTS_EACH}", "customers")
        urls = {name: self.server.url(name) for name in DATABASES}
        settings = {"RECOVERY__SCAN_INTERVAL": "1s", "RECOVERY__GRACE": "1s"}
        self.coordinator = coordinator(self._folder, resources=urls, settings=settings)
        run_txcoord("migrate", env=self.coordinator.env, cwd=self._folder)
        run_txcoord("resource", "check", "--fix", env=self.coordinator.env, cwd=self._folder)
        self.coordinator.start()
        here = "examples.between_services"
        self._serve(
            "stock", ["uvicorn", "--log-level=warning", f"{here}.stock_fastapi:app"], "postgresql+asyncpg"
        )
        self._serve("points", ["gunicorn", "--threads=8", f"{here}.points_flask:app"], "postgresql+psycopg")
        self._serve(
            "courier", ["gunicorn", "--threads=8", f"{here}.courier_django:application"], "postgresql"
        )
        self._serve("fees", [f"{here}.fees_grpc"], "postgresql+psycopg")
        for service in self.services.values():
            service.start(wait_s=0)
        for name in self.services:
            self.await_ready(name)

    def _serve(self, name: str, command: list[str], driver: str) -> None:
        port = free_port()
        where = {"uvicorn": [f"--port={port}"], "gunicorn": [f"--bind=127.0.0.1:{port}"]}
        self.services[name] = Managed(
            name,
            [sys.executable, "-m", *command, *where.get(command[0], [str(port)])],
            log=self._folder / f"{name}.log",
            env={
                "DATABASE_URL": self.server.url(name, driver),
                "TXCOORD_ADDRESS": self.coordinator.address,
                "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            },
            address=f"127.0.0.1:{port}",
            cwd=ROOT,
        )

    def await_ready(self, name: str) -> None:
        """Wait until a service answers. Raises TimeoutError with the end of its log."""
        service = self.services[name]
        if name == "fees":
            service.wait_ready()
            return
        until = time.monotonic() + 30
        while time.monotonic() < until and service.running:
            try:
                with urllib.request.urlopen(f"http://{service.address}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.05)
        raise TimeoutError(f"{name} does not answer:\n{service.tail()}")

    def balances(self) -> dict[str, int]:
        """What is in each database, in cents."""
        return {name: int(self.server.sql("SELECT sum(balance) FROM account", name)) for name in DATABASES}

    def prepared(self) -> int:
        """How many branches are prepared now."""
        return int(self.server.sql("SELECT count(*) FROM pg_prepared_xacts"))

    def stop(self) -> None:
        for process in self.services.values():
            process.stop()
        if hasattr(self, "coordinator"):
            self.coordinator.stop()
        self.server.remove()


@contextmanager
def world() -> Iterator[World]:
    """It all, gone in the end."""
    folder = Path(tempfile.mkdtemp(prefix="txcoord-between-services-"))
    folder.chmod(0o755)  # As root the server runs as nobody, who has to get in.
    made = World(folder)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(made.stop)
        made.start()
        yield made


async def attempt(shop: Shop, order: str, customer: int, **more: Any) -> str:
    """Place an order; what became of it."""
    try:
        await shop.checkout(order, customer, **more)
    except NoMoney:
        return "no money"
    except Exception as error:
        return f"undone: {type(error).__name__}"
    return "done"


async def trade(it: World) -> bool:
    """Place the orders. True if all is as it must be."""
    addresses = {name: service.address for name, service in it.services.items()}
    async with Shop(it.coordinator.address, it.server.url("customers"), addresses) as shop:
        told = await asyncio.gather(*(attempt(shop, f"order-{i}", 1 + i % CUSTOMERS) for i in range(ORDERS)))
        print(f"{ORDERS} orders at once, each in five databases by FastAPI, Flask, Django and gRPC:")
        print(f"  {told.count('done')} done")
        before = it.balances()
        refused = await attempt(shop, "unknown", 1, courier_account=99)
        print(f"the courier (Django) answers 404:  {refused}")
        it.services["stock"].kill9()
        dead = await attempt(shop, "dead", 2)
        print(f"the stock (FastAPI) is killed:     {dead}")
        it.services["stock"].start(wait_s=0)
        await asyncio.to_thread(it.await_ready, "stock")
        after = it.balances()
        print(f"both left everything as it was:    {before == after}")
        last = await attempt(shop, "again", 3)
        print(f"and when it is back:               {last}")
    return (
        told.count("done") == ORDERS
        and refused != "done"
        and dead != "done"
        and before == after
        and last == "done"
    )


def conclude(it: World, orders: int) -> bool:
    """Count. True if no cent is missing and nothing is left prepared."""
    until = time.monotonic() + 30
    while it.prepared() and time.monotonic() < until:
        time.sleep(0.1)
    balances = it.balances()
    print()
    for name, cents in balances.items():
        print(f"  {name:10} {cents / 100:8.2f}")
    expected = {
        "customers": CUSTOMERS * CENTS_EACH - orders * TOTAL,
        **{k: v * orders for k, v in PRICE.items()},
    }
    good = balances == expected and not it.prepared()
    print(f"\nevery order in all databases or in none, nothing left prepared: {'yes' if good else 'NO'}")
    return good


def main() -> int:
    """Run it; the exit status."""
    with world() as it:
        traded = asyncio.run(trade(it))
        counted = conclude(it, ORDERS + 1)
    return 0 if traded and counted else 1


if __name__ == "__main__":
    sys.exit(main())
