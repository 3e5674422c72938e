"""The stock (reserve, confirm, cancel) and the parcels (an action and its compensation), in one FastAPI service."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from txcoord_client import Participant, Refused, saga

engine = create_async_engine(f"sqlite+aiosqlite:///{os.environ.get('DATA', '.')}/shop.db")
stock = Participant("stock", db=engine)
parcels = Participant("parcels", db=engine)


@stock.tcc
class Reserve:
    """TCC: held until the decision, so nobody else can have it, and no database lock is kept."""

    async def attempt(self, db: Any, *, n: int) -> int:
        if not (
            await db.execute(text("UPDATE item SET free = free - :n WHERE free >= :n"), {"n": n})
        ).rowcount:
            raise Refused("OUT_OF_STOCK")
        return n

    async def confirm(self, db: Any, n: int) -> None:
        await db.execute(text("UPDATE item SET sold = sold + :n"), {"n": n})

    async def cancel(self, db: Any, n: int) -> None:
        await db.execute(text("UPDATE item SET free = free + :n"), {"n": n})


@parcels.action
async def label(db: Any, *, order: str) -> dict[str, Any]:
    """Saga: others see the label at once; if the whole is aborted it is void."""
    await db.execute(text("INSERT INTO parcel VALUES (:order, 'labelled')"), {"order": order})
    return {"order": order}


@label.compensate
async def void(db: Any, made: dict[str, Any]) -> None:
    await db.execute(text("UPDATE parcel SET state = 'void' WHERE order_id = :order"), made)


@parcels.action
async def courier(db: Any, *, order: str, town: str) -> None:
    if town == "Atlantis":
        raise Refused("NO_COURIER", town=town)
    await db.execute(
        text("UPDATE parcel SET state = :town WHERE order_id = :order"), {"order": order, "town": town}
    )


@courier.compensate
async def call_off(db: Any) -> None:
    """Nothing but the label to take back."""


ship = saga("ship").step(label).step(courier)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The tables: the barrier's, and ours."""
    await stock.make_table()
    async with engine.begin() as db:
        await db.execute(text("CREATE TABLE item (free int, sold int)"))
        await db.execute(text("INSERT INTO item VALUES (10, 0)"))
        await db.execute(text("CREATE TABLE parcel (order_id text, state text)"))
    yield


app = FastAPI(lifespan=lifespan)
app.include_router(stock.fastapi(others=[parcels]))


@app.get("/shop")
async def shop() -> dict[str, Any]:
    """What is there."""
    async with engine.connect() as db:
        items = (await db.execute(text("SELECT free, sold FROM item"))).one()
        parcels = (await db.execute(text("SELECT order_id, state FROM parcel ORDER BY order_id"))).all()
    return {"free": items.free, "sold": items.sold, "parcels": {p.order_id: p.state for p in parcels}}


@app.get("/health")
async def health() -> str:
    """Is it there?"""
    return "ok"
