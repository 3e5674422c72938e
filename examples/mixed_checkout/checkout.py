"""One checkout, three kinds of branch, one decision."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from txcoord_client import Coordinator

from .services import Reserve, ship


async def checkout(
    coord: Coordinator, bank: AsyncEngine, order: str, *, cents: int, n: int, town: str
) -> str:
    """Pay, take from the stock, ship; or nothing of it. How it stands."""
    async with coord.begin("checkout", gid=order) as g:
        async with g.xa(bank) as db:  # our own database: rolled back or committed by itself, with the rest
            await db.execute(text("UPDATE account SET cents = cents - :cents WHERE id = 1"), {"cents": cents})
            await db.execute(text("INSERT INTO payment VALUES (:id, :cents)"), {"id": order, "cents": cents})
        await g.tcc(Reserve, n=n)
        await g.saga(ship, order=order, town=town)  # its steps run now; the last word is the commit's
    assert g.outcome is not None
    return str(g.outcome.state)
