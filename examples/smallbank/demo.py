"""Payments across two databases while coordinator, service and databases are killed with SIGKILL.

Two real database servers, PostgreSQL, or one of them MariaDB, a coordinator and a bank's service are started, each a
process of its own. Clients
move money between the databases, and each payment is one transaction over both, while processes die at random
moments and come back. In the end an independent checker compares what the clients were told with what the
databases say. Exit status 0 only if nothing was lost, doubled, torn or left prepared, and nobody was told a
false answer.
"""

from __future__ import annotations

import argparse
import secrets
import sys

from .run import Plan, add_options, main_loop, run
from .show import Screen, conclusion, summary
from .world import LOGS


async def demo(plan: Plan) -> int:
    """The whole show; answers the exit status."""
    screen = Screen(plan.kills, 5.0)
    screen.say(
        f"[bold]txcoord demo[/]  seed [bold]{plan.seed}[/], log on {plan.log}  (again: {plan.options})"
    )
    result = await run(plan, screen)
    screen.console.print(summary(result))
    for line in conclusion(result.verdict):
        screen.say(line)
    return 0 if result.verdict.good else 1


def main() -> int:
    """Run the demo from the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--payments", type=int, default=4_000, help="how many, at least (%(default)s)")
    parser.add_argument("--kills", type=int, default=16, help="how many SIGKILLs (%(default)s)")
    parser.add_argument("--seed", type=int, help="who dies when, and who pays whom (random, and printed)")
    parser.add_argument("--log", choices=LOGS, default="sqlite", help="where the log is (%(default)s)")
    add_options(parser)
    parser.add_argument("--clients", type=int, default=24, help="how many at once (%(default)s)")
    parser.add_argument("--accounts", type=int, default=500, help="on each side (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep logs and data in the end")
    args = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if args.seed is None else args.seed
    plan = Plan(
        seed,
        args.log,
        args.payments,
        args.kills,
        args.clients,
        args.accounts,
        pause_s=(0.8, 2.5),
        keep=args.keep,
        savings="mariadb" if args.mariadb else "postgresql",
        services=("sync" if args.sync else "async",),
    )
    return main_loop(demo(plan))


if __name__ == "__main__":
    sys.exit(main())
