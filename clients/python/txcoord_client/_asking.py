"""Questions that travel alone: unary calls that change nothing."""

from __future__ import annotations

from typing import Any

import grpc

from . import _refusals


async def ask(wire: Any, method: str, request: Any, until: float) -> Any:
    """The answer, asked for again if need be, until ``until`` (by the loop's clock). Raises the SDK's errors."""

    async def once(left: float) -> Any:
        wire.messages_sent += 1
        node = await wire._nodes.pick()
        try:
            return await node.call(method, request, left)
        except grpc.aio.AioRpcError as error:
            refusal = _refusals.error_of_call(error)
            refusal.definite = True
            raise refusal from error

    return await wire._retrying(once, until)
