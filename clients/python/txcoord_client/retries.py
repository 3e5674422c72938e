"""When a call of a participant is made again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ._pb import common_pb2 as c
from .errors import Rejected
from .protocol import reasons


@dataclass(frozen=True, slots=True)
class Retry:
    """A retry policy, of one step or of a whole saga. Times in seconds; what is 0 is as the coordinator has it.

    A failure is tried again after a random part of ``first``, ``first * factor``, … seconds, at most ``cap``; after an
    answer, *pending* too, it begins anew. After ``attempts`` failures in a row, or ``give_up`` seconds after the first
    attempt, an action is given up, and the saga is undone. ``schedule``: the pauses themselves, instead of a back-off;
    when it is used up the same happens. What undoes a step is asked for with the same pauses until it is done; the
    coordinator's own budget parks it for an operator. ``call_timeout``: of one call.

    Raises Rejected for what is negative, and for a factor below 1.
    """

    first: float = 0.0
    factor: float = 0.0
    cap: float = 0.0
    attempts: int = 0
    give_up: float = 0.0
    call_timeout: float = 0.0
    schedule: Sequence[float] = ()

    def __post_init__(self) -> None:
        times = (self.first, self.cap, self.give_up, self.call_timeout, self.attempts, *self.schedule)
        if any(t < 0 for t in times) or (self.factor and self.factor < 1):
            raise Rejected(
                f"{self}: nothing is negative, and factor is at least 1", reason=reasons.BAD_REQUEST
            )

    def to_pb(self) -> c.RetryPolicy:
        """As it is sent."""
        return c.RetryPolicy(
            call_timeout_us=_us(self.call_timeout),
            initial_us=_us(self.first),
            multiplier=self.factor,
            cap_us=_us(self.cap),
            max_attempts=self.attempts,
            give_up_us=_us(self.give_up),
            schedule_us=[_us(pause) for pause in self.schedule],
        )


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
