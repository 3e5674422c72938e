"""`txcoord replay`: jobs on the server that retry parked branches."""

from __future__ import annotations

import re
import secrets
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from . import console, settings
from .client import Address, Client, Namespace
from .tx import Actor, Reason, Yes, me

app = typer.Typer(no_args_is_help=True, help="Retry what is parked, as a job on the server.")

Id = Annotated[str, typer.Argument(metavar="JOB", help="As `replay start` and `replay list` say it.")]
Rate = Annotated[
    float, typer.Option(min=0, help="Branches a second; 0: as fast as their targets allow, 500 at a time.")
]
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@app.command()
def start(
    reason: Reason,
    tx: Annotated[str, typer.Argument(metavar="[ID]", help="Only of this one: a gid or a tx id.")] = "",
    filter_: Annotated[str, typer.Option("--filter", help="Only what it finds, as `tx list` takes it.")] = "",
    target: Annotated[
        str,
        typer.Option(
            help="Only branches for this participant, webhook or database, as `parked list` shows it."
        ),
    ] = "",
    since: Annotated[
        str, typer.Option(help="Only those parked since: 2h, 3d, or 2026-11-26T08:00:00Z.")
    ] = "",
    limit: Annotated[int, typer.Option(min=0, help="At most so many branches; 0: all.")] = 0,
    rate: Rate = 0.0,
    canary: Annotated[
        str, typer.Option(help="First groups, as 1,5,20: each must end well before the next begins.")
    ] = "",
    max_failures: Annotated[int, typer.Option(min=0, help="Stop at so many; 0: only a canary stops it.")] = 0,
    everything: Annotated[bool, typer.Option("--all", help="All that is parked.")] = False,
    by_hand: Annotated[
        bool, typer.Option("--by-hand", help="Also what an operator has parked; an ID means that too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be done, and what refused.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Follow it to its end.")] = True,
    actor: Actor = "",
    yes: Yes = False,
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    json: settings.Json = False,
) -> None:
    """Start a job. It goes on without this command, and survives the node that runs it."""
    from txcoord_client._pb import admin_pb2 as pb

    if not (tx or filter_ or target or since or everything):
        console.fail(console.USAGE, "say what: an ID, --filter, --target, --since, or --all")
    if tx:
        filter_ = f'gid = "{tx}"' + (f" AND {filter_}" if filter_ else "")
    request = pb.StartReplayRequest(
        namespace=namespace,
        audit=pb.Audit(actor=actor or me(), reason=reason, dry_run=dry_run, request_id=secrets.token_hex(16)),
        filter=filter_,
        target=target,
        since_us=since_us(since),
        limit=limit,
        rate_per_s=rate,
        canary=_canary(canary),
        max_failures=max_failures,
        by_hand=by_hand,
    )
    with Client(address) as client:
        if not dry_run and not yes:
            console.confirm(f"retry what is parked, {_what(request)}?", yes=False)
        job = client.admin("StartReplay", request).replay
        if wait or dry_run:
            job = _follow(client, namespace, job, quiet=json or dry_run)
        if dry_run:
            some = _items(client, namespace, job.id, json)
        else:
            some = job.taken + job.refused
            _say(job, json)
    if job.state == pb.REPLAY_STATE_DONE and not some:
        what = "nothing would be retried" if dry_run else "nothing was retried"
        console.say(f"{what}: nothing is parked that matches, in namespace {namespace}: {_what(request)}")
    if job.state == pb.REPLAY_STATE_STOPPED:
        raise typer.Exit(console.REFUSED)


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Rows.")] = 20,
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    json: settings.Json = False,
) -> None:
    """Jobs, newest first."""
    from txcoord_client._pb import admin_pb2 as pb

    with Client(address) as client:
        answer = client.admin("ListReplays", pb.ListReplaysRequest(namespace=namespace, page_size=limit))
    if json:
        for job in answer.replays:
            console.emit(_as_dict(job))
    elif answer.replays:
        console.table(
            ("JOB", "STATE", "TAKEN", "WELL", "FAILED", "REFUSED", "STARTED", "BY", "REASON"),
            [
                (
                    job.id,
                    _state(job) + (" (dry run)" if job.request.audit.dry_run else ""),
                    str(job.taken),
                    str(job.succeeded),
                    str(job.failed_again),
                    str(job.refused),
                    console.moment(job.started_us),
                    job.request.audit.actor,
                    job.request.audit.reason,
                )
                for job in answer.replays
            ],
        )
    else:
        console.say(f"no replay yet in namespace {namespace}")


@app.command()
def show(
    job: Id,
    items: Annotated[bool, typer.Option("--items", help="What it did to each branch.")] = False,
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    json: settings.Json = False,
) -> None:
    """One job."""
    from txcoord_client._pb import admin_pb2 as pb

    with Client(address) as client:
        found = client.admin("GetReplay", pb.GetReplayRequest(namespace=namespace, id=job)).replay
        if not (items and json):
            _say(found, json)
        if items:
            _items(client, namespace, found.id, json)


