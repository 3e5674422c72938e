"""Books trips until the cars are sold out, lets a partner be away for a while, and counts what is booked.

Exit status 0 only if every trip is booked at all three partners or at none.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys

from txcoord_client import Aborted, Coordinator
from txcoord_client.coordinator import Run

from ..running import Running, running
from .trip import book

PARTNERS = ("airline", "hotel", "rental")


def bookings(it: Running) -> dict[str, list[str]]:
    """What is in each partner's database."""
    found = {}
    for name in PARTNERS:
        connection = sqlite3.connect(it.folder / f"{name}.db")
        found[name] = [trip for (trip,) in connection.execute("SELECT trip FROM booking ORDER BY trip")]
        connection.close()
    return found


async def told(run: Run) -> str:
    """How a trip ended."""
    try:
        await run.wait()
    except Aborted as aborted:
        return f"undone: {aborted.reason}"
    return "booked"


async def main(it: Running) -> bool:
    partners = it.service("examples.travel.partners:app")
    address = it.start_coordinator()
    it.await_services()
    where = dict.fromkeys(PARTNERS, f"http://{partners.address}")
    async with Coordinator(address, participants=where) as coord:
        print("rome:   ", await told(await book(coord, "rome")))

        partners.kill9()
        run = await book(coord, "paris")
        print("paris:   submitted while the partners are down")
        partners.start(wait_s=0)
        print("paris:  ", await told(run))

        print("london: ", await told(await book(coord, "london")))
    found = bookings(it)
    for name, trips in found.items():
        print(f"{name:<8} has {', '.join(trips)}")
    return all(trips == ["paris", "rome"] for trips in found.values())


if __name__ == "__main__":
    with running() as started:
        ok = asyncio.run(main(started))
    sys.exit(not ok)
