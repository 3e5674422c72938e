"""Admission to pools, for threads. The rules are those of ``txcoord_client._admission``."""

from __future__ import annotations

import threading
from collections.abc import Hashable

from .._admission import Book, busy
from . import _aio


class Admission(Book):
    """Admits transactions to pools, in all threads of a process."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()

    def enter(self, holder: Hashable, key: Hashable, name: str, size: int, until: float) -> None:
        """Wait for a connection's worth of room in the pool ``key``, to ``until`` by the monotonic clock.

        Raises ResourceBusy that names the pool.
        """
        event = threading.Event()
        with self._lock:
            waiter = self.ask(holder, key, name, size, event.set)
        if waiter is None:
            return
        try:
            event.wait(max(until - _aio.now(), 0.0))
        except BaseException:
            with self._lock:
                self.give_up(waiter)
            raise
        with self._lock:
            if not waiter.granted:
                self.give_up(waiter)
                raise busy(name, size)

    def leave(self, holder: Hashable, key: Hashable) -> None:
        """Give one connection's worth of room back."""
        with self._lock:
            super().leave(holder, key)
