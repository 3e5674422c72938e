"""Who may take a connection of a pool: first come, first served, and never a deadlock between pools.

A branch holds its connection until it is prepared. Where transactions take connections of several pools in
different orders, each could hold what the other waits for. So the last connection of every pool is a reserve
that one transaction at a time may use, in all pools: it can always get what it lacks, ends, and passes the
right on. Whoever holds a connection already goes before whoever holds none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from .errors import ResourceBusy


@dataclass(slots=True)
class _Pool:
    name: str
    size: int
    """Connections that it may give; 0: no limit."""
    used: int = 0
    waiting: list[_Waiter] = field(default_factory=list)

    @property
    def common(self) -> int:
        """How many may be used without the right to the reserve."""
        return max(self.size - 1, 0)


@dataclass(slots=True, eq=False)
class _Waiter:
    holder: Hashable
    pool: _Pool
    age: int
    future: asyncio.Future[None]


class Admission:
    """Admits transactions to pools, in one event loop."""

    def __init__(self) -> None:
        self._pools: dict[Hashable, _Pool] = {}
        self._held: dict[Hashable, list[_Pool]] = {}
        self._privileged: Hashable | None = None
        self._ages: dict[Hashable, int] = {}
        self._next_age = 0

    async def enter(self, holder: Hashable, key: Hashable, name: str, size: int, until: float) -> None:
        """Wait for a connection's worth of room in the pool ``key``, to ``until`` by the loop's clock.

        Raises ResourceBusy that names the pool.
        """
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = _Pool(name, size)
        pool.size = size
        if holder not in self._ages:
            self._ages[holder] = self._next_age
            self._next_age += 1
        if not pool.waiting and self._may(holder, pool):
            self._grant(holder, pool)
            return
        loop = asyncio.get_running_loop()
        waiter = _Waiter(holder, pool, self._ages[holder], loop.create_future())
        pool.waiting.append(waiter)
        self._serve()
        timer = loop.call_at(until, _time_up, waiter.future)
        try:
            await waiter.future
        except BaseException as error:
            if waiter in pool.waiting:
                pool.waiting.remove(waiter)
            elif not waiter.future.cancelled() and waiter.future.exception() is None:
                self.leave(holder, key)  # Granted in the same moment.
            if holder not in self._held:
                self._ages.pop(holder, None)
            if isinstance(error, TimeoutError):
                raise ResourceBusy(
                    f"the connection pool of {name!r} ({size} connections) had no room until the deadline",
                    facts={"resource": name, "pool_size": str(size)},
                ) from None
            raise
        finally:
            timer.cancel()

    def leave(self, holder: Hashable, key: Hashable) -> None:
        """Give one connection's worth of room back."""
        pool = self._pools[key]
        held = self._held.get(holder, [])
        if pool not in held:
            return
        held.remove(pool)
        pool.used -= 1
        if not held:
            self._held.pop(holder, None)
            self._ages.pop(holder, None)
            if self._privileged == holder:
                self._privileged = None
        self._serve()

    def _may(self, holder: Hashable, pool: _Pool) -> bool:
        if pool.size <= 0 or pool.used < pool.common:
            return True
        if pool.used < pool.size and self._privileged in (None, holder):
            self._privileged = holder
            return True
        return False

    def _grant(self, holder: Hashable, pool: _Pool) -> None:
        pool.used += 1
        self._held.setdefault(holder, []).append(pool)

    def _serve(self) -> None:
        """Let in who may: those who hold something already first, each group in order of age."""
        waiting = [w for pool in self._pools.values() for w in pool.waiting]
        if not waiting:
            return
        rank: Callable[[_Waiter], tuple[bool, int]] = lambda w: (w.holder not in self._held, w.age)  # noqa: E731
        for waiter in sorted(waiting, key=rank):
            if waiter.future.done() or not self._may(waiter.holder, waiter.pool):
                continue
            waiter.pool.waiting.remove(waiter)
            self._grant(waiter.holder, waiter.pool)
            waiter.future.set_result(None)


def _time_up(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())
