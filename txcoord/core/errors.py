"""Errors of the core. Each carries its facts and a stable reason code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


class IllegalTransition(Exception):
    """An event that the tables do not know in this state: a bug, never bad input."""

    def __init__(self, state: str, event: str) -> None:
        super().__init__(f"no transition from {state} on {event}")
        self.state = state
        self.event = event


@dataclass(frozen=True, slots=True)
class Refusal:
    """A clear no. ``code`` is the name of the gRPC status code that says it best."""

    code: str
    reason: str
    message: str
    definite: bool = True
    """Is it certain that the operation had, and will have, no effect?"""
    facts: Mapping[str, str] = field(default_factory=dict)
    retry_after_us: int = 0


class Refused(Exception):
    """A refusal on its way to the edge."""

    def __init__(self, refusal: Refusal, outcome: object = None) -> None:
        super().__init__(f"{refusal.reason}: {refusal.message}")
        self.refusal = refusal
        self.outcome = outcome
        """What the edge tells of the transaction beside the refusal, in its own form."""
