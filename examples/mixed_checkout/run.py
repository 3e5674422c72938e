"""Checks out until each of the three has said no once; counts money, apples and parcels.

Exit status 0 only if all three agree.
"""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine

from txcoord_client import Coordinator, Refused

from ..running import Running, running
from .checkout import checkout

SCHEMA = (
    "CREATE TABLE account (id int PRIMARY KEY, cents int CHECK (cents >= 0))",
    "CREATE TABLE payment (order_id text, cents int)",
    "INSERT INTO account VALUES (1, 1000)",
)


def get(url: str) -> Any:
    """JSON."""
    with urllib.request.urlopen(url) as reply:
        return json.load(reply)


async def main(it: Running) -> bool:
    shop = it.service("examples.mixed_checkout.services:app")
    address = it.start_coordinator(databases=1)
    bank = create_async_engine(it.database("db1"))
    async with bank.begin() as db:
        for statement in SCHEMA:
            await db.execute(text(statement))
    it.await_services()
    where = dict.fromkeys(("stock", "parcels"), f"http://{shop.address}")

    async with Coordinator(address, resources={"db1": bank}, participants=where) as coord:

        async def placed(order: str, **what: Any) -> str:
            try:
                return await checkout(coord, bank, order, **what)
            except Refused as refused:
                return f"undone, the {'stock' if 'STOCK' in refused.reason else 'parcel service'} says no"
            except IntegrityError:
                return "undone, the bank says no"

        print("order-1: 400 for 2, to Rome:     ", await placed("order-1", cents=400, n=2, town="Rome"))
        print("order-2: 400 for 20, to Rome:    ", await placed("order-2", cents=400, n=20, town="Rome"))
        print("order-3: 400 for 2, to Atlantis: ", await placed("order-3", cents=400, n=2, town="Atlantis"))
        print("order-4: 900 for 2, to Rome:     ", await placed("order-4", cents=900, n=2, town="Rome"))
        for order in ("order-2", "order-3"):
            while (found := await coord.get(order)) is None or found.state != "ABORTED":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    async with bank.connect() as db:
        cents = (await db.execute(text("SELECT cents FROM account"))).scalar_one()
        paid = (await db.execute(text("SELECT string_agg(order_id, ' ') FROM payment"))).scalar_one()
    await bank.dispose()
    there = get(f"http://{shop.address}/shop")
    parcels = ", ".join(f"{order} {state}" for order, state in there["parcels"].items())
    print(f"bank:     {cents} left, paid: {paid}")
    print(f"stock:    {there['free']} free, {there['sold']} sold")
    print(f"parcels:  {parcels}")
    return (cents, paid, there["free"], there["sold"], parcels) == (
        600,
        "order-1",
        8,
        2,
        "order-1 Rome, order-3 void",
    )


if __name__ == "__main__":
    with running() as started:
        ok = asyncio.run(main(started))
    sys.exit(not ok)
