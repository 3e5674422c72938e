"""The warehouse: takes messages, which must arrive. On MariaDB."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from txcoord_client import Participant

engine = create_async_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite://"))
warehouse = Participant("warehouse", db=engine)


@warehouse.message
async def pack(db: Any, *, order: str) -> None:
    """Acts once, however often it comes: `db` is the barrier's transaction."""
    await db.execute(text("INSERT INTO parcel (order_id) VALUES (:order)"), {"order": order})


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The tables: the barrier's, and ours."""
    await warehouse.make_table()
    async with engine.begin() as db:
        await db.execute(text("CREATE TABLE parcel (order_id varchar(50))"))
    yield


app = FastAPI(lifespan=lifespan)
app.include_router(warehouse.fastapi())


@app.get("/health")
async def health() -> str:
    """Is it there?"""
    return "ok"
