"""``scripts/senders``: processes that send a message with a local transaction, and die at drawn points, for good.

The message is delivered exactly when the local transaction has committed, each once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import grpc
import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.faults.outage_check import Found
from tests.faults.sender import Job, Point, Way
from tests.support.acceptance_http import serving_asgi
from tests.support.databases import PG18, AnyServer, database_of, new_folder, new_mariadb, new_server, running
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import Managed, coordinator, free_port, run_txcoord
from txcoord_client import Participant

NAMES: Final = ("accounts", "ledger")
"""On PostgreSQL, and on MariaDB."""
_WIDTH: Final = 6
_PATIENCE_S: Final = 120.0
_KILLED: Final = -9
_POINTS: Final = (*Point, Point.ANY)


@dataclass(frozen=True)
class Plan:
    """One run, and whether the coordinator is killed in it: so long after it has begun."""

    job: Job
    kill_s: float | None


def drawn(runs: int, seed: int) -> list[Plan]:
    """What happens: each way on each database in turn, at drawn points."""
    rng = random.Random(seed)
    ways = [(way, name) for way in Way for name in NAMES]
    out = []
    for number in range(runs):
        if number % len(ways) == 0:
            rng.shuffle(ways)
        way, name = ways[number % len(ways)]
        point = rng.choice(_POINTS)
        wait_s = rng.uniform(0, 0.3) if point is Point.ANY else rng.uniform(0, 0.012)
        job = Job(number, f"r{seed}-{number}", way, name, point, wait_s, rng.random() < 0.2)
        out.append(Plan(job, rng.uniform(0, 0.4) if rng.random() < 0.15 else None))
    return out


@dataclass
class Place:
    """A coordinator, two databases, and the services that live on."""

    node: Managed
    http: str
    servers: dict[str, AnyServer]
    urls: dict[str, str]
    ended: dict[int, int] = field(default_factory=dict)
    """How each sender has ended."""

    def rows(self, name: str, query: str) -> list[str]:
        """Of one column."""
        return self.servers[name].sql(query, database_of(self.urls[name])).split()


def started(folder: Path, servers: dict[str, AnyServer], urls: dict[str, str]) -> Place:
    """With tables; ``log`` is beside the two databases."""
    for name in NAMES:
        for table in ("work", "got"):
            make = f"CREATE TABLE {table} (body varchar(64) NOT NULL)"
            servers[name].sql(make, database_of(urls[name]))
    http = f"127.0.0.1:{free_port()}"
    node = coordinator(
        folder,
        resources={name: urls[name] for name in NAMES},
        log_url=urls["log"],
        settings={
            "HTTP_ADDRESS": http,
            "RECOVERY__GRACE": "1s",
            "RECOVERY__SCAN_INTERVAL": "1s",
            "BACKOFF__FIRST": "50ms",
            "BACKOFF__CAP": "250ms",
        },
    )
    run_txcoord("migrate", env=node.env, cwd=folder)
    run_txcoord("resource", "check", "--fix", env=node.env, cwd=folder)
    node.start()
    return Place(node, http, servers, urls)


@asynccontextmanager
async def services(place: Place) -> AsyncIterator[Mapping[str, Any]]:
    """Who takes the messages, and what is left of the senders' services: they answer. Where they are."""
    async with AsyncExitStack() as stack:
        engines = {name: create_async_engine(place.urls[name], pool_size=10) for name in NAMES}
        for engine in engines.values():
            stack.push_async_callback(engine.dispose)
        warehouse = Participant("warehouse", db=engines["accounts"])

        @warehouse.message
        async def told(db: Any, *, body: str) -> None:
            await db.execute(text("INSERT INTO got (body) VALUES (:body)"), {"body": body})

        answerers = [Participant(f"{name}-service", db=engine) for name, engine in engines.items()]
        server = grpc.aio.server()
        warehouse.add_to(server, *answerers)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, 0)
        app = answerers[0].asgi(others=answerers[1:])
        url = await stack.enter_async_context(serving_asgi(app, leave=True))
        yield {
            "address": place.node.address,
            "http": place.http,
            "urls": place.urls,
            "warehouse": f"grpc://127.0.0.1:{port}",
            "answerers": (f"grpc://127.0.0.1:{port}", url),
        }


