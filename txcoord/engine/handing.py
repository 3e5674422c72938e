"""What the engine knows of a transaction's changes that are on their way to the log."""

from __future__ import annotations

import asyncio


class Writes:
    """Which transactions have changes on their way to the log."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._forced: dict[str, int] = {}
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    def begun(self, tx_id: str, *, forced: bool) -> None:
        """One more."""
        self._open[tx_id] = self._open.get(tx_id, 0) + 1
        if forced:
            self._forced[tx_id] = self._forced.get(tx_id, 0) + 1

    def ended(self, tx_id: str, *, forced: bool) -> None:
        """One less."""
        if forced:
            _one_less(self._forced, tx_id)
        if _one_less(self._open, tx_id):
            for future in self._waiting.pop(tx_id, ()):
                if not future.done():
                    future.set_result(None)

    def any(self, tx_id: str) -> bool:
        """Is a change of it on its way?"""
        return tx_id in self._open

    def any_forced(self, tx_id: str) -> bool:
        """Is one on its way that must be on disk before anything acts on it?"""
        return tx_id in self._forced

    def none(self, tx_id: str) -> asyncio.Future[None]:
        """A future of the moment when none of it is."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if tx_id in self._open:
            self._waiting.setdefault(tx_id, []).append(future)
        else:
            future.set_result(None)
        return future


def _one_less(counts: dict[str, int], tx_id: str) -> bool:
    """Was it the last?"""
    left = counts[tx_id] - 1
    if left:
        counts[tx_id] = left
        return False
    del counts[tx_id]
    return True
