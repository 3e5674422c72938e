"""`txcoord target`: how participants are, and what is said about calling them."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from . import console, settings
from .client import Address, Client, Namespace
from .tx import Actor, Reason, me

app = typer.Typer(
    no_args_is_help=True, help="Participants: how they are; pause, resume and limit their calls."
)

Name = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="As `txcoord target list` shows it, such as grpc://stock:7000."),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Also one that this coordinator does not know, as none was called yet."),
]
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_STATES = {1: "healthy", 2: "DOWN, probed", 3: "PAUSED", 4: "DISABLED"}


@app.command("list")
def list_(
    filter_: Annotated[
        str,
        typer.Argument(metavar="[FILTER]", help="Such as: state = PAUSED|DISABLED AND parked AND backlog."),
    ] = "",
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    json: settings.Json = False,
) -> None:
    """List the participants that this coordinator calls, those in trouble first.

    BACKLOG: branches that wait, in the whole log; PARKED: those that need a person. IN FLIGHT, and LATELY (calls of up
    to a minute, how many of them failed, the slowest hundredth): of this coordinator. LIVE: instances that have
    registered themselves, of those that are known; --json names them.
    """
    from txcoord_client._pb import admin_pb2 as pb

    found: list[Any] = []
    page, now_us = "", _now_us()
    with Client(address) as client:
        while True:
            request = pb.ListTargetsRequest(namespace=namespace, filter=filter_, page_token=page)
            answer = client.admin("ListTargets", request)
            found.extend(answer.targets)
            page = answer.next_page_token
            if not page:
                break
    if json:
        for target in found:
            console.emit(_as_dict(target))
        return
    if not found:
        none = "no participant was called by this coordinator yet, and nothing waits for one"
        console.say("no target matches" if filter_ else none)
        return
    rows = [
        (
            t.name,
            _STATES[t.state] + (f" {console.length(now_us - t.state_since_us)}" if t.state > 1 else ""),
            str(t.in_flight),
            str(t.backlog),
            str(t.parked),
            console.since(t.oldest_due_us, now_us) or "-",
            _lately(t),
            _limits(t),
            _live(t, now_us),
            (f"goes to {t.alias_of}" if t.alias_of else t.message) or "-",
        )
        for t in found
    ]
    console.table(
        (
            *("TARGET", "STATE", "IN FLIGHT", "BACKLOG", "PARKED", "OLDEST DUE", "LATELY", "LIMITS", "LIVE"),
            "WHY, OR LAST ERROR",
        ),
        rows,
    )


@app.command()
def pause(
    target: Name,
    reason: Reason,
    time: Annotated[
        str, typer.Option("--for", metavar="DURATION", help="End by itself after 90s, 30m, 2h, 1d.")
    ] = "",
    force: Force = False,
    actor: Actor = "",
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be.")] = False,
    json: settings.Json = False,
) -> None:
    """Make no calls to it. What would have been called waits; no attempts are used up. Deadlines go on."""
    from txcoord_client._pb import admin_pb2 as pb

    until_us = _now_us() + _duration_us(time) if time else 0
    request = pb.PauseTargetRequest(
        namespace=namespace,
        audit=_audit(actor, reason, dry_run),
        target=target,
        until_us=until_us,
        force=force,
    )
    _order(address, "PauseTarget", request, json)


@app.command()
def resume(
    target: Name,
    reason: Reason,
    actor: Actor = "",
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be.")] = False,
    json: settings.Json = False,
) -> None:
    """Call it again, also one that was disabled. What has waited is called at the pace of `targets.drain_rate`."""
    from txcoord_client._pb import admin_pb2 as pb

    request = pb.ResumeTargetRequest(namespace=namespace, audit=_audit(actor, reason, dry_run), target=target)
    _order(address, "ResumeTarget", request, json)


@app.command()
def limit(
    target: Name,
    reason: Reason,
    rate: Annotated[float, typer.Option("--rate", min=0, help="Calls a second; 0: no limit.")] = 0.0,
    at_once: Annotated[int, typer.Option("--at-once", min=0, help="Calls at one time; 0: no limit.")] = 0,
    force: Force = False,
    actor: Actor = "",
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be.")] = False,
    json: settings.Json = False,
) -> None:
    """Limit its calls; what is not given has no limit any more. A call for one branch counts as one.

    The whole fleet keeps to it where the coordinators share a Redis; else each by itself.
    """
    from txcoord_client._pb import admin_pb2 as pb

    request = pb.LimitTargetRequest(
        namespace=namespace,
        audit=_audit(actor, reason, dry_run),
        target=target,
        limits=pb.TargetLimits(rate_per_s=rate, max_in_flight=at_once),
        force=force,
    )
    _order(address, "LimitTarget", request, json)


@app.command()
def alias(
    target: Name,
    reason: Reason,
    to: Annotated[
        str, typer.Argument(metavar="[OTHER]", help="Where its calls go from now on; none: to itself again.")
    ] = "",
    actor: Actor = "",
    address: Address = "127.0.0.1:7070",
    namespace: Namespace = "default",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be.")] = False,
    json: settings.Json = False,
) -> None:
    """Let what is addressed to it, and what waits for it, go to another one: the same service, moved.

    Pause, limits and breaker are then those of the other one.
    """
    from txcoord_client._pb import admin_pb2 as pb

    request = pb.AliasTargetRequest(
        namespace=namespace, audit=_audit(actor, reason, dry_run), target=target, alias_of=to
    )
    _order(address, "AliasTarget", request, json)


def _order(address: str, method: str, request: Any, json: bool) -> None:
    from txcoord_client._pb import admin_pb2 as pb

    with Client(address) as client:
        target = client.admin(method, request).target
    if json:
        console.emit(_as_dict(target))
        return
    would = "would be " if request.audit.dry_run else ""
    goes = f", its calls go to {target.alias_of}" if target.alias_of else ""
    waiting = f"{goes}, {console.plural(target.backlog, 'branch')} waiting" if target.backlog else goes
    why = f" ({target.message})" if target.state == pb.TARGET_STATE_PAUSED and not would else ""
    console.out(
        f"{target.name}: {would}{_STATES[target.state]}{why}, {_limits(target, none='no limits')}{waiting}"
    )


def _audit(actor: str, reason: str, dry_run: bool) -> Any:
    from txcoord_client._pb import admin_pb2 as pb

    return pb.Audit(actor=actor or me(), reason=reason, dry_run=dry_run)


def _duration_us(text: str) -> int:
    found = re.fullmatch(r"(\d+)([smhd])", text)
    if found is None or not int(found[1]):
        console.fail(console.USAGE, f"--for {text!r}: a duration such as 90s, 30m, 2h or 1d")
    return int(found[1]) * _UNITS[found[2]] * 1_000_000


def _limits(target: Any, none: str = "-") -> str:
    rate, at_once = target.limits.rate_per_s, target.limits.max_in_flight
    said = [f"{rate:g}/s"] * bool(rate) + [f"{at_once} at once"] * bool(at_once)
    return ", ".join(said) or none


def _lately(target: Any) -> str:
    if not target.calls_per_s:
        return "-"
    part = round(100 * target.failures_per_s / target.calls_per_s)
    failed = f", {part} % failed" if target.failures_per_s else ""
    return f"{target.calls_per_s:.1f}/s{failed}, p99 {target.p99_us / 1000:g} ms"


def _live(target: Any, now_us: int) -> str:
    if not target.instances:
        return "-"
    return f"{sum(one.expires_us > now_us for one in target.instances)} of {len(target.instances)}"


def _as_dict(target: Any) -> dict[str, Any]:
    return {
        "name": target.name,
        "state": {1: "healthy", 2: "probing", 3: "paused", 4: "disabled"}[target.state],
        "state_since": console.moment(target.state_since_us),
        "in_flight": target.in_flight,
        "backlog": target.backlog,
        "parked": target.parked,
        "calls_per_s": round(target.calls_per_s, 3),
        "failures_per_s": round(target.failures_per_s, 3),
        "p99_ms": target.p99_us / 1000,
        "oldest_due": console.moment(target.oldest_due_us),
        "rate_per_s": target.limits.rate_per_s,
        "at_once": target.limits.max_in_flight,
        "alias_of": target.alias_of,
        "message": target.message,
        "instances": [
            {
                "instance": one.instance,
                "address": one.address,
                "version": one.version,
                "live_until": console.moment(one.expires_us),
            }
            for one in target.instances
        ],
    }


def _now_us() -> int:
    import time

    return time.time_ns() // 1_000
