"""`txcoord resource`: the databases on which branches are finished."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from . import console, settings
from .client import Address, Namespace

if TYPE_CHECKING:
    from ..config import Settings
    from ..wiring.diagnosis import Diagnosis

app = typer.Typer(no_args_is_help=True, help="The databases on which branches are finished.")

_MARK = {"ok": "ok      ", "warning": "warning ", "error": "PROBLEM "}


@app.command("list")
def list_(
    address: Address = "127.0.0.1:7070", namespace: Namespace = "default", json: settings.Json = False
) -> None:
    """List the resources as a running coordinator sees them."""
    from txcoord_client._pb import admin_pb2 as pb

    from .client import Client

    with Client(address) as client:
        answer = client.admin("ListResources", pb.ListResourcesRequest(namespace=namespace))
    if json:
        for r in answer.resources:
            console.emit(
                {
                    "name": r.name,
                    "engine": r.engine,
                    "version": r.engine_version,
                    "identity": r.identity,
                    "available": r.available,
                    "problem": r.problem,
                }
            )
        return
    if not answer.resources:
        console.say("no resource is configured at this coordinator: TXCOORD_RESOURCES__<name>__URL")
        return
    rows = [
        (r.name, f"{r.engine} {r.engine_version}".strip(), r.identity or "-", r.problem or "ok")
        for r in answer.resources
    ]
    console.table(("NAME", "ENGINE", "IDENTITY", "STATE"), rows)


@app.command()
def check(
    names: Annotated[list[str] | None, typer.Argument(help="Which; default: all.")] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Make tables and identity, remember it in the log.")
    ] = False,
    replace_identity: Annotated[
        bool,
        typer.Option(
            "--replace-identity", help="The database was replaced on purpose: the log forgets the old one."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: settings.ConfigFile = None,
    json: settings.Json = False,
) -> None:
    """Say what is wrong with a resource, and what mends it. Needs no running coordinator.

    Exit code 7 when something is wrong.
    """
    from .serve import configure_logs, run_loop

    loaded = settings.load(config)
    chosen = list(names or loaded.resources)
    unknown = [name for name in chosen if name not in loaded.resources]
    if unknown:
        known = ", ".join(loaded.resources) or "none"
        console.fail(console.CONFIG, f"resource {unknown[0]!r} is not in the settings (known: {known})")
    if not chosen:
        console.fail(console.CONFIG, "no resource is in the settings: TXCOORD_RESOURCES__<name>__URL")
    if replace_identity:
        if not names:
            console.fail(console.USAGE, "--replace-identity needs the resource's name")
        fix = True
        console.confirm(
            f"Branches still prepared in the database that {', '.join(chosen)} led to before will not be finished. "
            "Go on?",
            yes=yes,
        )
    configure_logs(loaded.model_copy(update={"log_level": "ERROR"}))
    found: list[Diagnosis] = []

    async def run() -> None:
        found.extend(await _look(loaded, chosen, fix, replace_identity))

    run_loop(run)
    for one in found:
        if json:
            console.emit({**asdict(one), "good": one.good})
        else:
            _show(one)
    if not all(one.good for one in found):
        raise typer.Exit(console.PROBLEMS)


async def _look(loaded: Settings, names: list[str], fix: bool, replace_identity: bool) -> list[Diagnosis]:
    import asyncio

    from ..wiring import StartError
    from ..wiring.diagnosis import diagnose
    from ..wiring.node import connect, finisher, open_log

    log = open_log(loaded)
    usable = None
    try:
        await connect(log, loaded)
        usable = log
    except StartError as error:
        if fix:
            raise
        console.say(
            f"the log cannot be asked, so identities are not compared: {error.reason}: {error.message}"
        )
    finishers = {name: finisher(loaded, name) for name in names}
    try:
        work = (
            diagnose(
                name,
                loaded.resources[name],
                finishers[name],
                usable,
                fix=fix,
                replace_identity=replace_identity,
                names=list(loaded.resources),
            )
            for name in names
        )
        found = await asyncio.gather(*work)
    finally:
        for one in finishers.values():
            await one.close()
        if usable is not None:
            await usable.close()
    _twins(found)
    return found


def _twins(found: list[Diagnosis]) -> None:
    seen: dict[str, str] = {}
    for one in found:
        if one.identity in seen:
            one.add(
                "RESOURCE_MISMATCH",
                "error",
                f"it has the identity of {seen[one.identity]!r}: one database under two names, or a copy of it",
                "if it is a copy: DELETE FROM txcoord_identity;",
                f"then: txcoord resource check {one.name} --replace-identity",
            )
        elif one.identity:
            seen[one.identity] = one.name


def _show(one: Diagnosis) -> None:
    console.out(f"{one.name}  {one.url}")
    for f in one.findings:
        mark = "fixed   " if f.fixed else _MARK[f.severity]
        code = f"{f.check}: " if f.severity == "error" and not f.fixed else ""
        console.out(f"  {mark}{code}{f.message}")
        for line in f.remedy:
            console.out(f"          {line}")
