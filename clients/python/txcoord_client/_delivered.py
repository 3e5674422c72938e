"""What became of messages and notifications."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from . import _aio
from ._pb import common_pb2 as c
from ._pb import coordinator_pb2 as pb
from ._runtime import Runtime


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of a message or notification."""

    message_id: str
    tx_id: str
    gid: str
    branch: str
    target: str
    operation: str
    state: str
    """``ready``, ``finishing`` (under way), ``done``, ``parked``, ``skipped``, ``resolved``; ``undone``: never sent."""
    attempts: int
    reason: str
    """Why the last attempt failed, or why it is parked; empty for none."""
    next_attempt: datetime | None
    created: datetime
    content_type: str = ""
    body: bytes = b""
    """Only where it was asked for."""

    @property
    def token(self) -> str:
        """From here the next page goes on."""
        return f"{self.tx_id}:{self.branch}"


def delivered(item: c.BranchDetail) -> Delivered:
    """From the wire."""
    status, part = item.status, item.spec.delivery
    return Delivered(
        message_id=part.message_id,
        tx_id=item.tx_id,
        gid=item.gid,
        branch=status.branch,
        target=status.target,
        operation=part.operation,
        state=c.BranchState.Name(status.state).removeprefix("BRANCH_STATE_").lower(),
        attempts=status.attempts,
        reason=status.message or status.reason,
        next_attempt=_moment(status.next_attempt_us) if status.next_attempt_us else None,
        created=_moment(item.created_us),
        content_type=part.content_type,
        body=part.payload,
    )


def _moment(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1e6, UTC)


class Listing:
    """Asks for them; the Coordinator has the rest."""

    namespace: str
    _call_timeout: float

    def _runtime(self) -> Runtime:
        raise NotImplementedError

    async def deliveries(
        self,
        target: str = "",
        *,
        since: datetime | timedelta | None = None,
        parked: bool = False,
        bodies: bool = False,
        after: str = "",
        limit: int = 100,
    ) -> list[Delivered]:
        """A page of messages and notifications, oldest first: what became of them, or, with ``bodies``, what a
        receiver has missed. ``target``: only those for it, as ``Delivered.target`` says it. ``since``: of transactions
        that began since, or so long ago. ``after``: go on after this ``Delivered.token``."""
        runtime = self._runtime()
        until = _aio.now() + self._call_timeout
        await runtime.connect(until)
        if isinstance(since, timedelta):
            since_us = runtime.wire.clock.now_us() - round(since.total_seconds() * 1e6)
        else:
            since_us = round(since.timestamp() * 1e6) if since is not None else 0
        request = pb.ListDeliveriesRequest(
            namespace=self.namespace,
            target=target,
            since_us=since_us,
            parked_only=parked,
            payloads=bodies,
            page_token=after,
            page_size=limit,
        )
        answer = await runtime.wire.ask("ListDeliveries", request, until)
        return [delivered(item) for item in answer.deliveries]
