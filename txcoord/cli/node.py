"""`txcoord node`: the coordinators and workers of a log."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import console, settings
from .client import Address, Client, Namespace
from .tx import Actor, DryRun, Reason, Yes, me

app = typer.Typer(no_args_is_help=True, help="The coordinators and workers of a log.")


_NOBODY = (
    "No node of this log takes work: retries that were handed off wait, prepared branches with their locks, "
    "until one does (`txcoord node drain NODE --undo`, or start another)."
)
_WOULD_BE_NOBODY = (
    "No node of this log would take work: retries that were handed off would wait until one does."
)


@app.command("list")
def list_(
    address: Address = "127.0.0.1:7070", namespace: Namespace = "default", json: settings.Json = False
) -> None:
    """List the nodes of the log: any of them knows all."""
    from txcoord_client._pb import admin_pb2 as pb
    from txcoord_client._pb import coordinator_pb2

    with Client(address) as client:
        # The log's time, by which the nodes were seen.
        now_us = client.coordinator("List", coordinator_pb2.ListRequest(namespace=namespace, page_size=1))
        answer = client.admin("ListNodes", pb.ListNodesRequest(namespace=namespace))
    if json:
        for node in answer.nodes:
            console.emit(_as_dict(node))
        return
    if answer.retries_wait:
        console.say(_NOBODY)
    console.table(
        ("NAME", "ROLE", "ADDRESS", "VERSION", "STARTED", "SEEN", "LIVE", "STATE"),
        [_row(node, now_us.log_time_us) for node in answer.nodes],
    )


@app.command()
def drain(
    node: Annotated[str, typer.Argument(metavar="NODE", help="Its name, as `txcoord node list` has it.")],
    reason: Reason,
    undo: Annotated[bool, typer.Option("--undo", help="Let it take new work again.")] = False,
    actor: Actor = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    json: settings.Json = False,
) -> None:
    """Let a node take nothing new: it goes on with what it has, and answers who waits. A restart ends it too."""
    from txcoord_client._pb import admin_pb2 as pb

    if not undo and not dry_run:
        console.confirm(f"drain {node}?", yes=yes)
    request = pb.DrainNodeRequest(
        namespace=namespace,
        audit=pb.Audit(actor=actor or me(), reason=reason, dry_run=dry_run),
        node=node,
        undo=undo,
    )
    with Client(address) as client:
        answer = client.admin("DrainNode", request)
    found = answer.node
    if answer.retries_wait:
        console.say(_WOULD_BE_NOBODY if dry_run else _NOBODY)
    if json:
        console.emit(_as_dict(found))
        return
    state = "takes nothing new" if found.draining else "takes new work"
    if dry_run and found.draining is undo:
        state += ", and would not" if undo is False else ", and would again"
    console.out(f"{found.name}: {state}; {console.plural(found.owned, 'transaction')} live there")


def _as_dict(node: Any) -> dict[str, Any]:
    return {
        "name": node.name,
        "role": node.role,
        "address": node.address,
        "version": node.version,
        "started_us": node.started_us,
        "seen_us": node.seen_us,
        "live": None if node.gone else node.owned,
        "gone": node.gone,
        "draining": node.draining,
        "clock_offset_us": node.clock_offset_us,
        "duties": list(node.duties),
    }


def _row(node: Any, now_us: int) -> tuple[str, ...]:
    return (
        node.name,
        node.role,
        node.address,
        node.version,
        console.since(node.started_us, now_us),
        console.since(node.seen_us, now_us),
        "-" if node.gone else str(node.owned),
        _state(node, now_us),
    )


def _state(node: Any, now_us: int) -> str:
    if node.gone:
        return f"GONE {console.length(now_us - node.seen_us)}"
    return "draining" if node.draining else "ok"
