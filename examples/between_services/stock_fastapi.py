"""The stock: FastAPI and an async SQLAlchemy session, as their tutorials write it.

uvicorn examples.between_services.stock_fastapi:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from txcoord_client import Coordinator

engine = create_async_engine(os.environ["DATABASE_URL"])
sessions = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int]


class Credit(BaseModel):
    account: int
    cents: int


async def session() -> AsyncIterator[AsyncSession]:
    async with sessions() as session:
        yield session
        await session.commit()  # FastAPI runs this when the body has been sent.


service = FastAPI()


@service.post("/credit")
async def credit(order: Credit, db: Annotated[AsyncSession, Depends(session)]) -> dict[str, int]:
    account = await db.get(Account, order.account, with_for_update=True)
    if account is None:
        raise HTTPException(404, "no such account")
    account.balance += order.cents
    return {"balance": account.balance}


@service.get("/health")
async def health() -> str:
    return "ok"


# ---- with these lines it takes part in its caller's transaction ----

coord = Coordinator(os.environ["TXCOORD_ADDRESS"])
coord.instrument(engine, resource="stock")
app = coord.asgi(service)
