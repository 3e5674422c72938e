"""The simulation in short: a thousand seeds, the same trace for the same seed, and planted bugs found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim import bugs, run
from tests.sim.__main__ import PAGE
from tests.sim.kinds import plan

_ROOT = Path(__file__).parent.parent.parent
SEEDS = int(os.environ.get("TXCOORD_SEEDS", "1000"))


@pytest.mark.timeout(900)
def test_nothing_is_torn_lost_or_left_behind() -> None:
    """TXCOORD_SEEDS says how many seeds. Half of them are always the same, half are drawn by the commit: in the course
    of time many are seen."""
    drawn = _of_commit()
    report = run.explore([*range(SEEDS // 2), *range(drawn, drawn + SEEDS - SEEDS // 2)])
    failed = [f"{f.violations[:2]}: {run.command(f.seed)}" for f in report.failures]
    if failed:
        # The same command tells it again, with --shrink.
        failed += ["The shortest story of the first:", *run.told(run.shrink(plan(report.failures[0].seed)))]
    assert not failed, "\n".join(failed)
    assert report.seeds == SEEDS
    # The worlds were no empty ones.
    assert report.committed > SEEDS
    assert report.told > 2 * SEEDS
    assert report.moved > SEEDS // 20
    assert report.effects > SEEDS
    assert report.undone > SEEDS // 10
    assert len(report.faults) >= 20, sorted(report.faults)


def _of_commit() -> int:
    """The first of the seeds that are this commit's own."""
    asked = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(asked, cwd=_ROOT, capture_output=True, text=True, check=False).stdout.strip()
    return 1_000_000 + int(commit[:5] or "0", 16) * 1_000


def _digests(hash_seed: str, first: int, last: int) -> str:
    return subprocess.run(
        [sys.executable, "-m", "tests.sim", "digest", str(first), str(last)],
        cwd=_ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout


@pytest.mark.timeout(300)
def test_the_same_seed_leaves_the_same_trace_whatever_the_order_of_sets() -> None:
    one, other = _digests("1", 0, 30), _digests("2", 0, 30)
    assert one == other
    assert len(set(one.split()[1::2])) == 30


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", bugs.BY_NAME)
def test_a_planted_bug_is_found(name: str) -> None:
    """The command that makes the page starts at the first seed. Here the one that it found comes first; if the code
    under test has moved since, the others are tried."""
    first = next(int(row[2]) - 1 for row in _rows() if row[0] == f"`{name}`")
    found = run.find(bugs.BY_NAME[name], [first, *range(1_000)])
    assert found.seed is not None


def _rows() -> list[list[str]]:
    lines = PAGE.read_text().partition("<!-- by ./scripts/simulate bugs --page -->")[2].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]


@pytest.mark.timeout(300)
def test_what_fails_is_shrunk_to_a_story_that_still_fails() -> None:
    found = run.find(bugs.BY_NAME["no-fence"], range(1_000))
    assert found.seed is not None
    whole = plan(found.seed)
    small = run.shrink(whole, bug="no-fence")
    assert len(small.parts()) <= len(whole.parts())
    assert len(small.ops) == 1
    story = run.told(small, bug="no-fence")
    assert any("without an ABORT in the log" in line for line in story)
    assert run.command(found.seed, "no-fence") == f"./scripts/simulate replay {found.seed} --bug no-fence"


def test_the_page_has_every_planted_bug() -> None:
    page = PAGE.read_text()
    assert not [bug.name for bug in bugs.BUGS if f"| `{bug.name}` | {bug.rule} | " not in page]
    assert "not found" not in page
