"""Many worlds: exploring seeds on all cores, shrinking what fails, finding planted bugs."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace

from . import bugs, story
from .kinds import plan
from .plan import Fault, Op, Plan
from .world import Result, World

_CHUNK = 25
_TASKS_PER_CHILD = 40
_TRIES = 250
"""So many worlds are tried to shrink one: those that never come to rest take long."""
_TWICE = 100
"""Every so manieth seed is run twice, and must leave the same trace."""


@dataclass
class Failure:
    """A seed whose world was not as it must be."""

    seed: int
    violations: list[str]


@dataclass
class Report:
    """What an exploration has seen."""

    seeds: int = 0
    failures: list[Failure] = field(default_factory=list)
    told: int = 0
    committed: int = 0
    moved: int = 0
    effects: int = 0
    undone: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    virtual_s: float = 0.0
    took_s: float = 0.0

    def add(self, other: Report) -> None:
        """Both together."""
        self.seeds += other.seeds
        self.failures += other.failures
        self.told += other.told
        self.committed += other.committed
        self.moved += other.moved
        self.effects += other.effects
        self.undone += other.undone
        self.virtual_s += other.virtual_s
        for what, count in other.faults.items():
            self.faults[what] = self.faults.get(what, 0) + count

    @property
    def per_minute(self) -> float:
        """Seeds a minute of this machine's time."""
        return self.seeds / self.took_s * 60 if self.took_s else 0.0


def run_plan(world: Plan, *, bug: str = "", keep_trace: bool = False) -> Result:
    """One world. What the simulation itself cannot do counts as a violation, too."""
    planted = bugs.BY_NAME[bug].planted() if bug else contextlib.nullcontext()
    with planted:
        try:
            return World(world, keep_trace=keep_trace).run()
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = f"the world broke: {type(error).__name__}: {error} ({last.name}, line {last.lineno})"
            return Result(world, [text], "", 0.0, 0)


def run_seed(seed: int, *, bug: str = "", keep_trace: bool = False) -> Result:
    """The world of a seed."""
    return run_plan(plan(seed), bug=bug, keep_trace=keep_trace)


def run_chunk(seeds: Sequence[int], bug: str = "") -> Report:
    """Some seeds, in this process; the first failure of a planted bug is enough."""
    report = Report()
    for seed in seeds:
        result = run_seed(seed, bug=bug)
        report.seeds += 1
        report.told += result.told
        report.committed += result.committed
        report.moved += result.moved
        report.effects += result.effects
        report.undone += result.undone
        report.virtual_s += result.virtual_s
        for fault in result.fired:
            report.faults[fault.what] = report.faults.get(fault.what, 0) + 1
        violations = list(result.violations)
        if seed % _TWICE == 0 and not bug and run_seed(seed).digest != result.digest:
            violations.append("the same seed has left another trace")
        if violations:
            report.failures.append(Failure(seed, violations))
            if bug:
                break
    return report


def workers() -> int:
    """One for each core that we may use."""
    return len(os.sched_getaffinity(0))


def explore(
    seeds: Sequence[int],
    *,
    processes: int = 0,
    say: Callable[[Report], None] | None = None,
    enough: int = 10,
) -> Report:
    """All these seeds, on several processes; stops after ``enough`` failures."""
    report = Report()
    began = time.monotonic()
    chunks = iter([seeds[i : i + _CHUNK] for i in range(0, len(seeds), _CHUNK)])
    count = processes or workers()
    # A fresh interpreter: what the caller has imported, or left in its logging, is not there.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, max_tasks_per_child=_TASKS_PER_CHILD) as pool:
        running: set[Future[Report]] = set()
        while True:
            while len(running) < 2 * count and (chunk := next(chunks, None)) is not None:
                running.add(pool.submit(run_chunk, chunk))
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                report.add(future.result())
            report.took_s = time.monotonic() - began
            if say is not None:
                say(report)
            if len(report.failures) >= enough:
                for future in running:
                    future.cancel()
                break
    report.took_s = time.monotonic() - began
    report.failures.sort(key=lambda failure: failure.seed)
    return report


# ---- shrinking ----


def shrink(world: Plan, *, bug: str = "", say: Callable[[str], None] | None = None) -> Plan:
    """The smallest plan that still fails: faults and operations are dropped, and what is left made simpler."""

    tries = 0

    def fails(candidate: Plan) -> bool:
        nonlocal tries
        tries += 1
        return bool(candidate.ops) and tries < _TRIES and bool(run_plan(candidate, bug=bug).violations)

    smaller = True
    while smaller:
        smaller = False
        for candidate in _smaller(world):
            if fails(candidate):
                world, smaller = candidate, True
                if say is not None:
                    say(f"{len(world.ops)} operations, {len(world.faults)} faults")
                break
    return world


