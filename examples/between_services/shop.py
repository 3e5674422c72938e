"""The caller: it debits the customer in its own database, and calls four services that credit in theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import grpc
import httpx
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from txcoord_client import Coordinator

PRICE = {"stock": 700, "points": 150, "courier": 100, "fees": 50}
"""What each service gets of an order, in cents."""
TOTAL = sum(PRICE.values())


class NoMoney(Exception):
    """A business no."""


class Shop:
    """``async with Shop(...) as shop: await shop.checkout("order-1", 1)``"""

    def __init__(self, txcoord: str, database_url: str, services: Mapping[str, str]) -> None:
        self._engine = create_async_engine(database_url)
        self._sessions = async_sessionmaker(self._engine)
        # Only these get the transaction; third parties don't.
        self._coord = Coordinator(txcoord, propagate_to=services.values())
        self._coord.instrument(self._engine, resource="customers")
        self._http = httpx.AsyncClient(transport=self._coord.httpx_transport())
        self._services = services
        self._fees: grpc.aio.Channel

    async def __aenter__(self) -> Self:
        target = self._services["fees"]
        self._fees = grpc.aio.insecure_channel(target, interceptors=self._coord.client_interceptors(target))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()
        await self._fees.close()
        await self._coord.close()
        await self._engine.dispose()

    async def checkout(self, order_id: str, customer: int, *, courier_account: int = 1) -> None:
        """Pay for an order: all five databases, or none. Raises what went wrong; nothing has happened then."""
        async with self._coord.begin("checkout", gid=order_id, timeout=10):
            await self._debit(customer)
            await self._credit("stock", 1)
            await self._credit("points", 1)
            await self._credit("courier", courier_account)
            fee = {"account": 1, "cents": PRICE["fees"]}
            await self._fees.unary_unary("/Fees/Credit")(json.dumps(fee).encode())

    async def _debit(self, customer: int) -> None:
        debit = text("UPDATE account SET balance = balance - :cents WHERE id = :id AND balance >= :cents")
        async with self._sessions.begin() as db:
            done = await db.execute(debit, {"id": customer, "cents": TOTAL})
        if done.rowcount != 1:  # type: ignore[attr-defined]
            raise NoMoney

    async def _credit(self, service: str, account: int) -> None:
        order = {"account": account, "cents": PRICE[service]}
        reply = await self._http.post(f"http://{self._services[service]}/credit", json=order)
        reply.raise_for_status()
