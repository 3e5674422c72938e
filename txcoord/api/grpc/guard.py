"""Who may call which method: checked before a handler runs. Health is open to all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc_health.v1 import health

from txcoord_client._pb import admin_pb2, coordinator_pb2
from txcoord_client.protocol import bearer

from .. import tokens
from ..tokens import May, Tokens
from . import status

_COORDINATOR = coordinator_pb2.DESCRIPTOR.services_by_name["CoordinatorService"]
_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
_LOOKS = {"Hello", "Get", "List", "Wait", "Batch", "Session"}
"""Of the last two each operation is looked at: see :func:`of_operation`."""
_ADMINISTERS = {"DrainNode", "AliasTarget"}


def of_method(path: str) -> May | None:
    """What a method needs; None: nothing."""
    service, _, method = path.removeprefix("/").partition("/")
    if service == health.SERVICE_NAME:
        return None
    if service == _COORDINATOR.full_name:
        return May.READ if method in _LOOKS else May.TAKE_PART
    if service == _ADMIN.full_name:
        if method.startswith(("List", "Get")) or method == "CheckResource":  # With fix it needs more.
            return May.READ
        return May.ADMINISTER if method in _ADMINISTERS else May.OPERATE
    return May.READ  # Reflection.


def of_operation(name: str) -> May:
    """What an operation of a Batch or Session needs."""
    return May.READ if name in ("get", "wait") else May.TAKE_PART


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Lets in who shows a token that is known and may do what he calls."""

    def __init__(self, known: Tokens) -> None:
        self._tokens = known

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """The handler of a call, or one that refuses."""
        handler = await continuation(handler_call_details)
        needs = of_method(handler_call_details.method)
        if handler is None or needs is None:
            return handler
        try:
            caller = self._tokens.caller(_header(handler_call_details.invocation_metadata))
            caller.check(needs)
        except Exception as error:
            return _refusing(handler, error)
        tokens.set_current(caller)  # Each call is a task of its own, and this is it.
        return handler


def _header(metadata: Any) -> str:
    for key, value in metadata or ():
        if key == bearer.HEADER and isinstance(value, str):
            return value
    return ""


def _refusing(handler: Any, error: Exception) -> Any:
    async def once(request: Any, context: Any) -> Any:
        await status.abort(context, error)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        await status.abort(context, error)
        yield

    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(
        stream if handler.response_streaming else once,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
