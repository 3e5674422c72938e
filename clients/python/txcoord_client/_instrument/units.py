"""Units of work on a branch's connection: what the application sees as transactions of its own.

Everything that it opens on an instrumented engine inside a global transaction works on the one connection of the
branch. Each piece that it begins and commits, or rolls back, is a unit: a savepoint. This module knows the order of
the units and says what is to be sent; sending it is the drivers' part.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from .. import _forks
from .._xa.branch import reason_of
from .._xa.drivers import sqlstate_of
from ..errors import NoTransaction, OverlappingUnits, Rejected, TxcoordError
from ..protocol import reasons
from . import statements


class Whole(Protocol):
    """What of a Transaction the units need."""

    @property
    def active(self) -> bool: ...

    def set_rollback_only(self, reason: str, message: str) -> None: ...


class Branch(Protocol):
    """What of a Branch they need."""

    resource: str
    held: Any


class Units:
    """The units of one branch, from the oldest to the youngest."""

    def __init__(self, whole: Whole, branch: Branch, family: str) -> None:
        self.whole = whole
        self.branch = branch
        self.resource = branch.resource
        self.family = family
        self.lock = threading.RLock()
        self.over = False
        """Has the branch ended, or is it about to?"""
        self.lost: TxcoordError | None = None
        """Why nothing more can be done on its connection."""
        self._open: list[Unit] = []
        """Those that have a savepoint."""
        self._loose: set[Unit] = set()
        """Those that did something without one."""
        self._busy = 0
        self._serial = 0

    def unit(self) -> Unit:
        """For one checkout of a connection."""
        with self.lock:
            self._serial += 1
            return Unit(self, self._serial)

    def check(self) -> None:
        """Raises where nothing more can be done."""
        _forks.check()  # The connection is the parent's.
        if self.over or not self.whole.active:
            raise NoTransaction(
                f"the global transaction to which this connection to {self.resource!r} belonged has ended: open a new "
                "session or connection"
            )
        if self.lost is not None:
            raise _again(self.lost)

    def doom(self, error: TxcoordError) -> TxcoordError:
        """Nothing more can be done on this connection, and the transaction will not commit."""
        if self.lost is None:
            self.lost = error
        self.whole.set_rollback_only(error.reason, error.message)
        return error

    def finish(self) -> str:
        """The branch is about to be prepared. What to send first; empty: nothing. Raises Rejected when a unit is
        neither committed nor rolled back, or still at work: what would be prepared is not what was meant."""
        if not self.lock.acquire(blocking=False):
            raise self.doom(self._unfinished("is still at work"))
        try:
            if self._busy:
                raise self.doom(self._unfinished("is still at work"))
            if self.lost is not None:
                raise _again(self.lost)
            self.over = True
            if self._loose or any(not unit.reads or unit.held >= 0 for unit in self._open):
                raise self.doom(self._unfinished("has work that was neither committed nor rolled back"))
            return f"ROLLBACK TO SAVEPOINT {self._open[0].name}" if self._open else ""
        finally:
            self.lock.release()

    def _unfinished(self, what: str) -> Rejected:
        return Rejected(
            f"the transaction ended while a session or connection on {self.resource!r} {what}: end it inside",
            reason=reasons.UNIT_OPEN,
        )

    # ---- for units ----

    def _let_in(self, unit: Unit) -> list[str]:
        """A unit is about to work: what looks only read gives way, so that neither lies inside the other."""
        sent: list[str] = []
        while self._open and self._open[-1] is not unit:
            top = self._open[-1]
            if top.failed and not top.nested and top.held < 0:
                # Its statement failed: all that it can do is to roll back.
                sent += _undo(top.name)
                top.undone = True
            elif top.reads and not top.nested:
                sent.append(f"RELEASE SAVEPOINT {top.name}")
            else:
                break
            self._open.pop()
            top.anchored = False
        if self._open and self._open[-1] is not unit and self._open[-1].failed:
            raise self.doom(self._overlap("a statement of one has failed, and nothing can be sent"))
        return sent

    def _begin(self, unit: Unit) -> list[str]:
        sent = self._let_in(unit)
        unit.name = f"txc_u{len(self._open) + 1}"
        unit.anchored, unit.failed, unit.held, unit.nested = True, False, -1, []
        self._open.append(unit)
        return [*sent, f"SAVEPOINT {unit.name}"]

    def _works(self, unit: Unit, reads: bool) -> list[str]:
        """A unit that is open sends a statement: it lands in the youngest one, whosever that is."""
        if self._open[-1] is unit:
            return []
        sent = self._let_in(unit)
        if not reads:
            for other in self._younger(unit):
                other.held = len(other.nested)
        return sent

    def _younger(self, unit: Unit) -> list[Unit]:
        return self._open[self._open.index(unit) + 1 :]

    def _nested(self, unit: Unit, what: str, name: str) -> None:
        """A unit sets or ends a savepoint of its own."""
        if what == "SAVEPOINT":
            unit.nested.append(name)
            return
        if self._younger(unit):
            raise self.doom(self._overlap("a savepoint ends"))
        if name not in unit.nested:
            return  # The database will say so.
        at = len(unit.nested) - 1 - unit.nested[::-1].index(name)
        if what == "RELEASE":
            del unit.nested[at:]
            unit.held = min(unit.held, at)
            return
        if unit.held > at:
            raise self.doom(self._overlap("a savepoint is rolled back, and with it the work of another one,"))
        del unit.nested[at + 1 :]
        unit.failed = False

    def _end(self, unit: Unit, commit: bool) -> list[str]:
        sent = self._let_in(unit)
        if self._open[-1] is not unit:
            raise self.doom(self._overlap("it ends"))
        if unit.held >= 0 and not commit:
            raise self.doom(self._overlap("it rolls back, and with it the work of another one,"))
        self._open.pop()
        unit.anchored = False
        if not commit:
            return [*sent, *_undo(unit.name)]
        if self._open and (unit.held >= 0 or not unit.reads):
            # Committed, for its own code: rolling the older one back would undo it.
            older = self._open[-1]
            older.held = len(older.nested)
        return [*sent, f"RELEASE SAVEPOINT {unit.name}"]

    def _loose_end(self, commit: bool) -> None:
        """Of work outside of any savepoint of its own."""
        if not commit:
            raise self.doom(
                Rejected(
                    f"what was done on the driver's own connection to {self.resource!r} cannot be undone alone: "
                    "send a statement by SQLAlchemy first, or use run_sync()",
                    reason=reasons.NOT_SUPPORTED,
                )
            )

    def _forget(self, unit: Unit) -> None:
        unit.anchored = False
        self._loose.discard(unit)
        if unit in self._open:
            self._open.remove(unit)

    def _overlap(self, what: str) -> OverlappingUnits:
        return OverlappingUnits(
            f"two sessions or connections on {self.resource!r} overlap: {what} while both have work that is not ended. "
            "Inside a global transaction they share one connection: end them in reverse order, or use one session"
        )

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Something is being sent."""
        with self.lock:
            self._busy += 1
        try:
            yield
        finally:
            with self.lock:
                self._busy -= 1


