"""A partner: somebody else's web service, which believes what is signed, and takes each notification once.

Of txcoord it uses two helpers, the webhook's and the inbox; any library for Standard Webhooks verifies as well.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from txcoord_client.inbox import Inbox
from txcoord_client.webhooks import NotVerified, Webhook

engine = create_async_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite://"))
hook = Webhook(os.environ["WEBHOOK_SECRET"])
inbox = Inbox("shop", db=engine)


@inbox
async def paid(db: Any, *, order: str, cents: int) -> None:
    """Our share of each order, once for each."""
    await db.execute(
        text("INSERT INTO share (order_id, cents) VALUES (:order, :cents)"),
        {"order": order, "cents": cents // 10},
    )


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The tables: the inbox's, and ours."""
    await inbox.make_table()
    async with engine.begin() as db:
        await db.execute(text("CREATE TABLE IF NOT EXISTS share (order_id text, cents int)"))
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/hooks/orders")
async def orders(request: Request) -> Response:
    """The endpoint."""
    try:
        told = hook.verify(await request.body(), request.headers)
    except NotVerified:
        return Response(status_code=401)
    took = await paid(told.id, **told.json())
    return Response(status_code=took.status)


@app.get("/health")
async def health() -> str:
    """Is it there?"""
    return "ok"
