"""The transaction on its way between services over gRPC, with threads: as ``txcoord_client.interceptors``.

Written by hand: gRPC's two sides have other interceptors for threads than for asyncio.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc

from .. import _carrying
from .._carrying import CONTEXT_KEY, VOTE_KEY
from ..errors import Rejected, TxcoordError
from ..protocol import reasons
from . import _joining
from ._joining import Home
from ._xa.branch import reason_of


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any


class _CallDetails(_Details, grpc.ClientCallDetails):
    pass


class ClientInterceptor(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamStreamClientInterceptor,  # type: ignore[type-arg]
):
    """Sends the current transaction along. Install it on channels to services that take part, and on no other."""

    def __init__(self, coordinator: Home) -> None:
        self._coordinator = coordinator

    def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request: Any
    ) -> Any:
        tx = self._coordinator.current_or_none()
        if tx is None:
            return continuation(client_call_details, request)
        context = tx._call_sent(client_call_details.method)
        remaining = tx.remaining
        details = _CallDetails(
            client_call_details.method,
            # No answer is of use after the deadline.
            min(client_call_details.timeout or remaining, max(remaining, 0.001)),
            [*(client_call_details.metadata or ()), (CONTEXT_KEY, context.SerializeToString())],
            client_call_details.credentials,
            getattr(client_call_details, "wait_for_ready", None),
            getattr(client_call_details, "compression", None),
        )
        try:
            call = continuation(details, request)
        except BaseException as error:
            tx._call_failed(context.branch, f"{type(error).__name__}: {error}")
            raise
        return _Reply(call, tx, context.branch)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        self._refuse(client_call_details)
        return continuation(client_call_details, request)

    def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        self._refuse(client_call_details)
        return continuation(client_call_details, request_iterator)

    def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        self._refuse(client_call_details)
        return continuation(client_call_details, request_iterator)

    def _refuse(self, details: Any) -> None:
        if self._coordinator.current_or_none() is not None:
            raise Rejected(
                f"{details.method!r} is a streaming call: it cannot carry the transaction. Use `coord.outside()` for a "
                "call that is not part of it",
                reason=reasons.NOT_SUPPORTED,
            )


def for_client(home: Home) -> list[Any]:
    """For ``grpc.intercept_channel(channel, *…)``."""
    return [ClientInterceptor(home)]


class _Reply(grpc.Call, grpc.Future):  # type: ignore[type-arg]
    """A call, perhaps still under way. Nobody learns that it has ended before its vote has been taken."""

    def __init__(self, call: Any, tx: Any, number: str) -> None:
        self._call = call
        self._tx = tx
        self._number = number
        self._lock = threading.Lock()
        self._taken = False
        call.add_done_callback(lambda _: self._take())

    def _take(self) -> None:
        with self._lock:
            if self._taken:
                return
            self._taken = True
            code = self._call.code()
            vote = _carrying.vote_in_metadata(self._call.trailing_metadata())
            if code is grpc.StatusCode.OK:
                self._tx._call_voted(self._number, vote)
            else:
                # Its vote, where there is one, has the reason: whether another try may help depends on that.
                said = f"{code.name if code is not None else 'no code'}: {self._call.details()}"
                self._tx._call_failed(self._number, said, vote)

    def result(self, timeout: float | None = None) -> Any:
        try:
            value = self._call.result(timeout)
        except grpc.FutureTimeoutError:
            raise
        except BaseException:
            self._take_if_done()
            raise
        self._take()
        return value

    def exception(self, timeout: float | None = None) -> Any:
        value = self._call.exception(timeout)
        self._take()
        return value

    def traceback(self, timeout: float | None = None) -> Any:
        value = self._call.traceback(timeout)
        self._take()
        return value

    def done(self) -> bool:
        done: bool = self._call.done()
        self._take_if_done()
        return done

    def _take_if_done(self) -> None:
        if self._call.done():
            self._take()

    def code(self) -> Any:
        code = self._call.code()
        self._take()
        return code

    def details(self) -> Any:
        details = self._call.details()
        self._take()
        return details

    def trailing_metadata(self) -> Any:
        metadata = self._call.trailing_metadata()
        self._take()
        return metadata

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        def taken(_: Any) -> None:
            self._take()
            fn(self)

        self._call.add_done_callback(taken)

    def cancel(self) -> bool:
        return bool(self._call.cancel())

    def cancelled(self) -> bool:
        return bool(self._call.cancelled())

    def running(self) -> bool:
        return bool(self._call.running())

    def initial_metadata(self) -> Any:
        return self._call.initial_metadata()

    def is_active(self) -> bool:
        return bool(self._call.is_active())

    def time_remaining(self) -> Any:
        return self._call.time_remaining()

    def add_callback(self, callback: Any) -> bool:
        return bool(self._call.add_callback(callback))


class ServerInterceptor(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Runs handlers inside the caller's transaction."""

    def __init__(self, coordinator: Home) -> None:
        self._coordinator = coordinator

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Any],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = continuation(handler_call_details)
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

        def run(request: Any, context: Any) -> Any:
            called: Any = None
            try:
                called = _carrying.read_context(sent, coordinator.namespace)
                tx = _joining.joined(coordinator, called)
            except TxcoordError as error:
                context.set_trailing_metadata(_refusal(called, error))
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
            token = coordinator._current.set(tx)
            try:
                reply = behaviour(request, context)
            except BaseException as error:
                tx.set_rollback_only(reason_of(error), f"{type(error).__name__}: {error}")
                _joining.left(tx)
                if tx._rollback_only in reasons.RETRYABLE_ABORTS:
                    _send_vote(context, tx)  # Another try may help: the caller must learn that.
                raise
            finally:
                coordinator._current.reset(token)
            failed = bool(context.code())
            if failed:
                tx.set_rollback_only(
                    reasons.APPLICATION_ERROR, f"the handler answered with an error: {context.details()!r}"
                )
            _joining.left(tx)
            _send_vote(context, tx)
            if tx.rollback_only and not failed:
                # The handler's own reply would tell of work that is not there.
                context.abort(grpc.StatusCode.ABORTED, f"{tx._rollback_only}: {_carrying.why(tx)}")
            return reply

        return run


def _refusal(called: Any, error: TxcoordError) -> tuple[tuple[str, bytes], ...]:
    """The vote of a service that cannot take part; none where it is not known for whom."""
    if called is None:
        return ()
    return ((VOTE_KEY, _carrying.no_vote(called, error).SerializeToString()),)


def _send_vote(context: Any, tx: Any) -> None:
    mine = list(context.trailing_metadata() or ())
    context.set_trailing_metadata((*mine, (VOTE_KEY, _carrying.vote_of(tx).SerializeToString())))


def _refusing(handler: Any, why: str) -> Any:
    def refuse_unary(request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{reasons.NOT_SUPPORTED}: {why}")

    def refuse_stream(request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{reasons.NOT_SUPPORTED}: {why}")
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
