"""Looking up hosts of participants: what is dialled is what was found allowed."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from concurrent.futures import ThreadPoolExecutor

from ...core.targets import Target, Targets

_FRESH_S = 10.0
_MOST_KNOWN = 1_000
_LOOKERS = 8
"""Threads of its own: a name server that hangs holds nothing else up."""
Key = tuple[str, int, bool]


class DiallingRefused(OSError):
    """This address is not called."""


class NotFound(OSError):
    """A host has no address, as far as anybody can tell now."""


class Dialling:
    """Addresses of hosts, those that may be called.

    What was found once is used until something else is: a name server that is away stops nobody who is known.
    """

    def __init__(self, targets: Targets) -> None:
        self.targets = targets
        self._threads: ThreadPoolExecutor | None = None
        self._known: dict[Key, tuple[float, list[str]]] = {}
        self._looking: dict[Key, asyncio.Task[list[str]]] = {}

    async def addresses(self, host: str, port: int, *, own: bool) -> list[str]:
        """The addresses of a host that may be dialled, in the order in which to try them; ``own``: it is in the
        settings. Raises OSError where it has none, DiallingRefused where none of them is allowed."""
        key = host, port, own
        known = self._known.get(key)
        if known is not None and time.monotonic() - known[0] < _FRESH_S:
            return known[1]
        looking = self._looking.get(key)
        if looking is None:
            looking = asyncio.ensure_future(self._look(*key))
            self._looking[key] = looking
            looking.add_done_callback(lambda task: self._looked(key, task))
        if known is not None:
            return known[1]
        return await asyncio.shield(looking)

    def _looked(self, key: Key, task: asyncio.Task[list[str]]) -> None:
        self._looking.pop(key, None)
        error = task.exception() if not task.cancelled() else None
        if isinstance(error, DiallingRefused):
            self._known.pop(key, None)
        elif error is None and not task.cancelled():
            self._known.pop(key, None)
            self._known[key] = time.monotonic(), task.result()
            if len(self._known) > _MOST_KNOWN:
                del self._known[next(iter(self._known))]
        elif (known := self._known.get(key)) is not None:
            self._known[key] = time.monotonic(), known[1]  # Nobody can say where it is now: as before.

    async def _look(self, host: str, port: int, own: bool) -> list[str]:
        found = await self._found(host, port)
        refused = {a: self.targets.why_not_dialled(host, port, a, own=own) for a in found}
        allowed = [address for address, why in refused.items() if why is None]
        if not allowed:
            why = next(iter(refused.values()), None)
            raise DiallingRefused(
                f"{why.reason}: {why.message}" if why is not None else f"{host} has no address"
            )
        return allowed

    async def to(self, target: Target) -> list[str]:
        """The same for a target."""
        return await self.addresses(target.host, target.port, own=bool(self.targets.name_of(target)))

    async def _found(self, host: str, port: int) -> list[str]:
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_LOOKERS, thread_name_prefix="txcoord.names")
        loop = asyncio.get_running_loop()
        try:
            infos = await loop.run_in_executor(
                self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            )
        except (OSError, UnicodeError) as error:
            raise NotFound(f"{host} cannot be looked up: {error}") from error
        return list(dict.fromkeys(str(info[4][0]) for info in infos))

    def forget(self, host: str, port: int) -> None:
        """It did not answer: look it up again."""
        for key in ((host, port, False), (host, port, True)):
            if (known := self._known.get(key)) is not None:
                self._known[key] = float("-inf"), known[1]

    def close(self) -> None:
        """Wait for nothing more."""
        for task in self._looking.values():
            task.cancel()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
