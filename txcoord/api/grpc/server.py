"""The gRPC server: services, health, reflection by option."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from txcoord_client._pb import (
    admin_pb2,
    admin_pb2_grpc,
    coordinator_pb2,
    coordinator_pb2_grpc,
)

from ...engine.coordinator import Coordinator
from ...engine.recovery import Recovery
from ...engine.replays import Replayer
from ...ports import Registry, ResourceStatus, TargetRules
from ..tls import ServerTls
from ..tokens import Tokens
from .admin import AdminServicer
from .checking import Look
from .guard import Guard
from .mapping import Limits
from .nodes import Fleet
from .operations import Operations
from .participants import Participants
from .servicer import CoordinatorServicer
from .targets import TargetDesk

_SERVICES = (
    coordinator_pb2.DESCRIPTOR.services_by_name["CoordinatorService"].full_name,
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
)

_CUT_S = 0.5


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """What the server needs to know."""

    limits: Limits = field(default_factory=Limits)
    reflection: bool = False


class GrpcServer:
    """One listening gRPC server over one coordinator."""

    def __init__(
        self,
        coordinator: Coordinator,
        recovery: Recovery,
        settings: ApiSettings,
        *,
        resources: Callable[[], Sequence[ResourceStatus]],
        targets: TargetRules,
        tokens: Tokens | None = None,
        tls: ServerTls | None = None,
        fleet: Fleet | None = None,
        replayer: Replayer | None = None,
        registry: Registry | None = None,
        look: Look | None = None,
    ) -> None:
        self._settings = settings
        self._tokens = tokens
        self._tls = tls
        self._coordinator = coordinator
        self.operations = operations = Operations(coordinator, settings.limits, resources)
        """What each request does, for every API of this node."""
        now_us = coordinator.clock.now_us
        participants = None
        if registry is not None:
            participants = Participants(
                registry, settings.limits.targets, namespace=operations.namespace, now_us=now_us
            )
        # Calls of kinds that this server does not carry out are answered UNIMPLEMENTED by the base class.
        self.servicer = CoordinatorServicer(
            operations,
            max_operations=settings.limits.operations,
            now_us=now_us,
            participants=participants,
        )
        self._admin = AdminServicer(
            coordinator,
            operations,
            resources,
            now_us=now_us,
            targets=TargetDesk(coordinator, targets, now_us, registry, allowed=settings.limits.targets),
            fleet=fleet,
            replayer=replayer,
            look=look,
        )
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._server: grpc.aio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; answers the port. Raises OSError when the address cannot be bound."""
        server = grpc.aio.server(
            interceptors=[Guard(self._tokens)] if self._tokens is not None else [],
            options=[
                ("grpc.max_receive_message_length", self._settings.limits.message),
                ("grpc.max_send_message_length", 4 * self._settings.limits.message),
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            ],
        )
        coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server(self.servicer, server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self._admin, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)  # type: ignore[no-untyped-call]
        if self._settings.reflection:
            reflection.enable_server_reflection(
                (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server
            )
        try:
            if self._tls is None:
                bound = server.add_insecure_port(f"{host}:{port}")
            else:
                bound = server.add_secure_port(f"{host}:{port}", self._tls.credentials())
        except RuntimeError as error:
            raise OSError(f"cannot listen on {host}:{port}: {error}") from error
        await server.start()
        self._server = server
        await self.ready(True)
        return bound

    async def ready(self, yes: bool) -> None:
        """Say whether this node can work: an unready one is asked by nobody, and answers all the same."""
        states = health_pb2.HealthCheckResponse
        for name in ("", *_SERVICES):
            await self._health.set(name, states.SERVING if yes else states.NOT_SERVING)

    def take_work(self, yes: bool) -> None:
        """Take new work, or nothing new: what is there is gone on with, and who waits is answered."""
        self.servicer.take_work(yes)

    async def stop(self, grace_s: float) -> None:
        """Stop taking, drain, leave."""
        if self._server is None:
            return
        await self._health.enter_graceful_shutdown()
        self.servicer.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.servicer.drained(), grace_s)
        server, self._server = self._server, None
        # What was open is answered. An idle stream would keep us for the whole grace: it is cut.
        await server.stop(min(grace_s, _CUT_S))
