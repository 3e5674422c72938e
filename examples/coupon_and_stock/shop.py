"""The shop: an order takes from the stock and redeems a coupon, or does neither."""

from __future__ import annotations

import asyncio

from txcoord_client import Coordinator

from .coupons import Redeem
from .stock import Reserve


async def order(coord: Coordinator, name: str, *, n: int, code: str) -> str:
    """Place an order; how it stands. Raises Refused when one of the two says no: then the other is cancelled."""
    async with coord.begin("order", gid=name) as g:
        await asyncio.gather(  # side by side, and enlisted in one write of the log
            g.tcc(Reserve, sku="apple", n=n),
            g.tcc(Redeem, code=code, order=name),
        )
    assert g.outcome is not None
    return str(g.outcome.state)
