# Made from txcoord_client/sagas.py by scripts/sync; to change it, change that.
"""Sagas: steps in order or as a graph, handed over to the coordinator as one plan.

ship = saga("ship").step(pack).step(label).step(hand_over, forward=True)
run = coord.submit(ship, gid=order_id, data={"order": order_id})
run.wait()
run.results["pack"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from .. import _values
from .._pb import common_pb2 as c
from ..errors import Rejected
from ..protocol import reasons
from ..retries import Retry
from .participant import Operation, operation_of


@dataclass(frozen=True, slots=True)
class Step:
    """One step."""

    name: str
    operation: Operation
    after: tuple[str, ...]
    forward: bool
    retry: Retry | None = None

    @property
    def tries(self) -> bool:
        """Is it a reservation, to be confirmed or cancelled?"""
        return self.operation.first == "try"


@dataclass(frozen=True, slots=True)
class Saga:
    """A flow of steps. Each ``step`` gives a new one; mistakes are raised when it is built."""

    name: str
    steps: tuple[Step, ...] = field(default=())

    def step(
        self,
        action: Any,
        *,
        name: str = "",
        after: Sequence[str] | None = None,
        forward: bool = False,
        retries: int = 0,
        timeout: float = 0.0,
        retry: Retry | None = None,
    ) -> Self:
        """Add a step: a function decorated with ``@participant.action``.

        ``after``: names of the steps that come before it (default: the step before; ``[]``: none, it runs side by side
        with the others). ``forward``: it is never compensated, but tried until it is done; nothing that may be refused
        can come after or beside it. ``retries``: how often a failure is tried again before the saga is given up
        (default: to its deadline). ``timeout``: seconds of one call. ``retry``: all of its retry policy, instead of
        these two.

        Raises Rejected for an unknown or repeated step, for ``retry`` beside one of those two, and for one that has no
        compensation and is not ``forward``.
        """
        operation, title, known = self._new(action, name)
        before = tuple(after) if after is not None else self._last()
        if unknown := sorted(set(before) - known):
            raise self._wrong(f"{title} comes after {unknown}, which it does not have yet")
        if operation.first != "action":
            raise self._wrong(f"{title} is no action: a TCC class is added by tcc()")
        if not forward and "compensate" not in operation.after:
            raise self._wrong(f"{title} has no compensation: declare one, or say forward=True")
        retry = self._retry(title, retries, timeout, retry)
        made = Step(title, operation, before, forward, retry)
        if forward and not {s.name for s in self.steps if not s.forward} <= self._before(made):
            raise self._wrong(f"{title} is never undone, so all that may be comes before it")
        if not forward and any(s.forward for s in self.steps):
            raise self._wrong(f"{title} may be refused, and a step that is never undone is there")
        return type(self)(self.name, (*self.steps, made))

    def tcc(
        self,
        reserve: type,
        *,
        name: str = "",
        retries: int = 0,
        timeout: float = 0.0,
        retry: Retry | None = None,
    ) -> Self:
        """Add a reservation: a class decorated with ``@participant.tcc``, whose try the coordinator runs. It is
        confirmed when everything is done, and cancelled when anything is refused.

        All tries are run at once, side by side; steps come after them, and are given what they returned as they are
        given the results of steps. The rest is as in :meth:`step`. Raises Rejected for a try after a step.
        """
        operation, title, _ = self._new(reserve, name)
        if operation.first != "try":
            raise self._wrong(f"{title} is no TCC class: an action is added by step()")
        if any(not s.tries for s in self.steps):
            raise self._wrong(f"{title} reserves before anything is done: add it before the steps")
        retry = self._retry(title, retries, timeout, retry)
        return type(self)(self.name, (*self.steps, Step(title, operation, (), False, retry)))

    def _new(self, target: Any, name: str) -> tuple[Operation, str, set[str]]:
        operation = operation_of(target)
        title = name or operation.name
        known = {s.name for s in self.steps}
        if title in known:
            raise self._wrong(f"two steps are called {title!r}")
        return operation, title, known

    def _last(self) -> tuple[str, ...]:
        """The step before, or all tries."""
        if self.steps and self.steps[-1].tries:
            return tuple(s.name for s in self.steps)
        return tuple(s.name for s in self.steps[-1:])

    def _retry(self, title: str, retries: int, timeout: float, retry: Retry | None) -> Retry | None:
        if not retries and not timeout:
            return retry
        if retry is not None:
            raise self._wrong(f"{title}: retry= says all; retries= and timeout= are for short")
        return Retry(attempts=retries + 1 if retries else 0, call_timeout=timeout)

    def _wrong(self, message: str) -> Rejected:
        return Rejected(f"saga {self.name!r}: {message}", reason=reasons.BAD_REQUEST)

    def _before(self, step: Step) -> set[str]:
        by_name = {s.name: s for s in self.steps}
        out: set[str] = set()
        left = list(step.after)
        while left:
            name = left.pop()
            if name not in out:
                out.add(name)
                left.extend(by_name[name].after)
        return out

    def branches(self, targets: Mapping[str, str], data: Mapping[str, Any]) -> list[c.Branch]:
        """The plan. Raises Rejected for data that do not fit."""
        if not self.steps:
            raise self._wrong("it has no step")
        used: set[str] = set()
        out = [self._branch(step, targets[step.operation.participant], data, used) for step in self.steps]
        if unused := sorted(set(data) - used):
            raise self._wrong(f"no step takes {unused}")
        return out

    def _branch(self, step: Step, target: str, data: Mapping[str, Any], used: set[str]) -> c.Branch:
        ids = {s.name: str(number) for number, s in enumerate(self.steps, 1)}
        names = _values.parameters(step.operation.attempt, 1)
        anything = _values.takes_anything(step.operation.attempt)
        before = self._before(step)
        results = [name for name in names if name in before]
        given = {
            name: value for name, value in data.items() if (anything or name in names) and name not in results
        }
        missing = [
            name for name, needed in names.items() if needed and name not in given and name not in results
        ]
        if missing:
            raise self._wrong(f"{step.name} is not given {missing}")
        used.update(given)
        branch = c.Branch(
            id=ids[step.name],
            kind=c.KIND_TCC if step.tries else c.KIND_SAGA,
            name=step.name,
            after=[ids[name] for name in step.after],
            action=c.ActionPart(
                target=target,
                operation=step.operation.full_name,
                payload=_values.encode(given),
                run_first=True,
                forward=step.forward,
                results_of=[ids[name] for name in results],
            ),
        )
        if step.retry is not None:
            branch.retry.CopyFrom(step.retry.to_pb())
        return branch


def saga(name: str) -> Saga:
    """A flow without steps yet: ``saga("ship").step(pack).step(label)``."""
    return Saga(name)
