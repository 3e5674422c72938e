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
    waiting: list[Waiter] = field(default_factory=list)

    @property
    def common(self) -> int:
        """How many may be used without the right to the reserve."""
        return max(self.size - 1, 0)


@dataclass(slots=True, eq=False)
class Waiter:
    """Somebody who waits for room."""

    holder: Hashable
    key: Hashable
    pool: _Pool
    age: int
    wake: Callable[[], object]
    """Called once, when it has been let in."""
    granted: bool = False


class Book:
    """Who has room in which pool, and who waits. It does no waiting itself."""

    def __init__(self) -> None:
        self._pools: dict[Hashable, _Pool] = {}
        self._held: dict[Hashable, list[_Pool]] = {}
        self._privileged: Hashable | None = None
        self._ages: dict[Hashable, int] = {}
        self._next_age = 0

    def ask(
        self, holder: Hashable, key: Hashable, name: str, size: int, wake: Callable[[], object]
    ) -> Waiter | None:
        """Room for one connection in the pool ``key``: None when there is some, else a place in the queue."""
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = _Pool(name, size)
        pool.size = size
        if holder not in self._ages:
            self._ages[holder] = self._next_age
            self._next_age += 1
        if not pool.waiting and self._may(holder, pool):
            self._grant(holder, pool)
            return None
        waiter = Waiter(holder, key, pool, self._ages[holder], wake)
        pool.waiting.append(waiter)
        self._serve()
        return waiter

    def give_up(self, waiter: Waiter) -> None:
        """It waits no more."""
        if waiter.granted:
            self.leave(waiter.holder, waiter.key)  # Granted in the same moment.
        elif waiter in waiter.pool.waiting:
            waiter.pool.waiting.remove(waiter)
        if waiter.holder not in self._held:
            self._ages.pop(waiter.holder, None)

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
        rank: Callable[[Waiter], tuple[bool, int]] = lambda w: (w.holder not in self._held, w.age)  # noqa: E731
        for waiter in sorted(waiting, key=rank):
            if not self._may(waiter.holder, waiter.pool):
                continue
            waiter.pool.waiting.remove(waiter)
            self._grant(waiter.holder, waiter.pool)
            waiter.granted = True
            waiter.wake()


class Admission(Book):
    """Admits transactions to pools, in one event loop."""

    async def enter(self, holder: Hashable, key: Hashable, name: str, size: int, until: float) -> None:
        """Wait for a connection's worth of room in the pool ``key``, to ``until`` by the loop's clock.

        Raises ResourceBusy that names the pool.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] | None = None

        def wake() -> None:
            if future is not None and not future.done():
                future.set_result(None)

        waiter = self.ask(holder, key, name, size, wake)
        if waiter is None or waiter.granted:
            return
        future = loop.create_future()
        timer = loop.call_at(until, wake)
        try:
            await future
        except BaseException:
            self.give_up(waiter)
            raise
        finally:
            timer.cancel()
        if not waiter.granted:
            self.give_up(waiter)
            raise busy(name, size)


def busy(name: str, size: int) -> ResourceBusy:
    """No room in that pool."""
    return ResourceBusy(
        f"the connection pool of {name!r} ({size} connections) had no room until the deadline",
        facts={"resource": name, "pool_size": str(size)},
    )
