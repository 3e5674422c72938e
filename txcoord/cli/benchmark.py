"""`txcoord bench`: how fast is it here?"""

from __future__ import annotations

import json as _json
from pathlib import Path
from typing import Annotated

import typer

from . import console, settings

app = typer.Typer(no_args_is_help=True, help="Measure on this machine, on throw-away databases.")


@app.callback()
def _group() -> None:
    pass


@app.command()
def xa(
    concurrency: Annotated[
        list[str] | None, typer.Option(help="Callers at once; repeatable, or 1,16,64. Default 16.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="For each contender.")] = 6.0,
    log: Annotated[str, typer.Option(help="The log's database: sqlite or postgresql.")] = "sqlite",
    profile: Annotated[Path | None, typer.Option(help="File for a cProfile dump of the coordinator.")] = None,
    json: settings.Json = False,
) -> None:
    """Global transactions over two PostgreSQL databases, against a bare two-phase-commit loop."""
    callers = _numbers(concurrency or ["16"])
    if log not in ("sqlite", "postgresql"):
        console.fail(console.USAGE, f"--log {log}: sqlite or postgresql")
    from ..testing.postgres import PostgresError
    from . import bench

    def tell(line: str) -> None:
        if json:
            console.out(line)
            return
        row = _json.loads(line)
        ratio = f"  {row['ratio']:.2f} of the bare loop" if row["kind"] == "xa" and row["ratio"] else ""
        console.out(
            f"{row['kind']:<9}{row['concurrency']:>4} callers  {row['tps']:>8} tx/s  p50 {row['p50_ms']} ms  "
            f"p99 {row['p99_ms']} ms  errors {row['errors']}{ratio}"
        )

    try:
        errors = bench.xa(callers, seconds, log, profile.absolute() if profile else None, tell)
    except PostgresError as error:
        console.fail(console.UNAVAILABLE, f"PostgreSQL: {error}")
    if errors:
        console.fail(console.PROBLEMS, console.plural(errors, "error"))


def _numbers(texts: list[str]) -> list[int]:
    parts = [part.strip() for text in texts for part in text.split(",")]
    wrong = [part for part in parts if not part.isdigit() or int(part) < 1]
    if wrong:
        console.fail(console.USAGE, f"--concurrency {wrong[0]!r}: a number from 1 on, or several: 1,16,64")
    return [int(part) for part in parts]
