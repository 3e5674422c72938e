"""The transition relation of ``Xa.tla`` in Python, for histories of the real code.

Why restated, and not TLC on generated traces: a simulation makes thousands of histories a minute, and TLC takes a
second to start for each. What makes the restatement sound is ``test_transitions.py``: TLC writes down all states and
steps of ``Xa.tla``, and this module must allow exactly those, in each of the states. That they suffice for what is
promised is TLC's to show, too.

A history is a list of dicts, in the order of what happened::

    {"action": "Commit", "tx": "…", "node": "n1", "branches": ["1", "2"], "at_us": …, "deadline_us": …}
    {"action": "finish", "tx": "…", "branch": "2", "node": "n2", "to": "committed"}
    {"action": "tell", "tx": "…", "node": "c1", "what": "COMMITTED"}

``action`` is a name of ``Xa.tla``. ``tx`` and ``node`` are for people, but for that each transaction is a history of
its own. ``branch`` names the branch where there is one; ``branches`` is Commit's list, of those that voted yes;
``to`` is ``committed`` or ``rolledback``; ``what`` is an answer. Actions in the log carry ``at_us``, the log's clock
as they were written, and ``deadline_us``. Anything else in a dict is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Names = frozenset[str]
_NONE: Names = frozenset()
ANSWERS = ("COMMITTED", "COMMITTING", "ABORTED")
ZONES = range(5)


class NotAllowed(Exception):
    """The model has no such step from there."""


@dataclass(frozen=True, slots=True)
class State:
    """The variables of ``Xa.tla``. A branch that is not in ``db`` is ``none``."""

    row: str = "none"
    ended: bool = False
    enlisted: Names = _NONE
    listed: Names = _NONE
    known: Names = _NONE
    db: frozenset[tuple[str, str]] = frozenset()
    one: str = "none"
    sealed: bool = False
    told: Names = _NONE
    top: int = 0

    def at(self, branch: str) -> str:
        """What its database has of a branch."""
        return next((state for name, state in self.db if name == branch), "none")

    def put(self, branch: str, state: str) -> State:
        """It has that now."""
        return replace(self, db=frozenset({(n, s) for n, s in self.db if n != branch} | {(branch, state)}))

    @property
    def undecided(self) -> bool:
        return self.row in ("none", "active")

    @property
    def no_commit(self) -> bool:
        return "commit" not in self.known and self.one != "committed"

    @property
    def may_commit(self) -> bool:
        return not self.sealed and "ABORTED" not in self.told

    def aborted(self) -> State:
        return replace(self, row="abort", known=self.known | {"abort"})


def _must(holds: bool, why: str) -> None:
    if not holds:
        raise NotAllowed(why)


def _at(s: State, zone: int) -> State:
    _must(zone + 1 >= s.top, f"the clock went back from zone {s.top} to {zone}")
    return replace(s, top=max(s.top, zone))


def tick(s: State, zone: int) -> State:
    _must(zone > s.top, "no time has passed")
    return replace(s, top=zone)


def begin(s: State, zone: int) -> State:
    s = _at(s, zone)
    _must(zone == 0, "after the deadline")
    _must(s.row == "none", f"the row is {s.row}")
    return replace(s, row="active")


def enlist(s: State, branch: str, zone: int) -> State:
    s = _at(s, zone)
    _must(zone == 0, "after the deadline")
    _must(s.undecided, f"the row is {s.row}")
    return replace(s, row="active", enlisted=s.enlisted | {branch})


def drop_out(s: State, branch: str) -> State:
    _must(s.undecided and branch in s.enlisted, f"branch {branch} is not enlisted in an undecided row")
    _must(
        s.at(branch) in ("none", "rolledback"), f"branch {branch} is {s.at(branch)}, and is to be read-only"
    )
    return replace(s, enlisted=s.enlisted - {branch})


def commit(s: State, branches: Names, zone: int) -> State:
    s = _at(s, zone)
    _must(zone == 0, "after the deadline")
    _must(s.undecided, f"the row is {s.row}")
    _must(not s.known, "it was decided before")
    _must(s.one != "committed", "its database has committed it in one phase")
    _must(s.may_commit, "its abort was promised")
    _must(s.enlisted <= branches, f"{sorted(s.enlisted - branches)} had enlisted")
    for b in branches:
        _must(s.at(b) == "prepared", f"branch {b} voted yes and is {s.at(b)}")
    return replace(s, row="commit", listed=branches, known=frozenset({"commit"}))


def rollback(s: State, zone: int) -> State:
    s = _at(s, zone)
    _must(zone <= 2, "after W")
    _must(s.undecided, f"the row is {s.row}")
    _must(s.no_commit, "it is committed")
    return s.aborted()


def deadline_passed(s: State, zone: int) -> State:
    s = _at(s, zone)
    _must(s.row != "none" or zone <= 2, "after W, without a row")
    _must(s.undecided, f"the row is {s.row}")
    _must(s.no_commit, "it is committed")
    return s.aborted()


def orphan_found(s: State, zone: int) -> State:
    s = _at(s, zone)
    _must(s.top >= 2, "before H")
    _must(s.row == "none", f"the row is {s.row}")
    _must(s.one != "committed", "its database has committed it in one phase")
    return s.aborted()


def one_phase_done(s: State) -> State:
    _must(s.undecided, f"the row is {s.row}")
    _must(s.one == "committed", f"its database says {s.one}")
    return replace(s, row="commit", known=s.known | {"commit"}, ended=True)


def rollback_unlogged(s: State) -> State:
    _must(not s.sealed, "sealed before")
    _must(s.no_commit, "it is committed")
    return replace(s, sealed=True)


def prepare_lands(s: State, branch: str) -> State:
    _must(s.at(branch) == "none", f"branch {branch} is {s.at(branch)}")
    return s.put(branch, "prepared")


def session_lost(s: State, branch: str) -> State:
    _must(s.at(branch) == "none", f"branch {branch} is {s.at(branch)}")
    return s.put(branch, "rolledback")


def finish(s: State, branch: str, to: str) -> State:
    _must(s.at(branch) == "prepared", f"branch {branch} is {s.at(branch)}")
    if branch in s.listed:
        _must(to == "committed", f"commit was decided, and branch {branch} is {to}")
    else:
        _must(to == "rolledback", f"branch {branch} is {to} without a decision that lists it")
        _must(bool(s.known) or s.sealed or "ABORTED" in s.told, "nothing was decided")
    return s.put(branch, to)


def session_rolls_back(s: State, branch: str) -> State:
    _must(s.at(branch) == "prepared", f"branch {branch} is {s.at(branch)}")
    _must(branch not in s.listed, f"commit was decided, and lists branch {branch}")
    return s.put(branch, "rolledback")


def local_commit(s: State) -> State:
    _must(s.one == "none", f"its key is {s.one}")
    _must(not s.known, f"{sorted(s.known)} was decided")
    _must(s.may_commit, "its abort was promised")
    return replace(s, one="committed")


def tombstone(s: State) -> State:
    _must(s.one == "none", f"its key is {s.one}")
    return replace(s, one="tombstone")


def branch_finished(s: State) -> State:
    _must(
        s.row in ("commit", "abort") and not s.ended, f"the row is {s.row}{', and ended' if s.ended else ''}"
    )
    for b in s.listed:
        _must(s.at(b) == "committed", f"branch {b} is {s.at(b)}")
    return replace(s, ended=True)


def forget(s: State) -> State:
    _must(s.ended, "nothing that was not forced")
    if s.row == "commit" and s.one == "committed":
        return replace(s, ended=False, row="none", enlisted=_NONE)
    return replace(s, ended=False)


def prune(s: State, zone: int) -> State:
    s = _at(s, zone)
    _must(zone == 4, "before P")
    _must(s.ended, "it has not ended")
    return replace(s, row="none", ended=False, enlisted=_NONE)


def tell(s: State, what: str) -> State:
    _must(what not in s.told, "told before")
    if what == "COMMITTED":
        _must(s.one == "committed" or "commit" in s.known, "commit is not decided")
        for b in s.listed:
            _must(s.at(b) == "committed", f"branch {b} is {s.at(b)}")
    elif what == "COMMITTING":
        _must("commit" in s.known, "commit is not decided")
    else:
        _must(s.no_commit, "it is committed")
    return replace(s, told=s.told | {what})


Step = Callable[..., State]
ACTIONS: Mapping[str, tuple[Step, tuple[str, ...]]] = {
    "tick": (tick, ("zone",)),
    "Begin": (begin, ("zone",)),
    "Enlist": (enlist, ("branch", "zone")),
    "drop_out": (drop_out, ("branch",)),
    "Commit": (commit, ("branches", "zone")),
    "Rollback": (rollback, ("zone",)),
    "DeadlinePassed": (deadline_passed, ("zone",)),
    "OrphanFound": (orphan_found, ("zone",)),
    "OnePhaseDone": (one_phase_done, ()),
    "Rollback_unlogged": (rollback_unlogged, ()),
    "prepare_lands": (prepare_lands, ("branch",)),
    "session_lost": (session_lost, ("branch",)),
    "finish": (finish, ("branch", "to")),
    "session_rolls_back": (session_rolls_back, ("branch",)),
    "local_commit": (local_commit, ()),
    "tombstone": (tombstone, ()),
    "BranchFinished": (branch_finished, ()),
    "forget": (forget, ()),
    "prune": (prune, ("zone",)),
    "tell": (tell, ("what",)),
}
"""What each action is, and what it needs to know beside the state."""

_REPEATED = {
    "tell": lambda s, step: step["what"] in s.told,
    "Rollback_unlogged": lambda s, _: s.sealed,
    "tombstone": lambda s, _: s.one == "tombstone",
    "BranchFinished": lambda s, _: s.ended,
}
"""Steps that change nothing when they come again; TLA+ has them as stuttering."""


@dataclass(frozen=True, slots=True)
class Windows:
    """How long after the deadline a zone ends, in microseconds."""

    grace_us: int
    retention_us: int

    def zone(self, at_us: int, deadline_us: int) -> int:
        """0 until D, 1 until H, 2 until W, 3 until P, 4 after that."""
        h_us = deadline_us + self.grace_us
        ends = (deadline_us, h_us, h_us + self.retention_us // 2, h_us + self.retention_us)
        return sum(at_us > end for end in ends)


@dataclass(slots=True)
class Monitor:
    """Follows histories. ``wrong`` has what the model does not allow, with the steps that led there."""

    windows: Windows
    states: dict[str, State] = field(default_factory=dict)
    steps: int = 0
    wrong: list[str] = field(default_factory=list)
    left_alone: set[str] = field(default_factory=set)
    """Transactions that a person has touched: nothing is promised for them, but that it is seen."""
    _stories: dict[str, list[str]] = field(default_factory=dict)

    def take(self, step: Mapping[str, Any]) -> None:
        """The next step of a history. Raises KeyError where it lacks something."""
        tx, name = step["tx"], step["action"]
        if tx in self.left_alone:
            return
        function, needs = ACTIONS[name]
        state = self.states.get(tx, State())
        story = self._stories.setdefault(tx, [])
        story.append(_in_words(step))
        self.steps += 1
        repeated = _REPEATED.get(name)
        if repeated is not None and repeated(state, step):
            return
        try:
            self.states[tx] = function(state, **{need: self._fact(step, need) for need in needs})
        except NotAllowed as error:
            self.wrong.append(f"{tx}: {story[-1]}: {error}, after " + "; ".join(story[:-1]))
            self.left_alone.add(tx)

    def _fact(self, step: Mapping[str, Any], need: str) -> Any:
        if need == "zone":
            return self.windows.zone(step["at_us"], step["deadline_us"])
        return frozenset(step[need]) if need == "branches" else step[need]


def check(history: Iterable[Mapping[str, Any]], windows: Windows) -> list[str]:
    """What of a history the model does not allow; empty: all of it is allowed."""
    monitor = Monitor(windows)
    for step in history:
        monitor.take(step)
    return monitor.wrong


def _in_words(step: Mapping[str, Any]) -> str:
    words = [str(step["action"])]
    if step.get("branches"):
        words.append(",".join(sorted(step["branches"])))
    words += [str(step[key]) for key in ("branch", "to", "what") if step.get(key)]
    return " ".join(words) + (f" by {step['node']}" if step.get("node") else "")
