"""XA (X/Open DTP, the XA specification, 1991): work and PREPARE in its database, then COMMIT or ROLLBACK PREPARED."""

from .rules import KindRules

RULES = KindRules(
    first_phase=True,
    finishes=True,
    undoes=True,
    driven_by="finisher",
    parks_when_spent=False,
    on_commit="COMMIT PREPARED",
    on_abort="ROLLBACK PREPARED",
)