async def sent(place: Place, plans: Sequence[Plan], at: Mapping[str, Any]) -> None:
    """Let all of it happen, some side by side."""
    env = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0", "PYTHONWARNINGS": "ignore"}
    forks = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.sender", stdin=-1, stdout=-1, env=env
    )
    assert forks.stdin is not None
    assert forks.stdout is not None
    waiting: dict[int, asyncio.Future[int]] = {}
    killing = asyncio.Lock()

    async def listen(lines: asyncio.StreamReader) -> None:
        async for line in lines:
            number, code = line.split()
            waiting[int(number)].set_result(int(code))

    async def kill(after_s: float) -> None:
        await asyncio.sleep(after_s)
        async with killing:
            place.node.kill9()
            # In this thread: with another one it would die.
            place.node.start(wait_s=0)
            await asyncio.to_thread(place.node.wait_ready)

    async def one(plan: Plan, room: asyncio.Semaphore, stdin: asyncio.StreamWriter) -> None:
        async with room:
            job = replace(plan.job, **at)
            waiting[job.number] = asyncio.get_running_loop().create_future()
            stdin.write(job.line())
            if plan.kill_s is not None:
                await kill(plan.kill_s)
            place.ended[job.number] = await waiting[job.number]

    listening = asyncio.ensure_future(listen(forks.stdout))
    room = asyncio.Semaphore(_WIDTH)
    try:
        await asyncio.gather(*(one(plan, room, forks.stdin) for plan in plans))
    finally:
        forks.stdin.close()
        await forks.wait()
        await listening


_OPEN: Final = "SELECT count(*) FROM txcoord_tx WHERE ended_us = 0"
_BRANCHES: Final = "SELECT count(*) FROM txcoord_branch WHERE state NOT IN ('done', 'undone')"


async def until_ended(place: Place, found: Found) -> None:
    """Whatever waits for a deadline has had it, and all that leaves has left."""
    until = time.monotonic() + _PATIENCE_S
    for query in (_OPEN, _BRANCHES):
        while (left := await asyncio.to_thread(place.rows, "log", query)) != ["0"]:
            if time.monotonic() > until:
                found.wrong.append(f"not ended: {left} by {query}")
                return
            await asyncio.sleep(0.1)


def check(plans: Sequence[Plan], place: Place, found: Found) -> None:
    """Is each delivered exactly when its local transaction has committed, once?"""
    got = Counter(place.rows("accounts", "SELECT body FROM got"))
    committed = {name: Counter(place.rows(name, "SELECT body FROM work")) for name in NAMES}
    calm = all(plan.kill_s is None for plan in plans)
    by_point: dict[Point, Counter[str]] = {point: Counter() for point in Point}
    for plan in plans:
        job = plan.job
        here, there = committed[job.database][job.body], got[job.body]
        by_point[job.point]["committed" if here else "not"] += 1
        as_planned = place.ended[job.number] == (0 if job.point is Point.NEVER else _KILLED)
        by_point[job.point]["passed by"] += not as_planned
        kept = not job.rolls_back or not here
        certain = bool(here) or job.point is not Point.NEVER or job.rolls_back or not calm
        if (
            here != there
            or here > 1
            or not kept
            or not certain
            or place.ended[job.number] not in (0, _KILLED)
        ):
            text = f"committed {here} times, delivered {there} times, exit {place.ended[job.number]}"
            found.wrong.append(f"{text}: {plan}")
    found.figures |= {
        "runs": len(plans),
        "local transactions that committed": sum(sum(c.values()) for c in committed.values()),
        "delivered": got.total(),
        "coordinators killed": sum(plan.kill_s is not None for plan in plans),
        **{f"of the ways, {way}": sum(plan.job.way is way for plan in plans) for way in Way},
        **{
            str(point): f"{n['committed']} committed, {n['not']} not; lived on: {n['passed by']}"
            for point, n in by_point.items()
        },
        "anomalies": len(found.wrong),
    }


async def run(place: Place, plans: Sequence[Plan]) -> Found:
    """Let it happen, and look what is left."""
    found, began = Found(), time.monotonic()
    async with services(place) as at:
        await sent(place, plans, at)
        await until_ended(place, found)
    await asyncio.to_thread(check, plans, place, found)
    found.figures["wall time, s"] = round(time.monotonic() - began, 1)
    return found


@contextmanager
def placed(folder: Path) -> Iterator[Place]:
    """Two servers, and a coordinator."""
    with ExitStack() as stack:
        pg: PostgresServer = stack.enter_context(running(new_server(PG18)))
        my = stack.enter_context(running(new_mariadb()))
        servers: dict[str, AnyServer] = {"accounts": pg, "ledger": my, "log": pg}
        for name, server in servers.items():
            server.create_database(name)
        place = started(folder, servers, {name: server.url(name) for name, server in servers.items()})
        stack.callback(place.node.kill9)
        yield place


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, do, say. 0: all is well; 1: something was wrong."""
    parser = argparse.ArgumentParser(prog="scripts/senders", description=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, default=None, help="this run alone, of those of the seed")
    parser.add_argument("--json", action="store_true", help="the figures as a line of JSON")
    asked = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    folder = new_folder("senders")
    plans = [p for p in drawn(asked.runs, asked.seed) if asked.only in (None, p.job.number)]
    with placed(folder) as place:
        found = asyncio.run(run(place, plans))
    found.figures = {"seed": asked.seed, **found.figures}
    print(json.dumps(found.figures) if asked.json else found.told())
    for wrong in found.wrong[:50]:
        print(f"WRONG {wrong}")
    if found.wrong:
        print(f"kept: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
