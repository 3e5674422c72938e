"""Coupons: each can be redeemed once."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from txcoord_client import Participant, Refused

engine = create_async_engine(f"sqlite+aiosqlite:///{os.environ.get('DATA', '.')}/coupons.db")
coupons = Participant("coupons", db=engine)


@coupons.tcc
class Redeem:
    """A coupon."""

    async def attempt(self, db: Any, *, code: str, order: str) -> str:
        done = await db.execute(
            text("UPDATE coupon SET state = 'held', by_order = :order WHERE code = :code AND state = 'free'"),
            {"code": code, "order": order},
        )
        if not done.rowcount:
            raise Refused("COUPON_USED", code=code)
        return code

    async def confirm(self, db: Any, code: str) -> None:
        await db.execute(text("UPDATE coupon SET state = 'used' WHERE code = :code"), {"code": code})

    async def cancel(self, db: Any, code: str) -> None:
        await db.execute(
            text("UPDATE coupon SET state = 'free', by_order = NULL WHERE code = :code"), {"code": code}
        )


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The tables: the barrier's, and three coupons."""
    await coupons.make_table()
    async with engine.begin() as db:
        await db.execute(
            text("CREATE TABLE IF NOT EXISTS coupon (code text UNIQUE, state text, by_order text)")
        )
        for code in ("SPRING", "SUMMER", "AUTUMN"):
            await db.execute(
                text("INSERT INTO coupon VALUES (:c, 'free', NULL) ON CONFLICT DO NOTHING"), {"c": code}
            )
    yield


app = FastAPI(lifespan=lifespan)
app.include_router(coupons.fastapi())


@app.get("/coupons")
async def listed() -> list[dict[str, Any]]:
    """What is there."""
    async with engine.connect() as db:
        return [dict(row._mapping) for row in await db.execute(text("SELECT * FROM coupon ORDER BY code"))]


@app.get("/health")
async def health() -> str:
    """Is it there?"""
    return "ok"
