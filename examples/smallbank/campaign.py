"""Long runs of the bank while everything around it breaks, with a checker over the whole history.

Three coordinators on one log (on SQLite one), two services, two databases, two participants for payments of TCC and
saga and mixes with XA, and the log's own server where it has one.
Drawn from the seed: who is killed (SIGKILL) and when, some two at once, some again in the middle of their recovery; who
is stopped (SIGSTOP), for less or more than the lease; what the network does between coordinators, services and
databases (cut, slow, reset, silent in one direction or both); and who pays whom.

In the end an independent checker (examples/smallbank/check.py) judges the history: all calls and replies, what every
coordinator said of every payment, and what is in the databases. Exit status 0 only if nothing was lost, doubled, torn
or left behind, and nobody was told a false answer. Histories and a report with a picture are written to --out; with
`--json` the figures of each run are a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .report import write
from .run import Plan, Result, add_options, main_loop, run, typed
from .show import Screen, conclusion, summary
from .world import LOGS, ROOT

NODES = 3
TILLS = 2
LEASE_S = 3.0
_ALL = [
    (savings, log) for log in ("postgresql", "mariadb", "sqlite") for savings in ("postgresql", "mariadb")
]
_ALL_KILLS = 105
_ALL_TRANSACTIONS = 3_500
_KILLS = 200


async def campaign(plans: Sequence[Plan], out: Path, as_json: bool) -> int:
    """All runs, one after the other; answers the exit status."""
    good, begun = True, time.monotonic()
    histories, total = [], {"runs": 0, "kills": 0, "stops": 0, "jams": 0, "transactions": 0, "anomalies": 0}
    for number, plan in enumerate(plans, 1):
        screen = Screen(plan.kills, 10.0, events=plan.kills <= 20)
        screen.say(
            f"[bold]campaign[/] {number} of {len(plans)}  seed [bold]{plan.seed}[/], {plan.kills} kills, "
            f"{plan.disturbances} stops and network faults; databases postgresql+{plan.savings}, log on {plan.log}  "
            f"(again: --kills {plan.kills} {plan.options})"
        )
        result = await run(plan, screen)
        screen.console.print(summary(result))
        for line in conclusion(result.verdict):
            screen.say(line)
        facts = figures(plan, result)
        if as_json:
            screen.console.print_json(json.dumps(facts), indent=None)
        for key in total:
            total[key] += facts.get(key, 1)
        good = good and result.verdict.good
        assert result.history.file is not None
        histories.append(result.history.file)
        report = write(histories, out / "report.html")
        screen.say(f"report: {report}, history: {result.history.file}")
    if len(plans) > 1:
        screen.say(
            "together: "
            + ", ".join(f"{value:,} {key}" for key, value in total.items())
            + f" in {(time.monotonic() - begun) / 60:.1f} minutes, seed {plans[0].seed}"
        )
        if as_json:
            total |= {"seed": plans[0].seed, "seconds": round(time.monotonic() - begun)}
            screen.console.print_json(json.dumps({"together": total}), indent=None)
    return 0 if good else 1


def figures(plan: Plan, result: Result) -> dict[str, Any]:
    """What is worth keeping of a run."""
    verdict = result.verdict
    return {
        "seed": plan.seed,
        "log": plan.log,
        "savings": plan.savings,
        "sync": "async" not in plan.services,
        "services": list(plan.services),
        "coordinators": plan.nodes,
        "kills": result.kills.total(),
        "kills_by_victim": dict(sorted(result.kills.items())),
        "stops": result.stops,
        "jams": result.jams,
        "ended_by_themselves": len(result.ended),
        "payments": len(result.clients.wishes),
        "transactions": len(result.clients.wishes),
        "calls": verdict.calls,
        "observations": verdict.observations,
        "told": dict(sorted(verdict.told.items())),
        "in_doubt": dict(sorted(verdict.doubted.items())),
        "asked_again": result.clients.repeats,
        "one_phase": verdict.one_phase,
        "participants_branches": verdict.branches,
        "seconds": round(result.busy_s),
        "longest_wait_s": round(result.clients.longest_s, 1),
        "anomalies": len(verdict.anomalies),
    }


def plans_of(args: argparse.Namespace, out: Path) -> list[Plan]:
    """The runs that the command line asks for."""
    seed = secrets.randbelow(1_000_000) if args.seed is None else args.seed
    savings = "mariadb" if args.mariadb else "postgresql"
    if args.all:
        pairs = _ALL
    else:
        logs = ("sqlite", "postgresql") if args.log == "both" else (args.log,)
        pairs = [(savings, log) for log in logs]
    kills = args.kills or (_ALL_KILLS if args.all else _KILLS)
    return [
        Plan(
            seed,
            log,
            args.transactions if args.transactions is not None else _ALL_TRANSACTIONS * args.all,
            kills,
            args.clients,
            pause_s=(0.2, 1.2),
            lanes=2,
            keep=args.keep,
            savings=savings,
            services=("sync", "sync") if args.sync else ("async", "sync"),
            nodes=1 if log == "sqlite" else args.nodes,
            tills=TILLS,
            disturbances=kills // 2 if args.disturbances is None else args.disturbances,
            faulty_network=True,
            lease_s=LEASE_S,
            history=out / f"{number}-{savings}-log-{log}.jsonl",
            command=typed("campaign"),
        )
        for number, (savings, log) in enumerate(pairs, 1)
    ]


def main() -> int:
    """Run the campaign from the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/campaign", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="the long form: both pairs of databases with each log, "
        f"{_ALL_KILLS} kills and at least {_ALL_TRANSACTIONS} transactions with each; takes half an hour",
    )
    parser.add_argument("--kills", type=int, help=f"SIGKILLs in each run ({_KILLS})")
    parser.add_argument("--disturbances", type=int, help="stops and network faults (half as many as kills)")
    parser.add_argument("--transactions", type=int, help="payments in each run, at least (as many as come)")
    parser.add_argument(
        "--log", choices=(*LOGS, "both"), default="both", help="where the log is (both: sqlite, postgresql)"
    )
    parser.add_argument("--nodes", type=int, default=NODES, help="coordinators (%(default)s; on SQLite 1)")
    add_options(parser)
    parser.add_argument("--seed", type=int, help="who dies when, and who pays whom (random, and printed)")
    parser.add_argument("--clients", type=int, default=16, help="how many at once (%(default)s)")
    parser.add_argument("--out", type=Path, help="where histories and report go (.cache/campaign/TIME)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON too")
    parser.add_argument("--keep", action="store_true", help="keep logs and data in the end")
    args = parser.parse_args()
    out = args.out or ROOT / ".cache" / "campaign" / time.strftime("%Y%m%d-%H%M%S")
    return main_loop(campaign(plans_of(args, out), out, args.json))


if __name__ == "__main__":
    sys.exit(main())
