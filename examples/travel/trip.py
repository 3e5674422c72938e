"""The travel agency: a trip is a flight, a room and a car, or nothing."""

from __future__ import annotations

from txcoord_client import Coordinator, saga
from txcoord_client.coordinator import Run

from .partners import book_car, book_flight, book_room

# Flight and room side by side; the car when both are there. The first has no step before it by itself.
trip = (
    saga("trip")
    .step(book_flight)
    .step(book_room, after=[])
    .step(book_car, after=["book_flight", "book_room"])
)


async def book(coord: Coordinator, name: str) -> Run:
    """Hand it over. From here on the coordinator sees to it, whatever becomes of us."""
    return await coord.submit(trip, gid=name, data={"trip": name})
