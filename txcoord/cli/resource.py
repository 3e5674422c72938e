"""`txcoord resource`: the databases on which branches are finished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from . import console, findings, settings
from .client import Address, Namespace

if TYPE_CHECKING:
    from ..adapters.sql.log import SqlLog
    from ..config import Settings
    from ..wiring.diagnosis import Diagnosis, LogSeen

app = typer.Typer(no_args_is_help=True, help="The databases on which branches are finished.")

_SERVICE = "app"


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
    print_sql: Annotated[
        bool, typer.Option("--print-sql", help="Only print the SQL that --fix would run; look at nothing.")
    ] = False,
    print_grants: Annotated[
        bool, typer.Option("--print-grants", help="Only print the rights that the roles need, as SQL.")
    ] = False,
    role: Annotated[
        str,
        typer.Option("--role", help="For --print-grants: the role under which your service works."),
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    there: Annotated[
        bool, typer.Option("--there", help="Let the coordinator at --address look, from where it is.")
    ] = False,
    config: settings.ConfigFile = None,
    address: Address = "127.0.0.1:7070",
    json: settings.Json = False,
) -> None:
    """Say what is wrong with a resource, and what mends it. Needs no running coordinator, but with --there.

    --fix makes tables and the identity row, never a setting of a server. Exit code 7 when something is wrong.
    """
    from .serve import configure_logs, run_loop

    if there:
        if fix or replace_identity or print_sql or print_grants:
            console.fail(console.USAGE, "--there only looks: leave the other options out")
        _look_there(address, names, json)
        return
    loaded = settings.load(config)
    chosen = _chosen(loaded, names)
    _fit_together(
        names,
        fix=fix or replace_identity,
        replace_identity=replace_identity,
        printing=print_sql or print_grants,
        role=role,
        print_grants=print_grants,
        json=json,
    )
    if print_sql or print_grants:
        _print(loaded, chosen, print_sql, print_grants, role or _SERVICE)
        return
    if replace_identity:
        console.confirm(
            f"Branches still prepared in the database that {', '.join(chosen)} led to before will not be finished. "
            "Go on?",
            yes=yes,
        )
    configure_logs(loaded.model_copy(update={"log_level": "ERROR"}))
    found: list[Diagnosis] = []

    async def run() -> None:
        found.extend(await _look(loaded, chosen, fix or replace_identity, replace_identity))

    run_loop(run)
    findings.show(found, json=json)
    if not all(one.good for one in found):
        raise typer.Exit(console.PROBLEMS)


def _look_there(address: str, names: list[str] | None, json: bool) -> None:
    from txcoord_client._pb import admin_pb2 as pb

    from ..adapters.xa.checks import Finding
    from ..wiring.diagnosis import Diagnosis
    from .client import Client

    with Client(address) as client:
        if not names:
            known = client.admin("ListResources", pb.ListResourcesRequest()).resources
            names = [r.name for r in known]
        found: list[Diagnosis] = []
        for name in names:
            answer = client.admin("CheckResource", pb.CheckResourceRequest(resource=name))
            looked = [Finding(f.check, f.severity, f.message, "", list(f.remedy)) for f in answer.findings]
            r = answer.resource
            found.append(Diagnosis(r.name, r.url, r.identity, r.engine_version, looked))
    findings.show(found, json=json)
    if not all(one.good for one in found):
        raise typer.Exit(console.PROBLEMS)


def _chosen(loaded: Settings, names: list[str] | None) -> list[str]:
    chosen = list(names or loaded.resources)
    unknown = [name for name in chosen if name not in loaded.resources]
    if unknown:
        known = ", ".join(loaded.resources) or "none"
        console.fail(console.CONFIG, f"resource {unknown[0]!r} is not in the settings (known: {known})")
    if not chosen:
        console.fail(console.CONFIG, "no resource is in the settings: TXCOORD_RESOURCES__<name>__URL")
    return chosen


def _fit_together(
    names: list[str] | None,
    *,
    fix: bool,
    replace_identity: bool,
    printing: bool,
    role: str,
    print_grants: bool,
    json: bool,
) -> None:
    if replace_identity and not names:
        console.fail(console.USAGE, "--replace-identity needs the resource's name")
    if printing and (fix or json):
        console.fail(
            console.USAGE,
            "--print-sql and --print-grants change nothing, and print SQL: not with --fix or --json",
        )
    if role and not print_grants:
        console.fail(console.USAGE, "--role belongs to --print-grants")


def _print(loaded: Settings, names: list[str], sql: bool, grants: bool, service: str) -> None:
    from ..wiring.diagnosis import grants_of, sql_of
    from .serve import run_loop

    async def run() -> None:
        for name in names:
            if sql:
                lines = sql_of(name, loaded.resources[name])
                for line in lines:
                    console.out(line)
            if grants:
                for line in await grants_of(name, loaded.resources[name], service):
                    console.out(line)

    run_loop(run)


async def _look(loaded: Settings, names: list[str], fix: bool, replace_identity: bool) -> list[Diagnosis]:
    from ..wiring import StartError
    from ..wiring.diagnosis import look_at_log
    from ..wiring.parts import connect, open_log

    log = open_log(loaded)
    seen: LogSeen | None = None
    opened: SqlLog | None = None
    try:
        identity = await connect(log, loaded)
        opened = log
        seen = await look_at_log(log, (identity.log_id, *identity.earlier_log_ids))
    except StartError as error:
        if fix:
            raise
        console.say(
            f"the log cannot be asked, so identities are not compared: {error.reason}: {error.message}"
        )
    try:
        return await look_at_all(loaded, names, seen, fix=fix, replace_identity=replace_identity)
    finally:
        if opened is not None:
            await opened.close()


async def look_at_all(
    loaded: Settings,
    names: list[str],
    seen: LogSeen | None,
    *,
    fix: bool = False,
    replace_identity: bool = False,
) -> list[Diagnosis]:
    """Look at these resources, side by side, and compare them with each other."""
    import asyncio

    from ..wiring.diagnosis import diagnose, twins

    found = await asyncio.gather(
        *(diagnose(name, loaded, seen, fix=fix, replace_identity=replace_identity) for name in names)
    )
    twins(found)
    return found
