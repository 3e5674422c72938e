"""When a decided transaction waits: nothing of it is to be done before some later time."""

from __future__ import annotations

from .events import Call, Finish
from .model import Tx
from .settle import effects_of


def first_due(tx: Tx, after_us: int) -> Call | Finish | None:
    """What is due first of a decided transaction if all that is left to do is due later than ``after_us``; else None.

    None too where nothing is left, or only an operator can move it on; and of a plan that runs: whoever reads it again
    has to take it for one that may have been committed.
    """
    if tx.decision is None or not any(b.next_attempt_us > after_us for b in tx.branches) or tx.rests:
        return None
    first: Call | Finish | None = None
    for effect in effects_of(tx):
        if isinstance(effect, Call | Finish):
            if effect.at_us <= after_us:
                return None
            if first is None or effect.at_us < first.at_us:
                first = effect
    return first
