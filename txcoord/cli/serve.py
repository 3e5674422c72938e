"""`txcoord serve`: run a coordinator. `txcoord migrate`: bring the log's schema up to date."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from ..config import Settings
    from ..wiring import Node

Listen = Annotated[str | None, typer.Option(help="host:port to listen on.")]
HttpAddress = Annotated[
    str | None,
    typer.Option("--http-address", help="host:port of the HTTP/JSON API; without it there is none."),
]
InsecureListen = Annotated[
    bool | None,
    typer.Option("--insecure-listen", help="Allow other than loopback also without TLS or without tokens."),
]


def serve(
    listen: Listen = None,
    http_address: HttpAddress = None,
    insecure_listen: InsecureListen = None,
    config: settings.ConfigFile = None,
) -> None:
    """Run a coordinator until SIGTERM or SIGINT: then it stops taking, drains, and leaves with 0."""
    loaded = settings.load(config, listen=listen, http_address=http_address, insecure_listen=insecure_listen)
    configure_logs(loaded)

    async def run() -> None:
        from ..wiring import Node

        await until_signal(Node(loaded))

    run_loop(run)


def migrate(config: settings.ConfigFile = None) -> None:
    """Make the log's tables, or bring them up to date."""
    loaded = settings.load(config)

    async def run() -> None:
        from ..config import redacted

        url = loaded.log.url.get_secret_value()
        before, after = await migrated(loaded)
        if before == after:
            console.say(f"log {redacted(url)}: schema {after} is current")
        else:
            console.say(f"log {redacted(url)}: schema {before or 'none'} -> {after}")

    run_loop(run)


async def migrated(loaded: Settings) -> tuple[str | None, str]:
    """Bring the log's schema up to date; the revision before and after. Raises StartError."""
    from ..adapters.sql.migrate import migrate
    from ..config import redacted
    from ..ports import LogUnavailable, SchemaMismatch
    from ..wiring import ExitCode, StartError
    from ..wiring.parts import log_down

    url = loaded.log.url.get_secret_value()
    try:
        return await migrate(url)
    except SchemaMismatch as error:
        raise StartError(ExitCode.SCHEMA, "SCHEMA_MISMATCH", f"the log {redacted(url)}: {error}") from error
    except LogUnavailable as error:
        raise log_down(error) from error


def configure_logs(loaded: Settings) -> None:
    """Logs as the settings say: on a terminal for people, else JSON."""
    from ..observe import logs

    as_json = loaded.log_format == "json" or (loaded.log_format == "auto" and not sys.stderr.isatty())
    logs.configure(level=loaded.log_level, json=as_json)


async def until_signal(node: Node, ready: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
    """Start the node, run it until SIGTERM or SIGINT, stop it. A second signal stops at once."""
    import asyncio
    import signal

    from ..observe import logs

    log = logs.get("txcoord.serve")
    loop = asyncio.get_running_loop()
    wanted = asyncio.Event()
    stopping: asyncio.Task[None] | None = None

    first_at = 0.0

    def on_signal(number: int) -> None:
        nonlocal first_at
        if not wanted.is_set():
            first_at = loop.time()
        elif loop.time() - first_at > 1.0:
            # Not the echo of the first one: a terminal and a wrapper (timeout, uv run) both send it.
            log.warning("node.stopping_at_once", signal=signal.Signals(number).name)
            if stopping is not None:
                stopping.cancel()
        wanted.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    # A signal during the start ends it as well.
    starting = asyncio.ensure_future(node.start())
    waiting = asyncio.ensure_future(wanted.wait())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return
    starting.result()
    _collect_less()
    lost = asyncio.ensure_future(node.lost())
    try:
        if ready is not None:
            await ready()
        await asyncio.wait({waiting, lost}, return_when=asyncio.FIRST_COMPLETED)
        if lost.done():
            await node.abandon()
            raise lost.result()
    finally:
        lost.cancel()
        stopping = asyncio.ensure_future(node.stop())
        try:
            await stopping
        except asyncio.CancelledError:
            await node.abandon()


def _collect_less() -> None:
    """A third of a busy node's time would go into looking for cycles in what it has loaded; its records have none."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


def run_loop(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it on the fastest loop there is; a StartError ends the process with its code and one line.

    ``TXCOORD_PROFILE`` names a file for a cProfile dump at the end.
    """
    import asyncio

    from ..wiring import StartError

    try:
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        factory = None
    profile = os.environ.get("TXCOORD_PROFILE")
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            if not profile:
                runner.run(work())
                return
            import cProfile

            profiler = cProfile.Profile()
            try:
                profiler.runcall(runner.run, work())
            finally:
                profiler.dump_stats(Path(profile))
    except StartError as error:
        console.fail(error.code, f"{error.reason}: {error.message}")
    except KeyboardInterrupt:
        console.fail(console.INTERRUPTED, "interrupted")
