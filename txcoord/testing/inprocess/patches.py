"""Where the SDK would reach for the network and the clock: for the time of one test it finds a coordinator in process.

So every ``Coordinator("dns:///...")`` that the code under test makes, or has made, works without any change.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

import txcoord_client._aio as aio
import txcoord_client._clock as clock
import txcoord_client._nodes as nodes
import txcoord_client._participants as participants
import txcoord_client.sync._aio as sync_aio
import txcoord_client.sync._participants as sync_participants
from txcoord_client._places import ParticipantAt
from txcoord_client.errors import Unavailable
from txcoord_client.protocol import reasons

from .house import House
from .loop import Gone, start_on
from .wire import Channel

_houses: list[House] = []


def current() -> House | None:
    """That of the test that runs now."""
    return _houses[-1] if _houses else None


def _only_bugs(_: Any, __: str, event: Any) -> Any:
    """The coordinator's log: what happens is in the story."""
    if "exc_info" not in event:
        raise structlog.DropEvent
    return event


@contextmanager
def applied(house: House) -> Iterator[None]:
    """For as long as it lasts."""
    services = house.services

    def channel(address: str, access: Any) -> Any:
        return Channel(current)

    async def resolved(loop: asyncio.AbstractEventLoop, name: str) -> list[str]:
        return [name]

    def now_us(self: Any) -> int:
        return house.now_us()

    def place_of(real: Any) -> Any:
        def place(self: Any, name: str) -> ParticipantAt:
            if name not in self._places and services.knows(name):
                return ParticipantAt(f"grpc://{name.lower().replace('_', '-')}.test:7071")
            found: ParticipantAt = real(self, name)
            return found

        return place

    def target(self: Any, name: str) -> str:
        return str(self.place(name).address)

    def answer(found: Any, place: ParticipantAt) -> Any:
        if isinstance(found, str):
            raise Unavailable(
                f"{place.address}: {found}", reason=reasons.PARTICIPANT_UNAVAILABLE, definite=False
            )
        return found

    async def run(self: Any, place: ParticipantAt, request: Any, until: float) -> Any:
        house.used_here()
        asked = start_on(house.loop, services.tried(place, request.SerializeToString(), until - aio.now()))
        try:
            return answer(await asyncio.wrap_future(asked), place)
        except Gone as gone:
            return answer(str(gone), place)

    def run_sync(self: Any, place: ParticipantAt, request: Any, until: float) -> Any:
        asked = start_on(
            house.loop, services.tried(place, request.SerializeToString(), until - sync_aio.now())
        )
        try:
            return answer(asked.result(), place)
        except (Gone, concurrent.futures.CancelledError) as gone:
            return answer(str(gone), place)

    def now_of(real: Callable[[], float]) -> Callable[[], float]:
        """Whoever waits for the coordinator waits by its clock."""
        return lambda: real() + house.loop.now

    put: list[tuple[Any, str, Any]] = [
        (nodes, "open_channel", channel),
        (nodes, "_resolved", resolved),
        (clock.LogClock, "now_us", now_us),
        (participants.Participants, "run", run),
        (sync_participants.Participants, "run", run_sync),
        (participants.Participants, "place", place_of(participants.Participants.place)),
        (sync_participants.Participants, "place", place_of(sync_participants.Participants.place)),
        (participants.Participants, "target", target),
        (sync_participants.Participants, "target", target),
        (aio, "now", now_of(aio.now)),
        (sync_aio, "now", now_of(sync_aio.now)),
    ]
    before = [(where, name, getattr(where, name)) for where, name, _ in put]
    for where, name, value in put:
        setattr(where, name, value)
    quiet = not structlog.is_configured()
    if quiet:
        structlog.configure(processors=[_only_bugs, *structlog.get_config()["processors"]])
    _houses.append(house)
    try:
        yield
    finally:
        _houses.remove(house)
        if quiet and structlog.get_config()["processors"][0] is _only_bugs:
            structlog.reset_defaults()
        for where, name, value in before:
            setattr(where, name, value)
