"""The order service: an order is kept and paid, or neither; then others are told."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from txcoord_client import Coordinator, Retry

from .payments import Charge
from .warehouse import pack

THRICE = Retry(schedule=(0.1, 0.2))  # The default is ten attempts in a day: here you would wait for it.


async def order(
    coord: Coordinator, orders: AsyncEngine, partner: str, name: str, *, customer: str, cents: int
) -> str:
    """Place an order; how it stands. Raises Refused when there is no credit: then nobody is told of it."""
    async with coord.begin("order", gid=name, wait="delivered") as g:
        await g.tcc(Charge, customer=customer, cents=cents)
        async with g.xa(orders) as db:
            await db.execute(text("INSERT INTO orders VALUES (:id, :cents)"), {"id": name, "cents": cents})
        # These leave when all of it is COMMITTED, and cannot undo it.
        g.message(pack, {"order": name})  # must arrive
        g.notify(
            f"{partner}/hooks/orders", {"order": name, "cents": cents}, retry=THRICE
        )  # is tried so many times
        g.sql(  # a database that may lag
            "reporting", "UPDATE turnover SET orders = orders + 1, cents = cents + :cents", {"cents": cents}
        )
    assert g.outcome is not None
    parked = g.outcome.parked_deliveries
    return f"{g.outcome.state}, {parked} of 3 could not be told" if parked else f"{g.outcome.state}, all told"
