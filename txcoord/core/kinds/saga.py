"""Saga (Garcia-Molina and Salem, 1987): actions in order or as a graph; compensation in reverse order."""

from .rules import KindRules

RULES = KindRules(
    first_phase=True,
    finishes=False,
    undoes=True,
    driven_by="caller",
    parks_when_spent=True,
    on_commit="nothing",
    on_abort="compensate",
)
