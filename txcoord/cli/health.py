"""`txcoord health`: does a coordinator answer, and take work? For containers and scripts."""

from __future__ import annotations

from typing import Annotated

import typer

from . import access, console
from .client import Address


def health(
    address: Address = "127.0.0.1:7070",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for its answer.")] = 3.0,
) -> None:
    """Ask a coordinator whether it is ready. It needs no token. Exit code 4 when it is not, or does not answer."""
    import grpc
    from grpc_health.v1 import health_pb2 as pb
    from grpc_health.v1 import health_pb2_grpc as rpc

    with access.open_channel(address) as channel:
        stub = rpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        try:
            answer = stub.Check(pb.HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError as error:
            text = access.tls_trouble(address) or f"no coordinator answers at {address}: {error.code().name}"
            console.fail(console.UNAVAILABLE, text)
    name = pb.HealthCheckResponse.ServingStatus.Name(answer.status)
    if answer.status != pb.HealthCheckResponse.SERVING:
        console.fail(console.UNAVAILABLE, f"{address}: {name}")
    console.out(name)
