"""`txcoord dev`: a coordinator for development, everything in one process, data in ``.txcoord/``."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from . import console, serve, settings

if TYPE_CHECKING:
    from ..config import Settings
    from ..testing.postgres import PostgresServer
    from ..wiring import Node

FOLDER = Path(".txcoord")


def dev(
    listen: Annotated[str, typer.Option(help="host:port to listen on; port 0: any.")] = "127.0.0.1:7070",
    with_postgres: Annotated[
        int,
        typer.Option(
            "--with-postgres", min=0, max=50, help="Throw-away PostgreSQL databases: resources db1, db2, …"
        ),
    ] = 0,
    memory: Annotated[bool, typer.Option("--memory", help="Keep nothing after the end.")] = False,
    data: Annotated[Path, typer.Option(help="Folder of the data.")] = FOLDER,
    http_address: Annotated[
        str | None,
        typer.Option("--http-address", help="host:port of the HTTP/JSON API; default the port after gRPC's."),
    ] = None,
    config: settings.ConfigFile = None,
) -> None:
    """Run a coordinator for development: nothing to set up, data in .txcoord/."""
    begun = time.monotonic()
    with _folder(data, memory) as folder:
        _run(folder, listen, http_address, with_postgres, memory, config, begun)


def _run(
    folder: Path,
    listen: str,
    http_address: str | None,
    databases: int,
    memory: bool,
    config: Path | None,
    begun: float,
) -> None:
    os.environ.setdefault("TXCOORD_LOG_LEVEL", "WARNING")
    # What was configured is kept: the throw-away databases come on top.
    server = _start_postgres(folder, databases) if databases else None
    try:
        os.environ.setdefault("TXCOORD_LOG__URL", f"sqlite+aiosqlite:///{folder / 'dev.db'}")
        for name in _names(databases):
            assert server is not None
            os.environ[f"TXCOORD_RESOURCES__{name}__URL"] = server.url(name)
        loaded = settings.load(config, listen=listen, http_address=http_address)
        if not loaded.http_address and http_address is None:
            loaded = settings.load(config, listen=listen, http_address=_beside(loaded.listen))
        serve.configure_logs(loaded)

        async def run() -> None:
            from ..wiring import Node

            await serve.migrated(loaded)
            await _make_tables(loaded, _names(databases))
            node = Node(loaded, role="dev")

            async def ready() -> None:
                if not memory:
                    _remember(folder, node.address)
                _tell(loaded, node, folder, memory, time.monotonic() - begun)

            await serve.until_signal(node, ready)

        serve.run_loop(run)
    finally:
        if server is not None:
            server.stop()


def _names(databases: int) -> list[str]:
    return [f"db{number}" for number in range(1, databases + 1)]


def _start_postgres(folder: Path, databases: int) -> PostgresServer:
    from ..testing.postgres import PostgresError, PostgresServer

    # Meanwhile a thread loads what the node needs. PostgreSQL has to be started from this one: it ends with
    # the thread that started it. Nothing else may be imported before the two are together again.
    loading = threading.Thread(target=importlib.import_module, args=("txcoord.wiring",))
    loading.start()
    try:
        data = folder / "postgres"
        if not data.exists():
            console.say("making a PostgreSQL server, the first time only …")
        server = PostgresServer(data, die_with_parent=True)
        server.start()
        there = set(server.sql("SELECT datname FROM pg_database").split("\n"))
        for name in _names(databases):
            if name not in there:
                server.create_database(name)
        return server
    except PostgresError as error:
        console.fail(console.UNAVAILABLE, f"PostgreSQL: {error}")
    finally:
        loading.join()


async def _make_tables(loaded: Settings, names: list[str]) -> None:
    """Make the throw-away databases resources; those that the user configured are left alone."""
    import asyncio
    import uuid

    from ..wiring.parts import finisher

    async def one(name: str) -> None:
        database = finisher(loaded, name)
        try:
            await database.prepare_database(uuid.uuid4().hex)
        finally:
            await database.close()

    await asyncio.gather(*(one(name) for name in names))


def _beside(listen: str) -> str:
    """Where the HTTP API listens if nobody says: at the port after gRPC's, or at any if that is taken."""
    from ..config import split_listen

    host, port = split_listen(listen)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port + 1 if port else 0))
        except (OSError, OverflowError):
            return f"{host}:0"
    return f"{host}:{port + 1 if port else 0}"


def _tell(loaded: Settings, node: Node, folder: Path, memory: bool, seconds: float) -> None:
    from .. import __version__
    from ..config import redacted

    address = node.address
    kept = (
        "goes with this process (--memory)"
        if memory
        else "kept between runs; delete the folder to start afresh"
    )
    console.out(f"txcoord dev {__version__} is ready after {seconds:.1f} s")
    console.out("")
    console.out(f"  address   {address}  (gRPC, no TLS: for this machine only)")
    if node.http_url:
        console.out(f"  http      {node.http_url}  (JSON, for curl: {node.http_url}/openapi.json)")
    console.out(f"  data      {folder}  ({kept})")
    for name, resource in loaded.resources.items():
        console.out(f"  resource  {name}  {redacted(resource.url.get_secret_value())}")
    if not loaded.resources:
        console.out("  resource  none: --with-postgres 2 makes two, or TXCOORD_RESOURCES__<name>__URL")
    console.out("")
    console.out(f'  connect   from txcoord_client import Coordinator; coord = Coordinator("{address}")')
    there = "" if address == "127.0.0.1:7070" else f" --address {address}"
    console.out(f"  look      txcoord tx list{there}    txcoord resource list{there}")
    console.out("  stop      Ctrl-C")
    sys.stdout.flush()


# ---- whose folder it is ----


@contextmanager
def _folder(data: Path, memory: bool) -> Iterator[Path]:
    """The folder of this run, held alone."""
    if memory:
        folder = Path(tempfile.mkdtemp(prefix="txcoord-dev-"))
        folder.chmod(0o755)  # As root, PostgreSQL runs as nobody, who has to get in.
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    folder = data.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a+")
    except OSError as error:
        console.fail(console.UNAVAILABLE, f"{folder} cannot be used: {error.strerror}")
    with lock:
        _take(lock, folder)
        yield folder


def _take(lock: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        who: dict[str, Any] = {}
        with contextlib.suppress(ValueError):  # It may be just starting.
            who = json.loads(lock.read())
        at = f" at {who['address']}" if who.get("address") else ""
        console.fail(
            console.UNAVAILABLE,
            f"another `txcoord dev` (process {who.get('pid', '?')}{at}) has {folder}: stop it, or run this one in "
            "another folder (--data) or with --memory, and with --listen 127.0.0.1:0",
        )
    _write(lock, {"pid": os.getpid()})


def _remember(folder: Path, address: str) -> None:
    """Let whoever finds the folder taken know where we are."""
    with (folder / "lock").open("r+") as lock:
        _write(lock, {"pid": os.getpid(), "address": address})


def _write(lock: IO[str], value: dict[str, Any]) -> None:
    lock.seek(0)
    lock.truncate()
    lock.write(json.dumps(value))
    lock.flush()
