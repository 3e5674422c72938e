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

    def channel(address: str) -> Any:
        return Channel(current)

    async def resolved(loop: asyncio.AbstractEventLoop, name: str) -> list[str]:
        return [name]

    def now_us(self: Any) -> int:
        return house.now_us()

    def target_of(real: Any) -> Any:
        def target(self: Any, name: str) -> str:
            if name not in self._addresses and services.knows(name):
                return f"grpc://{name.lower().replace('_', '-')}.test:7071"
            found: str = real(self, name)
            return found

        return target

    def answer(found: Any, target: str) -> Any:
        if isinstance(found, str):
            raise Unavailable(f"{target}: {found}", reason=reasons.PARTICIPANT_UNAVAILABLE, definite=False)
        return found

    async def run(self: Any, target: str, request: Any, until: float) -> Any:
        house.used_here()
        asked = start_on(house.loop, services.tried(request.SerializeToString(), until - aio.now()))
        try:
            return answer(await asyncio.wrap_future(asked), target)
        except Gone as gone:
            return answer(str(gone), target)

    def run_sync(self: Any, target: str, request: Any, until: float) -> Any:
        asked = start_on(house.loop, services.tried(request.SerializeToString(), until - sync_aio.now()))
        try:
            return answer(asked.result(), target)
        except (Gone, concurrent.futures.CancelledError) as gone:
            return answer(str(gone), target)

    def now_of(real: Callable[[], float]) -> Callable[[], float]:
        """Whoever waits for the coordinator waits by its clock."""
        return lambda: real() + house.loop.now

    put: list[tuple[Any, str, Any]] = [
        (nodes, "open_channel", channel),
        (nodes, "_resolved", resolved),
        (clock.LogClock, "now_us", now_us),
        (participants.Participants, "run", run),
        (sync_participants.Participants, "run", run_sync),
        (participants.Participants, "target", target_of(participants.Participants.target)),
        (sync_participants.Participants, "target", target_of(sync_participants.Participants.target)),
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
