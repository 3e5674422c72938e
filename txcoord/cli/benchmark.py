"""`txcoord bench`: how fast is it here?"""

from __future__ import annotations

import json as _json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from . import console, settings

Callers = Annotated[
    list[str] | None, typer.Option(help="Callers at once; repeatable, or 1,16,64. Default 16.")
]
Log = Annotated[str, typer.Option(help="The log's database: sqlite, postgresql or mariadb.")]
Profile = Annotated[Path | None, typer.Option(help="File for a cProfile dump of the coordinator.")]

app = typer.Typer(no_args_is_help=True, help="Measure on this machine, on throw-away databases.")


@app.callback()
def _group() -> None:
    pass


@app.command()
def xa(
    concurrency: Callers = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="For each contender.")] = 6.0,
    databases: Annotated[
        str, typer.Option(help="The two databases, each postgres or mariadb, as in postgres,mariadb.")
    ] = "postgres,postgres",
    driver: Annotated[
        list[str] | None,
        typer.Option(
            help="Drivers; repeatable, or psycopg,pymysql. asyncpg, psycopg_async, asyncmy and aiomysql run in an "
            "event loop; psycopg and pymysql in threads, on the synchronous SDK. Default asyncpg and asyncmy."
        ),
    ] = None,
    log: Log = "sqlite",
    profile: Profile = None,
    json: settings.Json = False,
) -> None:
    """Global transactions over two databases, against a bare two-phase-commit loop."""
    callers = _numbers(concurrency or ["16"])
    from . import bench

    _check_log(log)
    kinds = [{"postgresql": "postgres"}.get(kind, kind) for kind in _parts([databases])]
    if len(kinds) != 2 or not set(kinds) <= set(bench.DATABASES):
        console.fail(console.USAGE, f"--databases {databases}: two of {', '.join(bench.DATABASES)}")
    try:
        drivers = bench.Drivers.chosen(_parts(driver or []), kinds)
    except bench.WrongDrivers as error:
        console.fail(console.USAGE, f"--driver {error}")

    dump = profile.absolute() if profile else None
    _run(lambda tell: bench.xa(kinds, drivers, callers, seconds, log, dump, tell), json)


@app.command()
def tcc(
    concurrency: Callers = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="For each contender.")] = 6.0,
    log: Log = "sqlite",
    profile: Profile = None,
    json: settings.Json = False,
) -> None:
    """TCC transactions of two branches with participants that only answer, against bare gRPC calls of them."""
    _called("tcc", concurrency, seconds, log, profile, json)


@app.command()
def saga(
    concurrency: Callers = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="For each contender.")] = 6.0,
    log: Log = "sqlite",
    profile: Profile = None,
    json: settings.Json = False,
) -> None:
    """Sagas of two steps with participants that only answer, against bare gRPC calls of them."""
    _called("saga", concurrency, seconds, log, profile, json)


@app.command()
def hung(
    participants: Annotated[int, typer.Option(min=1, max=500, help="How many hang.")] = 20,
    concurrency: Callers = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="For each contender.")] = 6.0,
    log: Log = "sqlite",
    json: settings.Json = False,
) -> None:
    """TCC transactions with participants that are well, alone and beside others that never answer."""
    callers = _numbers(concurrency or ["16"])
    from . import bench

    _check_log(log)
    _run(lambda tell: bench.hung(participants, callers, seconds, log, tell), json, "p99 {:.2f} of alone")


@app.command()
def events(
    kafka: Annotated[str, typer.Option(help="host:port of a Kafka; topics bench-* are made there.")],
    concurrency: Callers = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="For each contender.")] = 6.0,
    log: Log = "sqlite",
    json: settings.Json = False,
) -> None:
    """TCC transactions with the event topic on, against the same with it off."""
    callers = _numbers(concurrency or ["16"])
    from . import bench

    _check_log(log)
    _run(lambda tell: bench.events(kafka, callers, seconds, log, tell), json, "{:.2f} of without events")


