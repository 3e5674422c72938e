"""Try, confirm, cancel: the try reserves, confirm uses the reservation, cancel gives it back."""

from .rules import KindRules

RULES = KindRules(
    first_phase=True,
    finishes=True,
    undoes=True,
    driven_by="caller",
    parks_when_spent=True,
    on_commit="confirm",
    on_abort="cancel",
)
