"""`txcoord bench xa`: global transactions through a coordinator against a bare two-phase-commit loop.

Both use the same two throw-away PostgreSQL servers, engines, statements and concurrent callers in one client
process, and take turns within one run, so that their ratio holds on a machine whose speed drifts. The bare loop
is what a careful user would write by hand: two PREPAREs, two COMMIT PREPAREDs, no log, no marker.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from txcoord_client import Coordinator

from ..testing.postgres import PostgresServer
from ..testing.processes import Managed, coordinator, run_txcoord

ACCOUNTS = 10_000
SLICES = 6
"""How often the two take turns."""
_UPDATE = text("UPDATE account SET balance = balance + :cents WHERE id = :id")
_NAMES = ("accounts", "ledger")

Once = Callable[[int], Awaitable[None]]


@dataclass(slots=True)
class Sample:
    """What one contender did."""

    durations: list[float] = field(default_factory=list)
    seconds: float = 0.0
    errors: int = 0

    def row(self, kind: str, concurrency: int) -> dict[str, Any]:
        """One line of the report."""
        ordered = sorted(self.durations)
        return {
            "kind": kind,
            "concurrency": concurrency,
            "tps": round(len(ordered) / self.seconds, 1) if self.seconds else 0.0,
            "p50_ms": round(statistics.median(ordered) * 1000, 2) if ordered else None,
            "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1000, 2) if ordered else None,
            "errors": self.errors,
        }


class Bench:
    """The two contenders on the same databases."""

    def __init__(self, engines: dict[str, AsyncEngine], coord: Coordinator) -> None:
        self._first, self._second = (engines[name] for name in _NAMES)
        self._coord = coord
        self._numbers = itertools.count()
        self._run = f"bare{os.getpid()}"

    async def txcoord(self, number: int) -> None:
        """One global transaction over both databases."""
        async with self._coord.begin("bench") as g:
            async with g.xa(self._first) as db:
                await db.execute(_UPDATE, {"cents": -1, "id": number % ACCOUNTS})
            async with g.xa(self._second) as db:
                await db.execute(_UPDATE, {"cents": 1, "id": number % ACCOUNTS})

    async def bare(self, number: int) -> None:
        """The same by hand."""
        gid = f"{self._run}-{next(self._numbers)}"
        async with self._first.connect() as first, self._second.connect() as second:
            await first.execute(_UPDATE, {"cents": -1, "id": number % ACCOUNTS})
            await second.execute(_UPDATE, {"cents": 1, "id": number % ACCOUNTS})
            await asyncio.gather(_prepare(first, gid), _prepare(second, gid))
            await asyncio.gather(_commit(first, gid), _commit(second, gid))

    async def measure(self, once: Once, concurrency: int, seconds: float, sample: Sample, seed: int) -> None:
        """``concurrency`` callers for ``seconds``."""
        clock = time.perf_counter
        begun = clock()
        until = begun + seconds
        numbers = itertools.count(seed)

        async def caller() -> None:
            while True:
                start = clock()
                if start >= until:
                    return
                try:
                    await once(next(numbers) * 7919)
                except Exception as error:
                    sample.errors += 1
                    if sample.errors <= 3:
                        print(f"bench: {type(error).__name__}: {error}", file=sys.stderr)
                    continue
                sample.durations.append(clock() - start)

        await asyncio.gather(*(caller() for _ in range(concurrency)))
        sample.seconds += clock() - begun


async def _driver(conn: AsyncConnection) -> Any:
    return (await conn.get_raw_connection()).driver_connection


async def _prepare(conn: AsyncConnection, gid: str) -> None:
    await (await _driver(conn)).execute(f"PREPARE TRANSACTION '{gid}'")


async def _commit(conn: AsyncConnection, gid: str) -> None:
    await (await _driver(conn)).execute(f"COMMIT PREPARED '{gid}'")


def xa(
    concurrency: list[int], seconds: float, log: str, profile: Path | None, emit: Callable[[str], None]
) -> int:
    """Run the bench; one JSON object a line through ``emit``. Answers the number of errors."""
    folder = Path(tempfile.mkdtemp(prefix="txcoord-bench-"))
    folder.chmod(0o755)
    servers: dict[str, PostgresServer] = {}
    node: Managed | None = None
    try:
        for name in (*_NAMES, *(["log"] if log == "postgresql" else [])):
            (folder / name).mkdir(mode=0o755)
            servers[name] = PostgresServer(folder / name, die_with_parent=True)
            servers[name].start()
        for name in _NAMES:
            servers[name].sql(
                "CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 50);"
                f"INSERT INTO account SELECT i, 0 FROM generate_series(0, {ACCOUNTS - 1}) i; VACUUM ANALYZE account"
            )
        urls = {name: servers[name].url() for name in _NAMES}
        node = coordinator(
            folder,
            resources=urls,
            log_url=servers["log"].url() if log == "postgresql" else None,
            settings={"LOG_LEVEL": "ERROR"},
            env={"TXCOORD_PROFILE": str(profile)} if profile else None,
        )
        run_txcoord("migrate", env=node.env, cwd=folder)
        run_txcoord("resource", "check", "--fix", env=node.env, cwd=folder)
        node.start()
        errors = 0
        for callers in concurrency:
            rows = asyncio.run(_compare(urls, node.address, callers, seconds))
            for row in rows:
                errors += row["errors"]
                emit(json.dumps({**row, "log": log}))
        return errors
    finally:
        if node is not None:
            node.stop()
        for server in servers.values():
            server.remove()
        shutil.rmtree(folder, ignore_errors=True)


async def _compare(urls: dict[str, str], address: str, callers: int, seconds: float) -> list[dict[str, Any]]:
    async with AsyncExitStack() as stack:
        engines: dict[str, AsyncEngine] = {}
        for name, url in urls.items():
            # One more than callers: the SDK keeps one connection of each pool free.
            engines[name] = create_async_engine(url, pool_size=callers + 1, max_overflow=0)
            stack.push_async_callback(engines[name].dispose)
        coord = await stack.enter_async_context(Coordinator(address, resources=dict(engines)))
        bench = Bench(engines, coord)
        samples = {"xa": Sample(), "bare-2pc": Sample()}
        contenders: list[tuple[str, Once]] = [("bare-2pc", bench.bare), ("xa", bench.txcoord)]
        for _, once in contenders:  # connections, caches, code
            await bench.measure(once, callers, min(0.5, seconds), Sample(), 0)
        ratios = []
        for turn in range(SLICES):
            before = {kind: len(sample.durations) for kind, sample in samples.items()}
            for kind, once in contenders if turn % 2 == 0 else reversed(contenders):
                await bench.measure(once, callers, seconds / SLICES, samples[kind], turn * 1_000_003)
            done = {kind: len(sample.durations) - before[kind] for kind, sample in samples.items()}
            if done["bare-2pc"]:
                ratios.append(done["xa"] / done["bare-2pc"])
        rows = [samples["xa"].row("xa", callers), samples["bare-2pc"].row("bare-2pc", callers)]
        rows[0]["ratio"] = round(rows[0]["tps"] / rows[1]["tps"], 3) if rows[1]["tps"] else None
        rows[0]["ratio_of_slices"] = [round(ratio, 2) for ratio in ratios]
        rows[1]["ratio"] = 1.0
        return rows
