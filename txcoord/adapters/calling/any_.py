"""Participants by whatever their addresses say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from ...core.action import Answer, AnswerKind
from ...ports import CallRequest
from .grpc_ import GrpcCaller
from .http_ import HttpCaller


class AnyCaller:
    """``ports.Caller`` for all targets."""

    def __init__(self, *, node: str) -> None:
        self.grpc = GrpcCaller(node=node)
        self.http = HttpCaller(node=node)

    def knows_log(self, log_id: str) -> None:
        """Which log it calls for."""
        self.grpc.log_id = self.http.log_id = log_id

    @property
    def messages(self) -> int:
        """Messages sent and received."""
        return self.grpc.messages + self.http.messages

    def call(
        self, target: str, requests: Sequence[CallRequest], timeout_s: float
    ) -> AsyncIterator[tuple[CallRequest, Answer]]:
        """Over what its address begins with."""
        scheme = target.partition("://")[0]
        if scheme == "grpc":
            return self.grpc.call(target, requests, timeout_s)
        if scheme in ("http", "https"):
            return self.http.call(target, requests, timeout_s)
        return _nobody(f"UNKNOWN_PARTICIPANT: {target[:200]!r} cannot be called", requests)

    async def close(self) -> None:
        """Disconnect."""
        await self.grpc.close()
        await self.http.close()


async def _nobody(reason: str, requests: Sequence[CallRequest]) -> AsyncIterator[tuple[CallRequest, Answer]]:
    for request in requests:
        yield request, Answer(AnswerKind.FAILED, reason=reason)
