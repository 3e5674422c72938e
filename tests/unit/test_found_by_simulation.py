"""What the simulation (``tests/sim``) has found, each as small as it can be said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from txcoord.core.events import HolderReported
from txcoord.core.machine import decide
from txcoord.core.model import Decision, Tx, TxState, Windows

_TX = Tx(
    "018bcfe5683c7f54ab72f74478bef507",
    "default",
    1_000_000,
    state=TxState.COMMITTED,
    decision=Decision.COMMIT,
    ended_us=900_000,
    detail_pruned=True,
)


@pytest.mark.parametrize("committed", [True, None])
def test_a_holder_that_reports_after_the_branches_were_forgotten_raises_no_alarm(
    committed: bool | None,
) -> None:
    """Seed 831: a session's process stood still until retention had stripped the row."""
    event = HolderReported("1", "b", "x", committed)
    assert decide(_TX, event, 2_000_000, Windows()).refusal is None


def test_one_that_has_rolled_back_what_was_committed_does() -> None:
    event = HolderReported("1", "b", "x", False)
    assert decide(_TX, event, 2_000_000, Windows()).refusal is not None
    event = replace(event, committed=True)
    assert decide(replace(_TX, detail_pruned=False), event, 2_000_000, Windows()).refusal is not None
