"""Payments: credit is held, then taken or given back. TCC, on PostgreSQL."""

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

engine = create_async_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite://"))
payments = Participant("payments", db=engine)


@dataclass
class Hold:
    """What a try has held."""

    customer: str
    cents: int


@payments.tcc
class Charge:
    """Some of a customer's credit."""

    async def attempt(self, db: Any, *, customer: str, cents: int) -> Hold:
        hold = Hold(customer, cents)
        done = await db.execute(
            text(
                "UPDATE account SET free = free - :cents, held = held + :cents "
                "WHERE customer = :customer AND free >= :cents"
            ),
            vars(hold),
        )
        if not done.rowcount:
            raise Refused("NO_CREDIT", customer=customer)
        return hold

    async def confirm(self, db: Any, hold: Hold) -> None:
        await db.execute(
            text("UPDATE account SET held = held - :cents WHERE customer = :customer"), vars(hold)
        )

    async def cancel(self, db: Any, hold: Hold) -> None:
        await db.execute(
            text("UPDATE account SET held = held - :cents, free = free + :cents WHERE customer = :customer"),
            vars(hold),
        )


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The tables: the barrier's, and one customer with 100."""
    await payments.make_table()
    async with engine.begin() as db:
        await db.execute(text("CREATE TABLE account (customer text PRIMARY KEY, free int, held int)"))
        await db.execute(text("INSERT INTO account VALUES ('ann', 100, 0)"))
    yield


app = FastAPI(lifespan=lifespan)
app.include_router(payments.fastapi())


@app.get("/health")
async def health() -> str:
    """Is it there?"""
    return "ok"
