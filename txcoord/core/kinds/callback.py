"""Completion callback: whoever asked is told, at least once, when the whole has ended, whichever way."""

from .rules import KindRules

RULES = KindRules(
    first_phase=False,
    finishes=True,
    undoes=False,
    driven_by="caller",
    parks_when_spent=True,
    on_commit="tell that it was committed",
    on_abort="tell that it was aborted",
)
