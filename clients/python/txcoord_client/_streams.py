"""A Session stream to one coordinator, and the operations that are open on it."""

from __future__ import annotations

import asyncio

from ._nodes import Node
from ._pb import coordinator_pb2 as pb


class Lost(Exception):
    """The stream broke: whether the operation was done is unknown.

    ``retry_after``: seconds, where the coordinator has said it."""

    def __init__(self, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class Open:
    """One operation on its way."""

    __slots__ = ("future", "operation", "sent_at", "size")

    def __init__(
        self, operation: pb.Operation, size: int, future: asyncio.Future[pb.OperationResult]
    ) -> None:
        self.operation = operation
        self.size = size
        self.future = future
        self.sent_at = 0.0


class Stream:
    """One Session stream, and what is open on it."""

    __slots__ = ("call", "emptied", "heard_at", "leaving", "node", "reader", "sent", "timer")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.call = node.session()
        self.sent: dict[int, Open] = {}
        self.reader: asyncio.Task[None]
        self.leaving = False
        """Nothing new goes to its coordinator; what is open is still answered."""
        self.emptied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard_at = 0.0
        self.timer: asyncio.TimerHandle | None = None

    def retire(self) -> None:
        """It is left, and ends with the last answer."""
        self.leaving = True
        if not self.sent and not self.emptied.done():
            self.emptied.set_result(None)
