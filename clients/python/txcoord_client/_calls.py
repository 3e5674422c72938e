"""A call to another service that carries the transaction: outstanding from its sending to its vote."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from . import _carrying
from ._pb import common_pb2 as c
from .errors import Rejected
from .protocol import reasons


class Carrier(Protocol):
    """What of a transaction its calls need."""

    @property
    def remaining(self) -> float: ...

    def _call_sent(self, what: str) -> c.CallContext: ...

    def _call_voted(self, number: str, vote: c.CallVote | None) -> None: ...

    def _call_failed(self, number: str, why: str, vote: c.CallVote | None = None) -> None: ...


class Caller(Protocol):
    """A Coordinator."""

    def current_or_none(self) -> Carrier | None: ...


def begin_call(caller: Caller, what: str) -> Call | None:
    """A call of the current transaction; None outside of one."""
    tx = caller.current_or_none()
    return None if tx is None else Call(tx, what)


class Call:
    """``with call: …`` Whatever happens in the block but an answer with a vote makes the transaction rollback-only."""

    def __init__(self, tx: Carrier, what: str) -> None:
        self._tx = tx
        self._answered = False
        if tx.remaining <= 0:
            raise Rejected(f"the deadline has passed: {what} was not sent", reason=reasons.DEADLINE)
        self.context = tx._call_sent(what)

    @property
    def header(self) -> str:
        """The context for HTTP."""
        return _carrying.context_header(self.context)

    @property
    def remaining(self) -> float:
        """Seconds until no answer is of use."""
        return max(self._tx.remaining, 0.001)

    def limited(self, timeout: float | None) -> float:
        """The caller's own time-out, in seconds, or what is left if that is less."""
        return self.remaining if timeout is None else min(timeout, self.remaining)

    def answered(self, status: int, vote: c.CallVote | None) -> None:
        """An HTTP reply is here."""
        self._answered = True
        if status < 400:
            self._tx._call_voted(self.context.branch, vote)
        else:
            # Its vote, where there is one, has the reason: whether another try may help depends on that.
            self._tx._call_failed(self.context.branch, f"answered {status}", vote)

    def failed(self, why: str) -> None:
        """No reply, as far as one can tell."""
        self._answered = True
        self._tx._call_failed(self.context.branch, why)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._answered:
            self.failed(f"{type(error).__name__}: {error}" if error is not None else "it was not answered")
