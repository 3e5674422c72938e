"""The transaction on its way between services over gRPC (grpc.aio).

The client's interceptor sends the context with every call on its channel and waits for the callee's vote. The
server's runs the handler inside the caller's transaction, prepares what the handler did in databases when it has
ended, and lets the vote ride on the reply: no extra call. A call that brings no vote back makes the transaction
rollback-only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from . import _carrying, _joining
from ._carrying import CONTEXT_KEY, VOTE_KEY
from ._joining import Home
from ._xa.branch import reason_of
from .errors import Rejected, TxcoordError
from .protocol import reasons
from .transaction import Transaction


class ClientInterceptor(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    """Sends the current transaction along. Install it on channels to services that take part, and on no other."""

    def __init__(self, coordinator: Home) -> None:
        self._coordinator = coordinator

    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> Any:
        tx = self._coordinator.current_or_none()
        if tx is None:
            return await continuation(client_call_details, request)
        method: Any = client_call_details.method
        name = method.decode() if isinstance(method, bytes) else str(method)
        context = tx._call_sent(name)
        metadata = grpc.aio.Metadata(*(client_call_details.metadata or ()))
        metadata.add(CONTEXT_KEY, context.SerializeToString())
        details = grpc.aio.ClientCallDetails(
            method=method,
            # No answer is of use after the deadline.
            timeout=min(client_call_details.timeout or tx.remaining, max(tx.remaining, 0.001)),
            metadata=metadata,
            credentials=client_call_details.credentials,
            wait_for_ready=client_call_details.wait_for_ready,
        )
        call: Any = None
        try:
            call = await continuation(details, request)
            code = await call.code()
        except BaseException as error:
            tx._call_failed(context.branch, f"{type(error).__name__}: {error}")
            if hasattr(call, "cancel"):
                call.cancel()  # Nobody waits for what it does there any more.
            raise
        if code is grpc.StatusCode.OK:
            tx._call_voted(context.branch, _carrying.vote_in_metadata(await call.trailing_metadata()))
        else:
            # Its vote, where there is one, has the reason: whether another try may help depends on that.
            vote = _carrying.vote_in_metadata(await call.trailing_metadata())
            tx._call_failed(context.branch, f"{code.name}: {await call.details()}", vote)
        return call


def for_client(home: Home) -> list[Any]:
    """One interceptor for each kind of call: grpc.aio uses an object for one kind only."""
    return [ClientInterceptor(home), _NoUnaryStream(home), _NoStreamUnary(home), _NoStreamStream(home)]


class _NoStream:
    """A stream has no one reply that a vote could ride on: refused inside a transaction, never sent without it."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def _refuse(self, details: grpc.aio.ClientCallDetails) -> None:
        if self._home.current_or_none() is not None:
            raise Rejected(
                f"{details.method!r} is a streaming call: it cannot carry the transaction. Use `coord.outside()` for a "
                "call that is not part of it",
                reason=reasons.NOT_SUPPORTED,
            )


class _NoUnaryStream(_NoStream, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        self._refuse(client_call_details)
        return await continuation(client_call_details, request)


class _NoStreamUnary(_NoStream, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[type-arg]
    async def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        self._refuse(client_call_details)
        return await continuation(client_call_details, request_iterator)


class _NoStreamStream(_NoStream, grpc.aio.StreamStreamClientInterceptor):  # type: ignore[type-arg]
    async def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        self._refuse(client_call_details)
        return await continuation(client_call_details, request_iterator)


class ServerInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Runs handlers inside the caller's transaction."""

    def __init__(self, coordinator: Home) -> None:
        self._coordinator = coordinator

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        sent = dict(handler_call_details.invocation_metadata or ()).get(CONTEXT_KEY)
        if handler is None or sent is None:
            return handler
        if handler.unary_unary is None:
            return _refusing(handler, "only unary calls can carry a transaction")
        return grpc.unary_unary_rpc_method_handler(
            self._wrapped(handler.unary_unary, sent),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _wrapped(self, behaviour: Any, sent: Any) -> Any:
        coordinator = self._coordinator

        async def run(request: Any, context: Any) -> Any:
            called: Any = None
            try:
                called = _carrying.read_context(sent, coordinator.namespace)
                tx = await _joining.joined(coordinator, called)
            except TxcoordError as error:
                await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error), _refusal(called, error))
            token = coordinator._current.set(tx)
            try:
                reply = await behaviour(request, context)
            except BaseException as error:
                tx.set_rollback_only(reason_of(error), f"{type(error).__name__}: {error}")
                await _joining.left(tx)
                if tx._rollback_only in reasons.RETRYABLE_ABORTS:
                    _send_vote(context, tx)  # Another try may help: the caller must learn that.
                raise
            finally:
                coordinator._current.reset(token)
            failed = bool(context.code())
            if failed:
                tx.set_rollback_only(
                    reasons.APPLICATION_ERROR, f"the handler answered with an error: {context.details()}"
                )
            await _joining.left(tx)
            _send_vote(context, tx)
            if tx.rollback_only and not failed:
                # The handler's own reply would tell of work that is not there.
                await context.abort(
                    grpc.StatusCode.ABORTED,
                    f"{tx._rollback_only}: {_carrying.why(tx)}",
                    context.trailing_metadata(),
                )
            return reply

        return run


def _refusal(called: Any, error: TxcoordError) -> tuple[tuple[str, bytes], ...]:
    """The vote of a service that cannot take part; none where it is not known for whom."""
    if called is None:
        return ()
    return ((VOTE_KEY, _carrying.no_vote(called, error).SerializeToString()),)


def _send_vote(context: Any, tx: Transaction) -> None:
    mine = list(context.trailing_metadata() or ())
    context.set_trailing_metadata((*mine, (VOTE_KEY, _carrying.vote_of(tx).SerializeToString())))


def _refusing(handler: Any, why: str) -> Any:
    async def refuse_unary(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{reasons.NOT_SUPPORTED}: {why}")

    async def refuse_stream(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{reasons.NOT_SUPPORTED}: {why}")
        yield  # pragma: no cover

    made = {
        (True, True): grpc.stream_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
    }[bool(handler.request_streaming), bool(handler.response_streaming)]
    return made(
        refuse_stream if handler.response_streaming else refuse_unary,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
