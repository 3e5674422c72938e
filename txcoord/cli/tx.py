"""`txcoord tx`: look at transactions, and decide about those that need a person."""

from __future__ import annotations

import getpass
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from . import console, settings
from .client import Address, Client, Namespace

app = typer.Typer(
    no_args_is_help=True, help="Look at transactions; retry, park, skip, resolve their branches."
)

FILTER = 'Such as: state = COMMITTING AND parked AND age > 10m AND resource = "accounts". '

Id = Annotated[str, typer.Argument(metavar="ID", help="A gid or a tx id.")]


@app.command("list")
def list_(
    filter_: Annotated[
        str, typer.Argument(metavar="[FILTER]", help=FILTER + "Also: heuristic, reason, name.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Rows of a page.")] = 50,
    page: Annotated[str, typer.Option(help="Go on after this tx id (said below a full page).")] = "",
    every: Annotated[bool, typer.Option("--all", help="All pages.")] = False,
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    json: settings.Json = False,
) -> None:
    """List transactions, newest first."""
    from txcoord_client._pb import coordinator_pb2 as pb

    from . import show

    rows: list[tuple[str, ...]] = []
    with Client(address) as client:
        while True:
            answer = client.coordinator(
                "List",
                pb.ListRequest(namespace=namespace, filter=filter_, page_size=limit, page_token=page),
            )
            for tx in answer.transactions:
                if json:
                    console.emit(show.as_dict(tx))
                else:
                    rows.append(show.row(tx, answer.log_time_us))
            page = answer.next_page_token
            if not page or not every:
                break
    if rows:
        console.table(("TX ID", "GID", "NAME", "STATE", "BRANCHES", "BEGUN", "REASON"), rows)
    elif not json:
        what = "no transaction matches" if filter_ else "no transaction yet"
        console.say(f"{what} in namespace {namespace}")
    if page:
        console.say(f"more: --page {page}")


@app.command("show")
def show_(
    tx: Id,
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    json: settings.Json = False,
) -> None:
    """Show one transaction: branches, time line, and what it waits for."""
    from txcoord_client._pb import admin_pb2, coordinator_pb2

    from . import show

    with Client(address) as client:
        found = client.coordinator(
            "Get", coordinator_pb2.GetRequest(namespace=namespace, gid=tx, history=True)
        )
        audit = client.admin(
            "ListAudit",
            admin_pb2.ListAuditRequest(
                namespace=namespace, filter=f'tx_id = "{found.transaction.tx_id}"', page_size=1000
            ),
        )
    if json:
        console.emit(show.as_dict(found.transaction, list(audit.entries)))
    else:
        show.page(found.transaction, list(audit.entries), found.log_time_us)


# ---- orders ----

