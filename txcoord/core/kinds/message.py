"""Guaranteed message: delivered until it arrives, once the whole is COMMITTED."""

from .rules import KindRules

RULES = KindRules(
    first_phase=False,
    finishes=True,
    undoes=False,
    driven_by="caller",
    parks_when_spent=True,
    on_commit="deliver until it arrives",
    on_abort="nothing",
)