class Unit:
    """One checkout of a connection; after each commit or rollback it can begin again.

    It is *open* from its first statement to its end, and *anchored* while it has a savepoint: one that only read
    gives its savepoint up when another works.
    """

    def __init__(self, units: Units, number: int) -> None:
        self.units = units
        self.open = False
        self.anchored = False
        self.name = ""
        """Of its savepoint."""
        self.reads = True
        """Has it only sent what looks like reading?"""
        self.nested: list[str] = []
        """Its own savepoints."""
        self.held = -1
        """Others' work lies inside of it, and of so many of its own savepoints; -1: none."""
        self.failed = False
        """Did a statement fail, so that PostgreSQL takes nothing but a rollback?"""
        self.undone = False
        """Was it rolled back already, when another began to work?"""
        self._suffix = f"_u{number}"

    def before(self, statement: str) -> tuple[list[str], str]:
        """It is about to send a statement. What to send first, and the statement as it is to be sent. Raises
        Rejected for what must not be sent, and where nothing more can be done."""
        units = self.units
        facts = statements.facts(statement, units.family)
        with units.lock:
            units.check()
            if facts.refused:
                raise Rejected(facts.refused, reason=facts.reason)
            first = self._begin_or_work(facts.reads)
            if facts.savepoint:
                units._nested(self, facts.savepoint, facts.name)
                return first, statements.renamed(statement, self._suffix)
            return first, statement

    def begin(self) -> list[str]:
        """Something unknown is about to be done on its connection. What to send first."""
        with self.units.lock:
            self.units.check()
            return self._begin_or_work(False)

    def work_unseen(self) -> None:
        """The same, where nothing can be sent: without a savepoint before it, it cannot be rolled back alone."""
        units = self.units
        with units.lock:
            units.check()
            if self.undone:
                raise _swallowed(units.resource)
            self.open, self.reads = True, False
            if not self.anchored:
                units._loose.add(self)
            for other in units._younger(self) if self.anchored else units._open[-1:]:
                other.held = len(other.nested)

    def _begin_or_work(self, reads: bool) -> list[str]:
        if self.undone:
            raise _swallowed(self.units.resource)
        if not self.open:
            self.open = self.reads = True
        first = self.units._works(self, reads) if self.anchored else self.units._begin(self)
        self.reads = self.reads and reads
        return first

    def end(self, commit: bool) -> tuple[list[str], Rejected | None]:
        """It commits or rolls back. What to send, and what to raise then. Raises OverlappingUnits, and on commit
        whatever keeps it from being one."""
        units = self.units
        with units.lock:
            if not self.open:
                return [], None
            swallowed = self.undone or (commit and self.failed)
            self.open = self.undone = self.failed = False
            if units.lost is not None or units.over or _forks.inherited():
                units._forget(self)
                if commit:
                    units.check()
                return [], None  # It was undone with the branch, or will be.
            if not units.whole.active:
                # Too late: nothing can be sent. It stays where it is, for the branch's end to see.
                if commit:
                    units.check()
                return [], None
            if self in units._loose:
                units._loose.discard(self)
                units._loose_end(commit and not swallowed)
            sent = units._end(self, commit and not swallowed) if self.anchored else []
            return sent, _swallowed(self.units.resource) if commit and swallowed else None

    def on_error(self, error: BaseException) -> None:
        """A statement of it failed. Some errors end more than the unit."""
        self.failed = self.units.family == "postgresql" and bool(sqlstate_of(error))
        reason = reason_of(error)
        if reason in (reasons.DEADLOCK, reasons.SERIALIZATION_FAILURE):
            self.units.doom(
                Rejected(f"the branch on {self.units.resource!r} is dead: {error}", reason=reason)
            )

    def broken(self, error: BaseException) -> TxcoordError:
        """The connection is lost, or it is not known any more what is open on it. Answers the error to raise."""
        resource, reason, state = self.units.resource, reason_of(error), sqlstate_of(error)
        if state in ("25P01", "3B001"):  # No transaction, or no such savepoint.
            reason = reasons.GUARD
            what = (
                f"someone ended the branch's transaction on {resource!r} (a hidden COMMIT or ROLLBACK); what was done "
                "before a stray COMMIT is in the database"
            )
        elif state == "25P02":
            reason, what = (
                reasons.SILENT_ROLLBACK,
                f"a statement on {resource!r} failed and its error was swallowed",
            )
        elif reason in reasons.RETRYABLE_ABORTS:
            what = f"the branch on {resource!r} is dead: {error}"
        else:
            reason = reasons.CONNECTION_LOST
            what = f"the connection to {resource!r} is lost: {type(error).__name__}: {error}"
        return self.units.doom(Rejected(what, reason=reason))


def _again(error: TxcoordError) -> TxcoordError:
    """The same error once more, with a trace of its own."""
    return type(error)(error.message, reason=error.reason)


def _swallowed(resource: str) -> Rejected:
    return Rejected(
        f"a statement on {resource!r} failed and its error was swallowed: nothing of this session or connection can be "
        "committed, it was rolled back",
        reason=reasons.SILENT_ROLLBACK,
    )


def _undo(name: str) -> list[str]:
    return [f"ROLLBACK TO SAVEPOINT {name}", f"RELEASE SAVEPOINT {name}"]


def install(units: Units) -> None:
    """Let the branch's end see to the units first."""
    held: Any = units.branch.held
    flush = held.flush

    async def flush_after_units() -> None:
        sql = units.finish()
        if sql:
            await held.execute(sql)
        await flush()

    def flush_after_units_in_a_thread() -> None:
        sql = units.finish()
        if sql:
            held.execute(sql)
        flush()

    held.flush = flush_after_units if inspect.iscoroutinefunction(flush) else flush_after_units_in_a_thread
