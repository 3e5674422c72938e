"""One instrumented target: which transaction its code is in, and the branch that it works on there."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any

from .. import _scope as scope
from ..errors import NoTransaction, Rejected
from .units import Branch, Units, install

_KEEPING = threading.Lock()
MARK = "_txcoord_instrumented"


class Home:
    """An instrumented engine, pool or alias, and its Coordinator."""

    def __init__(self, coordinator: Any, resource: str, *, refuses: bool) -> None:
        self.resource = resource
        self.refuses = refuses
        """Are writes outside of a transaction refused?"""
        self._coordinator = coordinator
        """Of the asynchronous or the synchronous SDK."""

    def current(self) -> Any:
        """The transaction that this code runs in. Raises NoTransaction where its transaction has ended: what was
        started inside, such as a task, does not go on outside unnoticed."""
        found = self._coordinator._current.get()
        if found is None or found.active:
            return found
        if self.refuses:
            return None  # It may read.
        raise NoTransaction(
            f"the global transaction in which this code was started has ended: on {self.resource!r} it would work "
            "outside of it. Say `with coord.outside():` if that is meant"
        )

    def name(self, target: Any, marked: Any) -> None:
        """Give an engine or pool its name at the Coordinator, and leave a mark. Raises Rejected for one that has it
        already."""
        if getattr(marked, MARK, False):
            raise Rejected("this engine or pool is instrumented already")
        self._coordinator._resources.name(self.resource, target)
        setattr(marked, MARK, True)

    def add(self, target: Any, source: Any, alias: str = "") -> None:
        """Make a target of a kind of its own known to the Coordinator."""
        self._coordinator._resources.add(target, source, alias)

    def units(
        self, target: Any, family: str, may_join: Callable[[Branch], None] = lambda branch: None
    ) -> Units | None:
        """The units of the current transaction's branch, which is opened if need be; None: there is none."""
        tx = self.current()
        known = self._known(tx)
        if tx is None or known is not None:
            return known
        with scope.opening_a_branch():
            branch = _wait(tx._enter_xa(target, self.resource))
        return self._entered(tx, branch, family, may_join)

    async def units_in_loop(self, target: Any, family: str) -> Units | None:
        """The same, for who can wait."""
        tx = self.current()
        known = self._known(tx)
        if tx is None or known is not None:
            return known
        with scope.opening_a_branch():
            branch = await tx._enter_xa(target, self.resource)
        return self._entered(tx, branch, family, lambda branch: None)

    def kept(self, tx: Any) -> dict[Any, Any]:
        """What of this target is kept with a transaction: it goes with it."""
        with _KEEPING:
            every: dict[Home, dict[Any, Any]] = tx.__dict__.setdefault("_instrumented", {})
            return every.setdefault(self, {})

    def _known(self, tx: Any) -> Units | None:
        known: Units | None = self.kept(tx).get("units") if tx is not None else None
        if known is not None:
            known.check()
        return known

    def _entered(self, tx: Any, branch: Any, family: str, may_join: Callable[[Branch], None]) -> Units:
        tx._leave_xa(branch, None)  # Units have an end of their own.
        kept = self.kept(tx)
        with _KEEPING:
            known: Units | None = kept.get("units")
            if known is None:  # Or another task or thread was faster.
                may_join(branch)
                known = kept["units"] = Units(tx, branch, family)
                install(known)
        return known

    def no_transaction(self, error: BaseException) -> NoTransaction:
        """What a write that the database refused outside of a transaction is told as."""
        return NoTransaction(
            f"a write on {self.resource!r} outside of a global transaction. Begin one before the session or connection "
            f"is first used, or say `with coord.outside():` for work that is meant to be local ({error})"
        )

    def is_held(self, connection: Any) -> bool:
        """Is this synchronous connection of SQLAlchemy's a branch's own?"""
        tx = self._coordinator._current.get()
        branches = list(tx._branches.values()) if tx is not None else []
        return any(getattr(branch.held, "_sync", None) is connection for branch in branches)


def _wait(value: Any) -> Any:
    """From within SQLAlchemy's greenlet, where it must be awaited."""
    if not inspect.isawaitable(value):
        return value
    from sqlalchemy.util import await_only

    return await_only(value)
