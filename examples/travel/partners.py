"""An airline, a hotel and a car rental: three participants, each with a database of its own. For brevity one process
serves them; in truth they would be three companies."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from txcoord_client import Participant, Refused

DATA = os.environ.get("DATA", ".")


engines = {
    name: create_async_engine(f"sqlite+aiosqlite:///{DATA}/{name}.db")
    for name in ("airline", "hotel", "rental")
}
airline, hotel, rental = (Participant(name, db=engine) for name, engine in engines.items())


@airline.action
async def book_flight(db: Any, *, trip: str) -> dict[str, Any]:
    return await booked(db, trip)


@book_flight.compensate
async def cancel_flight(db: Any, booking: dict[str, Any]) -> None:
    await cancelled(db, booking)


@hotel.action
async def book_room(db: Any, *, trip: str) -> dict[str, Any]:
    return await booked(db, trip)


@book_room.compensate
async def cancel_room(db: Any, booking: dict[str, Any]) -> None:
    await cancelled(db, booking)


@rental.action
async def book_car(db: Any, *, trip: str) -> dict[str, Any]:
    return await booked(db, trip)


@book_car.compensate
async def cancel_car(db: Any, booking: dict[str, Any]) -> None:
    await cancelled(db, booking)


async def booked(db: Any, trip: str) -> dict[str, Any]:
    """Take one of what is free; `db` is in the barrier's transaction, so a repetition never gets here."""
    if not (await db.execute(text("UPDATE free SET n = n - 1 WHERE n > 0"))).rowcount:
        raise Refused("SOLD_OUT", f"nothing left for {trip}")
    await db.execute(text("INSERT INTO booking VALUES (:trip)"), {"trip": trip})
    return {"trip": trip}


async def cancelled(db: Any, booking: dict[str, Any]) -> None:
    """Give it back."""
    await db.execute(text("DELETE FROM booking WHERE trip = :trip"), booking)
    await db.execute(text("UPDATE free SET n = n + 1"))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """The tables: the barrier's, and ours. Ten seats, ten rooms, and two cars."""
    for participant, n in ((airline, 10), (hotel, 10), (rental, 2)):
        await participant.make_table()
        async with engines[participant.name].begin() as db:
            if not await db.run_sync(lambda c: c.dialect.has_table(c, "free")):
                await db.execute(text("CREATE TABLE free (n int)"))
                await db.execute(text("CREATE TABLE booking (trip text)"))
                await db.execute(text("INSERT INTO free VALUES (:n)"), {"n": n})
    yield


app = FastAPI(lifespan=lifespan)
app.include_router(airline.fastapi(others=[hotel, rental]))


@app.get("/health")
async def health() -> str:
    """Is it there?"""
    return "ok"