def _smaller(world: Plan) -> Iterator[Plan]:
    parts = world.parts()
    for n in range(len(parts)):
        yield world.only(parts[:n] + parts[n + 1 :])
    yield from _sooner(world)
    if world.looks:
        yield replace(world, looks=())
    if world.nodes > 1:
        yield replace(world, nodes=world.nodes - 1)
    if world.addresses:
        yield replace(world, addresses=False)
    if world.loses_lazy:
        yield replace(world, loses_lazy=False)
    if world.retention_s < 600:
        yield replace(world, retention_s=600.0, prune_s=30.0)
    for n, op in enumerate(world.ops):
        for simpler in _simpler(op):
            yield replace(world, ops=(*world.ops[:n], simpler, *world.ops[n + 1 :]))
    for n, fault in enumerate(world.faults):
        if (
            isinstance(fault, Fault)
            and fault.seconds > 1.0
            and not fault.what.endswith(("clock", "back", "skew"))
        ):
            shorter = replace(fault, seconds=round(fault.seconds / 2, 2))
            yield replace(world, faults=(*world.faults[:n], shorter, *world.faults[n + 1 :]))


def _sooner(world: Plan) -> Iterator[Plan]:
    """What is aimed at the nth time of something needs much to happen before: an earlier time, and less before it."""
    for n, fault in enumerate(world.faults):
        for nth in sorted({1, fault.nth // 2, fault.nth - 1} & set(range(1, fault.nth))):
            faults = (*world.faults[:n], replace(fault, nth=nth), *world.faults[n + 1 :])
            for m in range(len(world.ops)):
                yield replace(world, faults=faults, ops=world.ops[:m] + world.ops[m + 1 :])
            if nth == 1:
                yield replace(world, faults=faults)


def _simpler(op: Op) -> Iterator[Op]:
    if op.pause_s:
        yield replace(op, pause_s=0.0)
    if op.gid:
        yield replace(op, gid="")
    if op.how != "commit":
        yield replace(op, how="commit")
    if op.remote:
        yield replace(op, databases=op.databases + op.remote, remote=())
    for nothing in ({"later": 0}, {"fails": 0}, {"hard": 0}, {"no": "", "fickle": False}, {"retries": 0}):
        if any(getattr(op, name) != value for name, value in nothing.items()):
            yield replace(op, **nothing)  # type: ignore[arg-type]
    if op.shape != "sequence":
        yield replace(op, shape="sequence")
    if op.forward:
        yield replace(op, forward=False)
    for name, least in (("tries", 0), ("steps", 1 if op.submit else 0), ("messages", 0)):
        found = getattr(op, name)
        for n in range(len(found) if len(found) > least else 0):
            yield replace(op, **{name: found[:n] + found[n + 1 :]})
    for n in range(len(op.databases)):
        if len(op.databases) + len(op.remote) > 1:
            yield replace(op, databases=op.databases[:n] + op.databases[n + 1 :])


def told(world: Plan, *, bug: str = "") -> list[str]:
    """The story of a world: what was planned, what happened, what is wrong."""
    return story.of(run_plan(world, bug=bug, keep_trace=True))


# ---- planted bugs ----


@dataclass
class Found:
    """How soon a planted bug is found."""

    bug: bugs.Bug
    seed: int | None
    violations: list[str]
    seconds: float


def find(bug: bugs.Bug, seeds: Sequence[int]) -> Found:
    """Run seed after seed until one fails."""
    began = time.process_time()
    report = run_chunk(seeds, bug.name)
    first = report.failures[0] if report.failures else None
    return Found(
        bug,
        first.seed if first else None,
        first.violations if first else [],
        time.process_time() - began,
    )


def command(seed: int, bug: str = "") -> str:
    """What replays it."""
    return f"./scripts/simulate replay {seed}" + (f" --bug {bug}" if bug else "")


def progress(total: int) -> Callable[[Report], None]:
    """Say how far it is, now and then."""
    last = 0.0
    said = 0

    def say(report: Report) -> None:
        nonlocal last, said
        for failure in report.failures[said:]:
            print(f"\nseed {failure.seed}: {'; '.join(failure.violations[:2])}", file=sys.stderr)
        said = len(report.failures)
        now = time.monotonic()
        if now - last < (2.0 if sys.stderr.isatty() else 30.0) and report.seeds < total:
            return
        last = now
        print(
            f"\r{report.seeds:,} of {total:,} seeds, {report.per_minute:,.0f} a minute, "
            f"{len(report.failures)} failed ",
            end="" if sys.stderr.isatty() else "\n",
            file=sys.stderr,
            flush=True,
        )

    return say
