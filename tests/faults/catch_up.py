"""``scripts/catch-up``: best-effort SQL on two databases, one of which is down, while coordinators are killed."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from tests.faults.catch_up_check import COUNTERS, NAMES, Asked, Done, Rows, check, drawn
from tests.faults.outage_check import Found, Row
from tests.support.databases import PG18, AnyServer, new_folder, new_mariadb, new_server, running
from txcoord.testing.postgres import PostgresServer
from txcoord.testing.processes import Managed, coordinator, run_txcoord
from txcoord_client import Aborted, Coordinator, OutcomeUnknown, Retry, Unavailable

COORDINATORS: Final = 3
BEFORE_S: Final = 5.0
"""So long all is well."""
PATIENCE_S: Final = 900.0
"""So long after the last client was told, all must be done: a fourth failure is tried again after ten minutes."""
OFTEN: Final = Retry(first=0.5, factor=2, cap=2, attempts=1000)
_ADD: Final = "UPDATE counter SET n = n + :by WHERE id = :id"
_DONE: Final = "INSERT INTO done (gid, branch) VALUES (:gid, :branch)"
_NOW: Final = {
    "accounts": "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
    "ledger": "(CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED))",
}


@dataclass
class Place:
    """What runs: the log on a server of its own, a server for each resource, coordinators as processes."""

    folder: Path
    log: PostgresServer
    servers: dict[str, AnyServer]
    nodes: list[Managed] = field(default_factory=list)
    began: float = 0.0

    def mark(self, what: str) -> None:
        """It happens now."""
        print(f"{time.monotonic() - self.began:7.1f} s  {what}", file=sys.stderr, flush=True)

    def start(self) -> None:
        """All of it, with tables."""
        urls = {}
        for name, server in self.servers.items():
            server.create_database(name)
            urls[name] = server.url(name)
            rows = ", ".join(f"({number}, 0)" for number in range(1, COUNTERS + 1))
            for statement in (
                "CREATE TABLE counter (id integer PRIMARY KEY, n bigint NOT NULL)",
                f"INSERT INTO counter VALUES {rows}",
                f"CREATE TABLE done (gid varchar(64), branch varchar(24), at_us bigint DEFAULT {_NOW[name]})",
            ):
                server.sql(statement, name)
        self.log.create_database("log")
        settings = {
            "RECOVERY__LEASE": "3s",
            "RECOVERY__SCAN_INTERVAL": "1s",
            "LOG_FORMAT": "json",
            **{f"RESOURCES__{name}__EXECUTE_URL": url for name, url in urls.items()},
        }
        self.nodes = [
            coordinator(
                self.folder,
                resources=urls,
                log_url=self.log.url("log"),
                name=f"c{number}",
                settings=settings,
            )
            for number in range(1, COORDINATORS + 1)
        ]
        env = self.nodes[0].env
        run_txcoord("migrate", env=env, cwd=self.folder)
        run_txcoord("resource", "check", "--fix", env=env, cwd=self.folder)
        for node in self.nodes:
            node.start()

    def rows(self, table: str, *columns: str, database: str = "log", where: str = "") -> list[list[str]]:
        """Of a table, as text."""
        server: AnyServer = self.servers.get(database, self.log)
        said = server.sql(f"SELECT {', '.join(columns)} FROM {table} {where}", database)
        return [line.split("|") for line in said.splitlines()]

    def stop(self) -> None:
        """End the coordinators."""
        for node in self.nodes:
            node.kill9()


class GaveUp(Exception):
    """The client does not want it any more."""


async def told(coord: Coordinator, asked: Asked, began: float) -> str:
    """What the client of a transaction was told."""
    await asyncio.sleep(began + asked.start - time.monotonic())
    retry = OFTEN if asked.often else None
    try:
        async with coord.begin("report", gid=asked.gid, timeout=60) as g:
            for number, unit in enumerate(asked.units, 1):
                values = {"gid": asked.gid, "branch": str(number)}
                add = {"by": unit.by, "id": unit.counter}
                g.sql(unit.name, [(_ADD, add), (_DONE, values)], retry=retry)
            if asked.gives_up:
                raise GaveUp
    except (GaveUp, Aborted):
        return "aborted"
    except (OutcomeUnknown, Unavailable):
        return "unknown"
    return "committed"


Do = Callable[[], Awaitable[None]]


def faults(place: Place, gone: str, down: float, kills: int, rng: random.Random) -> list[tuple[float, Do]]:
    """What breaks when: the database for so long, and coordinators, some of them when it has just come back."""

    def database(what: str, do: Callable[[], object]) -> Do:
        async def run() -> None:
            await asyncio.to_thread(do)
            place.mark(f"{gone} is {what}")

        return run

    def kill(node: Managed, away: float) -> Do:
        async def run() -> None:
            place.mark(f"{node.name} is killed, for {away:.1f} s")
            await asyncio.to_thread(node.kill9)
            await asyncio.sleep(away)
            await asyncio.to_thread(node.start, wait_s=0)  # It may be killed while it starts.

        return run

    back = BEFORE_S + down
    server = place.servers[gone]
    out: list[tuple[float, Do]] = [
        (BEFORE_S, database("killed", server.kill9)),
        (back, database("back", server.start)),
    ]
    for number in range(kills):
        # Of a database that is back, all that waits is caught up within seconds.
        at = rng.uniform(back, back + 3) if number % 3 == 0 else rng.uniform(1, back)
        out.append((at, kill(rng.choice(place.nodes), rng.uniform(0.5, 4))))
    return out


async def run(place: Place, asked: Sequence[Asked], gone: str, down: float, kills: int, seed: int) -> Found:
    """Let it happen, and look what is left."""
    rng = random.Random(f"faults {seed}")
    back_us = 0
    async with Coordinator(",".join(node.address for node in place.nodes)) as coord:
        began = place.began = time.monotonic()

        async def at(when: float, do: Do) -> None:
            nonlocal back_us
            await asyncio.sleep(began + when - time.monotonic())
            await do()
            if when == BEFORE_S + down:
                back_us = time.time_ns() // 1000

        chaos = asyncio.gather(*(at(*fault) for fault in faults(place, gone, down, kills, rng)))
        said = await asyncio.gather(*(told(coord, one, began) for one in asked))
        place.mark("all clients are told")
        await chaos
    found = Found()
    await _until_done(place, found)
    place.mark("all is done")
    answers = {one.gid: answer for one, answer in zip(asked, said, strict=True)}
    check(asked, answers, await asyncio.to_thread(read, place), gone, back_us, found)
    found.figures = {
        "seed": seed,
        "database that was down": f"{gone}, {down:g} s",
        "coordinators killed": f"{sum(node.kills for node in place.nodes)} times, of {COORDINATORS}",
        **found.figures,
        "wall time, s": round(time.monotonic() - began, 1),
    }
    return found


_OPEN: Final = "WHERE state NOT IN ('done', 'undone')"


async def _until_done(place: Place, found: Found) -> None:
    until = time.monotonic() + PATIENCE_S
    while waiting := await asyncio.to_thread(place.rows, "txcoord_branch", "state", where=_OPEN):
        parked = [state for [state] in waiting if state == "parked"]
        if len(parked) == len(waiting) or time.monotonic() > until:
            return
        await asyncio.sleep(0.1)
    # What was only begun is undone at its deadline.
    while await asyncio.to_thread(place.rows, "txcoord_tx", "gid", where="WHERE ended_us = 0"):
        if time.monotonic() > until:
            found.wrong.append("not all transactions have ended")
            return
        await asyncio.sleep(0.1)


def read(place: Place) -> Rows:
    """All that the check looks at."""
    txs = place.rows("txcoord_tx", "replace(tx_id::text, '-', '')", "gid", "decision", "state", "decided_us")
    rows = Rows(
        {gid: Row(tx_id, gid, decision, state, 0) for tx_id, gid, decision, state, _ in txs},
        {gid: int(decided) for _, gid, _, _, decided in txs},
        Counter(state for [state] in place.rows("txcoord_branch", "state", where=_OPEN)),
        {},
        {},
        {},
    )
    ids = {"accounts": "replace(tx_id::text, '-', '')", "ledger": "lower(hex(tx_id))"}
    for name in NAMES:
        done = place.rows("done", "gid", "branch", "at_us", database=name)
        rows.done[name] = [Done(gid, branch, int(at)) for gid, branch, at in done]
        counters = place.rows("counter", "n", database=name, where="ORDER BY id")
        rows.counters[name] = [int(n) for [n] in counters]
        marked = place.rows("txcoord_marker", ids[name], "branch", database=name, where="WHERE op = 'sql'")
        rows.markers[name] = {(tx_id, branch) for tx_id, branch in marked}
    for node in place.nodes:
        for line in node.log.read_text(errors="replace").splitlines():
            if '"sql.repeated"' in line:
                rows.repeated[json.loads(line)["resource"]] += 1
    return rows


@contextmanager
def placed(folder: Path) -> Iterator[Place]:
    """Three servers, and coordinators."""
    with ExitStack() as stack:
        log, accounts = (stack.enter_context(running(new_server(PG18))) for _ in range(2))
        place = Place(
            folder, log, {"accounts": accounts, "ledger": stack.enter_context(running(new_mariadb()))}
        )
        stack.callback(place.stop)
        place.start()
        yield place


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, do, say. 0: all is well; 1: something was wrong."""
    parser = argparse.ArgumentParser(prog="scripts/catch-up", description=__doc__)
    parser.add_argument("--down", type=float, default=60.0, help="s that the database is away")
    parser.add_argument("--units", type=int, default=500, help="statements to be run, at least")
    parser.add_argument("--kills", type=int, default=9, help="of coordinators")
    parser.add_argument("--seed", type=int, default=1, help="odd: MariaDB is down; even: PostgreSQL")
    parser.add_argument("--keep", action="store_true", help="keep the folder of logs")
    parser.add_argument("--json", action="store_true", help="the figures as a line of JSON")
    asked = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    folder = new_folder("catch-up")
    all_: list[Asked] = drawn(asked.units, BEFORE_S + asked.down, asked.seed)
    gone = NAMES[asked.seed % 2]
    with placed(folder) as place:
        found = asyncio.run(run(place, all_, gone, asked.down, asked.kills, asked.seed))
    figures: dict[str, Any] = found.figures
    print(json.dumps(figures) if asked.json else found.told())
    for wrong in found.wrong[:50]:
        print(f"WRONG {wrong}")
    if found.wrong or asked.keep:
        print(f"kept: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