@app.command()
def cancel(
    job: Id,
    reason: Reason,
    actor: Actor = "",
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    json: settings.Json = False,
) -> None:
    """Stop a job. What it has done stays done."""
    from txcoord_client._pb import admin_pb2 as pb

    request = pb.CancelReplayRequest(
        namespace=namespace, audit=pb.Audit(actor=actor or me(), reason=reason), id=job
    )
    with Client(address) as client:
        _say(client.admin("CancelReplay", request).replay, json)


@app.command()
def resume(
    job: Id,
    reason: Reason,
    rate: Rate = 0.0,
    wait: Annotated[bool, typer.Option(help="Follow it to its end.")] = True,
    actor: Actor = "",
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    json: settings.Json = False,
) -> None:
    """Go on with a job that was cancelled, or stopped by a canary. A rate of 0 is the one it had."""
    from txcoord_client._pb import admin_pb2 as pb

    request = pb.ResumeReplayRequest(
        namespace=namespace, audit=pb.Audit(actor=actor or me(), reason=reason), id=job, rate_per_s=rate
    )
    with Client(address) as client:
        found = client.admin("ResumeReplay", request).replay
        if wait:
            found = _follow(client, namespace, found, quiet=json)
        _say(found, json)
    if found.state == pb.REPLAY_STATE_STOPPED:
        raise typer.Exit(console.REFUSED)


def _follow(client: Client, namespace: str, job: Any, *, quiet: bool) -> Any:
    """Until it ends. Interrupted: it goes on without us."""
    from txcoord_client._pb import admin_pb2 as pb

    said = ""
    try:
        while job.state == pb.REPLAY_STATE_RUNNING:
            line = _progress(job)
            if not quiet and line != said:
                console.say(line)
                said = line
            time.sleep(0.2)
            job = client.admin("GetReplay", pb.GetReplayRequest(namespace=namespace, id=job.id)).replay
    except KeyboardInterrupt:
        console.say(f"it goes on: txcoord replay show {job.id}")
        raise typer.Exit(console.INTERRUPTED) from None
    return job


def _items(client: Client, namespace: str, job: str, json: bool) -> int:
    """How many they are."""
    from txcoord_client._pb import admin_pb2 as pb

    token, some = "", 0
    while True:
        answer = client.admin(
            "ListReplayItems",
            pb.ListReplayItemsRequest(namespace=namespace, id=job, page_size=1000, page_token=token),
        )
        some += len(answer.effects)
        for effect in answer.effects:
            if json:
                console.emit(
                    {
                        "tx_id": effect.tx_id,
                        "gid": effect.gid,
                        "branch": effect.branch,
                        "effect": effect.effect,
                        "reason": effect.refused.reason,
                        "message": effect.message,
                    }
                )
            else:
                text = f": {effect.message}" if effect.message else ""
                why = f" {effect.refused.reason}" if effect.effect == "refused" else ""
                name = effect.gid or effect.tx_id
                console.out(f"{name} branch {effect.branch}: {effect.effect}{why}{text}")
        token = answer.next_page_token
        if not token:
            return some


def _say(job: Any, json: bool) -> None:
    if json:
        console.emit(_as_dict(job))
    else:
        console.out(f"{job.id} {_progress(job)}")


def _progress(job: Any) -> str:
    if job.request.audit.dry_run:
        return f"{_state(job)}, a dry run: nothing was retried" + (f": {job.message}" if job.message else "")
    text = (
        f"{_state(job)}: {job.taken} taken, {job.succeeded} well, {job.failed_again} failed again, "
        f"{job.refused} refused"
    )
    return f"{text}: {job.message}" if job.message else text


def _state(job: Any) -> str:
    from txcoord_client._pb import admin_pb2 as pb

    return str(pb.ReplayState.Name(job.state)).removeprefix("REPLAY_STATE_")


def _as_dict(job: Any) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": _state(job),
        "taken": job.taken,
        "succeeded": job.succeeded,
        "failed_again": job.failed_again,
        "refused": job.refused,
        "message": job.message,
        "filter": job.request.filter,
        "target": job.request.target,
        "actor": job.request.audit.actor,
        "reason": job.request.audit.reason,
        "dry_run": job.request.audit.dry_run,
        "canary_step": job.canary_step,
        "owner": job.owner,
        "started_us": job.started_us,
        "ended_us": job.ended_us,
    }


def _what(request: Any) -> str:
    terms = [request.filter, f"for {request.target}" if request.target else ""]
    return ", ".join(filter(None, terms)) or "all of it"


def _canary(text: str) -> list[int]:
    if not text:
        return []
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        console.fail(console.USAGE, f"--canary {text!r}: sizes of groups are expected, such as 1,5,20")
    return [int(size) for size in text.split(",")]


def since_us(text: str) -> int:
    """An age, or a time; 0 for nothing."""
    if not text:
        return 0
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is not None:
        return time.time_ns() // 1000 - int(match[1]) * _UNIT_S[match[2]] * 1_000_000
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        console.fail(
            console.USAGE, f"--since {text!r}: an age such as 2h, or a time such as 2026-11-26T08:00:00Z"
        )
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1_000_000)
