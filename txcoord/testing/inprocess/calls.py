"""What is called in a test, and what goes wrong there on demand."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from txcoord_client._answers import Answer, Call
from txcoord_client._pb import common_pb2 as c

OPS = ("try", "confirm", "cancel", "action", "compensate", "message", "notify", "callback")
_ALSO = {"attempt": "try"}
FIRST = {"confirm": "try", "cancel": "try", "compensate": "action"}


@dataclass(frozen=True, slots=True)
class Called:
    """One call of a participant, as it was answered."""

    at_us: int
    """Virtual time, UTC microseconds."""
    tx_id: str
    gid: str
    branch: str
    operation: str
    """``stock.Reserve``"""
    op: str
    """``try``, ``confirm``, ``cancel``, ``action``, ``compensate``, ``message``, ``notify`` or ``callback``."""
    attempt: int
    answer: str
    """``done``, ``refused``, ``pending`` or ``failed``: what the participant answered."""
    reason: str = ""
    repeated: bool = False
    """The barrier found that it was done before: no effect."""
    lost: bool = False
    """The answer never arrived (``txcoord.fail(..., lost=True)``)."""

    @property
    def effect(self) -> bool:
        """Has this call changed anything?"""
        return self.answer == "done" and not self.repeated

    def __str__(self) -> str:
        what = self.answer
        if self.repeated:
            what += ", as before: nothing was done"
        if self.reason:
            what += f" {self.reason}"
        if self.lost:
            what += "; the answer was lost"
        times = f", attempt {self.attempt}" if self.attempt > 1 else ""
        return f"branch {self.branch}: {self.operation} {self.op}{times}: {what}"


@dataclass(slots=True)
class Pattern:
    """Which calls are meant: ``stock``, ``stock.confirm``, ``stock.Reserve``, ``stock.Reserve.confirm``, with ``*``."""

    text: str
    operation: str = field(init=False)
    op: str = field(init=False)

    def __post_init__(self) -> None:
        rest, _, last = self.text.rpartition(".")
        op = _ALSO.get(last, last)
        if rest and op in OPS:
            self.operation, self.op = rest, op
        else:
            self.operation, self.op = self.text, ""
        if not self.operation:
            raise ValueError(
                f"{self.text!r}: name a participant, or one operation, or one op of it: 'stock.confirm', "
                "'stock.Reserve', 'stock.Reserve.confirm'"
            )

    def matches(self, operation: str, op: str) -> bool:
        """Is this call meant?"""
        named = fnmatchcase(operation, self.operation) or fnmatchcase(operation, f"{self.operation}.*")
        return named and self.op in ("", op)


@dataclass(slots=True)
class Fault:
    """What goes wrong."""

    pattern: Pattern
    said: str
    """The line of the test that asked for it."""
    left: int | None
    """So many times yet; None: always."""
    answer: Answer | None
    """Instead of the participant's; None: it never answers."""
    lost: bool = False
    """The participant does it first."""
    used: int = 0


class Faults:
    """All of them. Used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.asked: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """The first that matches counts."""
        with self._lock:
            self.asked.append(fault)

    def take(self, call: Call) -> Fault | None:
        """What goes wrong with this call, if anything."""
        with self._lock:
            for fault in self.asked:
                if fault.left != 0 and fault.pattern.matches(call.operation, call.op):
                    fault.used += 1
                    if fault.left is not None:
                        fault.left -= 1
                    return fault
        return None

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        with self._lock:
            for fault in self.asked:
                fault.left = 0


def failed(code: str) -> Answer:
    """A failure that says this."""
    return Answer(c.ANSWER_KIND_FAILED, reason=code, message="txcoord.fail")


KINDS = {
    c.ANSWER_KIND_DONE: "done",
    c.ANSWER_KIND_REFUSED: "refused",
    c.ANSWER_KIND_PENDING: "pending",
    c.ANSWER_KIND_FAILED: "failed",
}


def called(at_us: int, call: Call, answer: Answer, *, lost: bool = False) -> Called:
    """The record of a call."""
    text = "" if answer.message in ("", "refused") else answer.message
    reason = f"{answer.reason}: {text}" if text else answer.reason
    return Called(
        at_us,
        call.tx_id,
        call.gid,
        call.branch,
        call.operation,
        call.op,
        call.attempt,
        KINDS.get(answer.kind, "failed"),
        reason,
        answer.repeated,
        lost,
    )
