"""Units of work on one connection: whatever the order in which they work and end, each one's work is there if it
committed and not if it rolled back, or the whole is doomed and says so. Tried on a savepoint stack in memory."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from txcoord_client import OverlappingUnits, Rejected
from txcoord_client._instrument.units import Unit, Units


class DatabaseError(Exception):
    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


@dataclass
class Database:
    """One transaction on PostgreSQL, or on MariaDB."""

    postgresql: bool
    rows: list[int] = field(default_factory=list)
    savepoints: list[tuple[str, int]] = field(default_factory=list)
    failed: bool = False

    def run(self, sql: str) -> None:
        match = re.fullmatch(r"(SAVEPOINT|RELEASE SAVEPOINT|ROLLBACK TO SAVEPOINT) (\w+)", sql)
        if self.failed and not sql.startswith("ROLLBACK TO"):
            raise DatabaseError("25P02")
        if match is None:
            if sql == "FAIL":
                self.failed = self.postgresql
                raise DatabaseError("22012")
            if sql.startswith("INSERT"):
                self.rows.append(int(sql.split()[1]))
            return
        what, name = match.groups()
        if what == "SAVEPOINT":
            if not self.postgresql:
                self.savepoints = [s for s in self.savepoints if s[0] != name]
            self.savepoints.append((name, len(self.rows)))
            return
        at = max((i for i, s in enumerate(self.savepoints) if s[0] == name), default=-1)
        if at < 0:
            self.failed = self.postgresql
            raise DatabaseError("3B001")
        if what == "RELEASE SAVEPOINT":
            del self.savepoints[at:]
        else:
            del self.rows[self.savepoints[at][1] :]
            del self.savepoints[at + 1 :]
            self.failed = False


class Whole:
    active = True
    reason = ""

    def set_rollback_only(self, reason: str, message: str) -> None:
        self.reason = self.reason or reason


@dataclass
class Application:
    """What the code that uses one unit believes: as if it had a connection of its own."""

    unit: Unit
    db: Database
    rows: list[int] = field(default_factory=list)
    nested: list[int] = field(default_factory=list)

    def send(self, sql: str) -> bool:
        """Was it done?"""
        try:
            first, sent = self.unit.before(sql)
        except Rejected:
            return False
        for statement in first:
            try:
                self.db.run(statement)
            except DatabaseError as error:
                self.unit.broken(error)
                return False
        try:
            self.db.run(sent)
        except DatabaseError as error:
            self.unit.on_error(error)
            return False
        return True

    def end(self, commit: bool) -> list[int]:
        """What it has committed."""
        rows, self.rows, self.nested = self.rows, [], []
        try:
            statements, error = self.unit.end(commit)
        except Rejected:
            return []
        try:
            for statement in statements:
                self.db.run(statement)
        except DatabaseError as failure:
            self.unit.broken(failure)
            return []
        return rows if commit and error is None else []

    def do(self, what: str, number: int) -> list[int]:
        if what == "write":
            if self.send(f"INSERT {number}"):
                self.rows.append(number)
        elif what == "read":
            self.send("SELECT 1")
        elif what == "fail":
            self.send("FAIL")
        elif what == "nest":
            if self.send(f"SAVEPOINT own_{len(self.nested)}"):
                self.nested.append(len(self.rows))
        elif what in ("release", "back") and self.nested:
            at = self.nested.pop()
            name = f"own_{len(self.nested)}"
            if what == "release":
                self.send(f"RELEASE SAVEPOINT {name}")
            elif self.send(f"ROLLBACK TO SAVEPOINT {name}"):
                del self.rows[at:]
                self.send(f"RELEASE SAVEPOINT {name}")
        elif what == "unseen":
            self.unseen(number)
        elif what in ("commit", "rollback"):
            return self.end(what == "commit")
        return []

    def unseen(self, number: int) -> None:
        """Something is done past it, on the driver's own connection."""
        try:
            self.unit.work_unseen()
            self.db.run(f"INSERT {number}")
        except (Rejected, DatabaseError):
            return
        self.rows.append(number)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("write", "write", "read", "nest", "release", "back", "fail"),
                *("commit", "commit", "rollback", "unseen", "close"),
            ]
        ),
        st.integers(0, 2),
    ),
    max_size=24,
)


