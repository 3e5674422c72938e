"""What became of messages and notifications: for who sent them, and for who has missed some."""

from __future__ import annotations

from collections.abc import Sequence

from txcoord_client._pb import coordinator_pb2 as pb
from txcoord_client.protocol import identifiers, reasons

from ...core.model import Branch, BranchState, Tx
from ...ports import DeliveryQuery
from . import mapping


def query_of(request: pb.ListDeliveriesRequest, namespace: str) -> DeliveryQuery:
    """Raises Refused."""
    tx_id, _, branch = request.page_token.partition(":")
    if tx_id and not identifiers.is_tx_id(tx_id):
        raise mapping.bad(reasons.BAD_REQUEST, f"page_token {tx_id[:40]!r} was never given out")
    if not 0 <= request.since_us < 2**53 or len(request.target) > 250:
        raise mapping.bad(
            reasons.BAD_REQUEST, "since_us is microseconds since 1970, a target has at most 250 characters"
        )
    states = {_STATE[number] for number in request.states if number in _STATE}
    if len(states) < len(set(request.states)):
        raise mapping.bad(reasons.BAD_REQUEST, "states: those of branches are expected")
    if request.parked_only:
        states = {BranchState.PARKED}
    size = min(request.page_size or 100, 100 if request.payloads else 1_000)
    return DeliveryQuery(
        namespace, request.target, request.since_us, tuple(sorted(states)), (tx_id, branch[:100]), size + 1
    )


_STATE = {number: state for state, number in mapping.BRANCH_STATE.items()}
_MOST_BYTES = 3 * 1024 * 1024
"""Of payloads in one page: they travel in one message."""


def page(
    found: Sequence[tuple[Tx, Branch]], query: DeliveryQuery, *, payloads: bool
) -> pb.ListDeliveriesResponse:
    """Those that fit in one message, and where to go on."""
    out = pb.ListDeliveriesResponse()
    size = 0
    for tx, branch in found[: query.limit - 1]:
        size += len(branch.sent) if payloads else 0
        if size > _MOST_BYTES and out.deliveries:
            break
        item = mapping.detail(branch, results=False)
        if payloads:
            item.spec.delivery.payload = branch.sent
        item.namespace, item.tx_id, item.gid, item.created_us = tx.namespace, tx.tx_id, tx.gid, tx.created_us
        if item.spec.HasField("delivery") and not item.spec.delivery.message_id:
            item.spec.delivery.message_id = f"{tx.tx_id}.{branch.id}"
        out.deliveries.append(item)
    if len(out.deliveries) < len(found):
        last = out.deliveries[-1]
        out.next_page_token = f"{last.tx_id}:{last.spec.id}"
    return out
