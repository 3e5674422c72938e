"""The models are checked: what is promised holds in every state, and each rule that is taken out is missed."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field

import pytest

from . import page, tlc

pytestmark = pytest.mark.timeout(600)
_WORKERS = min(2, len(os.sched_getaffinity(0)))


@dataclass(frozen=True)
class Clean:
    """A configuration in which nothing may be violated, and how many states it has at least."""

    module: str
    config: str
    floor: int
    changed: dict[str, str] = field(default_factory=dict)


STRAY = {"Listed": '{"1"}', "Stray": '{"2"}'}
SAGA = {"Saga": "TRUE", "Deadline": "9"}  # without a deadline
CLEAN = [
    Clean("XaCommit", "XaCommit", 700_000),
    Clean("XaCommit", "XaCommitSmall", 50_000, STRAY),
    Clean("XaCommit", "XaCommitSmall", 7_000, {"Hand": "TRUE"}),
    Clean("XaCommit", "XaCommitRefines", 50_000),
    Clean("XaCommit", "XaCommitLive", 7_000),
    Clean("Enlist", "Enlist", 600_000),
    Clean("OnePhase", "OnePhase", 14_000),
    Clean("OnePhase", "OnePhaseLive", 1_000),
    Clean("TakeOver", "TakeOver", 150_000),
    Clean("Holder", "Holder", 900),
    Clean("Holder", "Holder", 2_000, {"GuardIsEnough": "FALSE"}),
    Clean("Barrier", "Barrier", 30_000),
    Clean("Barrier", "Barrier", 20_000, SAGA),
    Clean("Xa", "Xa", 9_000, {"Branches": '{"1", "2"}'}),
]
FLOOR = 1_000_000
LARGE = 100_000

SLOW_LOG = {"StmtMax": "2", "P": "5", "MaxClock": "6"}
NO_GUARD = {"GuardIsEnough": "FALSE"}


@dataclass(frozen=True)
class Mutant:
    """A rule that is broken, in the configuration of that name, and what has to notice it."""

    config: str
    rules: str
    killed_by: str
    changed: dict[str, str] = field(default_factory=dict)

    @property
    def module(self) -> str:
        return next(m for m in ("XaCommit", "OnePhase", self.config) if self.config.startswith(m))


MUTANTS = [
    # decision, scan and windows
    Mutant("XaCommitSmall", "limit_in_node", "ToldTheTruth"),
    Mutant("XaCommitSmall", "no_compare_and_set", "DecisionImmutable"),
    Mutant("XaCommitSmall", "no_fence", "ToldTheTruth", SLOW_LOG),
    Mutant("XaCommitSmall", "fence_without_limit", "ToldTheTruth", SLOW_LOG),
    Mutant("XaCommitSmall", "fence_is_outcome", "ToldTheTruth", {"Stray": '{"2"}'}),
    Mutant("XaCommitSmall", "tag_unchecked", "ToldTheTruth"),
    Mutant("XaCommitSmall", "vote_missing", "ToldTheTruth"),
    Mutant("XaCommitSmall", "absent_is_done", "EndIsTrue", {"Hand": "TRUE"}),
    Mutant("XaCommitSmall", "unlogged_after_commit", "OneAnswer"),
    Mutant("XaCommitSmall", "no_limit_of_aborts", "ToldTheTruth"),
    Mutant("XaCommitSmall", "late_is_aborted", "ToldTheTruth"),
    Mutant("XaCommitSmall", "prune_before_P", "ToldTheTruth"),
    Mutant("XaCommitSmall", "prune_unfinished", "ToldTheTruth"),
    Mutant("XaCommitSmall", "short_retention", "ToldTheTruth", {"StmtMax": "2"}),
    Mutant("XaCommitSmall", "log_id_unchecked", "ForeignUntouched"),
    Mutant("XaCommitRefines", "vote_missing", "Xa"),
    Mutant("XaCommitLive", "no_scan", "Temporal properties"),
    # enlist against decide
    Mutant("Enlist", "no_version", "NobodyLeftBehind"),
    Mutant("Enlist", "enlist_after_decision", "NobodyLeftBehind"),
    Mutant("Enlist", "vote_missing", "Atomic"),
    Mutant("Enlist", "list_of_the_caller_only", "NobodyLeftBehind"),
    Mutant("Enlist", "refusal_of_repetition", "Atomic"),
    # one-phase against abort
    Mutant("OnePhase", "tombstone_ignored", "ToldTheTruth"),
    Mutant("OnePhase", "absent_is_never", "ToldTheTruth"),
    Mutant("OnePhase", "held_is_never", "ToldTheTruth"),
    Mutant("OnePhase", "probe_skipped", "ToldTheTruth"),
    Mutant("OnePhase", "deadline_without_probe", "ToldTheTruth"),
    Mutant("OnePhase", "not_all_probed", "ToldTheTruth"),
    Mutant("OnePhase", "sealed_after_commit", "ToldTheTruth"),
    Mutant("OnePhase", "marker_without_limit", "ToldTheTruth"),
    Mutant("OnePhase", "no_limit_after_W", "ToldTheTruth"),
    Mutant("OnePhase", "markers_pruned_early", "Exclusive"),
    Mutant("OnePhase", "markers_pruned_under_a_row", "Exclusive"),
    Mutant("OnePhaseLive", "deadline_probed_until_W", "Temporal properties"),
    # take-over
    Mutant("TakeOver", "no_epoch", "OrderIsKept"),
    Mutant("TakeOver", "claim_keeps_epoch", "ParkedStays"),
    Mutant("TakeOver", "end_keeps_epoch", "EndIsFinal"),
    Mutant("TakeOver", "order_without_epoch", "OrderIsKept"),
    # MariaDB
    Mutant("Holder", "ok_is_proof", "EndIsTrue", NO_GUARD),
    Mutant("Holder", "unknown_is_done", "EndIsTrue", NO_GUARD),
    Mutant("Holder", "released_is_done", "EndIsTrue"),
    Mutant("Holder", "no_guard", "NoLimbo"),
    Mutant("Holder", "holder_not_ended", "NoLimbo"),
    Mutant("Holder", "holder_decides", "ObeysTheLog"),
    Mutant("Holder", "kill_unproven", "OtherUntouched"),
    # a participant's barrier
    Mutant("Barrier", "no_tombstone", "UndoneIsUndone"),
    Mutant("Barrier", "marker_not_checked", "Once"),
    Mutant("Barrier", "does_not_wait", "UndoneIsUndone"),
    Mutant("Barrier", "looks_before", "UndoneIsUndone"),
    Mutant("Barrier", "work_apart", "DoneIsDone"),
    Mutant("Barrier", "result_kept_later", "UndoneIsUndone"),
    Mutant("Barrier", "absent_was_never", "Once", SAGA),
    Mutant("Barrier", "pruned_early", "Once", SAGA),
    Mutant("Barrier", "pruned_one_by_one", "Once"),
    Mutant("Barrier", "held_is_pruned", "HeldIsKnown"),
]


def _id(case: Clean | Mutant) -> str:
    return "-".join(filter(None, [case.config, getattr(case, "rules", ""), *case.changed]))


def _broken(rules: str) -> dict[str, str]:
    return {"Broken": f'{{"{rules}"}}'}


@pytest.mark.parametrize("case", CLEAN, ids=_id)
def test_nothing_is_violated(case: Clean) -> None:
    found = tlc.check(
        case.module, case.config, changed=case.changed, workers=_WORKERS, large=case.floor >= LARGE
    )
    print(f"{_id(case)}: {found.distinct:,} states in {found.seconds:.1f} s")
    assert not found.violated, "\n".join([found.violated, *found.trace])
    assert found.distinct >= case.floor


def test_together_they_are_a_million_states() -> None:
    assert sum(case.floor for case in CLEAN) >= FLOOR


@pytest.mark.parametrize("mutant", MUTANTS, ids=_id)
def test_a_rule_that_is_broken_is_noticed(mutant: Mutant) -> None:
    found = tlc.check(mutant.module, mutant.config, changed={**mutant.changed, **_broken(mutant.rules)})
    how = f"{found.violated} after {len(found.trace)} steps: {' '.join(found.trace)}"
    print(f"{_id(mutant)}: {how} ({found.seconds:.1f} s)")
    assert found.violated == mutant.killed_by
    assert found.trace


def test_every_rule_of_the_models_has_its_mutant() -> None:
    asked = {(path.stem, rule) for path in tlc.HERE.glob("*.tla") for rule in tlc.rules(path.read_text())}
    assert asked == {(m.module, m.rules) for m in MUTANTS}


def test_every_action_is_in_the_table_of_its_module() -> None:
    for path in tlc.HERE.glob("*.tla"):
        text = path.read_text()
        missing = tlc.actions(text) - tlc.explained(text)
        assert not missing, f"{path.name}: {sorted(missing)}"


def test_the_code_that_the_tables_name_is_there() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=tlc.ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for path in tlc.HERE.glob("*.tla"):
        for name in tlc.files(path.read_text()):
            assert any(known.endswith(f"/{name}") or known == name for known in tracked), (
                f"{path.name}: {name}"
            )


def test_the_page_has_the_tables_of_the_modules() -> None:
    assert page.generated() in page.PAGE.read_text(), "run: python -m tests.model.page"
