"""The core's own ``replace`` does what that of dataclasses does."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from txcoord.core.action import Action, Retry
from txcoord.core.events import DeadlinePassed, Rollback
from txcoord.core.evolve import replace
from txcoord.core.model import Branch, BranchState, Change, ChangeKind, Kind, Tx

BRANCH = Branch("1", Kind.TCC, resource="grpc://x", action=Action("Reserve", retry=Retry(5)))
TX = Tx("0" * 32, "shop", 9, "order-1", labels={"a": "b"}, branches=(BRANCH,))


@pytest.mark.parametrize(
    ("record", "changes"),
    [
        (TX, {"version": 3, "branches": ()}),
        (TX, {}),
        (BRANCH, {"state": BranchState.DONE, "attempts": 2}),
        (BRANCH.action, {"run_first": True}),
        (Change(ChangeKind.INSERT, TX), {"tx": replace(TX, gid="")}),
        (DeadlinePassed(), {"probed": True}),
        (Rollback(TX), {"probed": True}),
    ],
)
def test_a_record_with_fields_changed(record: Any, changes: dict[str, Any]) -> None:
    before = dataclasses.astuple(record)
    found = replace(record, **changes)
    assert found == dataclasses.replace(record, **changes)
    assert (type(found), found is record) == (type(record), False)
    assert dataclasses.astuple(record) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(found, dataclasses.fields(found)[0].name, 1)


def test_what_it_cannot_do_it_refuses() -> None:
    with pytest.raises(TypeError, match="no field 'nothing'"):
        replace(TX, nothing=1)  # type: ignore[call-arg]

    @dataclasses.dataclass(frozen=True)
    class Open:
        a: int = 1

    @dataclasses.dataclass(slots=True)
    class Busy:
        a: int = 1

        def __post_init__(self) -> None:
            self.a += 1

    for record in (Open(), Busy()):
        with pytest.raises(TypeError, match="no record with slots"):
            replace(record, a=2)


def test_what_a_record_has_found_out_of_its_fields_is_not_handed_on() -> None:
    """Branches by their ids, and who comes after whom: as they were, each plan would go by states that are past."""

    def step(number: str, *after: str) -> Branch:
        return Branch(
            number, Kind.SAGA, BranchState.READY, action=Action(number, run_first=True, after=after)
        )

    tx = replace(TX, branches=(step("1"), *(step(str(n), "1") for n in range(2, 10))))
    first, last = tx.branches[0], tx.branch("9")
    assert last is not None
    undoing = replace(first, state=BranchState.UNDOING)
    assert not tx.may_go(undoing)
    done = replace(tx, branches=(undoing, *(replace(b, state=BranchState.UNDONE) for b in tx.branches[1:])))
    assert done.branch("9") == replace(last, state=BranchState.UNDONE)
    assert done.may_go(undoing)
