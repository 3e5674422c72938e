"""Places orders, one of them while the partner is down; tells the partner later what it has missed; counts.

Exit status 0 only if orders, credit, parcels, the partner's shares and the turnover agree.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.ext.asyncio import create_async_engine

from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import run_txcoord
from txcoord_client import Coordinator, Refused

from ..running import Running, running
from .shop import order

ON_POSTGRES = ("shop", "payments", "partner")
ON_MARIADB = ("warehouse", "reporting")
# Best-effort SQL runs under a role of its own, which may do this and nothing else.
ROLE = "'reporter'@'127.0.0.1'"
RIGHTS = f"""
CREATE USER {ROLE};
GRANT SELECT, UPDATE ON reporting.turnover TO {ROLE};
GRANT SELECT ON reporting.txcoord_identity TO {ROLE};
GRANT INSERT ON reporting.txcoord_marker TO {ROLE};
"""


@contextmanager
def databases(postgres: PostgresServer, mariadb: MariaDBServer) -> Iterator[None]:
    """One for each service, and the one for reports; gone in the end."""
    try:
        for name in ON_POSTGRES:
            postgres.create_database(name)
        for name in ON_MARIADB:
            mariadb.create_database(name)
        postgres.sql("CREATE TABLE orders (id text PRIMARY KEY, cents int)", "shop")
        mariadb.sql("CREATE TABLE turnover (orders int, cents int)", "reporting")
        mariadb.sql("INSERT INTO turnover VALUES (0, 0)", "reporting")
        yield
    finally:
        for name in ON_POSTGRES:
            postgres.drop_database(name)
        for name in ON_MARIADB:
            mariadb.drop_database(name)
        mariadb.sql(f"DROP USER IF EXISTS {ROLE}")


def run(postgres: PostgresServer, mariadb: MariaDBServer) -> bool:
    """All of it, on two running servers. True if the figures agree."""
    with running() as it, databases(postgres, mariadb):
        secret = f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}"
        (it.folder / "partner.secrets").write_text(secret)
        it.start_coordinator(
            env={
                "TXCOORD_LOG__URL": f"sqlite+aiosqlite:///{it.folder / 'log.db'}",
                "TXCOORD_RESOURCES__shop__URL": postgres.url("shop"),
                "TXCOORD_RESOURCES__reporting__URL": mariadb.url("reporting"),
                "TXCOORD_RESOURCES__reporting__EXECUTE_URL": mariadb.url("reporting").replace(
                    "root@", "reporter@"
                ),
                "TXCOORD_WEBHOOK_SECRETS__partner__HOSTS": "127.0.0.1",
                "TXCOORD_WEBHOOK_SECRETS__partner__FILE": str(it.folder / "partner.secrets"),
            }
        )
        # The tables first: the role that runs the statements has rights on them.
        without = {k: v for k, v in it.coordinator.env.items() if not k.endswith("EXECUTE_URL")}
        run_txcoord("resource", "check", "--fix", env=without, cwd=it.folder)
        mariadb.sql(RIGHTS)
        run_txcoord("resource", "check", env=it.coordinator.env, cwd=it.folder)
        return asyncio.run(trade(it, postgres, mariadb, secret))


async def trade(it: Running, postgres: PostgresServer, mariadb: MariaDBServer, secret: str) -> bool:
    """Place the orders. True if the figures agree."""
    here = "examples.order_service"
    payments = it.service(f"{here}.payments:app", DATABASE_URL=postgres.url("payments"))
    warehouse = it.service(f"{here}.warehouse:app", DATABASE_URL=mariadb.url("warehouse"))
    partner = it.service(f"{here}.partner:app", DATABASE_URL=postgres.url("partner"), WEBHOOK_SECRET=secret)
    it.await_services()
    to_partner = f"http://{partner.address}"
    shop = create_async_engine(postgres.url("shop"))
    where = {"payments": f"http://{payments.address}", "warehouse": f"http://{warehouse.address}"}

    async with Coordinator(it.coordinator.address, resources={"shop": shop}, participants=where) as coord:

        async def placed(name: str, cents: int) -> str:
            try:
                return await order(coord, shop, to_partner, name, customer="ann", cents=cents)
            except Refused as refused:
                return f"refused: {refused.reason}, nobody is told"

        async def missed() -> str:
            return ", ".join(
                f"{d.gid} ({d.attempts} attempts)" for d in await coord.deliveries(to_partner, parked=True)
            )

        print("order-1, 30:                       ", await placed("order-1", 30))
        print("order-2, 500:                      ", await placed("order-2", 500))
        partner.kill9()
        print("order-3, 20, the partner is down:  ", await placed("order-3", 20))
        print("what the partner has missed:       ", await missed())
        partner.start(wait_s=0)
        await asyncio.to_thread(it.await_services)
        print("the partner is back. txcoord replay:", await asyncio.to_thread(replay, it, to_partner))
        print("what the partner has missed:       ", await missed() or "nothing")
    await shop.dispose()
    return count(postgres, mariadb)


def replay(it: Running, target: str) -> str:
    """What an operator does when a target is back."""
    env = {**it.coordinator.env, "TXCOORD_ADDRESS": it.coordinator.address, "TXCOORD_ACTOR": "ann"}
    why = ("--reason", "the partner is back", "--yes")
    said = run_txcoord("replay", "start", "--target", target, *why, env=env, cwd=it.folder)
    return said.split(maxsplit=1)[1].strip()  # after the name of the job


def count(postgres: PostgresServer, mariadb: MariaDBServer) -> bool:
    """Say what each has. True if they agree."""
    listed = "SELECT string_agg({}, ', ' ORDER BY order_id) FROM {}"
    found = {
        "orders": postgres.sql("SELECT string_agg(id || ' ' || cents, ', ' ORDER BY id) FROM orders", "shop"),
        "credit": postgres.sql("SELECT free || ' free, ' || held || ' held' FROM account", "payments"),
        "parcels": mariadb.sql(
            "SELECT group_concat(order_id ORDER BY order_id SEPARATOR ', ') FROM parcel", "warehouse"
        ),
        "partner": postgres.sql(listed.format("order_id || ' ' || cents", "share"), "partner"),
        "reporting": mariadb.sql("SELECT concat(orders, ' orders, ', cents) FROM turnover", "reporting"),
    }
    print()
    for name, what in found.items():
        print(f"{name:10} {what}")
    return found == {
        "orders": "order-1 30, order-3 20",
        "credit": "50 free, 0 held",
        "parcels": "order-1, order-3",
        "partner": "order-1 3, order-3 2",
        "reporting": "2 orders, 50",
    }


if __name__ == "__main__":
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory(prefix="txcoord-order-service-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # As root the servers run as nobody, who has to get in.
        postgres = PostgresServer(folder / "pg", die_with_parent=True)
        mariadb = MariaDBServer(folder / "maria", die_with_parent=True)
        try:
            postgres.start()
            mariadb.start()
            ok = run(postgres, mariadb)
        finally:
            mariadb.remove()
            postgres.remove()
    sys.exit(not ok)
