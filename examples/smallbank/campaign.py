"""Long runs under SIGKILL: coordinator, service, both databases, and the log's own server where it has one.

Victims, moments and payments are drawn from the seed; some blows kill two at once, some kill again in the middle
of a recovery. In the end an independent checker compares what the clients were told with what the databases say.
Exit status 0 only if nothing was lost, doubled, torn or left prepared, and nobody was told a false answer. With
`--json` the figures of each run are a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from collections.abc import Sequence
from typing import Any

from .run import Plan, Result, add_options, main_loop, run
from .show import Screen, conclusion, summary
from .world import LOGS


async def campaign(plans: Sequence[Plan], as_json: bool) -> int:
    """All runs, one after the other; answers the exit status."""
    good = True
    for plan in plans:
        screen = Screen(plan.kills, 10.0, events=plan.kills <= 20)
        screen.say(
            f"[bold]campaign[/]  seed [bold]{plan.seed}[/], {plan.kills} kills, log on {plan.log}"
            f"  (again: --kills {plan.kills} {plan.options})"
        )
        result = await run(plan, screen)
        screen.console.print(
            summary(result.clients, result.verdict, result.kills, result.busy_s, result.settled_s)
        )
        for line in conclusion(result.verdict):
            screen.say(line)
        if as_json:
            screen.console.print_json(json.dumps(figures(plan, result)), indent=None)
        good = good and result.verdict.good
    return 0 if good else 1


def figures(plan: Plan, result: Result) -> dict[str, Any]:
    """What is worth keeping of a run."""
    verdict = result.verdict
    return {
        "seed": plan.seed,
        "log": plan.log,
        "savings": plan.savings,
        "sync": plan.sync,
        "kills": result.kills.total(),
        "kills_by_victim": dict(sorted(result.kills.items())),
        "payments": len(result.clients.payments),
        "told": dict(sorted(verdict.told.items())),
        "in_doubt": dict(sorted(verdict.doubted.items())),
        "asked_again": result.clients.repeats,
        "one_phase": verdict.one_phase,
        "seconds": round(result.busy_s),
        "longest_wait_s": round(result.clients.longest_s, 1),
        "anomalies": len(verdict.anomalies),
    }


def main() -> int:
    """Run the campaign from the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/campaign", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs with each log (%(default)s)")
    parser.add_argument(
        "--log", choices=(*LOGS, "both"), default="both", help="where the log is (both: sqlite, postgresql)"
    )
    add_options(parser)
    parser.add_argument("--seed", type=int, help="who dies when, and who pays whom (random, and printed)")
    parser.add_argument("--clients", type=int, default=16, help="how many at once (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON too")
    parser.add_argument("--keep", action="store_true", help="keep logs and data in the end")
    args = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if args.seed is None else args.seed
    logs = ("sqlite", "postgresql") if args.log == "both" else (args.log,)
    plans = [
        Plan(
            seed,
            log,
            0,
            args.kills,
            args.clients,
            pause_s=(0.2, 1.2),
            keep=args.keep,
            savings="mariadb" if args.mariadb else "postgresql",
            sync=args.sync,
        )
        for log in logs
    ]
    return main_loop(campaign(plans, args.json))


if __name__ == "__main__":
    sys.exit(main())
