"""``scripts/crash-points``: counts the points where something can go wrong, and runs each once."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

import structlog

from tests.faults import points
from tests.faults.enumeration import Campaign, Job, Places
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.faults.servers import LOGS, databases, with_logs
from tests.support.databases import PG18, new_mariadb, running, running_server
from txcoord.testing.mariadb import MariaDBServer
from txcoord.testing.postgres import PostgresServer

_DATABASES = ("postgresql", "mixed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, do, say. 0: all is well; 1: a run failed; 2: points have not fired."""
    asked = _parser().parse_args(arguments)
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    # What a killed process leaves behind was never closed: that is what killing is.
    warnings.simplefilter("ignore")
    with contextlib.ExitStack() as stack:

        @cache
        def pg18() -> PostgresServer:
            return stack.enter_context(running_server(PG18))

        @cache
        def mariadb() -> MariaDBServer:
            return stack.enter_context(running(new_mariadb()))

        total = _Total()
        for kind in asked.databases or _DATABASES:
            with databases(pg18, mariadb, mixed=kind == "mixed") as places:
                for log in asked.log or LOGS:
                    asyncio.run(_one(asked, places, log, pg18, mariadb, total))
        return total.told(asked)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/crash-points", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in (("count", "say how many points there are"), ("run", "run each once")):
        one = verbs.add_parser(verb, help=text)
        one.add_argument("--log", action="append", choices=LOGS, help="on this log only")
        one.add_argument("--databases", action="append", choices=_DATABASES, help="with these only")
        one.add_argument("--scenario", action="append", choices=list(SCENARIOS), help="this one only")
        one.add_argument("--pairs", action="store_true", help="a second crash during each recovery, too")
        one.add_argument("--each", type=int, default=0, metavar="N", help="each point in at most N scenarios")
        one.add_argument("--part", default="1/1", metavar="I/N", help="every Nth single, from the Ith on")
        if verb == "run":
            one.add_argument(
                "--point",
                metavar="POINT@HIT,...",
                help="replay: go wrong there, then there (client.prepare:lost@2); none: nowhere",
            )
    return parser


class _Total:
    """Over all logs and databases."""

    def __init__(self) -> None:
        self.singles = self.pairs = self.runs = self.failed = 0
        self.unfired: list[str] = []
        self.began = time.monotonic()

    def told(self, asked: argparse.Namespace) -> int:
        """The last word, and the exit status."""
        print(
            f"\nin all: {self.singles + self.pairs:,} crash points ({self.singles:,} single, {self.pairs:,} pairs); "
            f"{self.runs:,} run in {time.monotonic() - self.began:,.0f} s, {self.failed} failed"
        )
        if self.failed:
            return 1
        return 2 if self.unfired else 0


async def _one(
    asked: argparse.Namespace, databases_: Places, log: str, pg18: object, mariadb: object, total: _Total
) -> None:
    async with with_logs(databases_, log, pg18, mariadb) as places:  # type: ignore[arg-type]
        wanted = [s for s in places.scenarios if not asked.scenario or s.name in asked.scenario]
        campaign = Campaign(places, wanted, each=asked.each, say=_progress)
        title = f"log {log}, databases {' and '.join(places.kinds)}"
        print(f"\n{title}", flush=True)
        if getattr(asked, "point", None) is not None:
            await _replay(asked.point, campaign, wanted)
        else:
            await _all(asked, campaign)
    report = campaign.report
    total.singles += sum(report.singles.values())
    total.pairs += sum(report.pairs.values())
    total.runs += report.runs
    total.failed += len(report.failures)
    for command, error in report.failures:
        print(f"  FAILED {command}: {type(error).__name__}: {error}")
    if asked.verb == "run" and not asked.scenario and asked.part == "1/1" and asked.point is None:
        unfired = sorted(places.points - report.fired)
        total.unfired += unfired
        print(f"  {len(places.points & report.fired)} of {len(places.points)} kinds of points have fired")
        for point in unfired:
            print(f"  NOT FIRED {point}")
    for command in report.passed_by:
        print(f"  passed by: {command}")


async def _all(asked: argparse.Namespace, campaign: Campaign) -> None:
    index, _, parts = asked.part.partition("/")
    singles = (await campaign.singles())[int(index) - 1 :: int(parts)]
    print(_table("single", singles), flush=True)
    if asked.verb == "run":
        await campaign.run(singles)
    if asked.pairs:
        pairs = await campaign.pairs(singles)
        print(_table("pairs", pairs), flush=True)
        if asked.verb == "run":
            await campaign.run(pairs)


async def _replay(text: str, campaign: Campaign, wanted: Sequence[Scenario]) -> None:
    crash = () if text == "none" else points.parse(text)
    await campaign.run([(scenario, crash) for scenario in wanted])


def _table(what: str, jobs: Sequence[Job]) -> str:
    """How many, by scenario and by actor."""
    actors = ("client", "coordinator", "participant", "finisher", "scanner", "log")
    by: dict[str, Counter[str]] = {}
    for scenario, crash in jobs:
        by.setdefault(scenario.name, Counter())[crash[-1][0].partition(".")[0]] += 1
    width = max((len(name) for name in by), default=8)
    lines = [f"  {what:{width}} {'all':>7}" + "".join(f" {actor:>11}" for actor in actors)]
    rows: Iterator[tuple[str, Counter[str]]] = iter([*by.items(), ("", sum(by.values(), Counter()))])
    for name, count in rows:
        counts = "".join(f" {count[actor]:>11,}" for actor in actors)
        lines.append(f"  {name:{width}} {count.total():>7,}{counts}")
    return "\n".join(lines)


def _progress(text: str) -> None:
    print(f"  ... {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
