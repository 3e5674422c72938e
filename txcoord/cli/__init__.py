"""The command line. Only typer is imported here: what a command needs, it imports when it runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from .. import __version__
from . import (
    access,
    audit,
    benchmark,
    console,
    dev,
    doctor,
    health,
    node,
    parked,
    queue,
    replay,
    resource,
    serve,
    settings,
    target,
    tx,
)

app = typer.Typer(
    name="txcoord",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=console.EXIT_CODES,
    help="Distributed transactions: run a coordinator, look at what it does, mend what needs a person.",
)
app.command()(dev.dev)
app.command()(serve.serve)
app.command()(queue.worker)
app.command()(serve.migrate)
app.command()(doctor.doctor)
app.command()(health.health)
app.add_typer(tx.app, name="tx")
app.add_typer(parked.app, name="parked")
app.add_typer(replay.app, name="replay")
app.add_typer(audit.app, name="audit")
app.add_typer(target.app, name="target")
app.add_typer(resource.app, name="resource")
app.add_typer(node.app, name="node")
app.add_typer(queue.app, name="queue")
app.add_typer(settings.app, name="config")
app.add_typer(benchmark.app, name="bench")
access.add_options(app)  # Last: to all commands that are there.


def _version(wanted: bool) -> None:
    if wanted:
        console.out(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point."""
    try:
        app()
    except BrokenPipeError:
        # `txcoord tx list | head`: nobody reads any more. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(console.OK)
    except Exception as error:
        if os.environ.get("TXCOORD_LOG_LEVEL", "").upper() == "DEBUG":
            raise
        console.say(
            f"txcoord: a bug: {type(error).__name__}: {error} (TXCOORD_LOG_LEVEL=DEBUG shows where it happened)"
        )
        sys.exit(console.CRASHED)
