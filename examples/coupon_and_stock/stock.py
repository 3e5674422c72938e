"""The stock: a FastAPI service that reserves, then takes or gives back."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from txcoord_client import Participant, Refused

engine = create_async_engine(f"sqlite+aiosqlite:///{os.environ.get('DATA', '.')}/stock.db")
stock = Participant("stock", db=engine)


@dataclass
class Hold:
    """What a try has reserved."""

    sku: str
    n: int


@stock.tcc
class Reserve:
    """Some of an article."""

    async def attempt(self, db: Any, *, sku: str, n: int) -> Hold:
        done = await db.execute(
            text("UPDATE item SET free = free - :n, held = held + :n WHERE sku = :sku AND free >= :n"),
            {"sku": sku, "n": n},
        )
        if not done.rowcount:
            raise Refused("OUT_OF_STOCK", sku=sku)
        return Hold(sku, n)

    async def confirm(self, db: Any, hold: Hold) -> None:
        await db.execute(
            text("UPDATE item SET held = held - :n, sold = sold + :n WHERE sku = :sku"), vars(hold)
        )

    async def cancel(self, db: Any, hold: Hold) -> None:
        await db.execute(
            text("UPDATE item SET held = held - :n, free = free + :n WHERE sku = :sku"), vars(hold)
        )


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The tables: the barrier's, and five apples."""
    await stock.make_table()
    async with engine.begin() as db:
        await db.execute(text("CREATE TABLE IF NOT EXISTS item (sku text, free int, held int, sold int)"))
        await db.execute(
            text("INSERT INTO item SELECT 'apple', 5, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM item)")
        )
    yield


app = FastAPI(lifespan=lifespan)
app.include_router(stock.fastapi())


@app.get("/items")
async def items() -> list[dict[str, Any]]:
    """What is there."""
    async with engine.connect() as db:
        return [dict(row._mapping) for row in await db.execute(text("SELECT * FROM item"))]


@app.get("/health")
async def health() -> str:
    """Is it there?"""
    return "ok"
