"""`txcoord audit`: who did what, when and why."""

from __future__ import annotations

import json as json_
from typing import Annotated, Any

import typer

from . import console, settings
from .client import Address, Client, Namespace
from .replay import since_us

app = typer.Typer(no_args_is_help=True, help="Who did what, when and why.")


@app.command("list")
def list_(
    filter_: Annotated[
        str, typer.Argument(metavar="[FILTER]", help='Such as: action = target.pause AND actor = "ann".')
    ] = "",
    actor: Annotated[str, typer.Option(help="Only what this one has ordered.")] = "",
    action: Annotated[
        str,
        typer.Option(help="Only this: retry, park, skip, resolve, replay.start, target.pause, node.drain …"),
    ] = "",
    tx: Annotated[str, typer.Option(help="Only of this transaction: a gid or a tx id.")] = "",
    target: Annotated[str, typer.Option(help="Only of this target.")] = "",
    node: Annotated[str, typer.Option(help="Only of this node.")] = "",
    job: Annotated[str, typer.Option(help="Only of this replay.")] = "",
    since: Annotated[str, typer.Option(help="Only since: 2h, 3d, or 2026-11-26T08:00:00Z.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Rows of a page.")] = 50,
    page: Annotated[str, typer.Option(help="Go on from here (said below a full page).")] = "",
    every: Annotated[bool, typer.Option("--all", help="All pages.")] = False,
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    json: settings.Json = False,
) -> None:
    """Orders of operators about branches, replays, targets and nodes, the latest first.

    Those about targets and nodes are shown to whoever may see all namespaces.
    """
    from txcoord_client._pb import admin_pb2 as pb

    said = {"actor": actor, "action": action, "tx_id": tx, "target": target, "node": node, "replay_id": job}
    for name, value in said.items():
        if '"' in value:
            console.fail(console.USAGE, f"{name} {value!r} has a quote in it")
    terms = [filter_] * bool(filter_) + [f'{name} = "{value}"' for name, value in said.items() if value]
    if since:
        terms.append(f"at_us > {since_us(since) - 1}")
    rows: list[tuple[str, ...]] = []
    with Client(address) as client:
        while True:
            answer = client.admin(
                "ListAudit",
                pb.ListAuditRequest(
                    namespace=namespace, filter=" AND ".join(terms), page_size=limit, page_token=page
                ),
            )
            for entry in answer.entries:
                if json:
                    console.emit(_as_dict(entry))
                else:
                    rows.append(_row(entry))
            page = answer.next_page_token
            if not page or not every:
                break
    if rows:
        console.table(("AT", "ACTOR", "ACTION", "OF", "REASON"), rows)
    elif not json:
        console.say(f"no order {'matches' if terms else 'yet'} in namespace {namespace}")
    if page:
        console.say(f"more: --page {page}")


def _row(e: Any) -> tuple[str, ...]:
    node = "node " if e.action.startswith("node.") else ""
    what = f"{node}{e.target}" or e.tx_id or f"replay {e.replay_id}"
    if e.branch:
        what += f" branch {e.branch}"
    by = f"{e.actor} (token {e.identity})" if e.identity and e.identity != e.actor else e.actor
    return console.moment(e.at_us) or "-", by, e.action, what, e.reason


def _as_dict(e: Any) -> dict[str, Any]:
    return {
        "at": console.moment(e.at_us),
        "at_us": e.at_us,
        "actor": e.actor,
        "identity": e.identity,
        "action": e.action,
        "reason": e.reason,
        "tx_id": e.tx_id,
        "branch": e.branch,
        "replay": e.replay_id,
        "target": e.target,
        "detail": json_.loads(e.detail) if e.detail else None,
    }
