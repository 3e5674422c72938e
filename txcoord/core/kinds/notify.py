"""Best-effort delivery: at most N attempts on a schedule, then parked."""

from .rules import KindRules

RULES = KindRules(
    first_phase=False,
    finishes=True,
    undoes=False,
    driven_by="caller",
    parks_when_spent=True,
    on_commit="deliver at most N times",
    on_abort="nothing",
)
