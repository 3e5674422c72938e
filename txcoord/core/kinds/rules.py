"""The questions that the machine asks of every kind."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KindRules:
    """How a kind differs from the others. Adding a kind is answering these, and a table in lifecycle."""

    first_phase: bool
    """Has it a vote that Commit depends on? False for deliveries, which leave once the whole is COMMITTED."""
    finishes: bool
    """Is there anything to carry out on commit?"""
    undoes: bool
    """Is there anything to carry out on abort?"""
    driven_by: str
    """Who carries phase two out: ``finisher`` (straight on a database) or ``caller`` (a participant)."""
    parks_when_spent: bool
    """Do failures ever park it? XA is only parked for a heuristic outcome, never for being unreachable."""
    on_commit: str
    on_abort: str
