"""What operators ask about nodes: which there are, and that one takes nothing new."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from txcoord_client._pb import admin_pb2 as pb
from txcoord_client.protocol import reasons

from ...core.errors import Refusal, Refused
from ...core.words import storable
from ...ports import NodeOrder, NodeStatus
from .. import tokens
from .mapping import bad


class Fleet(Protocol):
    """The nodes of the log, as this node knows them."""

    async def all(self) -> list[NodeStatus]: ...

    async def order(self, name: str, draining: bool, order: NodeOrder) -> NodeStatus | None: ...

    def is_gone(self, status: NodeStatus, now_us: int) -> bool: ...


async def listed(fleet: Fleet, now_us: int) -> pb.ListNodesResponse:
    """All of them. Raises Refused."""
    tokens.demand_everywhere()
    found = await fleet.all()
    return pb.ListNodesResponse(
        nodes=[_node(status, fleet.is_gone(status, now_us)) for status in found],
        retries_wait=_nobody_takes_work(fleet, found, now_us),
    )


async def drained(fleet: Fleet, request: pb.DrainNodeRequest, now_us: int) -> pb.DrainNodeResponse:
    """Let one take nothing new, or new work again. Raises Refused."""
    audit = request.audit
    if not audit.actor.strip() or not audit.reason.strip():
        raise bad(reasons.BAD_REQUEST, "an operator's order needs an actor and a reason; both are audited")
    tokens.demand_everywhere()
    known = {status.name: status for status in await fleet.all()}
    found = known.get(request.node)
    if found is None:
        names = ", ".join(known) or "none"
        raise _not_found(f"there is no node {request.node[:80]!r}; there are {names}")
    if fleet.is_gone(found, now_us):
        raise _not_found(f"the node {request.node!r} is gone: it was not heard of for some leases")
    draining = not request.undo
    if audit.dry_run or found.draining is draining:
        return _answer(fleet, known, found, draining, now_us)
    caller = tokens.current()
    order = NodeOrder(
        "node.drain" if draining else "node.undrain",
        storable(audit.actor[:200]),
        storable(audit.reason[:1000]),
        caller.name if caller is not None else "",
    )
    after = await fleet.order(request.node, draining, order)
    if after is None:
        raise _not_found(f"the node {request.node!r} has just left")
    return _answer(fleet, known, after, draining, now_us)


def _answer(
    fleet: Fleet, known: dict[str, NodeStatus], node: NodeStatus, draining: bool, now_us: int
) -> pb.DrainNodeResponse:
    then = {**known, node.name: replace(node, draining=draining)}
    return pb.DrainNodeResponse(
        node=_node(node, False), retries_wait=_nobody_takes_work(fleet, list(then.values()), now_us)
    )


def _nobody_takes_work(fleet: Fleet, nodes: list[NodeStatus], now_us: int) -> bool:
    return all(node.draining or fleet.is_gone(node, now_us) for node in nodes)


def _not_found(text: str) -> Refused:
    return Refused(Refusal("NOT_FOUND", reasons.NOT_FOUND, text, True))


def _node(status: NodeStatus, gone: bool) -> pb.Node:
    return pb.Node(
        name=status.name,
        role=status.role,
        version=status.version,
        started_us=status.started_us,
        seen_us=status.seen_us,
        draining=status.draining,
        owned=status.live,
        clock_offset_us=status.clock_offset_us,
        address=status.address,
        duties=status.duties,
        gone=gone,
    )
