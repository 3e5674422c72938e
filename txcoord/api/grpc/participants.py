"""Participants that tell where they are: registering, and signs of life."""

from __future__ import annotations

import re
from collections.abc import Callable

from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client.protocol import identifiers, reasons

from ...core.instances import MOST, Instance, Key
from ...core.targets import NOT_ALLOWED, Target, Targets
from ...core.words import storable
from ...ports import Registry
from .mapping import bad

_INSTANCE = re.compile(r"[\w.:/@-]{1,100}", re.ASCII)
_BEATS = 3
"""In the time that one counts as live."""


class Participants:
    """What each request does. Raises Refused; answers the response message."""

    def __init__(
        self,
        registry: Registry,
        targets: Targets,
        *,
        namespace: Callable[[str], str],
        now_us: Callable[[], int],
    ) -> None:
        self._registry = registry
        self._targets = targets
        self._namespace = namespace
        self._now_us = now_us

    async def register(self, request: pb.RegisterParticipantRequest) -> pb.RegisterParticipantResponse:
        """An instance is there: it is called from now on. Refused where this coordinator does not call its address."""
        key = self._key(request)
        unknown = [name for name in ("operations", "max_in_flight", "labels") if getattr(request, name)]
        if unknown:
            raise bad(
                reasons.NOT_SUPPORTED,
                f"{', '.join(unknown)}: not carried out by this version",
                "UNIMPLEMENTED",
            )
        if Target.parse(request.address) is None:
            raise bad(
                reasons.BAD_REQUEST,
                f"address {request.address[:120]!r}: one such as grpc://host:port or http://host:port/path is needed",
            )
        why = self._targets.why_not(request.address)
        if why is not None:
            code = "PERMISSION_DENIED" if why.reason == NOT_ALLOWED else "INVALID_ARGUMENT"
            raise bad(why.reason, why.message, code)
        one = Instance(*key, request.address, storable(request.version[:100]))
        if not await self._registry.register(one):
            raise bad(
                reasons.TOO_LARGE, f"{MOST} instances are registered: no more are taken", "RESOURCE_EXHAUSTED"
            )
        return pb.RegisterParticipantResponse(
            heartbeat_us=self._registry.ttl_us // _BEATS, expires_us=self._now_us() + self._registry.ttl_us
        )

    async def heartbeat(self, request: pb.HeartbeatParticipantRequest) -> pb.HeartbeatParticipantResponse:
        """It is still there, or leaves."""
        key = self._key(request)
        if request.leaving:
            await self._registry.leave(key)
            return pb.HeartbeatParticipantResponse(known=True, expires_us=self._now_us())
        known = await self._registry.beat(key)
        return pb.HeartbeatParticipantResponse(
            known=known, expires_us=self._now_us() + (self._registry.ttl_us if known else 0)
        )

    def _key(self, request: pb.RegisterParticipantRequest | pb.HeartbeatParticipantRequest) -> Key:
        namespace = self._namespace(request.namespace)
        if not identifiers.is_name(request.participant):
            raise bad(
                reasons.BAD_REQUEST,
                f"participant {request.participant[:80]!r}: 1 to 63 characters of [A-Za-z0-9_.-]",
            )
        if not _INSTANCE.fullmatch(request.instance):
            raise bad(
                reasons.BAD_REQUEST,
                f"instance {request.instance[:80]!r}: 1 to 100 characters of [A-Za-z0-9_.:/@-]",
            )
        return namespace, request.participant, request.instance
