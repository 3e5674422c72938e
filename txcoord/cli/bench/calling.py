"""`txcoord bench tcc` and `saga`: participants that only answer, called through txcoord and by hand.

Three processes: the callers, the coordinator, and the participants, one process with a port for each of the two. By
hand there is no coordinator: each caller makes the same calls, one by one, each a unary gRPC call with the same
arguments. A transaction is done when its caller knows that the last confirm, or the last step, was answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import grpc

from txcoord_client import Coordinator, saga

from ...testing.mariadb import MariaDBServer
from ...testing.postgres import PostgresServer
from ...testing.processes import Managed, coordinator, free_port, run_txcoord
from .answering import BARE_METHOD, declared
from .cpu import Used
from .loop import Once, measure
from .match import Match, Row

BARE: Final = "bare-grpc"
NAMES: Final = ("stock", "payment")
CALLS: Final = {"tcc": ("try", "try", "confirm", "confirm"), "saga": ("action", "action")}
"""What is called for one transaction of two branches."""


def run(
    kind: str,
    concurrency: Sequence[int],
    seconds: float,
    log: str,
    profile: Path | None,
    emit: Callable[[str], None],
) -> int:
    """Run the bench; one JSON object a line through ``emit``. Answers the number of errors."""
    with folder() as place, ExitStack() as stack:
        node = started_coordinator(place, log, profile, stack)
        ports = free_ports(NAMES)
        service = started_participants(place, ports, stack)
        places = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
        pids = {"callers": os.getpid(), "coordinator": node.pid, "participants": service.pid}

        async def compare() -> int:
            errors = 0
            for callers in concurrency:
                for row in await _compare(kind, node.address, places, callers, seconds, pids):
                    errors += row["errors"]
                    emit(json.dumps({**row, "log": log}))
            return errors

        # One loop for all: gRPC does not like one after the other.
        return asyncio.run(compare())


@contextmanager
def folder() -> Iterator[Path]:
    """A throw-away folder."""
    made = Path(tempfile.mkdtemp(prefix="txcoord-bench-"))
    made.chmod(0o755)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def started_coordinator(
    place: Path,
    log: str,
    profile: Path | None,
    stack: ExitStack,
    name: str = "coordinator",
    settings: Mapping[str, str] | None = None,
) -> Managed:
    """A coordinator without resources. ``settings``: variables without their prefix."""
    url = None
    if log != "sqlite":
        (place / "log").mkdir(mode=0o755)
        server = (MariaDBServer if log == "mariadb" else PostgresServer)(place / "log", die_with_parent=True)
        stack.callback(server.remove)
        server.start()
        if isinstance(server, MariaDBServer):
            server.create_database("bench")
            url = server.url("bench", "mysql+asyncmy")
        else:
            url = server.url(driver="postgresql+asyncpg")
    node = coordinator(
        place,
        resources={},
        log_url=url,
        name=name,
        # What hangs is left alone soon.
        settings={"LOG_LEVEL": "ERROR", "NODE__DRAIN_TIMEOUT": "1s", **(settings or {})},
        env={"TXCOORD_PROFILE": str(profile)} if profile else None,
    )
    run_txcoord("migrate", env=node.env, cwd=place)
    stack.callback(node.stop)
    node.start()
    return node


def free_ports(names: Iterable[str]) -> dict[str, int]:
    """A port for each, no two the same."""
    ports: dict[str, int] = {}
    for name in names:
        while (port := free_port()) in ports.values():
            pass
        ports[name] = port
    return ports


def started_participants(
    place: Path, ports: Mapping[str, int], stack: ExitStack, name: str = "participants"
) -> Managed:
    """The process of :mod:`.answering`; ready when its first port is."""
    places = [f"{participant}={port}" for participant, port in ports.items()]
    first = next(iter(ports.values()))
    managed = Managed(
        name,
        [sys.executable, "-m", "txcoord.cli.bench.answering", *places],
        log=place / f"{name}.log",
        address=f"127.0.0.1:{first}",
        cwd=place,
    )
    stack.callback(managed.stop)
    managed.start()
    return managed


class Calling:
    """One transaction through txcoord, or by hand."""

    def __init__(self, coord: Coordinator) -> None:
        self._coord = coord
        flow = saga("bench")
        self._reserve: list[Any] = []
        for name in NAMES:
            _, reserve, act = declared(name)
            self._reserve.append(reserve)
            flow = flow.step(act, name=name)
        self._flow = flow

    async def tcc(self, number: int) -> None:
        """Two tries side by side, then commit, until both are confirmed."""
        first, second = self._reserve
        async with self._coord.begin("bench") as g:
            await asyncio.gather(g.tcc(first, item=number, n=1), g.tcc(second, item=number, n=1))

    async def saga(self, number: int) -> None:
        """Two steps, one after the other."""
        flow = await self._coord.submit(self._flow, data={"item": number, "n": 1})
        out = await flow.wait()
        if not out.committed:
            raise RuntimeError(f"the saga is {out.state}")


class Bare:
    """The same calls by hand."""

    def __init__(self, kind: str, channels: Sequence[grpc.aio.Channel]) -> None:
        raw: Sequence[Any] = channels  # Bytes in, bytes out.
        methods = [channel.unary_unary(BARE_METHOD) for channel in raw]
        self._methods = methods * (len(CALLS[kind]) // len(methods))

    async def once(self, number: int) -> None:
        """One call after the other."""
        request = json.dumps({"item": number, "n": 1}).encode()
        for method in self._methods:
            await method(request, timeout=30.0)


async def _compare(
    kind: str, address: str, places: Mapping[str, str], callers: int, seconds: float, pids: Mapping[str, int]
) -> list[Row]:
    async with AsyncExitStack() as stack:
        channels = []
        for where in places.values():
            channels.append(grpc.aio.insecure_channel(where))
            stack.push_async_callback(channels[-1].close, None)
        participants = {name: f"grpc://{where}" for name, where in places.items()}
        coord = await stack.enter_async_context(Coordinator(address, participants=participants))
        ours = Calling(coord)
        once: dict[str, Once] = {kind: getattr(ours, kind), BARE: Bare(kind, channels).once}
        match = Match(seconds, kind, BARE)
        used = {name: Used(pids) for name in once}
        for turn in match.turns():
            with used[turn.kind].counted(turn.sample is match.samples[turn.kind]):
                await measure(once[turn.kind], callers, turn)
        rows = match.rows(callers)
        for row in rows:
            row["cpu_ms"] = used[row["kind"]].per(len(match.samples[row["kind"]].durations))
        return rows
