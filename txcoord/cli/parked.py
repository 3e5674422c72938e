"""`txcoord parked`: what needs a person, in groups and one by one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import console, settings
from .client import Address, Client, Namespace

app = typer.Typer(no_args_is_help=True, help="What is parked: in groups, and branch by branch.")

Filter = Annotated[
    str,
    typer.Argument(
        metavar="[FILTER]", help='Such as: kind = notify AND resource = "https://partner.example".'
    ),
]


@app.command("list")
def list_(
    filter_: Filter = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Groups, biggest first.")] = 50,
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    json: settings.Json = False,
) -> None:
    """Parked branches by kind, target and reason: the first look in an incident."""
    from txcoord_client._pb import admin_pb2 as pb

    with Client(address) as client:
        answer = client.admin(
            "ListParkedGroups", pb.ListParkedGroupsRequest(namespace=namespace, filter=filter_, limit=limit)
        )
    for group in answer.groups:
        if json:
            console.emit(_group(group))
    if json:
        return
    if not answer.groups:
        console.say(_nothing(filter_, namespace))
        return
    console.table(
        ("COUNT", "AGAIN", "KIND", "TARGET", "REASON", "PARKED SINCE", "EXAMPLE"),
        [
            (
                str(g.count),
                str(g.failed_again),
                _kind(g.kind),
                g.target,
                g.reason,
                console.moment(g.oldest_us) if g.oldest_us else "",
                g.example_tx_id,
            )
            for g in answer.groups
        ],
    )


@app.command("show")
def show_(
    filter_: Filter = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Transactions.")] = 20,
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    json: settings.Json = False,
) -> None:
    """Each parked branch with its last answer and its attempts. The whole history: `tx show`."""
    from txcoord_client._pb import common_pb2 as c
    from txcoord_client._pb import coordinator_pb2 as pb

    words = f"parked AND {filter_}" if filter_ else "parked"
    with Client(address) as client:
        answer = client.coordinator(
            "List", pb.ListRequest(namespace=namespace, filter=words, page_size=limit)
        )
    some = False
    for tx in answer.transactions:
        for branch in tx.branches:
            status = branch.status
            if status.state != c.BRANCH_STATE_PARKED:
                continue
            some = True
            said = {
                "tx_id": tx.tx_id,
                "gid": tx.gid,
                "branch": status.branch,
                "kind": _kind(status.kind),
                "target": status.target,
                "attempts": status.attempts,
                "reason": status.message or status.reason,
            }
            if key := branch.spec.delivery.ordering_key:
                said["order_key"] = key
            if json:
                console.emit(said)
            else:
                # A no to its first call is not counted as one that has failed.
                tries = f", {console.plural(status.attempts, 'attempt')}" if status.attempts else ""
                holds = f", holds order key {key!r}" if key else ""
                console.out(
                    f"{tx.gid or tx.tx_id} branch {status.branch}: {said['kind']} to {status.target}{tries}{holds}"
                )
                console.out(f"    {said['reason']}")
    if not some and not json:
        console.say(_nothing(filter_, namespace))


def _nothing(filter_: str, namespace: str) -> str:
    return f"nothing is parked in namespace {namespace}" + (" that matches" if filter_ else "")


def _kind(number: int) -> str:
    from txcoord_client._pb import common_pb2 as c

    return str(c.Kind.Name(number)).removeprefix("KIND_").lower()


def _group(group: Any) -> dict[str, Any]:
    return {
        "count": group.count,
        "failed_again": group.failed_again,
        "kind": _kind(group.kind),
        "target": group.target,
        "reason": group.reason,
        "fingerprint": group.fingerprint,
        "oldest_us": group.oldest_us,
        "newest_us": group.newest_us,
        "example_tx_id": group.example_tx_id,
        "message": group.message,
        "filter": group.filter,
    }
