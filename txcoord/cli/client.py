"""Talking to a coordinator from the command line."""

from __future__ import annotations

from types import TracebackType
from typing import Annotated, Any, Self

import typer

from . import access, console

Address = Annotated[str, typer.Option(envvar="TXCOORD_ADDRESS", help="host:port of the coordinator.")]
Namespace = Annotated[str, typer.Option(envvar="TXCOORD_NAMESPACE", help="Whose transactions.")]

_TIMEOUT_S = 10.0


class Client:
    """A connection to one coordinator. What goes wrong ends the command with one line and an exit code."""

    def __init__(self, address: str) -> None:
        from txcoord_client._pb import admin_pb2_grpc, coordinator_pb2_grpc

        self.address = address
        self._metadata = access.metadata(address)
        self._channel = access.open_channel(address)
        self._admin: Any = admin_pb2_grpc.AdminServiceStub(self._channel)
        self._coordinator: Any = coordinator_pb2_grpc.CoordinatorServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()

    def admin(self, method: str, request: Any) -> Any:
        """Call AdminService."""
        return self._call(getattr(self._admin, method), request)

    def coordinator(self, method: str, request: Any) -> Any:
        """Call CoordinatorService."""
        return self._call(getattr(self._coordinator, method), request)

    def _call(self, method: Any, request: Any) -> Any:
        import grpc

        try:
            return method(request, timeout=_TIMEOUT_S, metadata=self._metadata)
        except grpc.RpcError as error:
            self._fail(error)

    def _fail(self, error: Any) -> None:
        import grpc

        reason = _reason(error)
        code, details = error.code(), error.details() or ""
        if reason:
            ended = console.UNAVAILABLE if code is grpc.StatusCode.UNAVAILABLE else console.REFUSED
            console.fail(ended, details if details.startswith(reason) else f"{reason}: {details}")
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            if trouble := access.tls_trouble(self.address):
                console.fail(console.UNAVAILABLE, f"{trouble} (--ca-file, TXCOORD_CA_FILE)")
            console.fail(
                console.UNAVAILABLE,
                f"no coordinator answers at {self.address}. Is one running (`txcoord dev`, `txcoord serve`)? "
                "Another address: --address or TXCOORD_ADDRESS. One with TLS: --ca-file",
            )
        if code is grpc.StatusCode.UNIMPLEMENTED:
            console.fail(console.REFUSED, f"NOT_SUPPORTED: {self.address} does not know this: {details}")
        console.fail(console.UNAVAILABLE, f"{code.name}: {details}")


def _reason(error: Any) -> str:
    """The stable reason code of a refusal; empty when the answer is not from a coordinator."""
    from google.rpc import error_details_pb2, status_pb2

    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return str(info.reason)
    return ""
