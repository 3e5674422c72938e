"""A look at one resource, from where the coordinator is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from txcoord_client._pb import admin_pb2 as pb
from txcoord_client.protocol import reasons

from ...core.errors import Refusal, Refused
from .. import tokens
from .mapping import bad


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that was looked at."""

    check: str
    severity: str
    message: str
    remedy: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Looked:
    """What was seen of a resource."""

    name: str
    url: str
    """Without secrets."""
    identity: str = ""
    version: str = ""
    findings: Sequence[Found] = field(default=())


Look = Callable[[str], Awaitable[Looked | None]]
"""Looks at the resource of that name; None: there is none."""


async def checked(look: Look, request: pb.CheckResourceRequest) -> pb.CheckResourceResponse:
    """Answer it. Raises Refused."""
    if request.fix:
        raise bad(
            reasons.NOT_SUPPORTED,
            "a coordinator changes nothing there: `txcoord resource check --fix`, where its settings are",
            "UNIMPLEMENTED",
        )
    tokens.demand_everywhere()
    found = await look(request.resource)
    if found is None:
        text = f"this coordinator has no resource {request.resource[:80]!r}"
        raise Refused(Refusal("NOT_FOUND", reasons.UNKNOWN_RESOURCE, text, True))
    wrong = [one for one in found.findings if one.severity == "error"]
    return pb.CheckResourceResponse(
        resource=pb.Resource(
            name=found.name,
            identity=found.identity,
            url=found.url,
            engine_version=found.version,
            available=not wrong,
            problem=f"{wrong[0].check}: {wrong[0].message}" if wrong else "",
        ),
        findings=[
            pb.ResourceFinding(check=one.check, severity=one.severity, message=one.message, remedy=one.remedy)
            for one in found.findings
        ],
    )
