"""Places orders, among them such as cannot be done; kills the coordinator in between; counts what is sold.

Exit status 0 only if apples sold and coupons used are those of the orders that were done.
"""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from typing import Any

from txcoord_client import Coordinator, Refused

from ..running import Running, running
from .coupons import Redeem
from .shop import order
from .stock import Reserve


def get(url: str) -> Any:
    """JSON."""
    with urllib.request.urlopen(url) as reply:
        return json.load(reply)


async def placed(coord: Coordinator, name: str, *, n: int, code: str) -> str:
    """What became of an order."""
    try:
        return await order(coord, name, n=n, code=code)
    except Refused as refused:
        return f"refused: {refused.reason}"


async def settled(coord: Coordinator, name: str) -> str:
    """How it stands in the end."""
    while (found := await coord.get(name)) is None or found.state not in ("COMMITTED", "ABORTED"):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    return str(found.state)


async def main(it: Running) -> bool:
    stock = it.service("examples.coupon_and_stock.stock:app")
    coupons = it.service("examples.coupon_and_stock.coupons:app")
    address = it.start_coordinator()
    it.await_services()
    where = {"stock": f"http://{stock.address}", "coupons": f"http://{coupons.address}"}
    async with Coordinator(address, participants=where) as coord:
        print("order-1: 2 apples with SPRING:       ", await placed(coord, "order-1", n=2, code="SPRING"))
        print("order-2: 1 apple with SPRING again:  ", await placed(coord, "order-2", n=1, code="SPRING"))
        print("order-3: 9 apples with SUMMER:       ", await placed(coord, "order-3", n=9, code="SUMMER"))
        for name in ("order-2", "order-3"):
            await settled(coord, name)  # cancelled: the coupon is free again

        async with coord.begin("order", gid="order-4", wait="decided") as g:
            await g.tcc(Reserve, sku="apple", n=3)
            await g.tcc(Redeem, code="SUMMER", order="order-4")
            coupons.kill9()
        it.coordinator.kill9()
        print(
            "order-4: 3 apples with SUMMER:        decided, but the coupons' service and the coordinator are dead"
        )
        it.coordinator.start()
        coupons.start(wait_s=0)
        print("order-4: when they are back:         ", await settled(coord, "order-4"))
    it.await_services()
    [apples] = get(f"http://{stock.address}/items")
    used = [
        (c["code"], c["by_order"]) for c in get(f"http://{coupons.address}/coupons") if c["state"] == "used"
    ]
    print(f"apples:  {apples['free']} free, {apples['held']} held, {apples['sold']} sold")
    print("coupons:", ", ".join(f"{code} used by {by}" for code, by in used))
    return (apples["free"], apples["held"], apples["sold"]) == (0, 0, 5) and used == [
        ("SPRING", "order-1"),
        ("SUMMER", "order-4"),
    ]


if __name__ == "__main__":
    with running() as started:
        ok = asyncio.run(main(started))
    sys.exit(not ok)
