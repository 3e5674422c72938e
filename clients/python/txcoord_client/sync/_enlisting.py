"""Branches of one transaction that threads enlist at the same time travel in one request. See ``_enlisting`` above."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .._pb import common_pb2 as c


class _Item:
    def __init__(self, branch: c.Branch) -> None:
        self.branch = branch
        self.sent = False
        self.error: Exception | None = None


class Enlister:
    """While one request is on its way the next one fills."""

    def __init__(self, send: Callable[[list[c.Branch]], None]) -> None:
        self._send = send
        self._waiting: list[_Item] = []
        self._mutex = threading.Lock()
        self._turn = threading.Lock()

    def enlist(self, branch: c.Branch) -> None:
        """Returns when it is durable. Raises what sending raised."""
        item = _Item(branch)
        with self._mutex:
            self._waiting.append(item)
        with self._turn:
            if not item.sent:
                with self._mutex:
                    taken, self._waiting = self._waiting, []
                self._send_all(taken)
        if item.error is not None:
            raise item.error

    def _send_all(self, taken: list[_Item]) -> None:
        error: Exception | None = None
        try:
            self._send([item.branch for item in taken])
        except Exception as raised:
            error = raised
        for item in taken:
            item.sent, item.error = True, error