_SHOWN = 20
"""Branches that are named before it is asked."""
OneOrFilter = Annotated[str, typer.Argument(metavar="[ID]", help="A gid or a tx id.")]
Filter = Annotated[
    str,
    typer.Option("--filter", help="Instead of an ID: only branches that match it themselves. " + FILTER),
]
Branches = Annotated[
    list[str] | None,
    typer.Option(
        "--branch",
        help="Only this one; repeatable. Without: those that are parked, or failing (park, retry).",
    ),
]
Reason = Annotated[str, typer.Option(help="Why; it is kept in the audit trail.")]
Actor = Annotated[str, typer.Option(envvar="TXCOORD_ACTOR", help="Who; default user@host.")]
NotDone = Annotated[
    bool,
    typer.Option("--not-done", help="The branch, a step of a saga that runs, was not done: abort the saga."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done, and what refused.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@app.command()
def retry(
    reason: Reason,
    tx: OneOrFilter = "",
    filter_: Filter = "",
    branch: Branches = None,
    payload: Annotated[
        Path | None,
        typer.Option(
            help="Send the content of this file instead of its own, which is kept: one parked delivery."
        ),
    ] = None,
    reset_attempts: Annotated[
        bool,
        typer.Option(
            "--reset-attempts",
            help="Count from 0 again, as for parked ones: its whole budget is there again.",
        ),
    ] = False,
    early: Annotated[
        bool, typer.Option("--early", help="Send a delivery also before the time that its sender has chosen.")
    ] = False,
    actor: Actor = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    json: settings.Json = False,
) -> None:
    """Try parked and failing branches again now. Many at a pace: `replay start`."""
    content: bytes | None = None
    if payload is not None:
        try:
            content = payload.read_bytes()
        except OSError as error:
            console.fail(console.USAGE, f"--payload {payload}: {error.strerror}")
    _order(
        "retry",
        tx,
        filter_,
        branch,
        reason,
        actor,
        dry_run,
        yes,
        address,
        namespace,
        json,
        payload=content,
        reset=reset_attempts,
        early=early,
    )


@app.command()
def park(
    reason: Reason,
    tx: OneOrFilter = "",
    filter_: Filter = "",
    branch: Branches = None,
    actor: Actor = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    json: settings.Json = False,
) -> None:
    """Leave failing branches alone until `retry`, `skip` or `resolve`."""
    _order("park", tx, filter_, branch, reason, actor, dry_run, yes, address, namespace, json)


@app.command()
def skip(
    reason: Reason,
    tx: OneOrFilter = "",
    filter_: Filter = "",
    branch: Branches = None,
    actor: Actor = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    json: settings.Json = False,
) -> None:
    """Give parked branches up: the transaction ends without them, whatever became of them."""
    _order("skip", tx, filter_, branch, reason, actor, dry_run, yes, address, namespace, json)


@app.command()
def resolve(
    tx: Id,
    reason: Reason,
    branch: Branches = None,
    not_done: NotDone = False,
    actor: Actor = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    json: settings.Json = False,
) -> None:
    """State that branches were settled by hand; the transaction is shown as heuristic."""
    _order(
        "resolve", tx, "", branch, reason, actor, dry_run, yes, address, namespace, json, not_done=not_done
    )


def _order(
    action: str,
    tx: str,
    filter_: str,
    branches: list[str] | None,
    reason: str,
    actor: str,
    dry_run: bool,
    yes: bool,
    address: str,
    namespace: str,
    json: bool,
    *,
    not_done: bool = False,
    payload: bytes | None = None,
    reset: bool = False,
    early: bool = False,
) -> None:
    from txcoord_client._pb import admin_pb2 as pb
    from txcoord_client._pb import common_pb2 as c

    if not_done and len(branches or ()) != 1:
        console.fail(console.USAGE, "--not-done needs --branch: the one step that you know was not done")
    if bool(tx) == bool(filter_):
        console.fail(console.USAGE, "give an ID or --filter")
    method = action.capitalize()
    request_type: Any = getattr(pb, f"{method}Request")

    def ask(client: Client, dry: bool) -> Any:
        request = request_type(
            namespace=namespace,
            audit=pb.Audit(actor=actor or me(), reason=reason, dry_run=dry),
            selector=pb.Selector(gid=tx, branches=branches or [], filter=filter_),
        )
        if not_done:
            request.resolved_as = c.DECISION_ABORT
        if payload is not None:
            request.payload = payload
        if reset:
            request.reset_attempts = True
        if early:
            request.early = True
        return client.admin(method, request)

    with Client(address) as client:
        if not dry_run and not yes:
            would = [e for e in ask(client, True).effects if e.effect not in ("refused", "none")]
            count = console.plural(len(would), "branch")
            verb = "abort, by your word on" if not_done else action
            for effect in would[:_SHOWN]:
                console.say(_line(effect, True))
            if len(would) > _SHOWN:
                console.say(f"and {len(would) - _SHOWN} more: --dry-run names them all")
            console.confirm(f"{verb} {count} of {_some(would)}?", yes=not would)
        answer = ask(client, dry_run)
    refused = 0
    for effect in answer.effects:
        refused += effect.effect == "refused"
        if json:
            console.emit(_effect(effect, dry_run))
        else:
            console.out(_line(effect, dry_run))
    if not answer.effects and not json:
        console.say("nothing matches")
    if getattr(answer, "more", False):
        console.say("more match than one call takes: run it again")
    if refused:
        raise typer.Exit(console.REFUSED)


def me() -> str:
    """Who gives an order, unless he says otherwise."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"  # A container whose user has no name.
    return f"{user}@{socket.gethostname()}"


def _some(effects: list[Any]) -> str:
    names = list(dict.fromkeys(e.gid or e.tx_id for e in effects))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _effect(effect: Any, dry_run: bool) -> dict[str, Any]:
    return {
        "tx_id": effect.tx_id,
        "gid": effect.gid,
        "branch": effect.branch,
        "effect": effect.effect,
        "dry_run": dry_run,
        "reason": effect.refused.reason,
        "message": effect.refused.message or effect.message,
    }


def _line(effect: Any, dry_run: bool) -> str:
    name = effect.gid or effect.tx_id
    branch = f" branch {effect.branch}" if effect.branch else ""
    if effect.effect == "refused":
        verb = "would be refused" if dry_run else "refused"
        return f"{name}{branch}: {verb}: {effect.refused.reason}: {effect.refused.message}"
    verb = f"would be {effect.effect}" if dry_run and effect.effect != "none" else effect.effect
    return f"{name}{branch}: {verb}; {effect.message}"
