"""``scripts/simulate``."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from . import bugs, run
from .kinds import plan

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "simulation.md"
_START, _END = "<!-- by ./scripts/simulate bugs --page -->\n", "<!-- until here -->\n"


def main() -> int:
    """Parse, do, say."""
    # Coroutines that a killed process leaves behind were never awaited: that is what killing is.
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(prog="scripts/simulate", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("run", help="explore seeds")
    verb.add_argument("--seeds", type=int, default=2_000)
    verb.add_argument("--first", type=int, default=0)
    verb.add_argument("--processes", type=int, default=0)
    verb.add_argument("--no-shrink", action="store_true")
    verb = verbs.add_parser("replay", help="run one seed again, and tell its story")
    verb.add_argument("seed", type=int)
    verb.add_argument("--bug", default="", choices=["", *bugs.BY_NAME])
    verb.add_argument("--shrink", action="store_true", help="drop whatever is not needed for it to fail")
    verb.add_argument("--trace", action="store_true", help="every step")
    verb = verbs.add_parser("bugs", help="plant each bug, and see how soon it is found")
    verb.add_argument("--seeds", type=int, default=1_000)
    verb.add_argument("--stories", action="store_true")
    verb.add_argument(
        "--page", action="store_true", help="write the table into docs/explanation/simulation.md"
    )
    verb.add_argument("--only", default="", choices=["", *bugs.BY_NAME])
    verb = verbs.add_parser("digest", help="one number for the traces of some seeds")
    verb.add_argument("first", type=int)
    verb.add_argument("last", type=int)
    asked = parser.parse_args()
    return {"run": _run, "replay": _replay, "bugs": _bugs, "digest": _digest}[asked.verb](asked)


def _run(asked: argparse.Namespace) -> int:
    seeds = range(asked.first, asked.first + asked.seeds)
    report = run.explore(seeds, processes=asked.processes, say=run.progress(len(seeds)))
    print(
        f"{report.seeds:,} seeds in {report.took_s:,.0f} s ({report.per_minute:,.0f} a minute); "
        f"{report.virtual_s / 3600:,.1f} hours of simulated time; {report.committed:,} transactions committed, "
        f"{report.told:,} answers checked; participants did {report.effects:,} things, "
        f"{report.undone:,} of them to undo others; services went to another coordinator {report.moved:,} times; "
        f"{len(report.failures)} failed"
    )
    print("faults: " + ", ".join(f"{what} {count:,}" for what, count in sorted(report.faults.items())))
    for failure in report.failures:
        print(f"\nseed {failure.seed}: {'; '.join(failure.violations[:3])}\n  {run.command(failure.seed)}")
    if report.failures and not asked.no_shrink:
        print("\nThe shortest story of the first:")
        print("\n".join(run.told(run.shrink(plan(report.failures[0].seed)))))
    return 1 if report.failures else 0


def _replay(asked: argparse.Namespace) -> int:
    world = plan(asked.seed)
    if asked.shrink:
        world = run.shrink(world, bug=asked.bug, say=lambda text: print(f"... {text}", file=sys.stderr))
    result = run.run_plan(world, bug=asked.bug, keep_trace=True)
    if asked.trace:
        print("\n".join(result.trace))
    print("\n".join(run.story.of(result)))
    print(f"digest {result.digest}")
    return 1 if result.violations else 0


def _bugs(asked: argparse.Namespace) -> int:
    missed = 0
    rows = [
        "| planted bug | the rule that is gone | seeds until found | what was seen |",
        "|---|---|---|---|",
    ]
    print("\n".join(rows), flush=True)
    stories = []
    for bug in bugs.BUGS:
        if asked.only not in ("", bug.name):
            continue
        found = run.find(bug, range(asked.seeds))
        missed += found.seed is None
        seeds = "**not found**" if found.seed is None else str(found.seed + 1)
        seen = found.violations[0] if found.violations else ""
        rows.append(f"| `{bug.name}` | {bug.rule} | {seeds} | {seen} |")
        print(rows[-1], flush=True)
        if asked.stories and found.seed is not None:
            small = run.shrink(plan(found.seed), bug=bug.name)
            stories.append(f"\n{bug.name}: {run.command(found.seed, bug.name)} --shrink\n")
            stories += run.told(small, bug=bug.name)
    print("\n".join(stories))
    if asked.page and not asked.only:
        before, _, rest = PAGE.read_text().partition(_START)
        PAGE.write_text(f"{before}{_START}\n" + "\n".join(rows) + f"\n\n{_END}{rest.partition(_END)[2]}")
    return 1 if missed else 0


def _digest(asked: argparse.Namespace) -> int:
    for seed in range(asked.first, asked.last):
        print(seed, run.run_seed(seed).digest)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