@app.command()
def returned(
    backlog: Annotated[
        int, typer.Option(min=10, help="Branches that wait for the one that is dead.")
    ] = 10_000,
    concurrency: Annotated[int, typer.Option(min=1, help="Callers at once.")] = 8,
    seconds: Annotated[float, typer.Option(min=0.5, help="Alone, and beside the dead one.")] = 10.0,
    log: Log = "sqlite",
    json: settings.Json = False,
) -> None:
    """A participant that is well: alone, beside one that is dead with a backlog, and while that is drained."""
    from . import bench

    _check_log(log)
    _run(lambda tell: bench.returned(backlog, concurrency, seconds, log, tell), json, "p99 {:.2f} of alone")


@app.command()
def notify(
    endpoints: Annotated[
        int, typer.Option(min=10, help="Webhooks: of a hundred ten hang, ten answer 500, five 302, five 429.")
    ] = 100,
    concurrency: Callers = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="For each contender.")] = 10.0,
    log: Log = "sqlite",
    json: settings.Json = False,
) -> None:
    """Notifications to endpoints that are well: alone, and beside others that are of no use."""
    callers = _numbers(concurrency or ["4"])
    from . import bench

    _check_log(log)
    _run(lambda tell: bench.notify(endpoints, callers, seconds, log, tell), json, "p99 {:.2f} of alone")


@app.command()
def shared(
    kafka: Annotated[str, typer.Option(help="host:port of a Kafka; topics bench-* are made there.")],
    redis: Annotated[str, typer.Option(help="redis://host:port of a Redis or Valkey.")],
    events: Annotated[bool, typer.Option("--events", help="With the event topic on, too.")] = False,
    concurrency: Callers = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="For each contender.")] = 6.0,
    log: Log = "sqlite",
    json: settings.Json = False,
) -> None:
    """TCC transactions that all go well, with Kafka and Redis, against the same without them."""
    callers = _numbers(concurrency or ["16"])
    from . import bench

    _check_log(log)
    _run(
        lambda tell: bench.shared(kafka, redis, events, callers, seconds, log, tell), json, "{:.2f} of alone"
    )


def _called(
    kind: str, concurrency: list[str] | None, seconds: float, log: str, profile: Path | None, json: bool
) -> None:
    callers = _numbers(concurrency or ["16"])
    from . import bench

    _check_log(log)
    dump = profile.absolute() if profile else None
    _run(lambda tell: bench.called(kind, callers, seconds, log, dump, tell), json)


def _check_log(log: str) -> None:
    from . import bench

    if log not in bench.LOGS:
        console.fail(console.USAGE, f"--log {log}: {', '.join(bench.LOGS)}")


def _run(
    work: Callable[[Callable[[str], None]], int], json: bool, compared: str = "{:.2f} of the bare loop"
) -> None:
    from ..testing.processes import NotReady
    from ..testing.servers import ServerError

    def tell(line: str) -> None:
        if json:
            console.out(line)
            return
        row = _json.loads(line)
        bare = row["kind"].startswith(("bare", "alone", "events-off"))
        ratio = "  " + compared.format(row["ratio"]) if not bare and row["ratio"] else ""
        console.out(
            f"{row['kind']:<11}{row['concurrency']:>5} callers  {row['tps']:>8} tx/s  p50 {row['p50_ms']} ms  "
            f"p99 {row['p99_ms']} ms  errors {row['errors']}{ratio}"
        )

    try:
        errors = work(tell)
    except ServerError as error:
        console.fail(console.UNAVAILABLE, f"a throw-away server: {error}")
    except NotReady as error:
        console.fail(console.UNAVAILABLE, str(error))
    if errors:
        console.fail(console.PROBLEMS, console.plural(errors, "error"))


def _numbers(texts: list[str]) -> list[int]:
    parts = _parts(texts)
    wrong = [part for part in parts if not part.isdigit() or int(part) < 1]
    if wrong:
        console.fail(console.USAGE, f"--concurrency {wrong[0]!r}: a number from 1 on, or several: 1,16,64")
    return [int(part) for part in parts]


def _parts(texts: list[str]) -> list[str]:
    return [part.strip() for text in texts for part in text.split(",")]