def played(steps: list[tuple[str, int]], family: str) -> tuple[Whole, Database, list[int]]:
    """Play it to the end of the transaction; what the applications believe to be committed."""
    whole, db = Whole(), Database(family == "postgresql")
    units = Units(whole, SimpleNamespace(resource="accounts", held=None), family)
    applications = [Application(units.unit(), db) for _ in range(3)]
    committed: list[int] = []
    for number, (what, who) in enumerate(steps):
        if what == "close":  # the transaction has begun to end; others don't know yet
            whole.active = False
        committed += applications[who].do(what, number)
    whole.active = False
    try:
        undo = units.finish()
        if undo:
            db.run(undo)
        db.run("SELECT 1")
    except Rejected:
        pass
    return whole, db, committed


@settings(max_examples=600)
@given(STEPS, st.sampled_from(["postgresql", "mysql"]))
def test_each_unit_has_what_it_committed_or_the_whole_is_doomed(
    steps: list[tuple[str, int]], family: str
) -> None:
    whole, db, committed = played(steps, family)
    event("doomed" if whole.reason else "committed")
    if not whole.reason:
        assert sorted(db.rows) == sorted(committed)


@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "read", "nest", "release", "back", "fail", "commit", "rollback"]))
    )
)
def test_one_unit_at_a_time_never_dooms_for_its_order(steps: list[tuple[str]]) -> None:
    whole, _, _ = played([(what, 0) for (what,) in steps], "postgresql")
    assert whole.reason in ("", "UNIT_OPEN")


@pytest.mark.parametrize("family", ["postgresql", "mysql"])
@pytest.mark.parametrize(
    "steps",
    [
        "0read 1write 0read 1commit 0rollback",
        "0read 1read 0read 1rollback 0rollback",
        "0write 1read 0write 1rollback 0commit",
        "0write 1write 1commit 0commit",
        "0write 1write 1rollback 0commit",
        "0write 0fail 0rollback 1write 1commit",
        "0nest 0write 0back 0write 0commit",
        "0write 1read 0commit 1rollback",
    ],
)
def test_what_does_not_doom(steps: str, family: str) -> None:
    whole, db, committed = played([(s[1:], int(s[0])) for s in steps.split()], family)
    assert whole.reason == ""
    assert sorted(db.rows) == sorted(committed)


def test_a_failed_unit_gives_way() -> None:
    """PostgreSQL takes nothing but its rollback. On MariaDB it may go on."""
    for family, reason in (("postgresql", ""), ("mysql", "OVERLAPPING_UNITS")):
        steps = [("write", 0), ("fail", 0), ("write", 1), ("commit", 1), ("rollback", 0)]
        whole, db, committed = played(steps, family)
        assert whole.reason == reason
        assert reason or db.rows == committed == [2]


@pytest.mark.parametrize(
    "steps",
    [
        "0write 1write 0commit 1commit",
        "0write 1write 0rollback 1commit",
        "0write 1write 0write 1rollback 0commit",
        "0write 1write 1commit 0rollback",
        "0nest 1write 1commit 0back",
        "0write 1write 2write 1commit",
        "0write 1unseen 0rollback",
    ],
)
def test_what_overlaps(steps: str) -> None:
    whole, _, _ = played([(s[1:], int(s[0])) for s in steps.split()], "postgresql")
    assert whole.reason == "OVERLAPPING_UNITS"


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("work", ["write", "unseen"])
def test_what_ends_while_the_whole_is_ending_dooms_it(work: str, end: str) -> None:
    """Nothing can be sent any more: it would be prepared, though it was rolled back or told to be lost."""
    whole, _, committed = played([(work, 0), ("close", 0), (end, 0)], "postgresql")
    assert (whole.reason, committed) == ("UNIT_OPEN", [])


def test_unseen_work_cannot_be_undone_with_a_failed_statement() -> None:
    whole, _, committed = played([("unseen", 0), ("fail", 0), ("commit", 0)], "postgresql")
    assert (whole.reason, committed) == ("NOT_SUPPORTED", [])


def test_nothing_can_be_done_with_what_is_doomed() -> None:
    whole: Any = Whole()
    units = Units(whole, SimpleNamespace(resource="accounts", held=None), "postgresql")
    older, younger = units.unit(), units.unit()
    for unit in (older, younger):
        unit.before("INSERT 1")
    for _ in range(2):
        with pytest.raises(OverlappingUnits):
            older.end(True)
        with pytest.raises(OverlappingUnits):
            older.before("SELECT 1")
        older.open = True
    assert younger.end(False) == ([], None)
    with pytest.raises(OverlappingUnits):
        units.finish()
